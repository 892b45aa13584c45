//! Which web pages may use the port. A browser sends a request for any page that asks, with the
//! client certificate and the network of its user: so a request that a page makes, which has an
//! `Origin`, is refused unless that origin is allowed. Who is no browser sends none.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use tonic::Status;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::errors::error;

/// For how long a browser keeps the answer that it may send a request.
const MAX_AGE: Duration = Duration::from_mins(10);

/// The origins whose pages may use the port.
#[derive(Clone)]
pub struct Allowed(Arc<[HeaderValue]>);

impl Allowed {
    /// These origins, such as `https://mail.example.org`.
    pub fn new(origins: &[String]) -> Allowed {
        Allowed(values(origins).collect())
    }
}

fn values(origins: &[String]) -> impl Iterator<Item = HeaderValue> {
    origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())
}

/// Refuses requests of pages from other origins, whatever they ask.
pub async fn check(State(allowed): State<Allowed>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN);
    if origin.is_none_or(|origin| allowed.0.contains(origin)) {
        return next.run(request).await;
    }
    let text = "origin: is not one of http.allowedOrigins";
    error(StatusCode::FORBIDDEN, &Status::permission_denied(text))
}

/// Answers what browsers ask before they send a request of a page, and says what the page may read.
pub fn cors(origins: &[String]) -> CorsLayer {
    const GRPC: [&str; 3] = ["grpc-status", "grpc-message", "grpc-status-details-bin"];
    let requests = ["x-grpc-web", "x-user-agent", "grpc-timeout", "last-event-id", "traceparent"];
    let names = requests.map(HeaderName::from_static).into_iter();
    let requests: Vec<HeaderName> =
        names.chain([header::AUTHORIZATION, header::CONTENT_TYPE]).collect();
    let responses: Vec<HeaderName> =
        GRPC.map(HeaderName::from_static).into_iter().chain([header::RETRY_AFTER]).collect();
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(values(origins)))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(requests)
        .expose_headers(responses)
        .max_age(MAX_AGE)
}
