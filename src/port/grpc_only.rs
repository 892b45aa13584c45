//! Refuses requests that are not gRPC, with a text that a person reads in a browser or in curl.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response, StatusCode, Version, header};
use tower::{Layer, Service};

const ANSWER: &str = "This is a Trunkline gateway. It speaks gRPC, which needs HTTP/2.\n\
    Try: grpcurl -plaintext <this address> list\n";

/// Wraps the gRPC services of a port in [`GrpcOnly`].
#[derive(Clone, Copy, Debug, Default)]
pub struct GrpcOnlyLayer;

/// Passes gRPC requests on. Answers others with 426 (not HTTP/2) or 415 (not `application/grpc`).
#[derive(Clone, Debug)]
pub struct GrpcOnly<S> {
    inner: S,
}

impl<S> Layer<S> for GrpcOnlyLayer {
    type Service = GrpcOnly<S>;

    fn layer(&self, inner: S) -> GrpcOnly<S> {
        GrpcOnly { inner }
    }
}

impl<S, B, O> Service<Request<B>> for GrpcOnly<S>
where
    S: Service<Request<B>, Response = Response<O>>,
    O: From<&'static str>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match refusal(&request) {
            None => Either::Left(self.inner.call(request)),
            Some(status) => Either::Right(ready(Ok(answer(status)))),
        }
    }
}

fn refusal<B>(request: &Request<B>) -> Option<StatusCode> {
    if request.version() != Version::HTTP_2 {
        return Some(StatusCode::UPGRADE_REQUIRED);
    }
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|text| text.as_bytes().starts_with(b"application/grpc"));
    (!is_grpc).then_some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
}

fn answer<O: From<&'static str>>(status: StatusCode) -> Response<O> {
    let mut response = Response::new(O::from(ANSWER));
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
