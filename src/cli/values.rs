//! JSON objects that follow one another in a text, as it arrives: one a line, or each over several
//! lines, as `subscribe --pretty` and `jq` print them.
//!
//! What is wrong is found where it stands, at once: a missing brace does not take the rest of the
//! input for a part of its object. At most one object, and no more than [`MAX_VALUE`], is kept.

use std::{fmt, mem};

use serde_json::Value;

/// Bytes of the text of one object. The largest event that a gateway can be set to take has 16 MiB,
/// and a third more in base64.
pub(super) const MAX_VALUE: usize = 32 << 20;

/// How deep arrays and objects may stand in one another: as deep as `serde_json` reads them.
const MAX_DEPTH: usize = 127;

/// Divides a text into its objects.
pub(super) struct Values {
    /// The place of the next byte.
    at: Place,
    /// Where the object begins that is being read, and what is there of it.
    begin: Place,
    bytes: Vec<u8>,
    /// The objects and arrays that are open, the outermost first.
    open: Vec<Container>,
    expected: Expected,
    token: Token,
    /// True if another object ended on this line.
    shared_line: bool,
    max: usize,
}

/// An object of the text.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// Where it begins.
    pub(super) place: Place,
    /// True if another object ended on the line on which it begins.
    shared_line: bool,
    bytes: Vec<u8>,
}

/// A place in a text. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    line: u64,
    column: u64,
}

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    place: Place,
    what: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    Object,
    Array,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The next object of the text.
    Object,
    /// A value; `or_end`: or the end of the array.
    Value {
        or_end: bool,
    },
    /// A name; `or_end`: or the end of the object.
    Name {
        or_end: bool,
    },
    Colon,
    CommaOrEnd,
}

#[derive(Clone, Copy)]
enum Token {
    None,
    /// A string; `name`: that of a member.
    String {
        escaped: bool,
        name: bool,
    },
    /// A number, or `true`, `false` or `null`, which begins here.
    Word {
        from: usize,
        place: Place,
    },
}

impl Values {
    /// A text of which nothing was read yet.
    pub(super) fn new() -> Values {
        Values::bounded(MAX_VALUE)
    }

    fn bounded(max: usize) -> Values {
        let first = Place { line: 1, column: 1 };
        Values {
            at: first,
            begin: first,
            bytes: vec![],
            open: vec![],
            expected: Expected::Object,
            token: Token::None,
            shared_line: false,
            max,
        }
    }

    /// Reads the next part of the text, and adds the objects that end in it to `found`. After a
    /// problem, the rest cannot be read.
    pub(super) fn read(&mut self, part: &[u8], found: &mut Vec<Found>) -> Result<(), Problem> {
        for &byte in part {
            self.step(byte, found)?;
            if byte == b'\n' {
                self.at = Place { line: self.at.line + 1, column: 1 };
                self.shared_line = false;
            } else if byte & 0xc0 != 0x80 {
                // Not the second or a later byte of a character.
                self.at.column += 1;
            }
        }
        Ok(())
    }

    /// The text has ended.
    pub(super) fn end(&self) -> Result<(), Problem> {
        if self.open.is_empty() {
            return Ok(());
        }
        let what = format!("the input ends within the object that begins at {}", self.begin);
        Err(self.problem(what))
    }

    fn step(&mut self, byte: u8, found: &mut Vec<Found>) -> Result<(), Problem> {
        if let Token::Word { from, place } = self.token
            && !is_of_word(byte)
        {
            let word = &self.bytes[from..];
            if serde_json::from_slice::<serde::de::IgnoredAny>(word).is_err() {
                let word = String::from_utf8_lossy(&word[..word.len().min(40)]).into_owned();
                let what = format!("{word} is no value: texts stand in quotes");
                return Err(Problem { place, what: not_json(&what) });
            }
            self.token = Token::None;
            self.expected = Expected::CommaOrEnd;
        }
        if !self.open.is_empty() {
            if self.bytes.len() == self.max {
                let what = format!("has more than {} bytes, the limit of one object", self.max);
                return Err(Problem { place: self.begin, what });
            }
            self.bytes.push(byte);
        }
        match self.token {
            Token::None => self.between(byte, found),
            Token::Word { .. } => Ok(()),
            Token::String { escaped: true, name } => {
                self.token = Token::String { escaped: false, name };
                Ok(())
            }
            Token::String { escaped: false, name } => match byte {
                b'"' => {
                    self.token = Token::None;
                    self.expected = if name { Expected::Colon } else { Expected::CommaOrEnd };
                    Ok(())
                }
                b'\\' => {
                    self.token = Token::String { escaped: true, name };
                    Ok(())
                }
                0..0x20 => {
                    let what = "a line or a control character ends within a text in quotes";
                    Err(self.problem(not_json(what)))
                }
                _ => Ok(()),
            },
        }
    }

    /// A byte between two tokens.
    fn between(&mut self, byte: u8, found: &mut Vec<Found>) -> Result<(), Problem> {
        let (expected, container) = (self.expected, self.open.last().copied());
        match (expected, byte) {
            (_, b' ' | b'\t' | b'\r' | b'\n') => {}
            (Expected::Object, b'{') => {
                self.begin = self.at;
                self.bytes.push(byte);
                return self.enter(Container::Object);
            }
            (Expected::Value { .. }, b'{') => return self.enter(Container::Object),
            (Expected::Value { .. }, b'[') => return self.enter(Container::Array),
            (Expected::Value { .. }, b'"') => {
                self.token = Token::String { escaped: false, name: false };
            }
            (Expected::Value { .. }, _) if is_of_word(byte) => {
                self.token = Token::Word { from: self.bytes.len() - 1, place: self.at };
            }
            (Expected::Name { .. }, b'"') => {
                self.token = Token::String { escaped: false, name: true };
            }
            (Expected::Colon, b':') => self.expected = Expected::Value { or_end: false },
            (Expected::CommaOrEnd, b',') => {
                self.expected = match container {
                    Some(Container::Array) => Expected::Value { or_end: false },
                    _ => Expected::Name { or_end: false },
                };
            }
            (Expected::CommaOrEnd | Expected::Name { or_end: true }, b'}')
                if container == Some(Container::Object) =>
            {
                self.leave(found);
            }
            (Expected::CommaOrEnd | Expected::Value { or_end: true }, b']')
                if container == Some(Container::Array) =>
            {
                self.leave(found);
            }
            _ => return Err(self.problem(not_json(&format!("expected {}", self.wanted())))),
        }
        Ok(())
    }

    fn enter(&mut self, container: Container) -> Result<(), Problem> {
        if self.open.len() == MAX_DEPTH {
            let what =
                format!("arrays and objects stand more than {MAX_DEPTH} deep in one another");
            return Err(self.problem(what));
        }
        self.open.push(container);
        self.expected = match container {
            Container::Object => Expected::Name { or_end: true },
            Container::Array => Expected::Value { or_end: true },
        };
        Ok(())
    }

    fn leave(&mut self, found: &mut Vec<Found>) {
        self.open.pop();
        self.expected = Expected::CommaOrEnd;
        if self.open.is_empty() {
            self.expected = Expected::Object;
            let bytes = mem::take(&mut self.bytes);
            let shared_line = self.shared_line && self.begin.line == self.at.line;
            found.push(Found { place: self.begin, shared_line, bytes });
            self.shared_line = true;
        }
    }

    fn wanted(&self) -> &'static str {
        let in_array = self.open.last() == Some(&Container::Array);
        match self.expected {
            Expected::Object => "{, with which an event begins",
            Expected::Value { or_end: false } => "a value",
            Expected::Value { or_end: true } => "a value or ]",
            Expected::Name { or_end: false } => "the name of a field, in quotes",
            Expected::Name { or_end: true } => "the name of a field, in quotes, or }",
            Expected::Colon => ": after the name of a field",
            Expected::CommaOrEnd if in_array => ", or ]",
            Expected::CommaOrEnd => ", or }",
        }
    }

    fn problem(&self, what: String) -> Problem {
        Problem { place: self.at, what }
    }
}

/// All objects of a text.
pub(super) fn all(text: &str) -> Result<Vec<Found>, Problem> {
    let (mut values, mut found) = (Values::new(), Vec::new());
    values.read(text.as_bytes(), &mut found)?;
    values.end()?;
    Ok(found)
}

impl Found {
    /// The object.
    pub(super) fn parse(&self) -> Result<Value, Problem> {
        serde_json::from_slice(&self.bytes).map_err(|error| {
            // Of the kinds of mistakes, only those within a text are left: its escapes, its UTF-8.
            let (line, column) = (error.line().max(1), error.column());
            let text = self.bytes.split(|byte| *byte == b'\n').nth(line - 1).unwrap_or_default();
            let before = &text[..column.saturating_sub(1).min(text.len())];
            let characters = before.iter().filter(|byte| **byte & 0xc0 != 0x80).count() as u64;
            let left = if line == 1 { self.place.column } else { 1 };
            let line = self.place.line + line as u64 - 1;
            let what = error.to_string();
            let what = what.rsplit_once(" at line ").map_or(&*what, |(what, _)| what);
            Problem { place: Place { line, column: left + characters }, what: not_json(what) }
        })
    }

    /// What names it to people: its line, with the column if it shares that with another one.
    pub(super) fn name(&self) -> String {
        if self.shared_line { self.place.to_string() } else { format!("line {}", self.place.line) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

fn not_json(what: &str) -> String {
    format!("not JSON: {what}")
}

/// A byte of a number, or of `true`, `false` and `null`.
fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn problem(text: &str) -> String {
        let found = all(text).and_then(|found| found.iter().map(Found::parse).collect());
        let found: Result<Vec<_>, _> = found;
        found.expect_err(text).to_string()
    }

    #[test]
    fn objects_are_found_wherever_they_begin_and_end() {
        let text = "{\"a\":1}\n\n{\n  \"b\": [1, {}],\n  \"c\": \"}{\\\"\"\n} {}{\"d\":-1.5e3}\r\n";
        let found = all(text).unwrap();
        let values: Vec<_> = found.iter().map(|found| found.parse().unwrap()).collect();
        let expected =
            [json!({"a": 1}), json!({"b": [1, {}], "c": "}{\""}), json!({}), json!({"d": -1500.0})];
        assert_eq!(values, expected);
        let names: Vec<_> = found.iter().map(Found::name).collect();
        assert_eq!(names, ["line 1", "line 3", "line 6, column 3", "line 6, column 5"]);
        assert_eq!(all(" \n\t\r\n"), Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_column() {
        for (text, expected) in [
            ("no json", "line 1, column 1: not JSON: expected {, with which an event begins"),
            ("{} x", "line 1, column 4: not JSON: expected {, with which an event begins"),
            ("[{}]", "line 1, column 1: not JSON: expected {, with which an event begins"),
            ("{\n  \"a\" 1}", "line 2, column 7: not JSON: expected : after the name of a field"),
            ("{\"a\":1\n{\"b\":1}", "line 2, column 1: not JSON: expected , or }"),
            ("{\"a\":[1 2]}", "line 1, column 9: not JSON: expected , or ]"),
            ("{\"a\":[1,]}", "line 1, column 9: not JSON: expected a value"),
            ("{\"a\":1,}", "line 1, column 8: not JSON: expected the name of a field, in quotes"),
            ("{a:1}", "line 1, column 2: not JSON: expected the name of a field, in quotes, or }"),
            ("{\"a\":[}", "line 1, column 7: not JSON: expected a value or ]"),
            ("{\"a\":tru}", "line 1, column 6: not JSON: tru is no value: texts stand in quotes"),
            ("{\"a\":01}", "line 1, column 6: not JSON: 01 is no value: texts stand in quotes"),
            (
                "{\"a\":\"x\n\"}",
                "line 1, column 8: not JSON: a line or a control character ends within a text in \
                 quotes",
            ),
            // Columns are characters, not bytes.
            ("{\"\u{e9}\u{4e2d}\" 1}", "line 1, column 7: not JSON: expected : after the name of"),
            ("{}\n{\"\u{e9}\":\n\"\\x\"}", "line 3, column 3: not JSON: invalid escape"),
            ("{}  {\"\u{e9}\":\"\\x\"}", "line 1, column 12: not JSON: invalid escape"),
            (
                "{}\n {\"a\":\n",
                "line 3, column 1: the input ends within the object that begins at line 2, \
                 column 2",
            ),
        ] {
            let found = problem(text);
            assert!(found.starts_with(expected), "{text}: {found}");
        }
        let mut found = vec![];
        let mut values = Values::new();
        values.read(b"{\"a\":\"\xff\"}", &mut found).unwrap();
        let problem = found[0].parse().unwrap_err().to_string();
        assert!(problem.starts_with("line 1, column ") && problem.contains("unicode"), "{problem}");
    }

    #[test]
    fn what_one_object_takes_is_bounded_and_so_is_its_depth() {
        let mut values = Values::bounded(20);
        let mut found = vec![];
        values.read(b" {\"a\":\"0123456789ab\"}\n", &mut found).unwrap();
        assert_eq!(found.len(), 1, "20 bytes");
        let wrong = values.read(b"  {\"a\":\"0123456789abc\"}", &mut found).unwrap_err();
        let expected = "line 2, column 3: has more than 20 bytes, the limit of one object";
        assert_eq!(wrong.to_string(), expected);
        assert!(values.bytes.len() <= 20);

        let deep =
            |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(all(&deep(MAX_DEPTH)).unwrap()[0].parse().is_ok());
        let wrong = all(&deep(MAX_DEPTH + 1)).unwrap_err().to_string();
        assert!(wrong.contains("more than 127 deep"), "{wrong}");
    }

    /// Any JSON, not deep.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                object(inner),
            ]
        })
    }

    fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
        let members = prop::collection::vec((any::<String>(), inner), 0..4);
        members.prop_map(|members| Value::Object(members.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn any_objects_come_back_however_they_are_printed_and_arrive(
            objects in prop::collection::vec((object(value()), any::<bool>()), 0..5),
            part in 1_usize..40,
        ) {
            let text: String = objects
                .iter()
                .map(|(object, pretty)| {
                    if *pretty { format!("{object:#}\n") } else { format!("{object}\n") }
                })
                .collect();
            let (mut values, mut found) = (Values::new(), vec![]);
            for part in text.as_bytes().chunks(part) {
                values.read(part, &mut found).unwrap();
            }
            values.end().unwrap();
            let found: Vec<_> = found.iter().map(|found| found.parse().unwrap()).collect();
            let expected: Vec<_> = objects.into_iter().map(|(object, _)| object).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn it_agrees_with_the_parser_on_what_an_object_is(
            text in "\\{?[{}\\[\\]:,\"a1tnl.e \n-]{0,24}",
        ) {
            let mine = all(&text).and_then(|found| {
                found.iter().map(Found::parse).collect::<Result<Vec<_>, _>>()
            });
            let theirs: Result<Vec<Value>, _> =
                serde_json::Deserializer::from_str(&text).into_iter().collect();
            let theirs = theirs.ok().filter(|values| values.iter().all(Value::is_object));
            // The parser takes two values without anything between them too.
            prop_assert_eq!(mine.ok(), theirs, "{}", text);
        }
    }
}
