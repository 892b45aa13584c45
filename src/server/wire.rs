//! The messages of the service as the gateway handles them: events stay bytes.

use bytes::Bytes;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// `trunkline.v1.PublishRequest` with its events left encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PublishRequest {
    /// The publishing node.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// What makes a retry safe.
    #[prost(string, tag = "2")]
    pub request_id: String,
    /// The events, each as it came.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub events: Vec<Bytes>,
}
