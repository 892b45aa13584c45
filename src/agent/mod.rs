//! The agent: a process beside a program that does not know Trunkline. It speaks Redis' protocol to
//! that program, and is a node of Trunkline on the other side.
//!
//! What it decides is free of sockets, clocks and tasks:
//!
//! - [`resp`]: Redis' protocol;
//! - [`session`]: one connection, from its first byte to its last;
//! - [`formats`]: what messages mean, as events of Trunkline, and what heals a program that missed
//!   some.
//!
//! [`serve`] is what it does with that.

pub mod formats;
pub mod resp;
pub mod serve;
pub mod session;
