//! The simulation: a model of Redis that executes the real Lua scripts, held to real servers.
//!
//! The model ([`redis`]) is one server without sockets, threads or a clock of its own: the caller
//! sets its time, takes what it published, copies it (a snapshot, a replica) and puts an older copy
//! in its place (a failover). The differential test sends random calls of the real scripts to the
//! model and to a real server, and wants the same answers, messages and keys.

#[path = "../support/mod.rs"]
mod support;

mod differential;
mod recovery;
mod redis;
