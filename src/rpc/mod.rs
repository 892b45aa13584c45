//! The gRPC service: publish, subscribe, nodes, status, explain; validation, errors and health.

pub mod body;
pub mod error;
pub mod explain;
pub mod follow;
pub mod health;
pub mod limit;
pub mod service;
pub mod status;
pub mod stream;
pub mod validate;
pub mod wire;
