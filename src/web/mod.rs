//! The service over HTTP/1.1 and HTTP/2, for browsers, scripts and people: `POST /v1/publish` and
//! the like with proto3 JSON, `GET /v1/subscribe` as server-sent events, and gRPC-Web.
//!
//! Every request becomes the gRPC request that says the same, and goes through all layers of the
//! gRPC port: so identities, rules, limits, counters and traces are those of any other client. What
//! is here translates, and decides which web pages may ask at all.

mod errors;
mod events;
mod json_body;
mod pages;
mod query;
mod unread;

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::{Buf, Bytes};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use prost::Message;
use serde_json::Value;
use tonic::{
    Status, Streaming,
    codec::{DecodeBuf, Decoder},
};
use tonic_web::GrpcWebLayer;
use tower::{BoxError, Layer, Service, ServiceExt};

use self::errors::{error, refusal};
pub use self::json_body::JsonRequestsLayer;
use crate::{
    errors::Error,
    json::to_json,
    port::{
        grpc_only::media_type,
        requests::{PREFIX, put_prefix},
    },
    proto::v1::{self, SERVICE},
};

/// Bytes of a response: more than any method answers.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;

/// What is at this port, for a request that fits nothing.
const HINT: &str = "this is the HTTP port of a Trunkline gateway, which has POST /v1/publish, \
    GET /v1/subscribe, GET /v1/nodes, GET /v1/status, and gRPC-Web";

/// The gRPC service with its layers, as this room calls it.
pub trait GrpcService:
    Service<
        Request<tonic::body::Body>,
        Response = http::Response<Self::Body>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + 'static
{
    /// The body of its responses.
    type Body: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> GrpcService for S
where
    S: Service<
            Request<tonic::body::Body>,
            Response = http::Response<B>,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// The routes of the port over `grpc`, whose innermost layer has to be [`JsonRequestsLayer`]. Pages
/// from `origins` may use it, and no others.
pub fn router<S: GrpcService>(grpc: S, origins: &[String]) -> Router {
    Router::new()
        .route("/v1/publish", post(publish::<S>))
        .route("/v1/subscribe", get(subscribe::<S>))
        .route("/v1/nodes", get(nodes::<S>))
        .route("/v1/status", get(status::<S>))
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, &Status::unimplemented(HINT))
        })
        .fallback(grpc_web::<S>)
        .with_state(grpc)
        .layer(middleware::map_response(mark))
        .layer(pages::cors(origins))
        .layer(middleware::from_fn_with_state(pages::Allowed::new(origins), pages::check))
        .layer(middleware::from_fn(unread::read_rest))
}

/// The answers hold for this moment only, and are nothing but what they say they are.
async fn mark(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// `POST /v1/publish`: a `PublishRequest` as JSON.
async fn publish<S: GrpcService>(State(grpc): State<S>, mut request: Request) -> Response {
    if media_type(request.headers()) != b"application/json" {
        let text = "content-type: must be application/json";
        return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, &Status::invalid_argument(text));
    }
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        let text = "content-encoding: must not be set: bodies are taken as they are";
        return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, &Status::invalid_argument(text));
    }
    request.extensions_mut().insert(json_body::Conversion(json_body::publish_request));
    unary::<v1::PublishResponse, S>(grpc, "Publish", request).await
}

/// `GET /v1/nodes`: a `ListNodesRequest` as a query.
async fn nodes<S: GrpcService>(State(grpc): State<S>, request: Request) -> Response {
    match with_query("ListNodes", request, |_, _| ()) {
        Ok(request) => unary::<v1::ListNodesResponse, S>(grpc, "ListNodes", request).await,
        Err(error) => refusal(&error.into()),
    }
}

/// `GET /v1/status`.
async fn status<S: GrpcService>(State(grpc): State<S>, request: Request) -> Response {
    match with_query("GetStatus", request, |_, _| ()) {
        Ok(request) => unary::<v1::GetStatusResponse, S>(grpc, "GetStatus", request).await,
        Err(error) => refusal(&error.into()),
    }
}

/// `GET /v1/subscribe`: a `SubscribeRequest` as a query, and the stream as server-sent events.
async fn subscribe<S: GrpcService>(State(grpc): State<S>, request: Request) -> Response {
    let request = match with_query("Subscribe", request, events::resume) {
        Ok(request) => request,
        Err(error) => return refusal(&error.into()),
    };
    match call::<v1::SubscribeResponse, S>(grpc, "Subscribe", request).await {
        Ok(responses) => events::response(responses),
        Err(status) => refusal(&status),
    }
}

/// gRPC-Web, and the answer to what is nothing of this port.
async fn grpc_web<S: GrpcService>(State(grpc): State<S>, request: Request) -> Response {
    let is_web = media_type(request.headers()).starts_with(b"application/grpc-web");
    if !is_web || *request.method() != Method::POST {
        return error(StatusCode::NOT_FOUND, &Status::not_found(HINT));
    }
    let grpc = grpc.map_response(|response| response.map(plain));
    match GrpcWebLayer::new().layer(grpc).oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

/// A body whose data are plain bytes.
fn plain<B>(body: B) -> tonic::body::Body
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    tonic::body::Body::new(
        body.map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))),
    )
}

/// The request to a method whose message a query says.
fn with_query(
    method: &str,
    request: Request,
    change: impl FnOnce(&mut Value, &http::HeaderMap),
) -> Result<Request, Error> {
    let (head, _) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let message = format!("{method}Request");
    let message = query::message(&message, query, |json| change(json, &head.headers));
    Ok(Request::from_parts(head, Body::from(framed(&message?))))
}

/// Calls a unary method, and answers with its response as JSON.
async fn unary<M: Message + Default + 'static, S: GrpcService>(
    grpc: S,
    method: &str,
    request: Request,
) -> Response {
    let answer = async {
        let mut responses = call::<M, S>(grpc, method, request).await?;
        let response = responses.message().await?;
        // Errors that follow a message are those of this response.
        responses.trailers().await?;
        let response = response.ok_or_else(|| Status::internal("there was no response"))?;
        to_json(&format!("{method}Response"), &response).map_err(Status::internal)
    };
    match answer.await {
        Ok(json) => axum::Json(json).into_response(),
        Err(status) => refusal(&status),
    }
}

/// Calls a method of the service; the body of `request` becomes that of the call. The error is that
/// of the call.
async fn call<M: Message + Default + 'static, S: GrpcService>(
    grpc: S,
    method: &str,
    request: Request,
) -> Result<Streaming<M>, Status> {
    let (mut head, body) = request.into_parts();
    head.method = Method::POST;
    head.uri = format!("/{SERVICE}/{method}").parse().map_err(|_| Status::internal("a path"))?;
    head.headers.remove(header::CONTENT_LENGTH);
    let media_type = HeaderValue::from_static("application/grpc");
    head.headers.insert(header::CONTENT_TYPE, media_type);
    let body = tonic::body::Body::new(body);
    let response = match grpc.oneshot(Request::from_parts(head, body)).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (head, body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers)
        && status.code() != tonic::Code::Ok
    {
        return Err(status);
    }
    let decoder = MessageDecoder::<M>(std::marker::PhantomData);
    Ok(Streaming::new_response(decoder, body, head.status, None, Some(MAX_RESPONSE)))
}

/// A message as a body of gRPC has it.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(PREFIX + message.len());
    put_prefix(message.len(), &mut framed);
    framed.extend_from_slice(message);
    framed.into()
}

struct MessageDecoder<M>(std::marker::PhantomData<fn() -> M>);

impl<M: Message + Default> Decoder for MessageDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = source.copy_to_bytes(source.remaining());
        M::decode(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
