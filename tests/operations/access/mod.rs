//! Access: authentication and authorisation, over real sockets with real certificates.

mod certificates;
pub mod files;
mod rules;
mod tokens;
mod tools;

use tonic::{
    Code, Status, Streaming,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use trunkline_client::{Bearer, Credentials};
use trunkline_proto::v1::{
    Event, Filter, PublishRequest, SubscribeRequest, SubscribeResponse,
    coordination_service_client::CoordinationServiceClient, event::Kind,
    subscribe_response::Response,
};

use super::support::{Gateway, LIMIT};

pub const MX_TOKEN: &str = "token-of-the-mail-exchangers";
pub const WEB_TOKEN: &str = "token-of-the-web-servers";
const SUPPORT_TOKEN: &str = "token-of-the-support-team";

type Node = CoordinationServiceClient<InterceptedService<Channel, Bearer>>;

fn url(gateway: &Gateway) -> String {
    format!("https://localhost:{}", gateway.port())
}

async fn try_connect(gateway: &Gateway, credentials: &Credentials) -> Result<Node, String> {
    let endpoint = Endpoint::from_shared(url(gateway)).expect("a URL");
    let endpoint = credentials.apply(endpoint).expect("certificates");
    let channel = tokio::time::timeout(LIMIT, endpoint.connect()).await.expect("in time");
    let channel = channel.map_err(|error| format!("{error:?}"))?;
    Ok(CoordinationServiceClient::with_interceptor(channel, credentials.bearer()))
}

async fn connect(gateway: &Gateway, credentials: &Credentials) -> Node {
    try_connect(gateway, credentials).await.expect("a connection")
}

async fn publish(node: &Node, node_id: &str, events: Vec<Event>) -> Result<(), Status> {
    let request = PublishRequest { node_id: node_id.into(), events, ..Default::default() };
    node.clone().publish(request).await.map(|_| ())
}

fn request(node_id: &str, filter: Filter) -> SubscribeRequest {
    SubscribeRequest { node_id: node_id.into(), filter: Some(filter), ..Default::default() }
}

/// Opens a stream, and receives its first message, `Subscribed`.
async fn subscribe(
    node: &Node,
    request: SubscribeRequest,
) -> Result<Streaming<SubscribeResponse>, Status> {
    let mut stream = node.clone().subscribe(request).await?.into_inner();
    let first = tokio::time::timeout(LIMIT, stream.message()).await.expect("in time")?;
    assert!(matches!(first.expect("a message").response, Some(Response::Subscribed(_))));
    Ok(stream)
}

/// Receives the next events.
async fn next(stream: &mut Streaming<SubscribeResponse>) -> Result<Vec<Event>, Status> {
    loop {
        let message = tokio::time::timeout(LIMIT, stream.message()).await.expect("in time")?;
        if let Some(Response::Events(batch)) = message.expect("a message").response {
            return Ok(batch.events);
        }
    }
}

/// The type of a custom event; empty for another kind.
fn custom_type(event: &Event) -> String {
    match &event.kind {
        Some(Kind::Custom(custom)) => custom.r#type.clone(),
        _ => String::new(),
    }
}

/// Receives events until one of this custom type; returns those before it.
async fn until_type(stream: &mut Streaming<SubscribeResponse>, last: &str) -> Vec<Event> {
    let mut seen = vec![];
    loop {
        for event in next(stream).await.expect("events") {
            if custom_type(&event) == last {
                return seen;
            }
            seen.push(event);
        }
    }
}

#[track_caller]
fn refused<T>(result: Result<T, Status>, code: Code, reason: &str) -> Vec<String> {
    let Err(status) = result else { panic!("it was allowed") };
    let details = status.get_error_details();
    let found = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    assert_eq!((status.code(), found.as_str()), (code, reason), "{status:?}");
    let violations = details.bad_request().map(|bad| bad.field_violations.clone());
    violations.unwrap_or_default().into_iter().map(|violation| violation.field).collect()
}

#[track_caller]
fn not_allowed<T>(result: Result<T, Status>) -> Vec<String> {
    refused(result, Code::PermissionDenied, "NOT_ALLOWED")
}

#[track_caller]
fn unauthenticated<T>(result: Result<T, Status>, reason: &str) {
    refused(result, Code::Unauthenticated, reason);
}
