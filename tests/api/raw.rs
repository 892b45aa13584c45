//! A client that writes and reads encoded events, as a newer peer would send and receive them.

use prost::Message;
use tonic::{
    Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel,
};
use tonic_prost::ProstCodec;
use trunkline_proto::v1::{PublishResponse, SubscribeRequest};

use crate::support::Gateway;

/// `PublishRequest` with bytes for events.
#[derive(Clone, PartialEq, Message)]
pub struct RawPublish {
    /// The node.
    #[prost(bytes = "vec", tag = "1")]
    pub node_id: Vec<u8>,
    /// The bytes of an event.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub events: Vec<Vec<u8>>,
}

/// `SubscribeResponse` with nothing but its batch, and in it bytes for events.
#[derive(Clone, PartialEq, Message)]
pub struct RawResponse {
    /// Set if it is a batch.
    #[prost(message, optional, tag = "2")]
    pub batch: Option<RawBatch>,
}

/// `EventBatch` with bytes for events.
#[derive(Clone, PartialEq, Message)]
pub struct RawBatch {
    /// Each event as it came.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub events: Vec<Vec<u8>>,
}

/// Bytes as they are, where a message is expected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bytes(pub Vec<u8>);

impl Message for Bytes {
    fn encode_raw(&self, buf: &mut impl prost::bytes::BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buf: &mut impl prost::bytes::Buf,
        context: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buf, context)
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

fn path(method: &str) -> PathAndQuery {
    format!("/trunkline.v1.CoordinationService/{method}").parse().unwrap()
}

async fn ready(gateway: &Gateway) -> Grpc<Channel> {
    let mut grpc = Grpc::new(gateway.connect().await.unwrap());
    grpc.ready().await.unwrap();
    grpc
}

/// Calls a method that answers once.
pub async fn call<In: Message + 'static, Out: Message + Default + 'static>(
    gateway: &Gateway,
    method: &str,
    request: In,
) -> Result<Out, Status> {
    let codec = ProstCodec::<In, Out>::default();
    let answer =
        ready(gateway).await.unary(tonic::Request::new(request), path(method), codec).await;
    answer.map(tonic::Response::into_inner)
}

/// Publishes events that are bytes.
pub async fn publish(
    gateway: &Gateway,
    node_id: &str,
    events: Vec<Vec<u8>>,
) -> Result<PublishResponse, Status> {
    call(gateway, "Publish", RawPublish { node_id: node_id.into(), events }).await
}

/// Opens a stream of which only batches are read.
pub async fn subscribe(
    gateway: &Gateway,
    request: SubscribeRequest,
) -> Result<Streaming<RawResponse>, Status> {
    let codec = ProstCodec::<SubscribeRequest, RawResponse>::default();
    let request = tonic::Request::new(request);
    let mut grpc = ready(gateway).await;
    grpc.server_streaming(request, path("Subscribe"), codec).await.map(tonic::Response::into_inner)
}

/// The next events of a stream.
pub async fn events(stream: &mut Streaming<RawResponse>) -> Vec<Vec<u8>> {
    loop {
        let next = tokio::time::timeout(crate::support::LIMIT, stream.message()).await;
        let response = next.expect("a response in time").unwrap().expect("not the end");
        if let Some(batch) = response.batch {
            return batch.events;
        }
    }
}
