//! Commands of a client, read as their bytes arrive.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::inline;

/// The longest line that announces a count or a length: a sign, the digits of the largest number,
/// and leading zeros that nobody sends.
const MAX_HEADER: usize = 32;

/// What one command may take. Memory that a parser holds is at most `command_bytes`, 64 bytes for
/// each argument, and what one call of [`Parser::receive`] gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Arguments of a command, its name included.
    pub arguments: usize,
    /// Bytes of all arguments of a command together.
    pub command_bytes: usize,
    /// Bytes of a command that is written as a line of text.
    pub inline_bytes: usize,
}

impl Limits {
    /// The limits of a client that has not authenticated where it must: those of Redis.
    pub const UNAUTHENTICATED: Limits =
        Limits { arguments: 10, command_bytes: 16 << 10, inline_bytes: 16 << 10 };
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { arguments: 1024, command_bytes: 1 << 20, inline_bytes: 64 << 10 }
    }
}

/// The arguments of a command, its name first; at least one.
pub type Command = Vec<Bytes>;

/// What makes the rest of a connection unreadable: the client gets the reason, and it is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number of arguments is no number, or above the limit.
    #[error("Protocol error: invalid multibulk length")]
    Arguments,
    /// The length of an argument is no number, or below 0.
    #[error("Protocol error: invalid bulk length")]
    Length,
    /// The arguments are longer than the limit.
    #[error("Protocol error: the command is longer than {0} bytes")]
    TooLong(usize),
    /// An argument does not begin with '$'.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0).escape_default())]
    NoBulk(u8),
    /// No line feed where a line must end.
    #[error("Protocol error: a line is longer than {0} bytes")]
    Line(usize),
    /// An argument is not followed by a line end.
    #[error("Protocol error: an argument is longer than it says")]
    NoEnd,
    /// A quote of a line is not closed, or text follows it.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
}

/// Reads commands from bytes that arrive in pieces of any size. What was read once is not looked at
/// again, however slowly the rest comes.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    buffer: BytesMut,
    /// Up to where the buffer was read.
    read: usize,
    /// Bytes behind that which have no line feed.
    searched: usize,
    /// The command whose arguments are being read.
    array: Option<Array>,
    failed: Option<ProtocolError>,
}

#[derive(Debug)]
struct Array {
    /// Arguments that are still missing.
    missing: usize,
    /// Where the others stand in the buffer.
    arguments: Vec<Range<usize>>,
    /// The bytes that they have, and the one that is being read.
    bytes: usize,
    /// The length of the argument that is being read.
    length: Option<usize>,
}

impl Parser {
    /// A parser with these limits.
    pub fn new(limits: Limits) -> Parser {
        let buffer = BytesMut::new();
        Parser { limits, buffer, read: 0, searched: 0, array: None, failed: None }
    }

    /// Sets the limits of the commands that follow.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes bytes that arrived. Call [`Parser::next`] until it has nothing before giving it more:
    /// the parser holds what it was given.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The buffer, to read into directly in place of [`Parser::receive`].
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The bytes that wait to become a command.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// True while a part of a command is there, and not all of it.
    pub fn is_within_command(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next command, or `None` if more bytes are needed. The arguments share the memory that
    /// they arrived in.
    ///
    /// # Errors
    ///
    /// What follows is unreadable: every call from then on gives the same error.
    #[allow(clippy::should_implement_trait, reason = "it ends and goes on")]
    pub fn next(&mut self) -> Result<Option<Command>, ProtocolError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.read_command();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            (self.buffer, self.array) = (BytesMut::new(), None);
        }
        result
    }

    fn read_command(&mut self) -> Result<Option<Command>, ProtocolError> {
        loop {
            if self.array.is_some() {
                return self.read_arguments();
            }
            match self.buffer.first() {
                None => return Ok(None),
                Some(b'*') => {
                    let Some(line) = self.header()? else { return Ok(None) };
                    let count = number(&self.buffer[line]).ok_or(ProtocolError::Arguments)?;
                    // As in Redis, an array without arguments is nothing.
                    let Ok(count) = usize::try_from(count) else {
                        self.take();
                        continue;
                    };
                    if count > self.limits.arguments {
                        return Err(ProtocolError::Arguments);
                    }
                    if count == 0 {
                        self.take();
                        continue;
                    }
                    self.array = Some(Array {
                        missing: count,
                        // Not as many as were announced: they may never come.
                        arguments: Vec::with_capacity(count.min(4)),
                        bytes: 0,
                        length: None,
                    });
                }
                Some(_) => {
                    let Some(line) = self.line(self.limits.inline_bytes)? else { return Ok(None) };
                    let text = self.take().slice(line);
                    let command = inline::split(&text).ok_or(ProtocolError::Quotes)?;
                    if command.len() > self.limits.arguments {
                        return Err(ProtocolError::Arguments);
                    }
                    if !command.is_empty() {
                        return Ok(Some(command));
                    }
                }
            }
        }
    }

    fn read_arguments(&mut self) -> Result<Option<Command>, ProtocolError> {
        let Some(mut array) = self.array.take() else { return Ok(None) };
        while array.missing > 0 {
            if !self.read_argument(&mut array)? {
                self.array = Some(array);
                return Ok(None);
            }
        }
        let bytes = self.take();
        Ok(Some(array.arguments.into_iter().map(|range| bytes.slice(range)).collect()))
    }

    /// Reads one argument; false if more bytes are needed.
    fn read_argument(&mut self, array: &mut Array) -> Result<bool, ProtocolError> {
        let length = if let Some(length) = array.length {
            length
        } else {
            match self.buffer.get(self.read) {
                None => return Ok(false),
                Some(b'$') => {}
                Some(other) => return Err(ProtocolError::NoBulk(*other)),
            }
            let Some(line) = self.header()? else { return Ok(false) };
            let length = number(&self.buffer[line]).ok_or(ProtocolError::Length)?;
            let length = usize::try_from(length).map_err(|_| ProtocolError::Length)?;
            let limit = self.limits.command_bytes;
            if length > limit - array.bytes.min(limit) {
                return Err(ProtocolError::TooLong(limit));
            }
            array.bytes += length;
            array.length = Some(length);
            length
        };
        // No overflow: both are within the limits of what is held.
        let end = self.read + length;
        let Some(line_end) = self.buffer.get(end..end + 2) else {
            return Ok(false);
        };
        if line_end != b"\r\n" {
            return Err(ProtocolError::NoEnd);
        }
        array.arguments.push(self.read..end);
        array.length = None;
        array.missing -= 1;
        self.read = end + 2;
        Ok(true)
    }

    /// Reads a line that announces something; the range is what follows its first byte.
    fn header(&mut self) -> Result<Option<Range<usize>>, ProtocolError> {
        let line = self.line(MAX_HEADER)?;
        Ok(line.map(|line| (line.start + 1).min(line.end)..line.end))
    }

    /// Reads a line of at most `max` bytes, and what ends it.
    fn line(&mut self, max: usize) -> Result<Option<Range<usize>>, ProtocolError> {
        let start = self.read;
        let rest = &self.buffer[start..];
        // Room for what ends it.
        let within = &rest[..rest.len().min(max + 2)];
        let fresh = within.iter().skip(self.searched);
        let Some(length) = fresh.copied().position(|byte| byte == b'\n') else {
            self.searched = within.len();
            return if within.len() == max + 2 { Err(ProtocolError::Line(max)) } else { Ok(None) };
        };
        let length = length + std::mem::take(&mut self.searched);
        self.read = start + length + 1;
        let end = if rest[..length].ends_with(b"\r") { length - 1 } else { length };
        if end > max {
            return Err(ProtocolError::Line(max));
        }
        Ok(Some(start..start + end))
    }

    /// Takes what was read out of the buffer.
    fn take(&mut self) -> Bytes {
        self.buffer.split_to(std::mem::take(&mut self.read)).freeze()
    }
}

/// A decimal number.
fn number(digits: &[u8]) -> Option<i64> {
    // `parse` takes a plus sign; Redis does not.
    let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const LIMITS: Limits = Limits { arguments: 4, command_bytes: 64, inline_bytes: 40 };

    /// All commands in these bytes, given in pieces of a size.
    fn commands(bytes: &[u8], piece: usize) -> (Vec<Command>, Option<ProtocolError>) {
        let mut parser = Parser::new(LIMITS);
        let mut all = Vec::new();
        for piece in bytes.chunks(piece) {
            parser.receive(piece);
            loop {
                match parser.next() {
                    Ok(Some(command)) => all.push(command),
                    Ok(None) => break,
                    Err(error) => return (all, Some(error)),
                }
            }
        }
        (all, None)
    }

    fn encode(command: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for argument in command {
            bytes.extend(format!("${}\r\n", argument.len()).bytes());
            bytes.extend(argument);
            bytes.extend(b"\r\n");
        }
        bytes
    }

    #[test]
    fn pipelined_commands_are_read_in_pieces_of_any_size() {
        let bytes =
            b"*2\r\n$4\r\nECHO\r\n$2\r\n\r\n\r\n\r\n*0\r\n*-1\r\nPING  now\r\n*1\r\n$0\r\n\r\n";
        for piece in 1..bytes.len() {
            let (all, error) = commands(bytes, piece);
            let expected: Vec<Vec<&[u8]>> =
                vec![vec![b"ECHO", b"\r\n"], vec![b"PING", b"now"], vec![b""]];
            assert_eq!((all, error), (expected.into_iter().map(owned).collect(), None));
        }
    }

    fn owned(command: Vec<&[u8]>) -> Command {
        command.into_iter().map(Bytes::copy_from_slice).collect()
    }

    #[test]
    fn counts_and_lengths_above_the_limits_are_refused_before_anything_of_them_arrives() {
        for (bytes, expected) in [
            (&b"*5\r\n"[..], ProtocolError::Arguments),
            (b"*4611686018427387904\r\n", ProtocolError::Arguments),
            (b"*99999999999999999999\r\n", ProtocolError::Arguments),
            (b"*x\r\n", ProtocolError::Arguments),
            (b"*+1\r\n", ProtocolError::Arguments),
            (b"*\r\n", ProtocolError::Arguments),
            (b"*1\r\n$536870912\r\n", ProtocolError::TooLong(64)),
            (b"*1\r\n$9223372036854775807\r\n", ProtocolError::TooLong(64)),
            (b"*2\r\n$60\r\n", ProtocolError::TooLong(64)),
            (b"*1\r\n$-1\r\n", ProtocolError::Length),
            (b"*1\r\n$1x\r\n", ProtocolError::Length),
            (b"*1\r\n:1\r\n", ProtocolError::NoBulk(b':')),
            (b"*1\r\n$1\r\nab\r\n", ProtocolError::NoEnd),
            (b"*0000000000000000000000000000000001", ProtocolError::Line(MAX_HEADER)),
            (b"PING \"now\r\n", ProtocolError::Quotes),
        ] {
            let whole = if bytes == b"*2\r\n$60\r\n" {
                [bytes, &[b'a'; 60], b"\r\n$5\r\n"].concat()
            } else {
                bytes.to_vec()
            };
            for piece in [1, 3, whole.len()] {
                assert_eq!(commands(&whole, piece).1, Some(expected.clone()), "{whole:?}");
            }
        }
        let line = vec![b'a'; 42];
        assert_eq!(commands(&line, 7).1, Some(ProtocolError::Line(40)));
    }

    #[test]
    fn an_error_stays_and_nothing_is_held_after_it() {
        let mut parser = Parser::new(LIMITS);
        parser.receive(b"*x\r\n");
        let error = parser.next().unwrap_err();
        parser.receive(&encode(&[b"PING".to_vec()]));
        assert_eq!((parser.next(), parser.buffered()), (Err(error), 0));
    }

    #[test]
    fn what_is_held_of_a_half_command_is_what_arrived() {
        let mut parser = Parser::new(Limits::default());
        parser.receive(b"*1024\r\n$1048576\r\nabc");
        assert_eq!(parser.next(), Ok(None));
        assert!(parser.is_within_command());
        assert_eq!(parser.buffered(), 20);
        assert!(parser.array.as_ref().unwrap().arguments.capacity() <= 4);
        assert!(parser.buffer.capacity() < 1024);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_again_however_it_is_cut(
            all in vec(vec(vec(any::<u8>(), 0..16), 1..4), 0..6),
            piece in 1..40usize,
        ) {
            let bytes: Vec<u8> = all.iter().flat_map(|command| encode(command)).collect();
            let (read, error) = commands(&bytes, piece);
            prop_assert_eq!(error, None);
            let read: Vec<Vec<Vec<u8>>> =
                read.iter().map(|c| c.iter().map(|a| a.to_vec()).collect()).collect();
            prop_assert_eq!(read, all);
        }

        #[test]
        fn any_bytes_give_the_same_commands_however_they_are_cut(
            parts in vec(
                prop_oneof![
                    Just(b"*2\r\n".to_vec()), Just(b"$3\r\nabc\r\n".to_vec()),
                    Just(b"\r\n".to_vec()), Just(b"PING 'a b'\n".to_vec()),
                    vec(any::<u8>(), 0..8),
                ],
                0..10,
            ),
            piece in 1..9usize,
        ) {
            let bytes = parts.concat();
            let whole = commands(&bytes, bytes.len().max(1));
            prop_assert_eq!(commands(&bytes, piece), whole);
        }
    }
}
