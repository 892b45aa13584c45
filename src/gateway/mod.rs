//! The gateway: starts the rooms, connects them, serves, and drains.

mod drain;
mod ports;
mod reload;
mod rooms;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::{FusedFuture, FutureExt};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{drain::Closing, ports::Listeners, rooms::Rooms};
use crate::{
    access::Access,
    bus::{BusFactory, Health, SharedBus, Sink, StartError, Starting},
    config::Config,
    hub::{Hub, log::Capacity},
    lifecycle::Lifecycle,
    observe::{admin, streams, trace},
    presence::{delivery, membership, moves, node_events},
    rpc::health::HealthState,
};

/// The time in which connections should close once their streams have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reason why a gateway cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address of a port cannot be listened on.
    #[error("{key}: cannot listen on {address}: {error}")]
    Listen {
        /// The key that sets the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        error: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error("{0}")]
    Access(String),
    /// The bus cannot be used as it is configured.
    #[error("{0}")]
    Bus(#[from] StartError),
}

/// Serves over `bus` until `shutdown` is ready, then drains, and returns within the time that
/// `drain` sets. Calls `listening` with the bound address. Takes in what of later configurations
/// (`reloads`) can change while it runs, and logs what has changed.
///
/// # Errors
///
/// The gateway cannot serve as it is configured.
pub async fn serve(
    config: Config,
    bus: &dyn BusFactory,
    listening: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
    reloads: mpsc::Receiver<Config>,
) -> Result<(), ServeError> {
    let access = Arc::new(Access::new(&config).map_err(ServeError::Access)?);
    ports::warn_if_open(&config);
    let grpc = listen("listen", config.listen).await?;
    let admin = match config.admin {
        Some(address) => Some(listen("admin", address).await?),
        None => None,
    };
    let http = match &config.http {
        Some(http) => Some(listen("http.listen", http.listen).await?),
        None => None,
    };
    let address = grpc.local_addr().unwrap_or(config.listen);
    listening(address);

    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        gateway_id = config.gateway_id,
        config = %config.effective(),
        "starting"
    );
    tracing::info!(%address, "listening");
    if let Some(Ok(address)) = http.as_ref().map(TcpListener::local_addr) {
        tracing::info!(%address, "the HTTP port listens");
    }
    let (tracer, exporting) = trace::start(config.otlp.as_ref(), &config.gateway_id);
    let connections = ports::max_connections(&config);
    let rooms = Rooms::new(&config, address, connections, access.clone(), tracer);
    // The admin port shows all of it: from before the bus has started until after it is closed.
    let closed = CancellationToken::new();
    let _closed = closed.clone().drop_guard();
    let admin = admin.map(|listener| {
        tokio::spawn(admin::serve(listener, rooms.admin_sources(), closed.clone()))
    });
    let ended = CancellationToken::new();
    let tasks = TaskTracker::new();
    // Cancelled when this function returns, in whichever way.
    let _ended = ended.clone().drop_guard();
    let (reread, rereads) = mpsc::channel(1);
    tasks.spawn(access.watch(config.reload_interval, rereads, ended.clone()));
    tasks.spawn(reload::follow(config.clone(), reloads, reread, ended.clone()));
    let health = HealthState::new(ended.clone());
    let listeners = Listeners { grpc, http };
    let mut server =
        std::pin::pin!(ports::serve(listeners, &config, &rooms, &health, ended.clone()).fuse());
    let mut start = std::pin::pin!(start_bus(bus, &config, &rooms.gateway));
    let mut shutdown = std::pin::pin!(shutdown);

    // The port answers at once, and reports NOT_SERVING until the bus is verified.
    let bus = tokio::select! {
        bus = &mut start => bus?,
        () = &mut server => return Ok(()),
        () = &mut shutdown => return Ok(()),
    };
    let hub = rooms.gateway.hub.get().expect("a bus that has started").clone();
    tasks.spawn(keep_last_values(rooms.gateway.clone(), ended.clone()));
    tasks.spawn(drain::report_health(
        hub.clone(),
        bus.health(),
        rooms.gateway.last_values(),
        rooms.gateway.drain(),
        health.clone(),
        ended.clone(),
    ));
    // The last record comes after the last events about nodes.
    let published = CancellationToken::new();
    tasks.spawn(node_events::follow::run(rooms.nodes.clone(), hub.clone(), published.clone()));
    tasks.spawn(node_events::publish::run(
        rooms.nodes.clone(),
        hub.clone(),
        ended.clone(),
        published.clone(),
    ));
    let stop = if config.node_events { published } else { ended.clone() };
    tasks.spawn(membership::run(rooms.nodes.clone(), bus.clone(), stop));
    tasks.spawn(moves::run(rooms.nodes.clone(), config.rebalance.clone(), ended.clone()));
    tasks.spawn(delivery::follow(rooms.nodes.clone(), hub, bus.clone(), ended.clone()));
    tasks.spawn(delivery::collect(rooms.nodes.clone(), bus.clone(), ended.clone()));
    tasks.spawn(streams::log_suppressed(ended.clone()));
    tasks.close();

    let mut closing = None;
    tokio::select! {
        () = &mut server => {}
        () = &mut shutdown => {
            tracing::info!(streams = rooms.nodes.count(), "draining");
            let until = *closing.insert(Closing::new(&config.drain));
            let drained = drain::drain(&config.drain, until, &rooms, &health);
            tokio::select! {
                () = &mut server => {}
                () = drained => tracing::info!(streams = rooms.nodes.count(), "drained"),
            }
        }
    }
    let closing = closing.unwrap_or_else(|| Closing::new(&config.drain));
    // Health streams end now, and with them the last connections.
    ended.cancel();
    let closed_bus = async {
        // A peer that does not close its connection must not keep the bus open for long, and what
        // still waits for the bus is answered before it closes.
        if !server.is_terminated() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut server).await;
        }
        tasks.wait().await;
        bus.close().await;
    };
    if !closing.before_answers(closed_bus).await {
        tracing::warn!("the bus did not close in time");
    }
    // Requests that waited for the bus have an answer now, which must still reach their clients.
    rooms.gateway.stop();
    if !server.is_terminated() {
        closing.before_end(tokio::time::timeout(CLOSE_TIMEOUT, &mut server)).await;
    }
    closing.before_end(exporting.close()).await;
    closed.cancel();
    if let Some(admin) = admin {
        // It ends with an error only if it panicked.
        closing.before_end(admin).await;
    }
    tracing::info!("stopped");
    Ok(())
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listening = TcpListener::bind(address).await;
    listening.map_err(|error| ServeError::Listen { key, address, error })
}

/// Starts the bus, and gives it to the service.
async fn start_bus(
    bus: &dyn BusFactory,
    config: &Config,
    shared: &Lifecycle,
) -> Result<SharedBus, StartError> {
    let capacity = Capacity { bytes: config.log.max_bytes, events: config.log.max_events };
    let mut made = None;
    let starting = Starting {
        config,
        waiting: Box::new(|why| *shared.waiting.write() = why),
        sink: Box::new(|shards| {
            let hub = Arc::new(Hub::new(shards, capacity));
            made = Some(hub.clone());
            hub as Arc<dyn Sink>
        }),
    };
    let bus = bus.start(starting).await?;
    let hub = made.ok_or_else(|| StartError("the bus started without a sink".into()))?;
    hub.attach(bus.clone());
    // Set once, here.
    let _ = shared.hub.set(hub);
    Ok(bus)
}

/// Reads the last values, until that succeeds, and keeps them complete until the gateway ends. One
/// shard that does not answer holds up the streams, and nothing else.
async fn keep_last_values(gateway: Arc<Lifecycle>, ended: CancellationToken) {
    let Some(hub) = gateway.hub.get() else { return };
    let keep = async {
        // What comes after the beginning of a shard is received: only what was there before it is
        // to be read. Read earlier, a value between the two would be missed.
        let _ = hub.bus().health().wait_for(Health::serves).await;
        hub.complete_last_values(|error| gateway.set_last_values(error.to_string())).await;
        gateway.set_last_values(String::new());
        loop {
            hub.lacks_last_values().await;
            hub.complete_last_values(|_| ()).await;
        }
    };
    ended.run_until_cancelled(keep).await;
}
