//! Answers who comes to the gRPC port with something else than gRPC, in words that a person reads in a browser or in curl.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode, Version, header};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::{
    port::oversized,
    rpc::body::{Outgoing, outgoing},
};

const ANSWER: &str = "This is a Trunkline gateway. It speaks gRPC, which needs HTTP/2.\n\
    Try: grpcurl -plaintext <this address> list\n";

/// Wraps the gRPC services of a port.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http1Layer;

/// Passes gRPC requests on, and answers the others.
#[derive(Clone, Debug)]
pub struct Http1<S> {
    inner: S,
}

impl<S> Layer<S> for Http1Layer {
    type Service = Http1<S>;

    fn layer(&self, inner: S) -> Http1<S> {
        Http1 { inner }
    }
}

impl<S, B> Service<Request<B>> for Http1<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Outgoing>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match refusal(&request) {
            None => {
                let answered = self.inner.call(request);
                Box::pin(async move { Ok(outgoing(oversized::explain(answered.await?))) })
            }
            Some(status) => Box::pin(std::future::ready(Ok(outgoing(answer(status))))),
        }
    }
}

fn refusal<B>(request: &Request<B>) -> Option<StatusCode> {
    if request.version() != Version::HTTP_2 {
        return Some(StatusCode::UPGRADE_REQUIRED);
    }
    let kind = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    (!is_grpc).then_some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
}

fn answer(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::new(ANSWER.to_owned()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("h2c"));
    }
    response
}
