//! The tower layer that authenticates callers, and refuses methods that they may not call.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::Status;
use tower::{Layer, Service};

use super::{Access, Caller, Grant, Identity, Peer, quota::Quotas};
use crate::access::{
    grant::Credential,
    rules::{Rule, refused, violation},
};
use crate::{
    config::{Operation, TokenHash},
    errors::{CredentialError, Error, Requester},
    proto::v1::SERVICE,
};

const BEARER: &str = "bearer ";

/// Bytes of the longest token.
const MAX_TOKEN_LEN: usize = 1024;

/// Wraps the gRPC services of a port in [`AccessService`].
#[derive(Clone)]
pub struct AccessLayer {
    access: Arc<Access>,
    quotas: Arc<Quotas>,
    on_refused: OnRefused,
}

/// Called with the path of each refused request, its sender, and the error that answers it.
pub type OnRefused = Arc<dyn Fn(&str, &Requester, &Error) + Send + Sync>;

/// Puts a [`Caller`] into the extensions of each request.
#[derive(Clone)]
pub struct AccessService<S> {
    layer: AccessLayer,
    inner: S,
}

/// The permission that a method requires of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequiredPermission {
    /// None, and no credential: load balancers have none.
    None,
    /// A valid credential. The service checks the [`Grant`] itself.
    CheckedByService,
    /// This operation.
    Operation(Operation),
    /// Denied to every caller: the method does not exist, or `of` does not list it.
    Denied,
}

impl AccessLayer {
    /// A layer that passes on what `access` allows, with its quota. `on_refused` records what it
    /// refuses.
    pub fn new(access: Arc<Access>, quotas: Arc<Quotas>, on_refused: OnRefused) -> AccessLayer {
        AccessLayer { access, quotas, on_refused }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> AccessService<S> {
        AccessService { layer: self.clone(), inner }
    }
}

impl<S, B, O> Service<Request<B>> for AccessService<S>
where
    S: Service<Request<B>, Response = Response<O>>,
    O: Default,
{
    type Response = Response<O>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<O>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The listener's connections put it there.
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            let status = Status::internal("the request has no connection");
            return Either::Right(ready(Ok(status.into_http())));
        };
        let AccessLayer { access, quotas, on_refused } = &self.layer;
        let path = request.uri().path();
        let grant = match access.authorize(&peer, path, request.headers()) {
            Ok(grant) => grant,
            Err((identity, error)) => {
                let peer = Some(peer.address);
                on_refused(path, &Requester { identity, peer, ..Requester::default() }, &error);
                return Either::Right(ready(Ok(Status::from(error).into_http())));
            }
        };
        let identity = match &grant {
            Some(grant) => Identity::Named(grant.identity.clone()),
            None => Identity::anonymous(peer.address),
        };
        let in_flight = Arc::new(quotas.request(quotas.of(&identity)));
        request.extensions_mut().insert(Caller { peer, grant, in_flight });
        // No service needs the token.
        request.headers_mut().remove(AUTHORIZATION);
        Either::Left(self.inner.call(request))
    }
}

impl Access {
    /// Authenticates the caller of a request, and checks that it may call this method. None: no
    /// credential is required. An error comes with the identity, where it was authenticated.
    fn authorize(
        self: &Arc<Self>,
        peer: &Peer,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Grant>, (Option<Arc<str>>, Error)> {
        let required = RequiredPermission::of(path);
        if !self.authenticates || required == RequiredPermission::None {
            return Ok(None);
        }
        let grant = self.authenticate(peer, headers).map_err(|error| {
            self.refusals.record(Rule::Credentials, &peer.address, &error.to_string());
            (None, error)
        })?;
        let denied = match required {
            RequiredPermission::None | RequiredPermission::CheckedByService => {
                return Ok(Some(grant));
            }
            RequiredPermission::Operation(operation) if grant.rules.allows(operation) => {
                return Ok(Some(grant));
            }
            RequiredPermission::Operation(operation) => operation.as_str(),
            RequiredPermission::Denied => "this method",
        };
        let what = format!("this identity has no permission for {denied}");
        self.refusals.record(Rule::Operations, &grant.identity, &what);
        let error = refused(Rule::Operations, vec![violation("method", what)]);
        Err((Some(grant.identity), error))
    }

    /// Authenticates by the token, if the request has one; else by the certificate of the
    /// connection.
    fn authenticate(self: &Arc<Self>, peer: &Peer, headers: &HeaderMap) -> Result<Grant, Error> {
        let grant = |identity, rules, credential| Grant {
            access: self.clone(),
            identity,
            rules,
            credential,
        };
        let mut given = headers.get_all(AUTHORIZATION).iter();
        if let Some(given_first) = given.next() {
            let token = bearer(given_first.as_bytes()).filter(|_| given.next().is_none());
            let hash =
                token.map(TokenHash::of).ok_or(Error::Unauthenticated(CredentialError::Wrong))?;
            let rules = self.owner(&hash).ok_or(Error::Unauthenticated(CredentialError::Wrong))?;
            return Ok(grant(rules.name.clone(), rules, Credential::Token(hash)));
        }
        let certificate =
            peer.certificate.as_ref().ok_or(Error::Unauthenticated(CredentialError::Missing))?;
        if !self.is_valid(certificate) {
            return Err(Error::Unauthenticated(CredentialError::Wrong));
        }
        let name = certificate.name.as_ref();
        let credentials = self.credentials();
        let known = name.and_then(|name| Some((name, credentials.rule_set.of(name)?)));
        let (name, rules) = known.ok_or(Error::Unauthenticated(CredentialError::Wrong))?;
        Ok(grant(name.clone(), rules.clone(), Credential::Certificate(certificate.clone())))
    }
}

/// The token in `Bearer <token>`.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(BEARER.len())?;
    let token = token.trim_ascii();
    let fits = scheme.eq_ignore_ascii_case(BEARER.as_bytes()) && token.len() <= MAX_TOKEN_LEN;
    (fits && !token.is_empty()).then_some(token)
}

impl RequiredPermission {
    /// The permission for `/package.Service/Method`.
    fn of(path: &str) -> RequiredPermission {
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/'))
        else {
            return RequiredPermission::Denied;
        };
        match (service, method) {
            ("grpc.health.v1.Health", _) => RequiredPermission::None,
            (
                "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
                _,
            ) => RequiredPermission::Operation(Operation::Reflection),
            (SERVICE, "Publish" | "PublishStream" | "Subscribe" | "Watch") => {
                RequiredPermission::CheckedByService
            }
            (SERVICE, "ListNodes") => RequiredPermission::Operation(Operation::ListNodes),
            (SERVICE, "GetStatus") | ("xds.service.orca.v3.OpenRcaService", _) => {
                RequiredPermission::Operation(Operation::GetStatus)
            }
            _ => RequiredPermission::Denied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_without_a_permission_in_the_list_are_denied() {
        let service = |method: &str| RequiredPermission::of(&format!("/{SERVICE}/{method}"));
        assert_eq!(service("Publish"), RequiredPermission::CheckedByService);
        assert_eq!(service("ListNodes"), RequiredPermission::Operation(Operation::ListNodes));
        for unknown in ["", "/", "//", "publish", "grpc.health.v1.Health", "/x/Publish"] {
            assert_eq!(RequiredPermission::of(unknown), RequiredPermission::Denied, "{unknown}");
        }
        for unknown in ["", "publish", "Publish/", "Publish/x", "New"] {
            assert_eq!(service(unknown), RequiredPermission::Denied, "{unknown}");
        }
    }

    #[test]
    fn the_authorization_header_has_the_scheme_bearer() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        for malformed in
            [&b""[..], b"Bearer", b"Bearer ", b"abc", b"Basic abc", b"Bearerabcdef", b"Bearer\tabc"]
        {
            assert_eq!(bearer(malformed), None, "{malformed:?}");
        }
        assert_eq!(bearer(format!("Bearer {}", "x".repeat(1025)).as_bytes()), None);
    }
}
