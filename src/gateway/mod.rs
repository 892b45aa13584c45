//! The gateway: starts the rooms, connects them, serves, and drains.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use parking_lot::RwLock;
use tokio::{net::TcpListener, sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tower::Layer;

use crate::{
    access::{Access, AccessLayer, quota::Quotas},
    observe::{admin, lines},
    port::{
        connections::{self, ConnectionSlots, Refusals, Terms},
        http1,
        listener::{self, Admission},
        requests::RequestsLayer,
    },
    presence::{About, Nodes, membership},
    rpc::{
        health::HealthState,
        service::{
            Service, Shared, generated::coordination_service_server::CoordinationServiceServer,
        },
        stream::Drain,
    },
};
use crate::{
    bus::{EmbeddedBus, Health, SharedBus, Sink, StartError, redis},
    config::{Config, Keepalive},
    hub::{Hub, log::Capacity, token::deployment_tag},
    proto::v1,
    throttle::Throttle,
    trace::{self, Tracer},
};

/// Shards of the embedded bus, where nothing else is set.
const EMBEDDED_SHARDS: u16 = 1;

/// The wait before the last values are asked for again.
const LAST_VALUES_RETRY: Duration = Duration::from_millis(200);

/// How long connections may take to close once their streams have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a request to the health and reflection services: a name and little else.
const SMALL_REQUEST: usize = 4096;

/// Files that a process needs besides its connections: the bus, the admin port, logs, the runtime.
const OTHER_FILES: usize = 100;

/// Why a gateway does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("listen: cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error("{0}")]
    Access(String),
    /// The address of the admin port cannot be listened on.
    #[error("admin: cannot listen on {address}: {error}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The bus cannot be used as it is configured.
    #[error("{0}")]
    Bus(#[from] StartError),
}

/// Serves until `shutdown` is ready, then drains. `listening` is told the bound address.
///
/// # Errors
///
/// The gateway cannot serve as it is configured.
pub async fn serve(
    config: Config,
    listening: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let access = Arc::new(Access::new(&config).map_err(ServeError::Access)?);
    warn_if_open(&config);
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| ServeError::Listen { address: config.listen, error })?;
    let admin = match config.admin {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|error| ServeError::Admin { address, error })?,
        ),
        None => None,
    };
    let address = listener.local_addr().unwrap_or(config.listen);
    listening(address);

    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        gateway_id = config.gateway_id,
        config = %config.effective(),
        "starting"
    );
    tracing::info!(%address, "listening");
    let (tracer, exporting) = trace::start(config.otlp.as_ref(), &config.gateway_id);
    let shared = Arc::new(shared(&config, address, access.clone(), tracer));
    // Whoever looks sees the whole of it: from before the bus is there until after it is closed.
    let gone = CancellationToken::new();
    let _gone = gone.clone().drop_guard();
    let admin =
        admin.map(|listener| tokio::spawn(admin::serve(listener, shared.clone(), gone.clone())));
    let ended = CancellationToken::new();
    let tasks = TaskTracker::new();
    // Ends with this function, whichever way that is.
    let _ended = ended.clone().drop_guard();
    tasks.spawn(access.watch(config.reload_interval, ended.clone()));
    let health = HealthState::new(ended.clone());
    let mut server = std::pin::pin!(grpc(listener, &config, &shared, &health, ended.clone()));
    let mut start = std::pin::pin!(start_bus(&config, &shared));
    let mut shutdown = std::pin::pin!(shutdown);

    // The port answers at once, and says NOT_SERVING until the bus is proven.
    let bus = tokio::select! {
        bus = &mut start => bus?,
        () = &mut server => return Ok(()),
        () = &mut shutdown => return Ok(()),
    };
    tasks.spawn(follow_health(
        bus.health(),
        shared.drain.subscribe(),
        health.clone(),
        ended.clone(),
    ));
    tasks.spawn(membership::run(shared.clone(), bus.clone(), ended.clone()));
    tasks.spawn(lines::tell_left_out(ended.clone()));
    tasks.close();

    tokio::select! {
        () = &mut server => {}
        () = &mut shutdown => {
            tracing::info!(streams = shared.nodes.count(), "draining");
            let drained = drain(&config, &shared, &health);
            tokio::select! {
                () = &mut server => {}
                () = drained => {
                    tracing::info!(streams = shared.nodes.count(), "drained");
                    // Health streams end now, and with them the last connections.
                    ended.cancel();
                    // A peer that does not close its connection must not keep the gateway.
                    let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut server).await;
                }
            }
        }
    }
    ended.cancel();
    tasks.wait().await;
    let closed = tokio::time::timeout(config.drain.timeout, bus.close()).await;
    if closed.is_err() {
        tracing::warn!("the bus did not close in time");
    }
    exporting.close().await;
    gone.cancel();
    if let Some(admin) = admin {
        // Its only errors are panics.
        let _ = admin.await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Says what the operator should know of a port that anybody may use.
fn warn_if_open(config: &Config) {
    let listen = config.listen;
    if listen.ip().is_loopback() {
        return;
    }
    if config.tls.is_none() {
        tracing::warn!(%listen, "insecure: nodes connect in plain text, and what they send can be read and changed on the way");
    }
    if config.auth.is_none() {
        tracing::warn!(%listen, "nobody is asked who he is: whoever reaches this port may read and publish everything");
    }
}

/// After so long a connection that died has been found dead, if keepalive looks for such.
fn takeover(keepalive: &Keepalive) -> Duration {
    const SLACK: Duration = Duration::from_secs(5);
    // Without it the system finds a dead connection only by what it cannot send: the heartbeats.
    const WITHOUT_KEEPALIVE: Duration = Duration::from_mins(15);
    keepalive.interval.map_or(WITHOUT_KEEPALIVE, |interval| interval + keepalive.timeout + SLACK)
}

fn shared(config: &Config, address: SocketAddr, access: Arc<Access>, tracer: Tracer) -> Shared {
    let started = SystemTime::now();
    let about = About {
        gateway_id: config.gateway_id.clone(),
        // "All addresses" is none that others could use.
        address: if address.ip().is_unspecified() { String::new() } else { address.to_string() },
        started,
    };
    let limits = &config.limits;
    let (connections, per_peer) =
        within_open_files(limits.max_connections, limits.max_connections_per_peer);
    Shared {
        access,
        gateway_id: config.gateway_id.clone(),
        deployment: deployment_tag(&config.prefix),
        started,
        limits: config.limits.clone(),
        quotas: Arc::new(Quotas::new(limits)),
        slots: Arc::new(ConnectionSlots::new(connections, per_peer)),
        heartbeat: config.heartbeat,
        drain_spread: config.drain.spread,
        hub: OnceLock::new(),
        waiting: RwLock::new("connecting".into()),
        nodes: Arc::new(Nodes::new(about, takeover(&config.keepalive))),
        drain: watch::Sender::new(None),
        recent: Arc::default(),
        counters: Arc::default(),
        tracer,
    }
}

async fn grpc(
    listener: TcpListener,
    config: &Config,
    shared: &Arc<Shared>,
    health: &HealthState,
    ended: CancellationToken,
) {
    let max_request_bytes = config.limits.max_request_bytes;
    let service = CoordinationServiceServer::new(Service::new(shared.clone()))
        .max_decoding_message_size(max_request_bytes)
        .max_encoding_message_size(usize::MAX);
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that grpcurl shows the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection = descriptors().build_v1().expect("the descriptors are those of the build");
    let reflection_alpha =
        descriptors().build_v1alpha().expect("the descriptors are those of the build");
    let routes = Routes::new(health.service().max_decoding_message_size(SMALL_REQUEST))
        .add_service(reflection.max_decoding_message_size(SMALL_REQUEST))
        .add_service(reflection_alpha.max_decoding_message_size(SMALL_REQUEST))
        .add_service(service)
        .prepare();
    let requests = RequestsLayer {
        quotas: shared.quotas.clone(),
        counters: shared.counters.clone(),
        timeout: config.limits.request_timeout,
        max_message: max_request_bytes,
    };
    let access =
        AccessLayer::new(shared.access.clone(), shared.counters.clone(), shared.recent.clone());
    let service = http1::Http1Layer.layer(access.layer(requests.layer(routes)));
    let admission = Admission {
        access: shared.access.clone(),
        handshake_timeout: config.limits.handshake_timeout,
        slots: shared.slots.clone(),
        refusals: Refusals::new(config.tls.is_none()),
        counters: shared.counters.clone(),
    };
    let incoming = listener::incoming(listener, admission);
    let terms = Terms::new(&config.limits, &config.keepalive);
    connections::serve(incoming, service, terms, shared.counters.clone(), ended).await;
}

/// As many connections as the process may have files open, in all and of one peer. Without room for other files, the way to Redis
/// could not be opened again.
fn within_open_files(most: usize, per_peer: usize) -> (usize, usize) {
    let Some(files) = open_files() else { return (most, per_peer) };
    let room = files.saturating_sub(OTHER_FILES).max(1);
    if most <= room {
        return (most, per_peer);
    }
    tracing::warn!(
        "limits.maxConnections is {most}, but this process may open {files} files: it takes {room} connections"
    );
    (room, per_peer.min(room.div_ceil(2)))
}

/// How many files this process may open, where the system says it.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Starts the bus, and gives it to the service.
async fn start_bus(config: &Config, shared: &Arc<Shared>) -> Result<SharedBus, StartError> {
    let capacity = Capacity { bytes: config.log.max_bytes, events: config.log.max_events };
    let new_hub = |shards| Arc::new(Hub::new(shards, capacity));
    let (hub, bus): (Arc<Hub>, SharedBus) = match redis::Settings::from_config(config)? {
        None => {
            let shards = config.shards.unwrap_or(EMBEDDED_SHARDS);
            let hub = new_hub(shards);
            let bus = EmbeddedBus::start(shards, config.request_id_window, hub.clone());
            (hub, Arc::new(bus))
        }
        Some(settings) => {
            let mut made = None;
            let waiting = |why| *shared.waiting.write() = why;
            let bus = redis::RedisBus::start(settings, waiting, |shards| {
                let hub = new_hub(shards);
                made = Some(hub.clone());
                hub as Arc<dyn Sink>
            });
            let bus = bus.await?;
            (made.expect("a bus that started has made its sink"), Arc::new(bus))
        }
    };
    hub.attach(bus.clone());
    let throttle = Throttle::repeated();
    while let Err(error) = hub.load_last_values().await {
        if let Some(left_out) = throttle.pass() {
            tracing::warn!(%error, left_out, "the last values could not be read; trying again");
        }
        tokio::time::sleep(LAST_VALUES_RETRY).await;
    }
    // Set once, here.
    let _ = shared.hub.set(hub);
    Ok(bus)
}

/// Says over the health protocol what the bus says of itself.
async fn follow_health(
    mut bus: watch::Receiver<Health>,
    mut drain: watch::Receiver<Option<Drain>>,
    health: HealthState,
    ended: CancellationToken,
) {
    let mut was_ready = false;
    loop {
        let state = bus.borrow_and_update().clone();
        let ready = state == Health::Ready;
        match state {
            Health::Ready if !was_ready => tracing::info!("the bus is proven"),
            Health::NotReady(why) if was_ready => {
                tracing::warn!(why, "the bus is not proven any more");
            }
            _ => {}
        }
        was_ready = ready;
        health.set(ready && drain.borrow_and_update().is_none());
        tokio::select! {
            changed = bus.changed() => if changed.is_err() { return },
            changed = drain.changed() => if changed.is_err() { return },
            () = ended.cancelled() => return,
        }
    }
}

/// Sends the nodes away, and waits until they are gone or the time is up.
async fn drain(config: &Config, shared: &Arc<Shared>, health: &HealthState) {
    let drain = &config.drain;
    // Load balancers are told by the health protocol, and need a moment to look.
    let start = Instant::now() + drain.delay;
    let deadline = start + drain.timeout;
    shared.drain.send_replace(Some(Drain {
        start,
        spread: drain.spread,
        deadline: SystemTime::now() + drain.delay + drain.timeout,
    }));
    if let Some(hub) = shared.hub.get() {
        hub.wake_all();
    }
    // After that: whoever sees it finds the gateway draining.
    health.set(false);
    tokio::time::sleep_until(start).await;
    while shared.nodes.count() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
