//! The few pieces of the protobuf encoding that the hub needs: a walk over fields, and varints.

use bytes::BufMut;

/// The reason why bytes are not an encoded event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A field reaches past the end.
    #[error("it is cut off")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("it holds a number of more than 64 bits")]
    Overlong,
    /// A field number that protobuf does not know: 0, or of more than 29 bits.
    #[error("it holds an impossible field number")]
    FieldNumber,
    /// A group, a wire type that does not exist, or one that the field cannot have.
    #[error("field {0} has a wrong wire type")]
    WireType(u32),
    /// A string is not UTF-8.
    #[error("field {0} is not UTF-8")]
    Utf8(u32),
    /// More bytes than a frame can have: 4 GiB.
    #[error("it is larger than 4 GiB")]
    TooLarge,
}

/// A range of bytes, half the size of a `Range<usize>`. Empty if there is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    pub(crate) fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// The bytes of the span; empty if `bytes` are shorter.
    pub(crate) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// One field of a message.
pub(crate) struct Field {
    pub(crate) number: u32,
    /// The position of the field's key.
    pub(crate) start: u32,
    /// The content of a length-delimited field; `None` for a number.
    content: Option<Span>,
}

impl Field {
    /// The content of a field that must be length-delimited.
    pub(crate) fn content(&self) -> Result<Span, Malformed> {
        self.content.ok_or(Malformed::WireType(self.number))
    }

    /// The content of a field that must be a string.
    pub(crate) fn text(&self, bytes: &[u8]) -> Result<Span, Malformed> {
        let span = self.content()?;
        match std::str::from_utf8(span.of(bytes)) {
            Ok(_) => Ok(span),
            Err(_) => Err(Malformed::Utf8(self.number)),
        }
    }
}

/// Walks the fields of one message, but not those of nested messages. Never panics, whatever the
/// bytes.
pub(crate) struct Fields<'a> {
    /// Everything up to the end of the message.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The fields of the message that fills `span`.
    pub(crate) fn new(bytes: &'a [u8], span: Span) -> Result<Fields<'a>, Malformed> {
        let bytes = bytes.get(..span.end as usize).ok_or(Malformed::Truncated)?;
        Ok(Fields { bytes, at: span.start as usize })
    }

    /// The next field, or `None` after the last.
    #[allow(clippy::inline_always)] // peeking is little else: it took a quarter less
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Option<Field>, Malformed> {
        let Some((&key, rest)) = self.bytes.get(self.at..).and_then(<[u8]>::split_first) else {
            return Ok(None);
        };
        // Most fields are strings or messages of less than 128 bytes, with a number below 16.
        if let (0x08..0x80, Some(&length @ 0..0x80)) = (key, rest.first())
            && key & 7 == 2
            && usize::from(length) < rest.len()
        {
            let start = self.at;
            self.at += 2 + usize::from(length);
            let content = Some(Span { start: position(start + 2), end: position(self.at) });
            return Ok(Some(Field {
                number: u32::from(key >> 3),
                start: position(start),
                content,
            }));
        }
        self.next_of_any().map(Some)
    }

    /// The end of the field that came last.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next field. There is one.
    fn next_of_any(&mut self) -> Result<Field, Malformed> {
        let start = position(self.at);
        let key = u32::try_from(self.varint()?).map_err(|_| Malformed::FieldNumber)?;
        let number = key >> 3;
        if number == 0 {
            return Err(Malformed::FieldNumber);
        }
        let content = match key & 7 {
            0 => {
                self.varint()?;
                None
            }
            1 => {
                self.skip(8)?;
                None
            }
            2 => {
                let length = self.varint()?;
                let start = position(self.at);
                self.skip(length)?;
                Some(Span { start, end: position(self.at) })
            }
            5 => {
                self.skip(4)?;
                None
            }
            // 3 and 4 are groups, which proto3 does not have; 6 and 7 do not exist.
            _ => return Err(Malformed::WireType(number)),
        };
        Ok(Field { number, start, content })
    }

    #[inline]
    fn skip(&mut self, length: u64) -> Result<(), Malformed> {
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(Malformed::Truncated);
        }
        self.at += usize::try_from(length).map_err(|_| Malformed::Truncated)?;
        Ok(())
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut rest = &self.bytes[self.at..];
        let value = get_varint(&mut rest)?;
        self.at = self.bytes.len() - rest.len();
        Ok(value)
    }
}

/// A position in the bytes of a message, in the 32 bits of a span: the bytes end where a span ends.
#[inline]
#[allow(clippy::cast_possible_truncation)] // see above
fn position(at: usize) -> u32 {
    at as u32
}

/// Reads a varint from the front of `bytes`.
#[inline]
pub(crate) fn get_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    match bytes.split_first() {
        Some((&byte, rest)) if byte < 0x80 => {
            *bytes = rest;
            Ok(u64::from(byte))
        }
        Some(_) => get_long_varint(bytes),
        None => Err(Malformed::Truncated),
    }
}

fn get_long_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            // The tenth byte has one bit of the value.
            if index == 9 && byte > 1 {
                return Err(Malformed::Overlong);
            }
            *bytes = &bytes[index + 1..];
            return Ok(value);
        }
    }
    Err(if bytes.len() < 10 { Malformed::Truncated } else { Malformed::Overlong })
}

/// Appends a varint.
#[inline]
#[allow(clippy::cast_possible_truncation)] // the last byte is below 0x80
pub(crate) fn put_varint(buf: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        buf.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

/// The number of bytes that [`put_varint`] appends for `value`: 1 to 10.
#[inline]
pub(crate) fn varint_len(value: u64) -> usize {
    // Seven bits per byte, and one byte for 0.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a length-delimited field.
pub(crate) fn put_field(buf: &mut impl BufMut, number: u32, content: &[u8]) {
    put_varint(buf, u64::from(number << 3 | 2));
    put_varint(buf, content.len() as u64);
    buf.put_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_decodes_to_what_was_encoded() {
        for shift in 0..64 {
            for value in [(1u64 << shift) - 1, 1 << shift, u64::MAX >> shift] {
                let mut buf = Vec::new();
                put_varint(&mut buf, value);
                assert_eq!(buf.len(), varint_len(value), "{value}");
                let mut rest = buf.as_slice();
                assert_eq!(get_varint(&mut rest), Ok(value));
                assert!(rest.is_empty());
            }
        }
    }

    #[test]
    fn invalid_varints_have_specific_errors() {
        let all_ones = [0xff; 9];
        let tenth = |byte: u8| [&all_ones[..], &[byte]].concat();
        assert_eq!(get_varint(&mut tenth(1).as_slice()), Ok(u64::MAX));
        assert_eq!(get_varint(&mut tenth(2).as_slice()), Err(Malformed::Overlong));
        assert_eq!(get_varint(&mut tenth(0x81).as_slice()), Err(Malformed::Overlong));
        assert_eq!(get_varint(&mut all_ones.as_slice()), Err(Malformed::Truncated));
        assert_eq!(get_varint(&mut [].as_slice()), Err(Malformed::Truncated));
    }
}
