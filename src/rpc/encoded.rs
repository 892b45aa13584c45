//! Encoded messages of a response: events are encoded once, and shared by all streams.

use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};

use crate::{
    hub::{batch::Events, had::HadAt, token},
    port::requests::{PREFIX, put_prefix},
    proto::v1,
};

/// An encoded message with the prefix of gRPC: one DATA frame of a response's body.
///
/// Large events are shared with the log and with all other streams that they are sent on: they are
/// copied only into the kernel.
#[derive(Debug)]
pub enum EncodedMessage {
    /// One part.
    Whole(Bytes),
    /// Several parts.
    Parts(Box<Parts>),
}

/// The parts of an [`EncodedMessage`].
#[derive(Debug)]
pub struct Parts {
    list: Vec<Bytes>,
    /// The first part that has bytes left.
    at: usize,
    /// Bytes left in all parts.
    left: usize,
}

/// Numbers of the fields that are encoded by hand: `SubscribeResponse.events` and
/// `EventBatch.resume_token`.
const RESPONSE_EVENTS: u32 = 2;
const BATCH_TOKEN: u32 = 2;

/// Events are shared where their chunks have this many bytes on average. Smaller ones are faster to
/// copy than to gather, and one that waits for a slow reader would keep a whole frame of up to
/// 128 KiB in memory.
const MIN_SHARED_CHUNK: usize = 4096;

impl EncodedMessage {
    /// The response `events`: events that are already encoded as fields of the batch, and the token
    /// of what the stream has had with them.
    pub fn events<'a>(
        events: Events,
        deployment: u32,
        had: impl ExactSizeIterator<Item = HadAt<'a>> + Clone,
        behind: Option<impl ExactSizeIterator<Item = HadAt<'a>> + Clone>,
    ) -> EncodedMessage {
        let token_bytes = token::encoded_len(had.clone(), behind.clone());
        let token_field =
            key_len(BATCH_TOKEN) + encoded_len_varint(token_bytes as u64) + token_bytes;
        let batch = events.bytes + token_field;
        let message = key_len(RESPONSE_EVENTS) + encoded_len_varint(batch as u64) + batch;
        let shares = events.bytes >= MIN_SHARED_CHUNK * events.chunks.len().max(1);
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
        token::encode_with(deployment, had, behind, &mut own);
        let own = Bytes::from(own);
        if !shares {
            return EncodedMessage::Whole(own);
        }
        let mut parts = Vec::with_capacity(events.chunks.len() + 2);
        parts.push(own.slice(..head));
        parts.extend(events.chunks);
        parts.push(own.slice(head..));
        EncodedMessage::Parts(Box::new(Parts { list: parts, at: 0, left: PREFIX + message }))
    }

    /// Any other response of a stream.
    pub fn response(response: v1::subscribe_response::Response) -> EncodedMessage {
        EncodedMessage::message(&v1::SubscribeResponse { response: Some(response) })
    }

    /// Any message.
    pub fn message(message: &impl Message) -> EncodedMessage {
        let len = message.encoded_len();
        let mut bytes = Vec::with_capacity(PREFIX + len);
        put_prefix(len, &mut bytes);
        message.encode_raw(&mut bytes);
        EncodedMessage::Whole(bytes.into())
    }
}

impl Buf for EncodedMessage {
    fn remaining(&self) -> usize {
        match self {
            EncodedMessage::Whole(bytes) => bytes.len(),
            EncodedMessage::Parts(parts) => parts.left,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            EncodedMessage::Whole(bytes) => bytes,
            EncodedMessage::Parts(parts) => parts.list.get(parts.at).map_or(&[], |part| part),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            EncodedMessage::Whole(bytes) => bytes.chunks_vectored(slices),
            EncodedMessage::Parts(parts) => {
                let parts = parts.list.iter().skip(parts.at);
                let both = slices.iter_mut().zip(parts);
                both.map(|(slice, part)| *slice = IoSlice::new(part)).count()
            }
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            EncodedMessage::Whole(bytes) => bytes.advance(count),
            EncodedMessage::Parts(parts) => parts.advance(count),
        }
    }
}

impl Parts {
    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.left, "advanced past the last part");
        self.left -= count;
        while let Some(part) = self.list.get_mut(self.at) {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            // Frees what was sent.
            *part = Bytes::new();
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bus::Position, hub::had::Had};

    fn none() -> Option<std::iter::Empty<HadAt<'static>>> {
        None
    }

    /// A batch of events with `content` bytes each, in two chunks, and the message that prost makes
    /// of it.
    fn batch(content: usize) -> (EncodedMessage, v1::SubscribeResponse) {
        let event =
            v1::Event { event_id: "e1".into(), source: "x".repeat(content), ..Default::default() };
        let batch = v1::EventBatch { events: vec![event; 4], resume_token: vec![] };
        let encoded = Bytes::from(batch.encode_to_vec());
        let half = encoded.len() / 2;
        let chunks = vec![encoded.slice(..half), encoded.slice(half..)];
        let events = Events { chunks, count: 4, bytes: encoded.len(), ..Events::up_to(4) };
        let had = [Position::new(7, 300), Position::new(9, 1)].map(Had::up_to);
        let had = || had.iter().map(|had| had.at(Position::UNKNOWN));
        let mut resume_token = Vec::new();
        token::encode(77, had(), &mut resume_token);
        let batch = v1::EventBatch { resume_token, ..batch };
        let response = Some(v1::subscribe_response::Response::Events(batch));
        let encoded = EncodedMessage::events(events, 77, had(), none());
        (encoded, v1::SubscribeResponse { response })
    }

    fn message_of(mut bytes: impl Buf) -> v1::SubscribeResponse {
        assert_eq!(bytes.get_u8(), 0, "not compressed");
        assert_eq!(bytes.get_u32() as usize, bytes.remaining());
        v1::SubscribeResponse::decode(bytes).unwrap()
    }

    #[test]
    fn a_batch_encoded_by_hand_decodes_to_the_same_message() {
        let (small, expected) = batch(10);
        assert!(matches!(small, EncodedMessage::Whole(_)));
        assert_eq!(message_of(small), expected);
        let (large, expected) = batch(MIN_SHARED_CHUNK);
        assert!(matches!(large, EncodedMessage::Parts(_)));
        assert_eq!(message_of(large), expected);
    }

    #[test]
    fn any_other_message_is_encoded_as_prost_does() {
        let draining = v1::Draining { reason: "a test".into(), ..Default::default() };
        let response = v1::subscribe_response::Response::Draining(draining);
        let expected = v1::SubscribeResponse { response: Some(response.clone()) };
        assert_eq!(message_of(EncodedMessage::response(response)), expected);
    }

    #[test]
    fn parts_can_be_consumed_in_steps_of_any_size() {
        let whole = |mut message: EncodedMessage| message.copy_to_bytes(message.remaining());
        let expected = whole(batch(MIN_SHARED_CHUNK).0);
        for step in [1, 7, 16 * 1024, expected.len()] {
            let (mut message, _) = batch(MIN_SHARED_CHUNK);
            let mut taken = Vec::new();
            while message.has_remaining() {
                // As a socket takes them: from several parts at once.
                let mut slices = [IoSlice::new(&[]); 8];
                let filled = message.chunks_vectored(&mut slices);
                assert_eq!(slices[0].first(), message.chunk().first());
                let gathered: Vec<u8> =
                    slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
                assert_eq!(gathered.len(), message.remaining());
                let step = step.min(gathered.len());
                taken.extend_from_slice(&gathered[..step]);
                message.advance(step);
            }
            assert_eq!(taken, expected);
            assert_eq!(message.chunks_vectored(&mut [IoSlice::new(&[]); 8]), 0);
        }
    }

    #[test]
    #[should_panic = "advanced past the last part"]
    fn advancing_past_the_end_panics() {
        let (mut message, _) = batch(MIN_SHARED_CHUNK);
        message.advance(message.remaining() + 1);
    }
}
