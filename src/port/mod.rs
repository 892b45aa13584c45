//! Everything before a request reaches a service: the listener, TLS, connections, and limits on
//! the bytes of requests.

pub mod connections;
pub mod counters;
mod deadline;
pub mod grpc_only;
pub mod listener;
pub mod requests;
