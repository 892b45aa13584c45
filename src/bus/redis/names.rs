//! The names of keys and channels in Redis. All names of a shard share one hash tag, so that one
//! script reaches them on one master.

use std::sync::{Arc, atomic::AtomicUsize};

use uuid::Uuid;

use super::auth::{Authenticator, Keys};
use crate::bus::{MemberId, RequestId, ShardId};

/// Hash slots of a Redis Cluster.
pub(super) const SLOTS: u16 = 16384;

/// Bytes of the events of an entry of history, as long as none was read.
const ENTRY_BYTES: usize = 8 * 1024;

/// The names of one shard.
#[derive(Clone, Debug)]
pub(super) struct ShardNames {
    /// `<prefix>:{<tag>}`, the beginning of all names.
    base: String,
    /// The hash slot of all of them.
    pub slot: u16,
    /// Epoch, offset and bookkeeping (hash).
    pub state: String,
    /// The frames that are kept (stream); see `append.lua`.
    pub history: String,
    /// Positions in history by time and size, to trim it (list).
    pub trim_index: String,
    /// The last events by key (hash).
    pub retained: String,
    /// The channel on which frames are published.
    pub channel: String,
    /// Makes and verifies the tags of everything under these names. None without `frameKey`.
    pub auth: Option<Arc<Authenticator>>,
    /// Bytes of the events of an entry of history, as the last reading found them.
    pub entry_bytes: Arc<AtomicUsize>,
}

impl ShardNames {
    /// The names of shard `shard` of `shards`: the tag is chosen so that the shards spread evenly
    /// over the slots, and with them over masters that hold ranges of equal size. The same on all
    /// gateways; that of shard 0 is the same however many shards there are, so that gateways that
    /// disagree about their number meet there.
    pub(super) fn new(prefix: &str, shard: ShardId, shards: u16) -> ShardNames {
        let width = u32::from(SLOTS);
        let (shard, shards) = (u32::from(shard.0), u32::from(shards.max(1)));
        // The range in which the slot of the tag "0" lies is that of shard 0.
        let first = u32::from(slot_of("0")) * shards / width;
        let nth = match shard {
            0 => first,
            shard if shard == first => 0,
            shard => shard,
        };
        let range = nth * width / shards..(nth + 1) * width / shards;
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
            trim_index: format!("{base}:marks"),
            retained: format!("{base}:retained"),
            channel: format!("{base}:channel"),
            auth: None,
            entry_bytes: Arc::new(AtomicUsize::new(ENTRY_BYTES)),
            base,
        }
    }

    /// Keys belong to a database, and channels to the whole server: gateways on two databases must
    /// not receive one another's frames.
    pub(super) fn in_database(mut self, database: i64) -> ShardNames {
        if database != 0 {
            self.channel = format!("{}:{database}", self.channel);
        }
        self
    }

    /// Adds authentication tags to everything under these names, if there are keys.
    pub(super) fn with_keys(mut self, keys: Option<&Keys>) -> ShardNames {
        self.auth = keys.map(|keys| keys.on(&self.channel));
        self
    }

    /// A name that no gateway uses, for the doctor.
    pub(super) fn scratch(&self, name: &str) -> String {
        format!("{}:doctor:{name}", self.base)
    }

    /// The key that remembers a request id.
    pub(super) fn request(&self, id: &RequestId) -> String {
        let mut digits = Uuid::encode_buffer();
        let digits = Uuid::from_bytes(*id).as_simple().encode_lower(&mut digits);
        [self.base.as_str(), ":request:", digits].concat()
    }
}

/// The names under which gateways publish their state. One hash tag for all, so that one script
/// reaches them.
#[derive(Clone, Debug)]
pub(super) struct MemberNames {
    base: String,
    /// The hash slot of all of them.
    pub slot: u16,
    /// The records of all gateways (hash). The name in Redis is that of the first version.
    pub records: String,
    /// The last changes of the records (hash).
    pub changes: String,
}

impl MemberNames {
    pub(super) fn new(prefix: &str) -> MemberNames {
        let base = format!("{prefix}:{{members}}");
        let (records, changes) = (format!("{base}:heads"), format!("{base}:changes"));
        MemberNames { slot: slot_of("members"), records, changes, base }
    }

    /// The messages for a gateway (list).
    pub(super) fn messages(&self, member: MemberId) -> String {
        format!("{}:messages:{:016x}", self.base, member.0)
    }

    /// The member shards of a gateway (hash). The name in Redis is that of the first version.
    pub(super) fn shards(&self, member: MemberId) -> String {
        format!("{}:pages:{:016x}", self.base, member.0)
    }
}

/// The key that records the deployment: shard count, mode and key id.
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
        for (masters, shards) in [(3_u32, 16_u16), (3, 6), (5, 16), (1, 1), (4, 256)] {
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
        assert_eq!(names.records, "mail:{members}:heads");
        assert_eq!(names.shards(MemberId(255)), "mail:{members}:pages:00000000000000ff");
    }

    #[test]
    fn all_names_of_a_shard_have_one_tag() {
        let names = ShardNames::new("mail", ShardId(1), 6);
        let tag = names.state.split(['{', '}']).nth(1).unwrap();
        for name in [&names.history, &names.trim_index, &names.channel, &names.request(&[7; 16])] {
            assert!(name.starts_with(&format!("mail:{{{tag}}}:")), "{name}");
        }
    }
}
