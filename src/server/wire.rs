//! The messages of the service as the gateway handles them: events stay bytes.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::error::Error;
use crate::{
    bus::Place,
    hub::{cursor::Events, token},
    proto::v1,
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

/// `trunkline.v1.SubscribeResponse`, encoded, in parts: what is shared between streams is copied only once, into the stream's
/// own send buffer.
#[derive(Debug)]
pub struct Response {
    body: Body,
    length: usize,
}

#[derive(Debug)]
enum Body {
    /// The arm `events`: its key and the batch's length, the events, and the token with its key and length.
    Events { batch: usize, events: Vec<Bytes>, token: Vec<u8> },
    /// Any other arm, whole.
    Other(Vec<u8>),
}

/// Field numbers of the arms and fields that are encoded by hand.
const RESPONSE_EVENTS: u32 = 2;
const BATCH_TOKEN: u32 = 2;

impl Response {
    /// The arm `events`: events that are already encoded as fields of the batch, and the token of the places after them.
    pub fn events(events: Events, deployment: u32, places: &[Place]) -> Response {
        let token_bytes = token::encoded_len(places);
        let mut token = Vec::with_capacity(
            key_len(BATCH_TOKEN) + encoded_len_varint(token_bytes as u64) + token_bytes,
        );
        encode_key(BATCH_TOKEN, WireType::LengthDelimited, &mut token);
        encode_varint(token_bytes as u64, &mut token);
        token::encode(deployment, places, &mut token);
        let batch = events.bytes + token.len();
        let head = key_len(RESPONSE_EVENTS) + encoded_len_varint(batch as u64);
        Response {
            length: head + batch,
            body: Body::Events { batch, events: events.chunks, token },
        }
    }

    /// Any other arm.
    pub fn other(response: v1::subscribe_response::Response) -> Response {
        let bytes = v1::SubscribeResponse { response: Some(response) }.encode_to_vec();
        Response { length: bytes.len(), body: Body::Other(bytes) }
    }

    /// Appends the message.
    fn encode(&self, buf: &mut impl BufMut) {
        match &self.body {
            Body::Events { batch, events, token } => {
                encode_key(RESPONSE_EVENTS, WireType::LengthDelimited, buf);
                encode_varint(*batch as u64, buf);
                for chunk in events {
                    buf.put_slice(chunk);
                }
                buf.put_slice(token);
            }
            Body::Other(bytes) => buf.put_slice(bytes),
        }
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
        item.encode(dst);
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
        let places = [Place::new(7, 300), Place::new(9, 1)];
        let response = Response::events(events, 77, &places);
        let mut bytes = Vec::new();
        response.encode(&mut bytes);
        assert_eq!(bytes.len(), response.length);
        let decoded = v1::SubscribeResponse::decode(&bytes[..]).unwrap();
        let mut resume_token = Vec::new();
        token::encode(77, &places, &mut resume_token);
        let expected = v1::EventBatch { resume_token, ..batch };
        assert_eq!(decoded.response, Some(v1::subscribe_response::Response::Events(expected)));
    }
}
