//! The ports for nodes: that of gRPC, and that of HTTP; their services, and the layers around them.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{TryFutureExt, future::BoxFuture};
use http::{Request, Response};
use http_body::Body;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::{BoxError, Layer, Service};

use super::rooms::Rooms;
use crate::{
    config::Config,
    errors::{Error, Requester},
    observe::{counters::Method, handled::HandledLayer},
    port::{
        connections::{self, ConnectionLimits, GoawaySender, Http1},
        deadline::DeadlineBody,
        grpc_only::GrpcOnlyLayer,
        headers::HeaderLimitLayer,
        listener::{self, Admission},
        requests::{RequestLimits, RequestLimitsLayer},
    },
    process,
    proto::{
        v1::{self, SERVICE},
        xds,
    },
    rpc::{
        self, ResponseBody,
        health::HealthState,
        orca::OrcaService,
        reflection::{self, Reflection},
    },
    web::{self, JsonRequestsLayer},
};

/// Bytes of a request to the services of health, load reports and reflection: a name and little
/// else.
const SMALL_REQUEST: usize = 4096;

/// Files that a process needs besides its connections: for the bus, the admin port, logs and the
/// runtime.
const OTHER_FILES: usize = 100;

/// The listeners of the ports.
pub struct Listeners {
    /// That of gRPC.
    pub grpc: TcpListener,
    /// That of HTTP, where it is configured.
    pub http: Option<TcpListener>,
}

/// Serves the ports until `ended`.
pub async fn serve(
    listeners: Listeners,
    config: &Config,
    rooms: &Rooms,
    health: &HealthState,
    ended: CancellationToken,
) {
    let requests = |max_message| RequestLimitsLayer {
        counters: rooms.port.clone(),
        timeout: config.limits.request_timeout,
        max_message,
        changes: |path| matches!(Method::of(path), Method::Publish | Method::PublishStream),
        streams: |path| matches!(Method::of(path), Method::PublishStream | Method::Watch),
        on_expired: rooms.on_refused(),
    };
    let headers =
        HeaderLimitLayer { max: config.limits.max_header_bytes, counters: rooms.port.clone() };
    let services = Services {
        coordination: requests(config.limits.max_request_bytes)
            .layer(rpc::Server::new(rooms.rpc_context(config))),
        others: requests(SMALL_REQUEST).layer(Others(health_and_reflection(health, rooms))),
    };
    let incoming = |listener, goaway| {
        let admission = Admission {
            access: rooms.access.clone(),
            handshake_timeout: config.limits.handshake_timeout,
            slots: rooms.slots.clone(),
            goaway,
            counters: rooms.port.clone(),
        };
        listener::incoming(listener, admission)
    };
    let limits = |http1| ConnectionLimits::new(&config.limits, &config.keepalive, http1);
    let access = rooms.access_layer();
    // Outside of all that refuses a request, and so counts what each client gets.
    let handled = HandledLayer(rooms.records.handled.clone());

    let http = async {
        let Some((listener, http)) = listeners.http.zip(config.http.as_ref()) else { return };
        let layers = access.layer(JsonRequestsLayer.layer(services.clone()));
        let service = web::router(handled.layer(headers.layer(layers)), &http.allowed_origins);
        let incoming = incoming(listener, GoawaySender::new(false));
        let (limits, counters) = (limits(Http1::Served), rooms.port.clone());
        connections::serve(incoming, service, limits, counters, ended.clone()).await;
    };
    let grpc = async {
        let layers = access.layer(services.clone());
        let service = GrpcOnlyLayer.layer(handled.layer(headers.layer(layers)));
        let incoming = incoming(listeners.grpc, GoawaySender::new(config.tls.is_none()));
        let (limits, counters) = (limits(Http1::Refused), rooms.port.clone());
        connections::serve(incoming, service, limits, counters, ended.clone()).await;
    };
    futures_util::join!(grpc, http);
}

fn health_and_reflection(health: &HealthState, rooms: &Rooms) -> Routes {
    let sets = [
        v1::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        // So that grpcurl shows the details of errors.
        tonic_types::pb::FILE_DESCRIPTOR_SET,
        xds::DESCRIPTORS,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let api = Reflection::new(&sets).expect("the descriptors are those of the build");
    let v1 = reflection::v1::server(api.clone());
    let v1alpha = reflection::v1alpha::server(api);
    let records = rooms.records.clone();
    let on_refused: Arc<dyn Fn(&Requester, &Error) + Send + Sync> =
        Arc::new(move |requester, error| records.refused(Method::Other, requester, error));
    let (quotas, gateway) = (rooms.quotas.clone(), rooms.gateway.clone());
    let load = rooms.load.clone();
    let load = OrcaService::server(load, gateway, quotas.clone(), on_refused.clone());
    let health = health.service(quotas, on_refused);
    Routes::new(health.max_decoding_message_size(SMALL_REQUEST))
        .add_service(load.max_decoding_message_size(SMALL_REQUEST))
        .add_service(v1.max_decoding_message_size(SMALL_REQUEST))
        .add_service(v1alpha.max_decoding_message_size(SMALL_REQUEST))
        .prepare()
}

/// The services of the port, by the path of a request.
#[derive(Clone)]
struct Services {
    coordination: RequestLimits<rpc::Server>,
    others: RequestLimits<Others>,
}

/// The other services, whose responses tonic makes.
#[derive(Clone)]
struct Others(Routes);

impl<B> Service<Request<B>> for Others
where
    Routes: Service<Request<B>, Response = Response<tonic::body::Body>, Error = Infallible>,
    <Routes as Service<Request<B>>>::Future: Send + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(response.map_ok(|response| response.map(ResponseBody::from)))
    }
}

impl<B> Service<Request<B>> for Services
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<DeadlineBody<ResponseBody>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Both are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        if path.is_some_and(|(service, _)| service == SERVICE) {
            return self.coordination.call(request);
        }
        self.others.call(request)
    }
}

/// Warns of ports that are open to every client that reaches them.
pub fn warn_if_open(config: &Config) {
    warn_if_port_is_open(config, config.listen);
    if let Some(http) = &config.http {
        warn_if_port_is_open(config, http.listen);
    }
}

fn warn_if_port_is_open(config: &Config, listen: SocketAddr) {
    if listen.ip().is_loopback() {
        return;
    }
    if config.tls.is_none() {
        tracing::warn!(
            %listen,
            "insecure: nodes connect in plain text, \
             and what they send can be read and changed on the way"
        );
    }
    if config.auth.is_none() {
        tracing::warn!(
            %listen,
            "authentication is off: \
             everybody who reaches this port may read and publish everything"
        );
    }
}

/// The limits of connections, in all and of one peer: as configured, or fewer where the process may
/// not open that many files. It must always be able to open a connection to Redis.
pub fn max_connections(config: &Config) -> (usize, usize) {
    let (all, of_peer) = (config.limits.max_connections, config.limits.max_connections_per_peer);
    let Some(files) = process::max_open_files() else { return (all, of_peer) };
    let available = files.saturating_sub(OTHER_FILES).max(1);
    if all <= available {
        return (all, of_peer);
    }
    tracing::warn!(
        "limits.maxConnections is {all}, but this process may open {files} files: \
         it accepts {available} connections"
    );
    (available, of_peer.min(available.div_ceil(2)))
}
