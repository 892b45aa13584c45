//! The floors over tonic, the least that a gRPC server costs, in a process of their own.
//!
//! `Stream` sends batches of events that were encoded once, for as long as the client reads: the
//! first at once and all others after `Go`, so that connections are not opened under load.
//! `Publish` takes the requests of a publisher and answers with a few bytes; `Relay` also lets each
//! `Relayed` stream send its batch once. `Echo` answers with its request.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{broadcast, watch};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
    transport::Server,
};

use super::raw::{Raw, put_field};

/// The argument with which the benchmark runs itself as the floor: `--floor PORT`.
pub const ARGUMENT: &str = "--floor";

/// The path of the stream. Its request is an encoded event and four bytes: the number of events in
/// a batch.
pub const STREAM: &str = "/bench.Floor/Stream";
/// The path of the request after which all streams continue.
pub const GO: &str = "/bench.Floor/Go";
/// The path of the request that is as large as a publisher's.
pub const PUBLISH: &str = "/bench.Floor/Publish";
/// The path of the stream that sends a batch for each request of `RELAY`. Its request is that of
/// `STREAM`.
pub const RELAYED: &str = "/bench.Floor/Relayed";
/// The path of the request that is as large as a publisher's, and lets all `RELAYED` streams send a
/// batch.
pub const RELAY: &str = "/bench.Floor/Relay";
/// The path of the round trip.
pub const ECHO: &str = "/bench.Floor/Echo";

/// Serves until it is killed.
pub async fn serve(port: u16) {
    let address = ([127, 0, 0, 1], port).into();
    Server::builder().add_service(Floor).serve(address).await.expect("the floor serves");
}

/// True once `GO` was called: streams continue.
static CONTINUE: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

#[derive(Clone)]
struct Floor;

impl NamedService for Floor {
    const NAME: &'static str = "bench.Floor";
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl tower::Service<http::Request<Body>> for Floor {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw);
            Ok(match request.uri().path() {
                STREAM => grpc.server_streaming(Batches, request).await,
                GO => {
                    CONTINUE.send_replace(true);
                    grpc.unary(Take, request).await
                }
                RELAYED => grpc.server_streaming(Relayed, request).await,
                RELAY => grpc.unary(Relay, request).await,
                PUBLISH => grpc.unary(Take, request).await,
                _ => grpc.unary(Echo, request).await,
            })
        })
    }
}

struct Batches;

impl ServerStreamingService<Bytes> for Batches {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let response = match prepared(request.get_ref()) {
            Ok(response) => response,
            Err(status) => return ready(Err(status)),
        };
        let (first, mut continues) = (response.clone(), CONTINUE.subscribe());
        let go = async move {
            let _ = continues.wait_for(|continues| *continues).await;
            Ok(first)
        };
        let endless: Self::ResponseStream = Box::pin(
            stream::iter([Ok(response.clone())])
                .chain(stream::once(go))
                .chain(stream::repeat_with(move || Ok(response.clone()))),
        );
        ready(Ok(Response::new(endless)))
    }
}

/// The encoded message with as many events as the request asks for.
fn prepared(request: &[u8]) -> Result<Bytes, Status> {
    let Some((event, count)) = request.split_last_chunk() else {
        return Err(Status::invalid_argument("no event"));
    };
    let mut batch = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        put_field(&mut batch, 1, event);
    }
    // As long as a resume token of a standalone server.
    put_field(&mut batch, 2, &[0; 16]);
    let mut response = Vec::new();
    put_field(&mut response, 2, &batch);
    Ok(Bytes::from(response))
}

/// Requests of `RELAY`, for all streams. The capacity is more than publishers can be ahead.
static REQUESTS: LazyLock<broadcast::Sender<()>> = LazyLock::new(|| broadcast::Sender::new(16_384));

struct Relayed;

impl ServerStreamingService<Bytes> for Relayed {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let response = match prepared(request.get_ref()) {
            Ok(response) => response,
            Err(status) => return ready(Err(status)),
        };
        // A message without events confirms the subscription.
        let mut empty = Vec::new();
        put_field(&mut empty, 2, &[]);
        let batches = stream::unfold(REQUESTS.subscribe(), |mut requests| async {
            // A stream that lags misses some, which the benchmark counts as lost.
            match requests.recv().await {
                Ok(()) | Err(broadcast::error::RecvError::Lagged(_)) => Some(((), requests)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        let all: Self::ResponseStream = Box::pin(
            stream::iter([Ok(Bytes::from(empty))])
                .chain(batches.map(move |()| Ok(response.clone()))),
        );
        ready(Ok(Response::new(all)))
    }
}

struct Relay;

impl UnaryService<Bytes> for Relay {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        let _ = REQUESTS.send(());
        ready(Ok(Response::new(Bytes::from_static(&[0; 16]))))
    }
}

struct Take;

impl UnaryService<Bytes> for Take {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(Bytes::from_static(&[0; 16]))))
    }
}

struct Echo;

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}
