//! RESP, the protocol of Redis, as a server speaks it: commands in, replies and pushes out, in both
//! of its versions.
//!
//! Nothing here reads a socket. A command is checked against [`Limits`] as its bytes arrive, so
//! that no count or length that a client announces makes the agent hold more than they allow.

mod inline;
mod parser;
mod reply;

pub use self::{
    parser::{Command, Limits, Parser, ProtocolError},
    reply::{Reply, Version, message},
};
