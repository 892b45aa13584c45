//! The agent: a process beside a program that does not know Trunkline. It speaks Redis' protocol to
//! that program, and is a node of Trunkline on the other side.
//!
//! Here is what it decides, free of sockets, clocks and tasks:
//!
//! - [`resp`]: Redis' protocol;
//! - [`session`]: one connection, from its first byte to its last;
//! - [`formats`]: what messages mean, as events of Trunkline, and what heals a program that missed
//!   some.
//!
//! No command of `trunkline` uses it yet.

pub mod formats;
pub mod resp;
pub mod session;
