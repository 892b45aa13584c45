//! Following one event through gateways.
//!
//! An event may carry the context of a trace (W3C Trace Context). Where it says that the trace is recorded, the gateways that it
//! passes tell what they did with it. Of other events nobody looks for more than a flag.

mod context;

pub use context::{Carried, Context, MAX_TRACEPARENT, MAX_TRACESTATE};
