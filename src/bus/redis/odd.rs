//! Fields under the prefix that no gateway of this version wrote.
//!
//! Somebody may have put them there by mistake, or a later version. They are skipped and counted,
//! and keep no gateway from starting.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use redis::Value;

use super::envelope::parse_position;
use crate::{bus::Retained, throttle::Throttle};

/// Fields that were skipped.
#[derive(Debug, Default)]
pub struct OddFields(AtomicU64);

impl OddFields {
    /// The number of fields that were skipped.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts fields, and logs the first of them unless a line was just written.
    fn record(&self, key: &str, fields: &[String]) {
        static LINES: Throttle = Throttle::repeated();
        let Some(first) = fields.first() else { return };
        self.0.fetch_add(fields.len() as u64, Ordering::Relaxed);
        if let Some(left_out) = LINES.pass() {
            tracing::warn!(
                key,
                field = first,
                count = fields.len(),
                left_out,
                "fields that no gateway of this version wrote are skipped; HDEL removes them"
            );
        }
    }

    /// The last values of a shard, from the answer to HGETALL of `key`.
    pub fn last_values(&self, key: &str, answer: Value) -> Vec<Retained> {
        let pairs = match answer {
            Value::Array(flat) => {
                let mut flat = flat.into_iter();
                std::iter::from_fn(|| Some((flat.next()?, flat.next()?))).collect()
            }
            Value::Map(pairs) => pairs,
            _ => vec![],
        };
        let (mut values, mut odd) = (Vec::new(), Vec::new());
        for (field, value) in pairs {
            match last_value(&field, value) {
                Some(value) => values.push(value),
                None => odd.push(shown(&field)),
            }
        }
        self.record(key, &odd);
        values
    }

    /// Records that a key is of another type than gateways make.
    pub fn wrong_type(&self, key: &str) {
        self.record(key, &["the key itself: it is of another type (DEL removes it)".to_owned()]);
    }
}

/// The last value of a kind: its number, and its position and the event with a space between.
fn last_value(field: &Value, value: Value) -> Option<Retained> {
    let (Value::BulkString(field), Value::BulkString(value)) = (field, value) else { return None };
    let key = std::str::from_utf8(field).ok()?.parse().ok()?;
    let space = value.iter().position(|byte| *byte == b' ')?;
    let position = parse_position(&value[..space])?;
    Some(Retained { key, position, event: Bytes::from(value).slice(space + 1..) })
}

/// The name of a field, for people.
fn shown(field: &Value) -> String {
    match field {
        Value::BulkString(name) => name.iter().take(64).copied().flat_map(escape).collect(),
        other => format!("{other:?}").chars().take(64).collect(),
    }
}

fn escape(byte: u8) -> impl Iterator<Item = char> {
    std::ascii::escape_default(byte).map(char::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_fields_are_skipped_and_counted() {
        let bulk = |text: &[u8]| Value::BulkString(text.to_vec());
        let pairs = [
            (&b"18"[..], &b"7-3 event"[..]),
            (b"foreign", b"7-3 event"),
            (b"300", b"7-3 event"),
            (b"-1", b"7-3 event"),
            (b"", b""),
            (b"\xff\x1b[2J", b"7-3 event"),
            (b"19", b"no position"),
            (b"20", b"7-3"),
            (b"21", b"7-99999999999999999999 event"),
        ];
        let flat = pairs.iter().flat_map(|(field, value)| [bulk(field), bulk(value)]).collect();
        let map = pairs.iter().map(|(field, value)| (bulk(field), bulk(value))).collect();
        for answer in [Value::Array(flat), Value::Map(map)] {
            let odd = OddFields::default();
            let values = odd.last_values("p:retained", answer);
            let found: Vec<_> = values.iter().map(|value| (value.key, &value.event[..])).collect();
            assert_eq!(found, [(18, &b"event"[..])]);
            assert_eq!(odd.count(), 8);
        }
        assert_eq!(shown(&bulk(b"\x1b[2J\xff")), "\\x1b[2J\\xff");
        let odd = OddFields::default();
        assert!(odd.last_values("p:retained", Value::Nil).is_empty());
        odd.wrong_type("p:retained");
        assert_eq!(odd.count(), 1);
    }
}
