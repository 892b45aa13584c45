//! Commands that are written as a line of text, as by hand with telnet.

use bytes::{Bytes, BytesMut};

/// Splits a line into its arguments, which spaces separate. In double quotes `\n`, `\r`, `\t`,
/// `\a`, `\b` and `\xHH` stand for bytes, in single quotes only `\'` does. `None` if a quote is not
/// closed, or not followed by a space.
pub(super) fn split(line: &Bytes) -> Option<Vec<Bytes>> {
    let mut arguments = Vec::new();
    let mut at = 0;
    loop {
        at += line[at..].iter().take_while(|byte| is_space(**byte)).count();
        if at == line.len() {
            return Some(arguments);
        }
        let length = line[at..].iter().take_while(|byte| !is_space(**byte)).count();
        let plain = &line[at..at + length];
        if plain.contains(&b'"') || plain.contains(&b'\'') {
            let (argument, end) = quoted(line, at)?;
            arguments.push(argument);
            at = end;
        } else {
            arguments.push(line.slice(at..at + length));
            at += length;
        }
    }
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0
}

/// The argument at `at`, some of it in quotes, and where it ends.
fn quoted(line: &[u8], mut at: usize) -> Option<(Bytes, usize)> {
    let mut argument = BytesMut::new();
    let mut quote = None;
    loop {
        let Some(byte) = line.get(at).copied() else {
            // A line ends within no quote.
            return quote.is_none().then(|| (argument.freeze(), at));
        };
        let next = line.get(at + 1).copied();
        match (quote, byte) {
            (None, byte) if is_space(byte) => return Some((argument.freeze(), at)),
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if byte == open => {
                return next.is_none_or(is_space).then(|| (argument.freeze(), at + 1));
            }
            (Some(b'\''), b'\\') if next == Some(b'\'') => {
                argument.extend_from_slice(b"'");
                at += 1;
            }
            (Some(b'"'), b'\\') => {
                let (byte, length) = escaped(&line[at + 1..])?;
                argument.extend_from_slice(&[byte]);
                at += length;
            }
            _ => argument.extend_from_slice(&[byte]),
        }
        at += 1;
    }
}

/// The byte that stands for what follows a backslash, and the length of that.
fn escaped(rest: &[u8]) -> Option<(u8, usize)> {
    let digit = |at: usize| rest.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    Some(match rest.first()? {
        b'x' => match (digit(1), digit(2)) {
            (Some(high), Some(low)) => (u8::try_from(high << 4 | low).ok()?, 3),
            _ => (b'x', 1),
        },
        b'n' => (b'\n', 1),
        b'r' => (b'\r', 1),
        b't' => (b'\t', 1),
        b'b' => (8, 1),
        b'a' => (7, 1),
        other => (*other, 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_text(line: &str) -> Option<Vec<Bytes>> {
        split(&Bytes::copy_from_slice(line.as_bytes()))
    }

    #[test]
    fn arguments_are_split_at_spaces_and_quotes_keep_them_together() {
        let line = r#"  PUBLISH	c "a b\x00\xfFé\"\n" 'it\'s \n' k"y z" "#;
        let expected: Vec<&[u8]> =
            vec![b"PUBLISH", b"c", b"a b\x00\xff\xc3\xa9\"\n", b"it's \\n", b"ky z"];
        assert_eq!(split_text(line).unwrap(), expected);
        assert_eq!(split_text(" \t").unwrap(), Vec::<Bytes>::new());
        assert_eq!(split_text("\"\"").unwrap(), [""]);
    }

    #[test]
    fn a_quote_that_is_not_closed_or_not_followed_by_a_space_is_an_error() {
        for line in ["\"a", "'a", "\"a\"b", "'a'b", "\"a\\", "a\""] {
            assert_eq!(split_text(line), None, "{line}");
        }
    }
}
