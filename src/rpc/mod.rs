//! The gRPC service: publish, subscribe, nodes and status; validation, and the health protocol.

mod body;
mod encoded;
mod explain;
pub mod health;
mod lists;
mod messages;
pub mod orca;
mod publish;
mod publish_stream;
pub mod reflection;
mod request;
mod server;
mod shard_batch;
mod stream;
mod subscribe;
mod traces;
mod validate;
mod watch;

use std::{sync::Arc, time::Duration};

use rand::Rng;
use tokio::time::Instant;

use crate::{
    access::quota::Quotas,
    config::Limits,
    leave::Leave,
    lifecycle::Lifecycle,
    observe::{Records, load::LoadReports, trace::Tracer},
    presence::Nodes,
};

pub use self::{body::ResponseBody, server::Server};

/// Everything that requests need.
pub struct Context {
    /// The state of this gateway, and its hub.
    pub gateway: Arc<Lifecycle>,
    /// The open streams.
    pub nodes: Arc<Nodes>,
    /// Limits on requests.
    pub limits: Limits,
    /// The quotas of each identity.
    pub quotas: Arc<Quotas>,
    /// The heartbeat interval of streams that do not ask for one.
    pub heartbeat: Duration,
    /// The deployment, as resume tokens name it.
    pub deployment: u32,
    /// Records requests, streams and failures.
    pub records: Arc<Records>,
    /// Makes the load reports that responses carry.
    pub load: Arc<LoadReports>,
    /// Makes the spans of recorded traces.
    pub tracer: Tracer,
}

impl Context {
    /// When a stream that opens now is asked to leave for its age, if that has a limit: at a random
    /// age within a tenth of it, so that streams that were opened at one time leave at several.
    fn leave_at_age(&self) -> Option<(Instant, Leave)> {
        let age = self.limits.max_stream_age?.mul_f64(rand::rng().random_range(0.9..1.1));
        Some((Instant::now() + age, Leave::at_age(age)))
    }
}
