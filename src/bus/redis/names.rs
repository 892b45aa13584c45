//! The keys and the channel of each shard. All of a shard's names share one hash tag, so one script reaches them on one master.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    envelope::WriterId,
    seal::{Keys, Seal},
};
use crate::bus::{MemberId, RequestId, ShardId};

/// Hash slots of a Redis Cluster.
pub(super) const SLOTS: u16 = 16384;

/// The names of one shard.
#[derive(Clone, Debug)]
pub(super) struct ShardNames {
    /// `<prefix>:{<tag>}`, which all names begin with.
    base: String,
    /// The hash slot of all of them.
    pub slot: u16,
    /// Epoch, offset and bookkeeping (hash).
    pub state: String,
    /// The frames that are kept (stream).
    pub history: String,
    /// Places in history by time and size, to trim it (list).
    pub marks: String,
    /// The last events by key (hash).
    pub retained: String,
    /// Where frames are published.
    pub channel: String,
    /// What seals and opens what lies under these names; none where nothing is sealed.
    pub seal: Option<Arc<Seal>>,
}

impl ShardNames {
    /// The names of shard `shard` of `shards`: the tag is chosen so that the shards spread evenly over the slots, and with
    /// them over masters that hold ranges of equal size. The same on all gateways.
    pub(super) fn new(prefix: &str, shard: ShardId, shards: u16) -> ShardNames {
        let width = u32::from(SLOTS);
        let (shard, shards) = (u32::from(shard.0), u32::from(shards.max(1)));
        let range = shard * width / shards..(shard + 1) * width / shards;
        // With 64 slots or more a shard, a few dozen tries find one.
        let tag = (0..10_000)
            .map(|n| if n == 0 { shard.to_string() } else { format!("{shard}.{n}") })
            .find(|tag| range.contains(&u32::from(slot_of(tag))))
            .unwrap_or_else(|| shard.to_string());
        let base = format!("{prefix}:{{{tag}}}");
        ShardNames {
            slot: slot_of(&tag),
            state: format!("{base}:state"),
            history: format!("{base}:history"),
            marks: format!("{base}:marks"),
            retained: format!("{base}:retained"),
            channel: format!("{base}:channel"),
            seal: None,
            base,
        }
    }

    /// With everything under them sealed, if there are keys.
    pub(super) fn sealed_by(mut self, keys: Option<&Keys>) -> ShardNames {
        self.seal = keys.map(|keys| keys.on(&self.channel));
        self
    }

    /// Where a writer's last frame is remembered.
    pub(super) fn writer(&self, writer: WriterId) -> String {
        format!("{}:writer:{writer:016x}", self.base)
    }

    /// A name that no gateway uses, for those who look whether all is well.
    pub(super) fn scratch(&self, name: &str) -> String {
        format!("{}:doctor:{name}", self.base)
    }

    /// Where a request id is remembered.
    pub(super) fn request(&self, id: &RequestId) -> String {
        let mut digits = Uuid::encode_buffer();
        let digits = Uuid::from_bytes(*id).as_simple().encode_lower(&mut digits);
        [self.base.as_str(), ":request:", digits].concat()
    }
}

/// Where the gateways keep what they say of themselves. One hash tag for all, so that one script reaches it.
#[derive(Clone, Debug)]
pub(super) struct MemberNames {
    base: String,
    /// The hash slot of all of them.
    pub slot: u16,
    /// The heads of all gateways (hash).
    pub heads: String,
}

impl MemberNames {
    pub(super) fn new(prefix: &str) -> MemberNames {
        let base = format!("{prefix}:{{members}}");
        MemberNames { slot: slot_of("members"), heads: format!("{base}:heads"), base }
    }

    /// A gateway's pages (hash).
    pub(super) fn pages(&self, member: MemberId) -> String {
        format!("{}:pages:{:016x}", self.base, member.0)
    }
}

/// Where the deployment's shard count and mode are recorded.
pub(super) fn deployment(prefix: &str) -> String {
    format!("{prefix}:deployment")
}

/// The hash slot of a tag.
pub(super) fn slot_of(tag: &str) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(tag.as_bytes()) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        // The check value of CRC16/XMODEM that the specification gives for "123456789" is 0x31C3.
        assert_eq!(slot_of("123456789"), 0x31C3);
    }

    #[test]
    fn shards_spread_evenly_over_masters() {
        for (masters, shards) in [(3_u32, 6_u16), (3, 3), (5, 10), (1, 1), (4, 256)] {
            let mut owned = vec![0_u16; masters as usize];
            for shard in ShardId::all(shards) {
                let slot = ShardNames::new("p", shard, shards).slot;
                owned[(u32::from(slot) * masters / u32::from(SLOTS)) as usize] += 1;
            }
            let most = owned.iter().max().unwrap();
            let least = owned.iter().min().unwrap();
            assert!(most - least <= 1, "{shards} shards over {masters} masters: {owned:?}");
        }
    }

    #[test]
    fn all_names_of_members_have_one_tag() {
        let names = MemberNames::new("mail");
        assert_eq!(names.heads, "mail:{members}:heads");
        assert_eq!(names.pages(MemberId(255)), "mail:{members}:pages:00000000000000ff");
    }

    #[test]
    fn all_names_of_a_shard_have_one_tag() {
        let names = ShardNames::new("mail", ShardId(1), 6);
        let tag = names.state.split(['{', '}']).nth(1).unwrap();
        for name in [
            &names.history,
            &names.marks,
            &names.channel,
            &names.writer(1),
            &names.request(&[7; 16]),
        ] {
            assert!(name.starts_with(&format!("mail:{{{tag}}}:")), "{name}");
        }
    }
}
