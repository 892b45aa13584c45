//! What an operator does and sees: who may connect, the admin port and its page, logs and traces, a
//! load balancer in front.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod admin;
mod alerts;
mod clock;
mod envoy;
mod http;
mod kubernetes;
mod logs;
mod metrics;
mod nginx;
mod page;
mod signals;
mod site;
mod standard_error;
mod traces;
