//! Numbers and texts of a message, each checked against the bytes that are there.

use super::super::Undecodable;

/// Reads a message from its beginning to its end. Nothing is allocated.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The bytes that are left.
    pub(super) fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The bytes between two places.
    pub(super) fn between(&self, start: usize, end: usize) -> &'a [u8] {
        &self.bytes[start..end]
    }

    pub(super) fn byte(&mut self, what: &str) -> Result<u8, Undecodable> {
        let byte = self.bytes.get(self.at).copied();
        let byte = byte.ok_or_else(|| Undecodable::new(self.at, format!("{what} is missing")))?;
        self.at += 1;
        Ok(byte)
    }

    /// A number in LEB128. A node takes one that is written longer than it must be, and so does
    /// this.
    pub(super) fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, Undecodable> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.bytes.get(self.at).copied() else {
                let how = if self.at == start { "missing" } else { "cut off" };
                return Err(Undecodable::new(start, format!("{what} is {how}")));
            };
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return T::try_from(value)
                    .map_err(|_| Undecodable::new(start, format!("{what} is {value}: too large")));
            }
        }
        Err(Undecodable::new(start, format!("{what} is a number of more than 64 bits")))
    }

    /// A text with its length before it.
    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, Undecodable> {
        let start = self.at;
        let length: u64 = self.number(what)?;
        let rest = self.rest();
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= rest) else {
            let why = format!("{what} has {length} bytes, and {rest} are left");
            return Err(Undecodable::new(start, why));
        };
        let text = std::str::from_utf8(self.between(self.at, self.at + length));
        let text = text.map_err(|_| Undecodable::new(start, format!("{what} is not UTF-8")))?;
        self.at += length;
        Ok(text)
    }
}

/// Writes a number in LEB128.
pub(super) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Writes a text with its length before it.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}
