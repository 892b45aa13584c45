//! Reads the message of a unary request, or of one that opens a stream.

use std::{marker::PhantomData, pin::pin};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Body;
use prost::Message;
use tonic::{
    Status, Streaming,
    codec::{BufferSettings, DecodeBuf, Decoder},
    metadata::MetadataValue,
};
use tower::BoxError;

use crate::{
    config::Limits,
    errors::Error,
    rpc::lists::{self, Lists},
};

/// `trunkline.v1.PublishRequest` with its events left encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PublishRequest {
    /// The publishing node.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// Makes a retry safe.
    #[prost(string, tag = "2")]
    pub request_id: String,
    /// The events, as the node encoded them.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub events: Vec<Bytes>,
}

impl Lists for PublishRequest {
    fn check_lists(bytes: &[u8], limits: &Limits) -> Result<(), Error> {
        lists::check_publish(bytes, limits)
    }
}

/// Reads the only message of a request, and its end. Its size and its lists are limited before it
/// is decoded.
pub async fn read<M, B>(headers: &HeaderMap, body: B, limits: &Limits) -> Result<M, Status>
where
    M: Message + Default + Lists + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    refuse_compression(headers)?;
    let max_bytes = Some(limits.max_request_bytes);
    let decoder = RequestDecoder { limits: limits.clone(), message: PhantomData };
    let mut messages = pin!(Streaming::new_request(decoder, body, None, max_bytes));
    let message = messages.message().await?.ok_or_else(|| {
        Status::unimplemented("this method takes one request message, and none came")
    })?;
    // The request is complete with its end, not with its message.
    if messages.message().await?.is_some() {
        let text = "this method takes one request message, and another one came: nothing was done";
        return Err(Status::unimplemented(text));
    }
    Ok(message)
}

/// Refuses a request whose messages are compressed: it could unpack to any size.
pub fn refuse_compression(headers: &HeaderMap) -> Result<(), Status> {
    let Some(encoding) = headers.get("grpc-encoding").filter(|encoding| *encoding != "identity")
    else {
        return Ok(());
    };
    let text = format!("messages compressed with {encoding:?} are not supported");
    let mut status = Status::unimplemented(text);
    let identity = MetadataValue::from_static("identity");
    status.metadata_mut().insert("grpc-accept-encoding", identity);
    Err(status)
}

/// Decodes requests. Bytes that are not a message are the caller's mistake, where the codec of
/// `tonic-prost` reports an internal error.
struct RequestDecoder<M> {
    limits: Limits,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default + Lists> Decoder for RequestDecoder<M> {
    type Item = M;
    type Error = Status;

    fn buffer_settings(&self) -> BufferSettings {
        // Most requests are small; the buffer grows for others.
        BufferSettings::new(1024, 32 * 1024)
    }

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = src.copy_to_bytes(src.remaining());
        M::check_lists(&bytes, &self.limits)?;
        M::decode(bytes)
            .map(Some)
            .map_err(|error| Error::field("request", format!("is malformed: {error}")).into())
    }
}
