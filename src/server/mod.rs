//! The gRPC server: the service, its errors, health, reflection, and how it goes away.

mod access;
mod admin;
mod counters;
mod error;
mod health;
mod http1;
mod listener;
mod nodes;
mod oversized;
mod service;
mod stream;
mod validate;
pub(crate) mod wire;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use parking_lot::RwLock;
use tokio::{net::TcpListener, sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;

use self::{
    access::AccessLayer,
    counters::Counters,
    health::HealthState,
    nodes::{About, Nodes, membership},
    service::{Service, Shared, generated::coordination_service_server::CoordinationServiceServer},
    stream::Drain,
};
use crate::{
    bus::{EmbeddedBus, Health, SharedBus, Sink, StartError, redis},
    config::Config,
    hub::{Hub, log::Capacity, token::deployment_tag},
    proto::v1,
};

/// Shards of the embedded bus, where nothing else is set.
const EMBEDDED_SHARDS: u16 = 1;

/// The wait before the last values are asked for again.
const LAST_VALUES_RETRY: Duration = Duration::from_millis(200);

/// How long connections may take to close once their streams have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that may lie between a cursor and a connection that does not take them, per stream: what hides a slow reader.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Two processes with one node id count as live when both have been connected for so long.
const TAKEOVER: Duration = Duration::from_secs(55);

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
    /// The gRPC server ended.
    #[error("the server ended: {0}")]
    Transport(#[from] tonic::transport::Error),
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

    let shared = Arc::new(shared(&config, address));
    // Whoever looks sees the whole of it: from before the bus is there until after it is closed.
    let gone = CancellationToken::new();
    let _gone = gone.clone().drop_guard();
    let admin =
        admin.map(|listener| tokio::spawn(admin::serve(listener, shared.clone(), gone.clone())));
    let ended = CancellationToken::new();
    let health = HealthState::new(ended.clone());
    let mut server = std::pin::pin!(grpc(listener, &config, &shared, &health, ended.clone()));
    let mut start = std::pin::pin!(start_bus(&config, &shared));
    let mut shutdown = std::pin::pin!(shutdown);

    // The port answers at once, and says NOT_SERVING until the bus is proven.
    let bus = tokio::select! {
        bus = &mut start => bus?,
        result = &mut server => return Ok(result?),
        () = &mut shutdown => return Ok(()),
    };
    let tasks = TaskTracker::new();
    tasks.spawn(follow_health(
        bus.health(),
        shared.drain.subscribe(),
        health.clone(),
        ended.clone(),
    ));
    tasks.spawn(membership::run(shared.clone(), bus.clone(), ended.clone()));
    tasks.close();

    let result = tokio::select! {
        result = &mut server => result,
        () = &mut shutdown => {
            tracing::info!("draining");
            let drained = drain(&config, &shared, &health);
            tokio::select! {
                result = &mut server => result,
                () = drained => {
                    // Health streams end now, and with them the last connections.
                    ended.cancel();
                    match tokio::time::timeout(CLOSE_TIMEOUT, &mut server).await {
                        Ok(result) => result,
                        // A peer that does not close its connection must not keep the gateway.
                        Err(_) => Ok(()),
                    }
                }
            }
        }
    };
    ended.cancel();
    tasks.wait().await;
    let closed = tokio::time::timeout(config.drain.timeout, bus.close()).await;
    if closed.is_err() {
        tracing::warn!("the bus did not close in time");
    }
    gone.cancel();
    if let Some(admin) = admin {
        // Its only errors are panics.
        let _ = admin.await;
    }
    Ok(result?)
}

fn shared(config: &Config, address: SocketAddr) -> Shared {
    let started = SystemTime::now();
    let about = About {
        gateway_id: config.gateway_id.clone(),
        // "All addresses" is none that others could use.
        address: if address.ip().is_unspecified() { String::new() } else { address.to_string() },
        started,
    };
    Shared {
        gateway_id: config.gateway_id.clone(),
        deployment: deployment_tag(&config.prefix),
        started,
        limits: config.limits.clone(),
        max_streams: config.limits.max_streams,
        heartbeat: config.heartbeat,
        drain_spread: config.drain.spread,
        hub: OnceLock::new(),
        waiting: RwLock::new("connecting".into()),
        nodes: Arc::new(Nodes::new(about, TAKEOVER)),
        drain: watch::Sender::new(None),
        counters: Counters::default(),
    }
}

async fn grpc(
    listener: TcpListener,
    config: &Config,
    shared: &Arc<Shared>,
    health: &HealthState,
    ended: CancellationToken,
) -> Result<(), tonic::transport::Error> {
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
    Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .layer(http1::Http1Layer)
        .layer(AccessLayer)
        .add_service(health.service())
        .add_service(reflection)
        .add_service(reflection_alpha)
        .add_service(service)
        .serve_with_incoming_shutdown(listener::incoming(listener), ended.cancelled_owned())
        .await
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
    while let Err(error) = hub.load_last_values().await {
        tracing::warn!(%error, "the last values could not be read; trying again");
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
    loop {
        let ready = *bus.borrow_and_update() == Health::Ready;
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
    // After that: whoever sees it finds the gateway draining.
    health.set(false);
    tokio::time::sleep_until(start).await;
    while shared.nodes.count() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
