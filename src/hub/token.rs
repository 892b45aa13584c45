//! The resume token: a subscriber's position in every shard, in a few bytes that are sent with each
//! response.
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version of this layout: 1 |
//! | 4 | tag of the deployment, big endian |
//! | varint | number of shards |
//! | per shard, from 0 | varints: the epoch (as distance to the one before, zigzag), the offset |
//! | 4 | FNV-1a of all before, big endian |
//!
//! Epochs of one deployment are mostly close together, so a shard takes about as many bytes as its
//! offset. The checksum protects against accidents, not against forgery: a forged token reads no
//! more than the subscriber's rules allow.

use bytes::{BufMut, Bytes, BytesMut};

use super::event::{
    Fnv32,
    wire::{get_varint, put_varint, varint_len},
};
use crate::bus::Position;

const VERSION: u8 = 1;
const TAG: usize = 4;
const CHECKSUM: usize = 4;

/// The reason why a token cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The bytes are no token, or a part of one, or a later version's.
    #[error("these bytes are no resume token: {0}")]
    Malformed(&'static str),
    /// The token comes from gateways with another prefix.
    #[error("the resume token is of another deployment")]
    ForeignDeployment,
}

/// One position per shard, of one deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    /// [`deployment_tag`] of the deployment that made the token.
    pub deployment: u32,
    /// By shard: everything up to and including this position was delivered or reported as a gap.
    pub positions: Vec<Position>,
}

impl ResumeToken {
    /// Decodes a token that must be of `deployment`. Never panics, whatever the bytes; detects
    /// every single wrong byte.
    pub fn decode(token: &[u8], deployment: u32) -> Result<ResumeToken, TokenError> {
        use TokenError::Malformed;

        let (body, checksum) =
            token.split_last_chunk::<CHECKSUM>().ok_or(Malformed("too short"))?;
        let mut sum = Fnv32::new();
        sum.write(body);
        if sum.finish() != u32::from_be_bytes(*checksum) {
            return Err(Malformed("wrong checksum"));
        }
        let (&version, body) = body.split_first().ok_or(Malformed("too short"))?;
        if version != VERSION {
            return Err(Malformed("unknown version"));
        }
        let (tag, mut body) = body.split_first_chunk::<TAG>().ok_or(Malformed("too short"))?;
        if u32::from_be_bytes(*tag) != deployment {
            return Err(TokenError::ForeignDeployment);
        }
        let mut number = || get_varint(&mut body).map_err(|_| Malformed("cut off"));
        let shards = u16::try_from(number()?).map_err(|_| Malformed("too many shards"))?;
        let mut positions = Vec::new();
        let mut epoch = 0u64;
        for shard in 0..shards {
            let value = number()?;
            epoch = if shard == 0 { value } else { epoch.wrapping_add(unzigzag(value)) };
            positions.push(Position::new(epoch, number()?));
        }
        if !body.is_empty() {
            return Err(Malformed("bytes after the end"));
        }
        Ok(ResumeToken { deployment, positions })
    }

    /// The number of bytes that [`encode`](Self::encode) appends.
    pub fn encoded_len(&self) -> usize {
        encoded_len(&self.positions)
    }

    /// Appends the token to `buf`.
    pub fn encode(&self, buf: &mut impl BufMut) {
        encode(self.deployment, &self.positions, buf);
    }

    /// The encoded token.
    pub fn to_bytes(&self) -> Bytes {
        let mut buf = BytesMut::with_capacity(self.encoded_len());
        self.encode(&mut buf);
        buf.freeze()
    }
}

/// Appends the token of `positions` (one per shard, from shard 0) to `buf`, for callers that keep
/// the positions. Does not allocate.
pub fn encode(deployment: u32, positions: &[Position], buf: &mut impl BufMut) {
    let mut buf = Summed { buf, sum: Fnv32::new() };
    buf.put(&[VERSION]);
    buf.put(&deployment.to_be_bytes());
    buf.put_varint(positions.len() as u64);
    for value in values(positions) {
        buf.put_varint(value);
    }
    buf.buf.put_slice(&buf.sum.finish().to_be_bytes());
}

/// The number of bytes that [`encode`] appends for `positions`.
pub fn encoded_len(positions: &[Position]) -> usize {
    let numbers =
        varint_len(positions.len() as u64) + values(positions).map(varint_len).sum::<usize>();
    1 + TAG + numbers + CHECKSUM
}

/// The tag that tokens of one deployment share: a hash of the prefix of its keys and channels.
pub fn deployment_tag(prefix: &str) -> u32 {
    let mut fnv = Fnv32::new();
    fnv.write(prefix.as_bytes());
    fnv.finish()
}

/// The numbers of all positions, as they are encoded.
fn values(positions: &[Position]) -> impl Iterator<Item = u64> {
    let before =
        std::iter::once(None).chain(positions.iter().map(|position| Some(position.epoch.0)));
    positions.iter().zip(before).flat_map(|(position, before)| {
        let epoch = position.epoch.0;
        let epoch = before.map_or(epoch, |before| zigzag(epoch.wrapping_sub(before)));
        [epoch, position.offset.0]
    })
}

/// Encodes a distance that may be negative (in two's complement) as a number that is small if the
/// distance is small.
fn zigzag(distance: u64) -> u64 {
    (distance << 1) ^ (distance >> 63).wrapping_neg()
}

fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

/// Writes to a buffer and computes the checksum of what it writes.
struct Summed<'a, B> {
    buf: &'a mut B,
    sum: Fnv32,
}

impl<B: BufMut> Summed<'_, B> {
    fn put(&mut self, bytes: &[u8]) {
        self.sum.write(bytes);
        self.buf.put_slice(bytes);
    }

    fn put_varint(&mut self, value: u64) {
        let mut bytes = [0; 10];
        let mut rest = &mut bytes[..];
        put_varint(&mut rest, value);
        self.put(&bytes[..varint_len(value)]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: u32 = 0x0102_0304;

    fn token(positions: Vec<Position>) -> ResumeToken {
        ResumeToken { deployment: HERE, positions }
    }

    #[test]
    fn the_layout_is_fixed() {
        let token = token(vec![Position::new(5, 300), Position::new(4, 0)]);
        let bytes = token.to_bytes();
        assert_eq!(bytes[..5], [VERSION, 1, 2, 3, 4]);
        assert_eq!(bytes[5..11], [2, 5, 0xac, 0x02, 1, 0], "2 shards; 5-300; 1 back, 0");
        assert_eq!(bytes.len(), 15);
        assert_eq!(deployment_tag("trunkline"), 0x188b_06ef);
    }

    #[test]
    fn a_token_is_small() {
        let epoch = 1_700_000_000_000;
        let positions = (0..6).map(|shard| Position::new(epoch + shard % 3, 1_000_000)).collect();
        assert!(token(positions).encoded_len() <= 40);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let bytes = token(vec![Position::new(1, 2)]).to_bytes();
        assert_eq!(ResumeToken::decode(&bytes, HERE + 1), Err(TokenError::ForeignDeployment));
        assert_eq!(ResumeToken::decode(b"abc", HERE), Err(TokenError::Malformed("too short")));
        assert_eq!(
            ResumeToken::decode(b"not a token", HERE),
            Err(TokenError::Malformed("wrong checksum"))
        );
        // The checksum is right in all of these.
        let refused = |body: &[u8]| {
            let mut sum = Fnv32::new();
            sum.write(body);
            let bytes = [body, &sum.finish().to_be_bytes()].concat();
            ResumeToken::decode(&bytes, HERE).unwrap_err()
        };
        assert_eq!(refused(&[]), TokenError::Malformed("too short"));
        assert_eq!(refused(&[1, 1, 2, 3]), TokenError::Malformed("too short"));
        assert_eq!(refused(&[2, 1, 2, 3, 4, 0]), TokenError::Malformed("unknown version"));
        assert_eq!(refused(&[1, 1, 2, 3, 4, 0, 0]), TokenError::Malformed("bytes after the end"));
        assert_eq!(refused(&[1, 1, 2, 3, 4, 1, 7]), TokenError::Malformed("cut off"));
        assert_eq!(
            refused(&[1, 1, 2, 3, 4, 0x80, 0x80, 0x04]),
            TokenError::Malformed("too many shards")
        );
    }

    /// Epochs near each other, and epochs anywhere.
    fn some_positions() -> impl Strategy<Value = Vec<Position>> {
        let epoch = prop_oneof![0u64..200, any::<u64>()];
        prop::collection::vec((epoch, any::<u64>()), 0..9).prop_map(|positions| {
            positions.into_iter().map(|(epoch, offset)| Position::new(epoch, offset)).collect()
        })
    }

    proptest! {
        #[test]
        fn a_token_decodes_to_what_was_encoded(
            deployment in any::<u32>(),
            positions in some_positions(),
        ) {
            let token = ResumeToken { deployment, positions };
            let bytes = token.to_bytes();
            prop_assert_eq!(bytes.len(), token.encoded_len());
            prop_assert_eq!(ResumeToken::decode(&bytes, deployment), Ok(token));
        }

        #[test]
        fn one_wrong_byte_is_detected(positions in some_positions(), flip in 1u8..=255) {
            let bytes = token(positions).to_bytes();
            for at in 0..bytes.len() {
                let mut wrong = bytes.to_vec();
                wrong[at] ^= flip;
                prop_assert!(ResumeToken::decode(&wrong, HERE).is_err(), "byte {}", at);
            }
        }

        #[test]
        fn a_truncated_token_is_detected(positions in some_positions()) {
            let bytes = token(positions).to_bytes();
            for end in 0..bytes.len() {
                prop_assert!(ResumeToken::decode(&bytes[..end], HERE).is_err(), "cut at {}", end);
            }
        }

        #[test]
        fn decoding_any_bytes_does_not_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..64),
            sum in any::<bool>(),
        ) {
            if sum {
                let mut fnv = Fnv32::new();
                fnv.write(&bytes);
                bytes.extend(fnv.finish().to_be_bytes());
            }
            if let Ok(token) = ResumeToken::decode(&bytes, HERE) {
                prop_assert_eq!(token.deployment, HERE);
            }
        }

        #[test]
        fn decoding_any_body_does_not_panic(mut body in prop::collection::vec(any::<u8>(), 0..32)) {
            body.splice(..0, [VERSION, 1, 2, 3, 4]);
            let mut fnv = Fnv32::new();
            fnv.write(&body);
            body.extend(fnv.finish().to_be_bytes());
            if let Ok(token) = ResumeToken::decode(&body, HERE) {
                prop_assert_eq!(ResumeToken::decode(&token.to_bytes(), HERE), Ok(token));
            }
        }
    }
}
