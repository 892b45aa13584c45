//! The state that several rooms share, and the part of it that each of them gets.

use std::{net::SocketAddr, sync::Arc, time::Duration, time::SystemTime};

use crate::{
    access::{Access, AccessLayer, OnRefused, quota::Quotas},
    config::{Config, Keepalive},
    errors::{Error, Requester},
    hub::token::deployment_tag,
    lifecycle::{About, Lifecycle},
    observe::{Records, admin, counters::Method, load::LoadReports, trace::Tracer},
    port::{connections::ConnectionSlots, counters::Counters},
    presence::Nodes,
    rpc,
};

/// One of everything that several rooms share.
pub struct Rooms {
    pub gateway: Arc<Lifecycle>,
    pub access: Arc<Access>,
    pub quotas: Arc<Quotas>,
    pub slots: Arc<ConnectionSlots>,
    pub port: Arc<Counters>,
    pub nodes: Arc<Nodes>,
    pub records: Arc<Records>,
    pub load: Arc<LoadReports>,
    pub tracer: Tracer,
}

impl Rooms {
    /// `address` is where the gateway listens; `connections` are the limits of connections, in all
    /// and of one peer.
    pub fn new(
        config: &Config,
        address: SocketAddr,
        connections: (usize, usize),
        access: Arc<Access>,
        tracer: Tracer,
    ) -> Rooms {
        let about = About {
            gateway_id: config.gateway_id.clone(),
            deployment: config.deployment.clone().unwrap_or_default(),
            // Nobody can connect to "all addresses".
            address: if address.ip().is_unspecified() {
                String::new()
            } else {
                address.to_string()
            },
            started: SystemTime::now(),
            since: tokio::time::Instant::now(),
        };
        let gateway = Arc::new(Lifecycle::new(about, config.drain.spread));
        let max_streams = config.limits.max_streams;
        let nodes = Nodes::new(
            gateway.clone(),
            max_streams,
            takeover(&config.keepalive),
            config.node_events,
        );
        let (nodes, quotas) = (Arc::new(nodes), Arc::new(Quotas::new(&config.limits)));
        let (records, port) = (Arc::<Records>::default(), Arc::<Counters>::default());
        let of_load = (nodes.clone(), quotas.clone(), records.clone(), port.clone());
        Rooms {
            access,
            quotas,
            slots: Arc::new(ConnectionSlots::new(connections.0, connections.1)),
            port,
            nodes,
            gateway,
            records,
            load: Arc::new(LoadReports::new(of_load.0, of_load.1, of_load.2, of_load.3)),
            tracer,
        }
    }

    /// The access layer, over its part.
    pub fn access_layer(&self) -> AccessLayer {
        AccessLayer::new(self.access.clone(), self.quotas.clone(), self.on_refused())
    }

    /// Records a request that was refused, by its path.
    pub fn on_refused(&self) -> OnRefused {
        let records = self.records.clone();
        Arc::new(move |path: &str, requester: &Requester, error: &Error| {
            records.refused(Method::of(path), requester, error);
        })
    }

    /// The part of the gRPC service.
    pub fn rpc_context(&self, config: &Config) -> rpc::Context {
        rpc::Context {
            gateway: self.gateway.clone(),
            nodes: self.nodes.clone(),
            limits: config.limits.clone(),
            quotas: self.quotas.clone(),
            heartbeat: config.heartbeat,
            deployment: deployment_tag(&config.prefix),
            records: self.records.clone(),
            load: self.load.clone(),
            tracer: self.tracer.clone(),
        }
    }

    /// The part that the admin port shows.
    pub fn admin_sources(&self) -> admin::Sources {
        admin::Sources {
            gateway: self.gateway.clone(),
            nodes: self.nodes.clone(),
            records: self.records.clone(),
            port: self.port.clone(),
            slots: self.slots.clone(),
            quotas: self.quotas.clone(),
            refusals: self.access.refusals.clone(),
            tracer: self.tracer.clone(),
        }
    }
}

/// The time after which a dead connection has certainly been closed.
fn takeover(keepalive: &Keepalive) -> Duration {
    const SLACK: Duration = Duration::from_secs(5);
    // Without keepalive only heartbeats that cannot be sent show the system a dead connection.
    const WITHOUT_KEEPALIVE: Duration = Duration::from_mins(15);
    keepalive.interval.map_or(WITHOUT_KEEPALIVE, |interval| interval + keepalive.timeout + SLACK)
}
