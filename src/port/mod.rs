//! Everything before a request is a request: the listener, TLS, connections, and how many bytes a request may have.

pub mod connections;
pub mod http1;
pub mod listener;
pub mod oversized;
pub mod requests;
