use redis::Value;
use trunkline::bus::redis::{
    deployment::shards_in,
    members,
    script::{self, Answer, Status},
    sentinel::{
        answer::{self, MAX_REPLICAS, MAX_SENTINELS},
        choice::candidates,
    },
    slots,
};

/// An answer of Redis in its protocol, read as that of each command whose answer has a form of its
/// own: a shard's script, the exchange of records, CLUSTER SLOTS, a sentinel, and the text of the
/// deployment.
pub fn answers(bytes: &[u8]) {
    let Ok(value) = redis::parse_redis_value(bytes) else { return };
    if let Some(Answer::Shard(view, status)) = script::parse(&value) {
        // What is read is bounded, whatever was sent.
        assert!(view.ends.len() <= 128 && view.copies.to_string().len() < 64 * 42);
        if let Status::Seen(pairs) = status {
            assert!(pairs.len() <= bytes.len());
        }
    }
    if let Some(ranges) = slots::parse(&value, ("asked", 6379)) {
        for range in ranges {
            assert!(range.first <= range.last && range.nodes.len() <= 64);
            assert!(range.nodes.iter().all(|(host, _)| !host.is_empty()));
        }
    }
    if let Value::BulkString(text) = &value
        && let Ok(text) = std::str::from_utf8(text)
    {
        assert!(shards_in(text).is_none_or(|shards| (1..=256).contains(&shards)));
    }
    if let Value::Array(parts) = &value
        && let Ok(said) = answer::read(parts.clone())
    {
        assert!(said.replicas.len() <= MAX_REPLICAS && said.sentinels.len() <= MAX_SENTINELS);
        let named = said.replicas.iter().chain(&said.sentinels).chain([&said.master]);
        for (host, port) in named {
            assert!(*port != 0 && !host.is_empty() && host.len() <= 253, "{host}:{port}");
            assert!(host.bytes().all(|byte| byte.is_ascii_graphic()), "{host}");
        }
        let master = said.master.clone();
        assert_eq!(candidates(&vec![("sentinel".into(), Ok(said))]), [master]);
    }
    if let Some(exchange) = members::parse(value) {
        assert!(exchange.members.len() * 3 <= bytes.len());
    }
}
