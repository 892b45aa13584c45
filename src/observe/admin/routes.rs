//! The routes of the admin port.

use std::sync::Arc;

use axum::{
    Router,
    extract::{RawQuery, Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    middleware::{self, Next},
    response::Response,
    routing::get,
};

use super::{Admin, host, metrics, nodes::Query, page, view};
use crate::admin_port::{PLAIN, answer, form_of, read_only};

const JSON: &str = "application/json";

/// All routes.
pub fn router(admin: Arc<Admin>) -> Router {
    // The page and its data name nodes.
    let for_people = Router::new()
        .route("/api/status", get(status))
        .route("/api/nodes", get(nodes))
        .fallback(asset)
        .layer(middleware::from_fn(private_host));
    Router::new()
        .route("/livez", get(async || answer(StatusCode::OK, PLAIN, "live\n")))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(for_people)
        .layer(middleware::from_fn(read_only))
        .with_state(admin)
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    match admin.sources.gateway.why_not_serving() {
        None => match admin.sources.gateway.why_partial() {
            None => answer(StatusCode::OK, PLAIN, "ready\n"),
            Some(why) => answer(StatusCode::OK, PLAIN, format!("ready but for {why}\n")),
        },
        Some(why) => answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("not ready: {why}\n")),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let form = form_of(&headers);
    answer(StatusCode::OK, form.media_type(), metrics::render(&admin.sources, form))
}

async fn status(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let number = |name: &str| {
        url::form_urlencoded::parse(query.as_bytes())
            .find_map(|(key, value)| (key == name).then(|| value.parse().ok())?)
            .unwrap_or(0)
    };
    json(&view::view(&admin.sources, &admin.samples, number("after"), number("change")))
}

async fn nodes(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Response {
    json(&admin.nodes.answer(&admin.sources, &Query::parse(&query.unwrap_or_default())))
}

async fn asset(uri: Uri) -> Response {
    match page::asset(uri.path()) {
        Some(asset) => answer(StatusCode::OK, asset.media_type, asset.body()),
        None => {
            answer(StatusCode::NOT_FOUND, PLAIN, "the paths are /, /livez, /readyz and /metrics\n")
        }
    }
}

/// Answers only under names that nobody on the public internet can own, and keeps other pages out.
async fn private_host(headers: HeaderMap, request: Request, next: Next) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(host::is_private) {
        let why = "open the page by address, or by a name of a private network: \
                   see docs/operations.md\n";
        return answer(StatusCode::MISDIRECTED_REQUEST, PLAIN, why);
    }
    let mut response = next.run(request).await;
    page::guard(response.headers_mut());
    response
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => answer(StatusCode::OK, JSON, body),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
    }
}
