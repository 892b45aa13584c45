//! Says of each request who sent it.

use std::task::{Context, Poll};

use http::Request;
use tower::{Layer, Service};

use super::{Caller, Identity};
use crate::server::listener::Peer;

/// Wraps the gRPC services of a port.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessLayer;

/// Puts a [`Caller`] into the extensions of each request.
#[derive(Clone, Debug)]
pub struct Access<S> {
    inner: S,
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access { inner }
    }
}

impl<S, B> Service<Request<B>> for Access<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if let Some(peer) = request.extensions().get::<Peer>() {
            let caller = Caller {
                identity: Identity::anonymous(peer.address),
                connection: peer.connection,
                peer: peer.address,
            };
            request.extensions_mut().insert(caller);
        }
        self.inner.call(request)
    }
}
