//! Everything before a request reaches a service: the listener, TLS, connections, and limits on
//! the bytes of requests.

pub mod connections;
pub mod counters;
pub mod deadline;
pub mod grpc_only;
pub mod headers;
pub mod listener;
pub mod requests;
