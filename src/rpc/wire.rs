//! The messages of the service as the gateway handles them: events stay bytes.

use std::{io::IoSlice, marker::PhantomData};

use bytes::{Buf, BufMut, Bytes};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::rpc::error::Error;
use crate::{
    bus::Position,
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

/// Bytes of a response's body that go out as one.
///
/// Those of a stream are a whole `trunkline.v1.SubscribeResponse` behind the prefix of gRPC. Its events are shared with all other
/// streams that they go to, and with the log, where they are large enough: they are copied only into the kernel.
#[derive(Debug)]
pub enum Piece {
    /// In one part.
    Whole(Bytes),
    /// In several.
    Parts(Box<Parts>),
}

/// See [`Piece`].
#[derive(Debug)]
pub struct Parts {
    list: Vec<Bytes>,
    /// The first that has something left.
    at: usize,
    /// Bytes that are left in all.
    left: usize,
}

/// Field numbers of the arms and fields that are encoded by hand.
const RESPONSE_EVENTS: u32 = 2;
const BATCH_TOKEN: u32 = 2;

/// Bytes before a message of gRPC: whether it is compressed, and its length.
pub const PREFIX: usize = 5;

/// Events are shared where their chunks have so many bytes on average. Smaller ones are sooner copied than gathered, and one that
/// waits for a slow reader would keep a whole frame of up to 128 KiB in memory.
const SHARED_FROM: usize = 4096;

impl Piece {
    /// The arm `events`: events that are already encoded as fields of the batch, and the token of the places after them.
    pub fn events(events: Events, deployment: u32, positions: &[Position]) -> Piece {
        let token_bytes = token::encoded_len(positions);
        let token_field =
            key_len(BATCH_TOKEN) + encoded_len_varint(token_bytes as u64) + token_bytes;
        let batch = events.bytes + token_field;
        let message = key_len(RESPONSE_EVENTS) + encoded_len_varint(batch as u64) + batch;
        let shares = events.bytes >= SHARED_FROM * events.chunks.len().max(1);
        let copied = if shares { 0 } else { events.bytes };
        let mut own = Vec::with_capacity(PREFIX + message - events.bytes + copied);
        put_prefix(message, &mut own);
        encode_key(RESPONSE_EVENTS, WireType::LengthDelimited, &mut own);
        encode_varint(batch as u64, &mut own);
        let head = own.len();
        if !shares {
            events.chunks.iter().for_each(|chunk| own.put_slice(chunk));
        }
        encode_key(BATCH_TOKEN, WireType::LengthDelimited, &mut own);
        encode_varint(token_bytes as u64, &mut own);
        token::encode(deployment, positions, &mut own);
        let own = Bytes::from(own);
        if !shares {
            return Piece::Whole(own);
        }
        let mut parts = Vec::with_capacity(events.chunks.len() + 2);
        parts.push(own.slice(..head));
        parts.extend(events.chunks);
        parts.push(own.slice(head..));
        Piece::Parts(Box::new(Parts { list: parts, at: 0, left: PREFIX + message }))
    }

    /// Any other arm.
    pub fn other(response: v1::subscribe_response::Response) -> Piece {
        let response = v1::SubscribeResponse { response: Some(response) };
        let message = response.encoded_len();
        let mut own = Vec::with_capacity(PREFIX + message);
        put_prefix(message, &mut own);
        response.encode_raw(&mut own);
        Piece::Whole(own.into())
    }
}

fn put_prefix(message: usize, to: &mut Vec<u8>) {
    to.put_u8(0);
    // No batch comes near the 4 GiB that gRPC can name.
    to.put_u32(u32::try_from(message).unwrap_or(u32::MAX));
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Piece::Whole(bytes) => bytes.len(),
            Piece::Parts(parts) => parts.left,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Piece::Whole(bytes) => bytes,
            Piece::Parts(parts) => parts.list.get(parts.at).map_or(&[], |part| part),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            Piece::Whole(bytes) => bytes.chunks_vectored(slices),
            Piece::Parts(parts) => {
                let parts = parts.list.iter().skip(parts.at);
                let both = slices.iter_mut().zip(parts);
                both.map(|(slice, part)| *slice = IoSlice::new(part)).count()
            }
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Piece::Whole(bytes) => bytes.advance(count),
            Piece::Parts(parts) => parts.advance(count),
        }
    }
}

impl Parts {
    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.left, "nothing is behind the last part");
        self.left -= count;
        while let Some(part) = self.list.get_mut(self.at) {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            // What was sent is kept no longer.
            *part = Bytes::new();
            self.at += 1;
        }
    }
}

/// Takes requests, and gives the messages of prost.
///
/// Differs from the codec of `tonic-prost` in what a request that is no protobuf is told: that it is wrong, not that the gateway
/// is.
#[derive(Clone, Copy, Debug)]
pub struct WireCodec<Out, In>(PhantomData<fn(Out) -> In>);

/// Encodes the messages of prost.
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

encode_as_prost_does!(
    v1::PublishResponse,
    v1::SubscribeResponse,
    v1::ListNodesResponse,
    v1::GetStatusResponse
);

impl<In: Message + Default> Decoder for RequestDecoder<In> {
    type Item = In;
    type Error = Status;

    fn buffer_settings(&self) -> BufferSettings {
        // Most requests are small; for others it grows.
        BufferSettings::new(1024, 32 * 1024)
    }

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<In>, Status> {
        In::decode(src)
            .map(Some)
            .map_err(|error| Error::field("request", format!("is malformed: {error}")).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of events with so many bytes of content each, in chunks of two, and the message that prost makes of it.
    fn batch(content: usize) -> (Piece, v1::SubscribeResponse) {
        let event =
            v1::Event { event_id: "e1".into(), source: "x".repeat(content), ..Default::default() };
        let batch = v1::EventBatch { events: vec![event; 4], resume_token: vec![] };
        let encoded = Bytes::from(batch.encode_to_vec());
        let half = encoded.len() / 2;
        let chunks = vec![encoded.slice(..half), encoded.slice(half..)];
        let events = Events { chunks, count: 4, bytes: encoded.len(), ..Events::up_to(4) };
        let positions = [Position::new(7, 300), Position::new(9, 1)];
        let mut resume_token = Vec::new();
        token::encode(77, &positions, &mut resume_token);
        let batch = v1::EventBatch { resume_token, ..batch };
        let response = Some(v1::subscribe_response::Response::Events(batch));
        (Piece::events(events, 77, &positions), v1::SubscribeResponse { response })
    }

    fn message_of(mut bytes: impl Buf) -> v1::SubscribeResponse {
        assert_eq!(bytes.get_u8(), 0, "not compressed");
        assert_eq!(bytes.get_u32() as usize, bytes.remaining());
        v1::SubscribeResponse::decode(bytes).unwrap()
    }

    #[test]
    fn a_batch_encoded_by_hand_is_the_one_that_prost_reads() {
        let (small, expected) = batch(10);
        assert!(matches!(small, Piece::Whole(_)));
        assert_eq!(message_of(small), expected);
        let (large, expected) = batch(SHARED_FROM);
        assert!(matches!(large, Piece::Parts(_)));
        assert_eq!(message_of(large), expected);
    }

    #[test]
    fn any_other_message_is_the_one_that_prost_makes() {
        let draining = v1::Draining { reason: "a test".into(), ..Default::default() };
        let response = v1::subscribe_response::Response::Draining(draining);
        let expected = v1::SubscribeResponse { response: Some(response.clone()) };
        assert_eq!(message_of(Piece::other(response)), expected);
    }

    #[test]
    fn parts_are_taken_in_steps_of_any_size() {
        let whole = |mut piece: Piece| piece.copy_to_bytes(piece.remaining());
        let expected = whole(batch(SHARED_FROM).0);
        for step in [1, 7, 16 * 1024, expected.len()] {
            let (mut piece, _) = batch(SHARED_FROM);
            let mut taken = Vec::new();
            while piece.has_remaining() {
                // As a socket takes them: from several parts at once.
                let mut slices = [IoSlice::new(&[]); 8];
                let filled = piece.chunks_vectored(&mut slices);
                assert_eq!(slices[0].first(), piece.chunk().first());
                let gathered: Vec<u8> =
                    slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
                assert_eq!(gathered.len(), piece.remaining());
                let step = step.min(gathered.len());
                taken.extend_from_slice(&gathered[..step]);
                piece.advance(step);
            }
            assert_eq!(taken, expected);
            assert_eq!(piece.chunks_vectored(&mut [IoSlice::new(&[]); 8]), 0);
        }
    }

    #[test]
    #[should_panic = "nothing is behind the last part"]
    fn more_than_there_is_cannot_be_taken() {
        let (mut piece, _) = batch(SHARED_FROM);
        piece.advance(piece.remaining() + 1);
    }
}
