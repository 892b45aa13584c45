//! The shard of an event.
//!
//! All gateways of a deployment, of all versions, must agree here, or the events of one account
//! lose their order. The algorithm is therefore fixed: FNV-1a of 32 bits over the routing key, then
//! the finalizer of `MurmurHash3` (FNV alone leaves the low bits of short keys weak), and the
//! remainder by the number of shards.

use trunkline_proto::kinds::{NODE_JOINED, NODE_LEFT};

use super::EventView;
use crate::bus::ShardId;

/// The hash of an event's routing key.
///
/// The key is the account's id if the event is of a kind that concerns an account and names one.
/// Otherwise it is one byte with the number of the kind, followed by the type of a custom event.
/// Events with equal keys share a shard and so keep their order. [`trunkline_proto::kinds`] says
/// which kinds concern an account, those of later versions included. The two kinds of gateways
/// about nodes share a key: that a node left comes after that it joined.
pub fn routing_key_hash(event: &EventView<'_>) -> u32 {
    let mut fnv = Fnv32::new();
    if event.account_bytes().is_empty() {
        let kind = event.kind();
        fnv.write(&[if kind == NODE_LEFT { NODE_JOINED } else { kind }]);
        fnv.write(event.custom_type_bytes());
    } else {
        fnv.write(event.account_bytes());
    }
    mix(fnv.finish())
}

/// The shard of the events of gateways about nodes, on a bus of `shards` shards.
pub fn shard_of_nodes(shards: u16) -> ShardId {
    let mut fnv = Fnv32::new();
    fnv.write(&[NODE_JOINED]);
    shard_of(mix(fnv.finish()), shards)
}

/// The shard of a routing key, on a bus of `shards` shards (0 counts as 1).
#[allow(clippy::cast_possible_truncation)] // a remainder by 16 bits has 16 bits
pub fn shard_of(hash: u32, shards: u16) -> ShardId {
    let shard = hash % u32::from(shards.max(1));
    ShardId(shard as u16)
}

/// FNV-1a of 32 bits. Not safe against chosen input.
#[derive(Clone, Copy)]
pub(crate) struct Fnv32(u32);

impl Fnv32 {
    pub(crate) fn new() -> Fnv32 {
        Fnv32(0x811c_9dc5)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }

    pub(crate) fn finish(self) -> u32 {
        self.0
    }
}

fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::event::wire::put_field;

    fn fnv(text: &str) -> u32 {
        let mut fnv = Fnv32::new();
        fnv.write(text.as_bytes());
        fnv.finish()
    }

    #[test]
    fn fnv_has_its_published_values() {
        assert_eq!(fnv(""), 0x811c_9dc5);
        assert_eq!(fnv("a"), 0xe40c_292c);
        assert_eq!(fnv("foobar"), 0xbf9c_f968);
    }

    #[test]
    fn accounts_spread_over_the_shards() {
        for shards in [2u16, 3, 6, 16] {
            let mut counts = vec![0u32; usize::from(shards)];
            for account in 0..6_000 {
                counts[shard_of(mix(fnv(&format!("u{account}"))), shards).index()] += 1;
            }
            let fair = 6_000 / u32::from(shards);
            for count in counts {
                assert!(count.abs_diff(fair) < fair / 4, "{count} of {fair} on {shards} shards");
            }
        }
    }

    #[test]
    fn an_unknown_kind_that_concerns_an_account_is_routed_as_known_ones_of_that_account() {
        let hash = |kind: u32, account: &str| {
            let (mut message, mut event) = (vec![], vec![]);
            put_field(&mut message, 1, account.as_bytes());
            put_field(&mut event, kind, &message);
            routing_key_hash(&EventView::peek(&event).unwrap())
        };
        for kind in [11, 13, 30, 42, 49] {
            assert_eq!(hash(kind, "a"), hash(10, "a"), "{kind}");
            assert_ne!(hash(kind, "b"), hash(10, "a"), "{kind}");
        }
        for kind in [14, 21, 29, 50, 99] {
            assert_eq!(hash(kind, "a"), hash(kind, "b"), "{kind} concerns no account");
        }
    }

    #[test]
    fn zero_shards_count_as_one() {
        assert_eq!(shard_of(u32::MAX, 0), ShardId(0));
        assert_eq!(shard_of(u32::MAX, u16::MAX), ShardId(0));
        assert_eq!(shard_of(65_534, u16::MAX), ShardId(65_534));
    }
}
