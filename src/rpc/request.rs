//! Reads the messages of requests.

use std::pin::pin;

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

/// The buffer in which messages arrive, in bytes: most are small, and it grows for others.
pub const BUFFER: usize = 1024;

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
    /// What the response waits for: a `trunkline.v1.WaitFor`.
    #[prost(int32, tag = "4")]
    pub wait_for: i32,
    /// For how long.
    #[prost(message, optional, tag = "5")]
    pub wait_timeout: Option<prost_types::Duration>,
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
    let decode = {
        let limits = limits.clone();
        move |bytes: Bytes| {
            M::check_lists(&bytes, &limits)?;
            message(bytes)
        }
    };
    let mut messages = pin!(messages(headers, body, limits, BUFFER, decode)?);
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

/// The reason why a stream is not opened, or goes on no more.
pub enum Refusal {
    /// This error.
    Of(Error),
    /// Its requests could not be read: the connection broke, or what came is not gRPC.
    Read(Status),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Of(error)
    }
}

impl Refusal {
    /// The next request of a stream, where the decoder leaves its errors in the item.
    pub fn flatten<T>(
        item: Option<Result<Result<T, Error>, Status>>,
    ) -> Option<Result<T, Refusal>> {
        Some(match item? {
            Ok(request) => request.map_err(Refusal::Of),
            Err(status) => Err(Refusal::Read(status)),
        })
    }
}

/// The messages of a body, one after the other, as `decode` makes them of their bytes. The size of
/// each is limited before it is allocated. `buffer` is the room, in bytes, in which they arrive.
pub fn messages<T, B>(
    headers: &HeaderMap,
    body: B,
    limits: &Limits,
    buffer: usize,
    decode: impl FnMut(Bytes) -> Result<T, Error> + Send + 'static,
) -> Result<Streaming<T>, Status>
where
    T: 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    refuse_compression(headers)?;
    let decoder = MessageDecoder { buffer, decode };
    Ok(Streaming::new_request(decoder, body, None, Some(limits.max_request_bytes)))
}

/// The message of these bytes. Bytes that are not a message are the caller's mistake, where the
/// codec of `tonic-prost` reports an internal error.
pub fn message<M: Message + Default>(bytes: Bytes) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::field("request", format!("is malformed: {error}")))
}

/// Refuses a request whose messages are compressed: it could unpack to any size.
fn refuse_compression(headers: &HeaderMap) -> Result<(), Status> {
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

struct MessageDecoder<F> {
    buffer: usize,
    decode: F,
}

impl<T, F: FnMut(Bytes) -> Result<T, Error>> Decoder for MessageDecoder<F> {
    type Item = T;
    type Error = Status;

    fn buffer_settings(&self) -> BufferSettings {
        // The second is for encoders.
        BufferSettings::new(self.buffer, 32 * 1024)
    }

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        Ok(Some((self.decode)(src.copy_to_bytes(src.remaining()))?))
    }
}
