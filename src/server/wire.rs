//! The messages of the service as the gateway handles them: events stay bytes.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::error::Error;
use crate::{hub::cursor::Events, proto::v1};

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

/// `trunkline.v1.SubscribeResponse`, encoded, in parts: what is shared between streams is copied only once, into the stream's
/// own send buffer.
#[derive(Clone, Debug)]
pub struct Response {
    parts: Vec<Bytes>,
    length: usize,
}

/// Field numbers of the arms and fields that are encoded by hand.
const RESPONSE_EVENTS: u32 = 2;
const BATCH_TOKEN: u32 = 2;

impl Response {
    /// The arm `events`: events that are already encoded as fields of the batch, and the token after them.
    pub fn events(events: Events, token: &[u8]) -> Response {
        let token_field =
            key_len(BATCH_TOKEN) + encoded_len_varint(token.len() as u64) + token.len();
        let batch = events.bytes + token_field;
        let mut head = BytesMut::with_capacity(16);
        encode_key(RESPONSE_EVENTS, WireType::LengthDelimited, &mut head);
        encode_varint(batch as u64, &mut head);
        let mut tail = BytesMut::with_capacity(token_field);
        encode_key(BATCH_TOKEN, WireType::LengthDelimited, &mut tail);
        encode_varint(token.len() as u64, &mut tail);
        tail.put_slice(token);
        let length = head.len() + batch;
        let mut parts = Vec::with_capacity(events.chunks.len() + 2);
        parts.push(head.freeze());
        parts.extend(events.chunks);
        parts.push(tail.freeze());
        Response { parts, length }
    }

    /// Any other arm.
    pub fn other(response: v1::subscribe_response::Response) -> Response {
        let message = v1::SubscribeResponse { response: Some(response) };
        let bytes = Bytes::from(message.encode_to_vec());
        Response { length: bytes.len(), parts: vec![bytes] }
    }
}

/// Takes requests, and gives [`Response`]s or the messages of prost.
///
/// Differs from the codec of `tonic-prost` in what a request that is no protobuf is told: that it is wrong, not that the gateway
/// is.
#[derive(Clone, Copy, Debug)]
pub struct WireCodec<Out, In>(PhantomData<fn(Out) -> In>);

/// Encodes [`Response`]s, and the messages of prost.
#[derive(Clone, Copy, Debug)]
pub struct WireEncoder<Out>(PhantomData<fn(Out)>);

/// Decodes requests.
#[derive(Clone, Copy, Debug)]
pub struct RequestDecoder<In>(PhantomData<fn() -> In>);

impl<Out, In> Default for WireCodec<Out, In> {
    fn default() -> Self {
        WireCodec(PhantomData)
    }
}

impl<Out, In> Codec for WireCodec<Out, In>
where
    Out: Send + 'static,
    WireEncoder<Out>: Encoder<Item = Out, Error = Status>,
    In: Message + Default + 'static,
{
    type Encode = Out;
    type Decode = In;
    type Encoder = WireEncoder<Out>;
    type Decoder = RequestDecoder<In>;

    fn encoder(&mut self) -> Self::Encoder {
        WireEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder(PhantomData)
    }
}

impl Encoder for WireEncoder<Response> {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, item: Response, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.reserve(item.length);
        for part in item.parts {
            dst.put(part);
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // An idle stream holds no buffer to speak of; a busy one grows it.
        BufferSettings::new(1024, 32 * 1024)
    }
}

macro_rules! encode_as_prost_does {
    ($($message:ty),*) => {$(
        impl Encoder for WireEncoder<$message> {
            type Item = $message;
            type Error = Status;

            fn encode(&mut self, item: $message, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
                item.encode(dst).map_err(|error| Status::internal(error.to_string()))
            }
        }
    )*};
}

encode_as_prost_does!(v1::PublishResponse, v1::ListNodesResponse, v1::GetStatusResponse);

impl<In: Message + Default> Decoder for RequestDecoder<In> {
    type Item = In;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<In>, Status> {
        In::decode(src)
            .map(Some)
            .map_err(|error| Error::field("request", format!("is malformed: {error}")).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_encoded_by_hand_is_the_one_that_prost_reads() {
        let event = v1::Event { event_id: "e1".into(), source: "n1".into(), ..Default::default() };
        let batch =
            v1::EventBatch { events: vec![event.clone(), event.clone()], resume_token: vec![] };
        let encoded = Bytes::from(batch.encode_to_vec());
        let half = encoded.len() / 2;
        let chunks = vec![encoded.slice(..half), encoded.slice(half..)];
        let events = Events { chunks, count: 2, bytes: encoded.len(), ..Events::up_to(2) };
        let response = Response::events(events, b"token");
        let bytes = response.parts.concat();
        assert_eq!(bytes.len(), response.length);
        let decoded = v1::SubscribeResponse::decode(&bytes[..]).unwrap();
        let expected = v1::EventBatch { resume_token: b"token".to_vec(), ..batch };
        assert_eq!(decoded.response, Some(v1::subscribe_response::Response::Events(expected)));
    }
}
