//! Events with the new kind, which the messages of this version do not have.

use prost::Message;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::{Ascii, MetadataValue},
};
use tonic_prost::ProstCodec;
use trunkline_proto::v1::{Event, PublishResponse, SubscribeRequest};

use crate::support::{Gateway, LIMIT};

/// `Event` with the new kind and the fields that the tests read.
#[derive(Clone, PartialEq, Message)]
pub struct NewEvent {
    #[prost(string, tag = "1")]
    pub event_id: String,
    #[prost(uint64, tag = "5")]
    pub merged_events: u64,
    #[prost(message, optional, tag = "30")]
    pub quota_change: Option<QuotaChange>,
}

/// The message of the new kind.
#[derive(Clone, PartialEq, Message)]
pub struct QuotaChange {
    #[prost(string, tag = "1")]
    pub account_id: String,
    #[prost(uint64, tag = "2")]
    pub used: u64,
}

/// An encoded event.
#[derive(Clone)]
pub struct Encoded(Vec<u8>);

impl From<Event> for Encoded {
    fn from(event: Event) -> Encoded {
        Encoded(event.encode_to_vec())
    }
}

/// An event of the new kind.
pub fn quota_change(event_id: &str, account: &str, used: u64) -> Encoded {
    let quota_change = Some(QuotaChange { account_id: account.into(), used });
    let event = NewEvent { event_id: event_id.into(), merged_events: 0, quota_change };
    Encoded(event.encode_to_vec())
}

/// `PublishRequest` with encoded events.
#[derive(Clone, PartialEq, Message)]
struct RawPublish {
    #[prost(string, tag = "1")]
    node_id: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    events: Vec<Vec<u8>>,
}

/// `SubscribeResponse` with nothing but its batch.
#[derive(Clone, PartialEq, Message)]
pub struct NewResponse {
    #[prost(message, optional, tag = "2")]
    batch: Option<NewBatch>,
}

/// `EventBatch` of such events.
#[derive(Clone, PartialEq, Message)]
struct NewBatch {
    #[prost(message, repeated, tag = "1")]
    events: Vec<NewEvent>,
}

fn path(method: &str) -> PathAndQuery {
    format!("/trunkline.v1.CoordinationService/{method}").parse().expect("a path")
}

fn with_token<M>(token: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    let value: MetadataValue<Ascii> = format!("Bearer {token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", value);
    request
}

/// Publishes as the node `publisher`.
pub async fn publish(
    gateway: &Gateway,
    token: &str,
    events: Vec<Encoded>,
) -> Result<PublishResponse, Status> {
    let events = events.into_iter().map(|event| event.0).collect();
    let message = RawPublish { node_id: "publisher".into(), events };
    let codec = ProstCodec::<RawPublish, PublishResponse>::default();
    let mut grpc = Grpc::new(gateway.connect().await?);
    grpc.ready().await.expect("a connection");
    let response = grpc.unary(with_token(token, message), path("Publish"), codec).await?;
    Ok(response.into_inner())
}

/// Opens a stream, and waits until it is subscribed.
pub async fn subscribe(
    gateway: &Gateway,
    token: &str,
    message: SubscribeRequest,
) -> Result<Streaming<NewResponse>, Status> {
    let codec = ProstCodec::<SubscribeRequest, NewResponse>::default();
    let mut grpc = Grpc::new(gateway.connect().await?);
    grpc.ready().await.expect("a connection");
    let request = with_token(token, message);
    let mut stream = grpc.server_streaming(request, path("Subscribe"), codec).await?.into_inner();
    let first = tokio::time::timeout(LIMIT, stream.message()).await.expect("in time")?;
    assert!(first.expect("a message").batch.is_none(), "subscribed comes first");
    Ok(stream)
}

/// The next events of a stream.
pub async fn next_events(stream: &mut Streaming<NewResponse>) -> Vec<NewEvent> {
    loop {
        let next = tokio::time::timeout(LIMIT, stream.message()).await.expect("in time");
        if let Some(batch) = next.expect("an open stream").expect("not the end").batch {
            return batch.events;
        }
    }
}
