//! Finds out who sends a request, and refuses what nobody may whom it is.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{Access, Caller, Identity, Permit};
use crate::access::{
    permit::Credential,
    rules::{Rule, refused, violation},
};
use crate::{
    config::{Operation, TokenHash},
    observe::{
        counters::{Counters, Method},
        recent::Recent,
    },
    port::listener::Peer,
    proto::v1::SERVICE,
    rpc::error::{Error, Unproven},
};

const BEARER: &str = "bearer ";

/// A longer token is none.
const MAX_TOKEN_LEN: usize = 1024;

/// Wraps the gRPC services of a port.
#[derive(Clone)]
pub struct AccessLayer {
    access: Arc<Access>,
    counters: Arc<Counters>,
    recent: Arc<Recent>,
}

/// Puts a [`Caller`] into the extensions of each request, and a [`Permit`] where there is authentication.
#[derive(Clone)]
pub struct Guard<S> {
    layer: AccessLayer,
    inner: S,
}

/// What a method asks of who calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// Nothing: load balancers have no credentials.
    Nothing,
    /// The service looks at its permit itself.
    Permit,
    /// A right of its own.
    Right(Operation),
    /// It does not exist, or nobody has thought about who may call it.
    Unknown,
}

impl AccessLayer {
    /// Lets through whom `access` does. Whom it does not, is counted, and shown among what was refused lately.
    pub fn new(access: Arc<Access>, counters: Arc<Counters>, recent: Arc<Recent>) -> AccessLayer {
        AccessLayer { access, counters, recent }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { layer: self.clone(), inner }
    }
}

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // Every request comes over a connection of the listener.
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            let status = Status::internal("the request has no connection");
            return Either::Right(ready(Ok(status.into_http())));
        };
        let AccessLayer { access, counters, recent } = &self.layer;
        let path = request.uri().path();
        let permit = match access.admit(&peer, path, request.headers()) {
            Ok(permit) => permit,
            Err(error) => {
                let method = Method::of(path);
                counters.failed(method, &error);
                recent.refused(method, &error);
                return Either::Right(ready(Ok(Status::from(error).into_http())));
            }
        };
        let identity = match &permit {
            Some(permit) => Identity::Named(permit.identity.clone()),
            None => Identity::anonymous(peer.address),
        };
        let caller = Caller { identity, connection: peer.connection, peer: peer.address };
        request.extensions_mut().insert(caller);
        if let Some(permit) = permit {
            request.extensions_mut().insert(permit);
        }
        // Nothing behind this has any use for it.
        request.headers_mut().remove(AUTHORIZATION);
        Either::Left(self.inner.call(request))
    }
}

impl Access {
    /// What a request may do; none where nobody is asked.
    fn admit(
        self: &Arc<Self>,
        peer: &Peer,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Permit>, Error> {
        let demand = Demand::of(path);
        if !self.authenticates || demand == Demand::Nothing {
            return Ok(None);
        }
        let permit = self.identify(peer, headers).inspect_err(|error| {
            self.refusals.note(Rule::Credentials, &peer.address, &error.to_string());
        })?;
        let right = match demand {
            Demand::Nothing | Demand::Permit => return Ok(Some(permit)),
            Demand::Right(operation) if permit.rules.allows(operation) => return Ok(Some(permit)),
            Demand::Right(operation) => operation.as_str(),
            Demand::Unknown => "this method",
        };
        self.refusals.note(Rule::Operations, &permit.identity, right);
        let what = format!("{right} is not a right of this identity");
        Err(refused(Rule::Operations, vec![violation("method", what)]))
    }

    /// Who it is: by the token, if one is sent; else by the certificate of the connection.
    fn identify(self: &Arc<Self>, peer: &Peer, headers: &HeaderMap) -> Result<Permit, Error> {
        let permit = |identity, rules, credential| Permit {
            access: self.clone(),
            identity,
            rules,
            credential,
        };
        let mut given = headers.get_all(AUTHORIZATION).iter();
        if let Some(given_first) = given.next() {
            let token = bearer(given_first.as_bytes()).filter(|_| given.next().is_none());
            let hash = token.map(TokenHash::of).ok_or(Error::Unproven(Unproven::Wrong))?;
            let rules = self.owner(&hash).ok_or(Error::Unproven(Unproven::Wrong))?;
            return Ok(permit(rules.name.clone(), rules, Credential::Token(hash)));
        }
        let certificate = peer.certificate.as_ref().ok_or(Error::Unproven(Unproven::Missing))?;
        if !self.holds(certificate) {
            return Err(Error::Unproven(Unproven::Wrong));
        }
        let known = certificate.name.as_ref().and_then(|name| Some((name, self.book.of(name)?)));
        let (name, rules) = known.ok_or(Error::Unproven(Unproven::Wrong))?;
        Ok(permit(name.clone(), rules.clone(), Credential::Certificate(certificate.clone())))
    }
}

/// The token in `Bearer <token>`.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(BEARER.len())?;
    let token = token.trim_ascii();
    let fits = scheme.eq_ignore_ascii_case(BEARER.as_bytes()) && token.len() <= MAX_TOKEN_LEN;
    (fits && !token.is_empty()).then_some(token)
}

impl Demand {
    fn of(path: &str) -> Demand {
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/'))
        else {
            return Demand::Unknown;
        };
        match (service, method) {
            ("grpc.health.v1.Health", _) => Demand::Nothing,
            (
                "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
                _,
            ) => Demand::Right(Operation::Reflection),
            (SERVICE, "Publish" | "Subscribe") => Demand::Permit,
            (SERVICE, "ListNodes") => Demand::Right(Operation::ListNodes),
            (SERVICE, "GetStatus") => Demand::Right(Operation::GetStatus),
            _ => Demand::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_thought_about_is_demanded_nothing_for() {
        let service = |method: &str| Demand::of(&format!("/{SERVICE}/{method}"));
        assert_eq!(service("Publish"), Demand::Permit);
        assert_eq!(service("ListNodes"), Demand::Right(Operation::ListNodes));
        for unknown in ["", "/", "//", "publish", "grpc.health.v1.Health", "/x/Publish"] {
            assert_eq!(Demand::of(unknown), Demand::Unknown, "{unknown}");
        }
        for unknown in ["", "publish", "Publish/", "Publish/x", "New"] {
            assert_eq!(service(unknown), Demand::Unknown, "{unknown}");
        }
    }

    #[test]
    fn a_token_stands_after_the_word_bearer() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        for none in
            [&b""[..], b"Bearer", b"Bearer ", b"abc", b"Basic abc", b"Bearerabcdef", b"Bearer\tabc"]
        {
            assert_eq!(bearer(none), None, "{none:?}");
        }
        assert_eq!(bearer(format!("Bearer {}", "x".repeat(1025)).as_bytes()), None);
    }
}
