//! The floors: the least that tonic costs, in a process of its own.
//!
//! `Stream` sends batches of events that were encoded once, from memory, for as long as the client reads; the first at once, and
//! all others after `Go`, so that connections are not opened under load. `Publish` takes what a
//! publisher sends and answers with a few bytes. `Echo` answers with what it was sent.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
    transport::Server,
};

use super::raw::{Raw, put_field};

/// The argument with which the bench runs itself as the floor: `--floor PORT`.
pub const ARGUMENT: &str = "--floor";

/// The path of the stream. Its request is an encoded event, then four bytes: how many of it are in a batch.
pub const STREAM: &str = "/bench.Floor/Stream";
/// The path of the request that lets all streams go on.
pub const GO: &str = "/bench.Floor/Go";
/// The path of the request that is as large as a publisher's.
pub const PUBLISH: &str = "/bench.Floor/Publish";
/// The path of the round trip.
pub const ECHO: &str = "/bench.Floor/Echo";

/// Serves until it is killed.
pub async fn serve(port: u16) {
    let address = ([127, 0, 0, 1], port).into();
    Server::builder().add_service(Floor).serve(address).await.expect("the floor serves");
}

/// Whether streams go on.
static GOING: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

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
                    GOING.send_replace(true);
                    grpc.unary(Take, request).await
                }
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
        let request = request.into_inner();
        let Some((event, count)) = request.split_last_chunk() else {
            return ready(Err(Status::invalid_argument("no event")));
        };
        let mut batch = Vec::new();
        for _ in 0..u32::from_be_bytes(*count) {
            put_field(&mut batch, 1, event);
        }
        // As long as a resume token of a standalone server.
        put_field(&mut batch, 2, &[0; 16]);
        let mut response = Vec::new();
        put_field(&mut response, 2, &batch);
        let response = Bytes::from(response);
        let (first, mut going) = (response.clone(), GOING.subscribe());
        let go = async move {
            let _ = going.wait_for(|going| *going).await;
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
