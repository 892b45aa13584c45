//! The answer of CLUSTER SLOTS.

use redis::Value;

/// Slots of a cluster: an answer has at most so many ranges.
const MAX_RANGES: usize = 16_384;

/// Servers of one range that are read: a master and its replicas.
const MAX_NODES: usize = 64;

/// A range of slots, and the addresses of its master and replicas, in that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// The first slot.
    pub first: u16,
    /// The last slot.
    pub last: u16,
    /// Host and port of each server.
    pub nodes: Vec<(String, u16)>,
}

/// The range of a slot.
pub(super) fn owner(ranges: &[SlotRange], slot: u16) -> Option<&SlotRange> {
    ranges.iter().find(|range| (range.first..=range.last).contains(&slot))
}

/// Reads an answer of CLUSTER SLOTS. `asked` is the address of the server that gave it. A server
/// may be reported without an address: then it is reached at that of the one that was asked. One
/// with port 0 has TLS alone, in an answer over plain text: its port is that of the one that was
/// asked.
pub fn parse(value: &Value, asked: (&str, u16)) -> Option<Vec<SlotRange>> {
    let number = |value: &Value| match value {
        Value::Int(n) => u16::try_from(*n).ok(),
        _ => None,
    };
    let Value::Array(ranges) = value else { return None };
    if ranges.len() > MAX_RANGES {
        return None;
    }
    ranges
        .iter()
        .map(|range| {
            let Value::Array(parts) = range else { return None };
            let (first, last) = (number(parts.first()?)?, number(parts.get(1)?)?);
            let node = |part: &Value| {
                let Value::Array(node) = part else { return None };
                let host = match text(node.first()?).filter(|host| !host.is_empty()) {
                    // Its name is not known, and its address may be.
                    Some(host) if host == "?" => metadata(node.get(3), "ip"),
                    host => host,
                };
                let host = host.unwrap_or_else(|| asked.0.to_owned());
                let port = number(node.get(1)?)?;
                Some((host, if port == 0 { asked.1 } else { port }))
            };
            let nodes =
                parts.iter().skip(2).take(MAX_NODES).map(node).collect::<Option<Vec<_>>>()?;
            (first <= last).then_some(SlotRange { first, last, nodes })
        })
        .collect()
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(text) => String::from_utf8(text.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

/// A field of what CLUSTER SLOTS says of a server beside its address: an array of names and values,
/// or a map.
fn metadata(value: Option<&Value>, name: &str) -> Option<String> {
    let found = match value? {
        Value::Array(words) => {
            let mut pairs = words.chunks_exact(2);
            text(&pairs.find(|pair| text(&pair[0]).as_deref() == Some(name))?[1])
        }
        Value::Map(pairs) => {
            text(&pairs.iter().find(|(key, _)| text(key).as_deref() == Some(name))?.1)
        }
        _ => None,
    };
    found.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    #[test]
    fn a_server_without_an_address_or_a_port_has_that_of_the_one_that_was_asked() {
        let more = |words: &[&str]| Value::Array(words.iter().map(|word| bulk(word)).collect());
        let node = |host: Value, port, more: Value| {
            Value::Array(vec![host, Value::Int(port), bulk("id"), more])
        };
        let none = || more(&[]);
        let nodes = vec![
            node(Value::Nil, 7000, none()),
            node(bulk(""), 7001, none()),
            node(bulk("?"), 7002, none()),
            node(bulk("?"), 7003, more(&["ip", "10.0.0.3"])),
            node(bulk("?"), 7004, Value::Map(vec![(bulk("ip"), bulk("10.0.0.4"))])),
            node(bulk("?"), 7005, more(&["hostname", "x", "ip", ""])),
            node(bulk("10.0.0.1"), 0, none()),
            node(Value::SimpleString("name".into()), 7006, none()),
        ];
        let answer = Value::Array(vec![range(0, 99, nodes)]);
        let ranges = parse(&answer, ("10.0.0.9", 6380)).unwrap();
        assert_eq!((ranges[0].first, ranges[0].last), (0, 99));
        let seen: Vec<_> =
            ranges[0].nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        assert_eq!(
            seen,
            [
                "10.0.0.9:7000",
                "10.0.0.9:7001",
                "10.0.0.9:7002",
                "10.0.0.3:7003",
                "10.0.0.4:7004",
                "10.0.0.9:7005",
                "10.0.0.1:6380",
                "name:7006"
            ]
        );
    }

    #[test]
    fn an_unknown_form_of_cluster_slots_is_rejected() {
        let node = || Value::Array(vec![bulk("h"), Value::Int(1)]);
        for odd in [
            Value::Okay,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(5, 4, vec![node()])]),
            Value::Array(vec![range(0, 70_000, vec![node()])]),
            Value::Array(vec![range(-1, 4, vec![node()])]),
            Value::Array(vec![range(0, 4, vec![Value::Array(vec![bulk("h")])])]),
            Value::Array(vec![range(0, 4, vec![Value::Array(vec![bulk("h"), Value::Int(-7)])])]),
        ] {
            assert!(parse(&odd, ("h", 1)).is_none(), "{odd:?}");
        }
    }
}
