//! The limit of the bytes of a request's header fields.
//!
//! HTTP/2 itself ends a request whose header fields are far too long with status 431, which nobody
//! sees here. So it lets twice as many pass, and those between are answered as gRPC asks, and
//! counted.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::Status;
use tower::{Layer, Service};

use super::counters::Counters;
use crate::errors::{Error, Limit};

/// What HTTP/2 adds for each field when it counts bytes (RFC 9113, 6.5.2).
const FIELD: usize = 32;

/// Wraps the gRPC services of a port in [`HeaderLimit`].
#[derive(Clone, Debug)]
pub struct HeaderLimitLayer {
    /// Bytes that the header fields may have, as HTTP/2 counts them.
    pub max: usize,
    /// Counts refused requests.
    pub counters: Arc<Counters>,
}

/// Refuses requests whose header fields are too long.
#[derive(Clone, Debug)]
pub struct HeaderLimit<S> {
    inner: S,
    layer: HeaderLimitLayer,
}

impl<S> Layer<S> for HeaderLimitLayer {
    type Service = HeaderLimit<S>;

    fn layer(&self, inner: S) -> HeaderLimit<S> {
        HeaderLimit { inner, layer: self.clone() }
    }
}

impl<S, B, O> Service<Request<B>> for HeaderLimit<S>
where
    S: Service<Request<B>, Response = Response<O>>,
    O: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if size(&request) <= self.layer.max {
            return Either::Left(self.inner.call(request));
        }
        self.layer.counters.refused(Limit::HeaderBytes);
        let error = Error::limit(Limit::HeaderBytes, self.layer.max);
        Either::Right(ready(Ok(Status::from(error).into_http())))
    }
}

/// The bytes of the header fields, as HTTP/2 counts them.
fn size<B>(request: &Request<B>) -> usize {
    let fields = request.headers().iter();
    let fields: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum();
    // Its other fields are `:method`, `:scheme` and `:authority`, which are short or in no request.
    let uri = request.uri();
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    fields + path + uri.authority().map_or(0, |authority| authority.as_str().len())
}
