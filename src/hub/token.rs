//! The resume token: what a subscriber has had in every shard, in a few bytes that are sent with
//! each response.
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version of this layout: 2, or 3 while a part of the interest is behind |
//! | 4 | tag of the deployment, big endian |
//! | varint | number of shards |
//! | per shard, from 0 | varint: the kind of the shard; then its epochs, ascending |
//! | per shard, from 0 | version 3: the same of the part that is behind |
//! | 4 | FNV-1a of all before, big endian |
//!
//! The kind of a shard is 0 if nothing is known, 1 if the stream begins with the oldest event, 2 if
//! there is one epoch that was walked and no more; else the number of epochs, and 2.
//!
//! An epoch begins with its distance: from the epoch before it in the shard, or for the first one
//! from the first epoch of the shards before (zigzag). The one epoch of a shard that has no more
//! goes on with the offset up to which it was walked. Any other goes on with the number of ranges
//! of further names, doubled, and one more if it was entered; the offset up to which it was walked,
//! if it was; and for each range the names left out before it and the names in it, less one.
//!
//! Epochs of one deployment are mostly close together, so a shard takes about as many bytes as its
//! offset and a few. The checksum protects against accidents, not against forgery: a forged token
//! reads no more than the subscriber's rules allow.
//!
//! Version 1 had one position for each shard, an epoch and an offset; it is still decoded.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    event::{
        Fnv32,
        wire::{get_varint, put_varint, varint_len},
    },
    had::{EpochHad, EpochView, Had, HadAt, MAX_EPOCHS, MAX_RANGES},
};
use crate::bus::{Epoch, Offset, Position};

const VERSION: u8 = 2;

/// Tokens of a stream of which a part of the interest, added since an earlier position, is behind.
const VERSION_BEHIND: u8 = 3;

/// Tokens of gateways before recovery gave events names.
const VERSION_OF_POSITIONS: u8 = 1;

const TAG: usize = 4;
const CHECKSUM: usize = 4;

/// What is known of a shard.
const UNKNOWN: u64 = 0;
const OLDEST: u64 = 1;
const WALKED: u64 = 2;

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

/// What was had in each shard of one deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    /// [`deployment_tag`] of the deployment that made the token.
    pub deployment: u32,
    /// By shard: what was delivered or reported as a gap.
    pub shards: Vec<Had>,
    /// By shard: the same of the part of the interest that was added last, if that is behind.
    pub behind: Option<Vec<Had>>,
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
        if ![VERSION, VERSION_BEHIND, VERSION_OF_POSITIONS].contains(&version) {
            return Err(Malformed("unknown version"));
        }
        let (tag, mut body) = body.split_first_chunk::<TAG>().ok_or(Malformed("too short"))?;
        if u32::from_be_bytes(*tag) != deployment {
            return Err(TokenError::ForeignDeployment);
        }
        let count = number(&mut body)?;
        let count = u16::try_from(count).map_err(|_| Malformed("too many shards"))?;
        let mut decode_shards = || {
            let (mut shards, mut epoch) = (Vec::new(), 0);
            for shard in 0..count {
                shards.push(if version == VERSION_OF_POSITIONS {
                    decode_position(&mut body, &mut epoch, shard == 0)?
                } else {
                    decode_shard(&mut body, &mut epoch)?
                });
            }
            Ok(shards)
        };
        let shards = decode_shards()?;
        let behind = (version == VERSION_BEHIND).then(decode_shards).transpose()?;
        if !body.is_empty() {
            return Err(Malformed("bytes after the end"));
        }
        Ok(ResumeToken { deployment, shards, behind })
    }

    /// The number of bytes of the encoded token.
    pub fn encoded_len(&self) -> usize {
        encoded_len(views(&self.shards), self.behind.as_deref().map(views))
    }

    /// The encoded token.
    pub fn to_bytes(&self) -> Bytes {
        let mut buf = BytesMut::with_capacity(self.encoded_len());
        encode_with(
            self.deployment,
            views(&self.shards),
            self.behind.as_deref().map(views),
            &mut buf,
        );
        buf.freeze()
    }
}

fn views(shards: &[Had]) -> impl ExactSizeIterator<Item = HadAt<'_>> + Clone {
    shards.iter().map(|had| had.at(Position::UNKNOWN))
}

/// Appends the token of what was had (in each shard, from shard 0) to `buf`, for callers that keep
/// it. Does not allocate.
pub fn encode<'a>(
    deployment: u32,
    shards: impl ExactSizeIterator<Item = HadAt<'a>>,
    buf: &mut impl BufMut,
) {
    encode_with(deployment, shards, None::<std::iter::Empty<HadAt<'a>>>, buf);
}

/// The same with what a part of the interest has had that is behind.
pub fn encode_with<'a>(
    deployment: u32,
    shards: impl ExactSizeIterator<Item = HadAt<'a>>,
    behind: Option<impl ExactSizeIterator<Item = HadAt<'a>>>,
    buf: &mut impl BufMut,
) {
    let mut buf = Summed { buf, sum: Fnv32::new() };
    buf.put(&[if behind.is_some() { VERSION_BEHIND } else { VERSION }]);
    buf.put(&deployment.to_be_bytes());
    buf.put_varint(shards.len() as u64);
    for_each_number(shards, |number| buf.put_varint(number));
    if let Some(behind) = behind {
        for_each_number(behind, |number| buf.put_varint(number));
    }
    buf.buf.put_slice(&buf.sum.finish().to_be_bytes());
}

/// The number of bytes that [`encode_with`] appends.
pub fn encoded_len<'a>(
    shards: impl ExactSizeIterator<Item = HadAt<'a>>,
    behind: Option<impl ExactSizeIterator<Item = HadAt<'a>>>,
) -> usize {
    let mut numbers = varint_len(shards.len() as u64);
    for_each_number(shards, |number| numbers += varint_len(number));
    if let Some(behind) = behind {
        for_each_number(behind, |number| numbers += varint_len(number));
    }
    1 + TAG + numbers + CHECKSUM
}

/// The tag that tokens of one deployment share: a hash of the prefix of its keys and channels.
pub fn deployment_tag(prefix: &str) -> u32 {
    let mut fnv = Fnv32::new();
    fnv.write(prefix.as_bytes());
    fnv.finish()
}

/// Calls `put` with the numbers of all shards, as they are encoded.
fn for_each_number<'a>(shards: impl Iterator<Item = HadAt<'a>>, mut put: impl FnMut(u64)) {
    let mut first = 0;
    for had in shards {
        let mut epochs = had.epochs();
        let count = had.len() as u64;
        let Some(epoch) = epochs.next() else {
            put(if had.is_oldest() { OLDEST } else { UNKNOWN });
            continue;
        };
        let only = count == 1 && epoch.entered && epoch.more.is_empty();
        put(if only { WALKED } else { count + WALKED });
        put(zigzag(epoch.epoch.0.wrapping_sub(first)));
        first = epoch.epoch.0;
        if only {
            put(epoch.walked.0);
            continue;
        }
        put_names(&epoch, &mut put);
        let mut before = first;
        for epoch in epochs {
            put(epoch.epoch.0 - before);
            before = epoch.epoch.0;
            put_names(&epoch, &mut put);
        }
    }
}

fn put_names(epoch: &EpochView<'_>, put: &mut impl FnMut(u64)) {
    put((epoch.more.len() as u64) << 1 | u64::from(epoch.entered));
    if epoch.entered {
        put(epoch.walked.0);
    }
    let mut before = epoch.walked.0;
    for (first, last) in epoch.more {
        put(first.0.saturating_sub(before).saturating_sub(1));
        put(last.0 - first.0);
        before = last.0;
    }
}

fn number(body: &mut &[u8]) -> Result<u64, TokenError> {
    get_varint(body).map_err(|_| TokenError::Malformed("cut off"))
}

/// A shard of a token of version 1: the distance of its epoch from that of the shard before, which
/// the first one has none of, and an offset.
fn decode_position(body: &mut &[u8], epoch: &mut u64, first: bool) -> Result<Had, TokenError> {
    let value = number(body)?;
    *epoch = if first { value } else { epoch.wrapping_add(unzigzag(value)) };
    let offset = Offset(number(body)?);
    let position = Position { epoch: Epoch(*epoch), offset };
    Ok(if position.is_known() { Had::up_to(position) } else { Had::default() })
}

/// A shard of a token; `first` is the first epoch of the shards before.
fn decode_shard(body: &mut &[u8], first: &mut u64) -> Result<Had, TokenError> {
    let malformed = TokenError::Malformed("not in order");
    let kind = number(body)?;
    match kind {
        UNKNOWN => return Ok(Had::default()),
        OLDEST => return Ok(Had::oldest()),
        _ => *first = first.wrapping_add(unzigzag(number(body)?)),
    }
    let mut epoch = Epoch(*first);
    if kind == WALKED {
        let walked = EpochHad { epoch, entered: true, walked: Offset(number(body)?), more: vec![] };
        return Had::from_epochs(vec![walked]).ok_or(malformed);
    }
    let count = kind - WALKED;
    if count > MAX_EPOCHS as u64 {
        return Err(TokenError::Malformed("too many epochs"));
    }
    let mut epochs = Vec::new();
    for nth in 0..count {
        if nth > 0 {
            epoch = Epoch(epoch.0.checked_add(number(body)?).ok_or(malformed)?);
        }
        epochs.push(decode_names(body, epoch)?);
    }
    Had::from_epochs(epochs).ok_or(malformed)
}

fn decode_names(body: &mut &[u8], epoch: Epoch) -> Result<EpochHad, TokenError> {
    let malformed = TokenError::Malformed("not in order");
    let head = number(body)?;
    let (ranges, entered) = (head >> 1, head & 1 == 1);
    if ranges > MAX_RANGES as u64 {
        return Err(TokenError::Malformed("too many ranges"));
    }
    let walked = Offset(if entered { number(body)? } else { 0 });
    let mut more = Vec::new();
    let mut before = walked.0;
    for _ in 0..ranges {
        let first = number(body)?.checked_add(1).and_then(|left_out| before.checked_add(left_out));
        let first = first.ok_or(malformed)?;
        let last = first.checked_add(number(body)?).ok_or(malformed)?;
        more.push((Offset(first), Offset(last)));
        before = last;
    }
    Ok(EpochHad { epoch, entered, walked, more })
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
mod tests;
