//! Merges events for a stream that fell behind, if a later event says all that the earlier ones
//! said.
//!
//! The rules are those of the table of kinds. Mailbox changes and deliveries are most of what a
//! mail cluster sends, and only the latest state of an account counts, so they are merged by
//! account. Kinds without a rule, unknown ones included, are rare: their events pass untouched and
//! are never merged away.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use trunkline_proto::kinds::{self, Merge};

use super::{batch::Events, event::EventView, log::events_of};
use crate::proto::v1;

/// Events with the same key may be merged with each other. The target is part of it: the same nodes
/// get both events.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    kind: u8,
    account: String,
    target: Option<Vec<u8>>,
}

/// An event of the result: the publisher's bytes, unless an earlier event was merged into it.
struct Output {
    bytes: Bytes,
    event: Option<Box<v1::Event>>,
    merged: bool,
}

/// Merges a batch. A merged event takes the position of the last of its events, so that nothing is
/// delivered early.
pub(super) fn merge(events: &Events) -> Events {
    let mut output: Vec<Option<Output>> = Vec::new();
    // By key: the index of the event with which later ones are merged.
    let mut indexes: HashMap<Key, usize> = HashMap::new();
    for bytes in events.chunks.iter().flat_map(events_of) {
        let mut next = Output { bytes, event: None, merged: false };
        if let Some((mut event, key)) = decode(&next.bytes) {
            let before = indexes.get(&key).copied();
            let earlier = before.and_then(|before| output[before].as_ref()?.event.as_deref());
            let outcome = earlier.map_or(Merge::Apart, |earlier| join(earlier, &mut event));
            if outcome == Merge::Joined {
                before.map(|before| output[before].take());
                next.merged = true;
            }
            if outcome != Merge::Aside {
                indexes.insert(key, output.len());
            }
            next.event = Some(Box::new(event));
        }
        output.push(Some(next));
    }
    let encoded: Vec<Bytes> = output.into_iter().flatten().map(Output::encode).collect();
    Events { oldest_ms: events.oldest_ms, ..Events::of(encoded.iter().map(|event| &event[..])) }
}

impl Output {
    fn encode(self) -> Bytes {
        match self.event {
            Some(event) if self.merged => event.encode_to_vec().into(),
            _ => self.bytes,
        }
    }
}

/// Decodes an event of a kind that has a merge rule, with its key.
fn decode(bytes: &Bytes) -> Option<(v1::Event, Key)> {
    // The last kind field decides, as everywhere. prost would see the last one that it knows.
    let view = EventView::peek(bytes).ok()?;
    let row = kinds::of(view.kind()).filter(|row| row.merges)?;
    let event = v1::Event::decode(bytes.clone()).ok()?;
    let account = view.account().unwrap_or_default().to_owned();
    let target = event.target.as_ref().map(Message::encode_to_vec);
    Some((event, Key { kind: row.number, account, target }))
}

/// Merges an earlier event into a later one, by the rule of their kind.
fn join(earlier: &v1::Event, later: &mut v1::Event) -> Merge {
    let (Some(earlier_kind), Some(later_kind)) = (&earlier.kind, &mut later.kind) else {
        return Merge::Apart;
    };
    let outcome = kinds::merge(earlier_kind, later_kind);
    if outcome == Merge::Joined {
        later.merged_events = later.merged_events.max(1) + earlier.merged_events.max(1);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        bus::put_event,
        proto::v1::{cache_invalidation::Scope, event::Kind},
    };

    fn event(id: usize, kind: Kind) -> v1::Event {
        v1::Event { event_id: id.to_string(), kind: Some(kind), ..Default::default() }
    }

    fn change(account: &str, change_id: u64, types: &[v1::ChangedType]) -> Kind {
        Kind::MailboxChange(v1::MailboxChange {
            account_id: account.into(),
            change_id,
            changed_types: types.iter().map(|t| *t as i32).collect(),
        })
    }

    fn run(kinds: Vec<Kind>) -> Vec<v1::Event> {
        let mut events = Events::up_to(1);
        for (id, kind) in kinds.into_iter().enumerate() {
            let mut chunk = Vec::new();
            put_event(&mut chunk, &event(id, kind).encode_to_vec());
            events.chunks.push(chunk.into());
        }
        let merged = merge(&events);
        let bytes = merged.chunks.concat();
        assert_eq!(bytes.len(), merged.bytes);
        let batch = v1::EventBatch::decode(&bytes[..]).unwrap();
        assert_eq!(batch.events.len() as u64, merged.count);
        batch.events
    }

    #[test]
    fn changes_of_an_account_join_their_types_and_keep_the_highest_id() {
        use v1::ChangedType::{Email, Mailbox};
        let merged = run(vec![
            change("a", 9, &[Email]),
            change("b", 1, &[Email]),
            change("a", 7, &[Mailbox]),
        ]);
        assert_eq!(merged.len(), 2);
        assert_eq!((merged[0].event_id.as_str(), merged[0].merged_events), ("1", 0));
        assert_eq!((merged[1].event_id.as_str(), merged[1].merged_events), ("2", 2));
        assert_eq!(merged[1].kind, Some(change("a", 9, &[Mailbox, Email])));
    }

    #[test]
    fn a_change_of_anything_stays_a_change_of_anything() {
        let merged = run(vec![change("a", 1, &[]), change("a", 2, &[v1::ChangedType::Email])]);
        assert_eq!(merged[0].kind, Some(change("a", 2, &[])));
    }

    #[test]
    fn invalidations_become_their_union_and_dropping_all_is_not_merged() {
        let entry =
            |id: usize| v1::cache_invalidation::Entry { cache: "c".into(), id: id.to_string() };
        let some = |ids: std::ops::Range<usize>| {
            Kind::CacheInvalidation(v1::CacheInvalidation {
                entries: ids.map(entry).collect(),
                scope: 0,
            })
        };
        let all = Kind::CacheInvalidation(v1::CacheInvalidation {
            entries: vec![],
            scope: Scope::All as i32,
        });
        let merged = run(vec![some(0..2), all.clone(), some(1..3)]);
        assert_eq!(merged.len(), 2);
        assert_eq!(merged[0].kind, Some(all));
        let Some(Kind::CacheInvalidation(union)) = &merged[1].kind else { panic!("no union") };
        let mut ids: Vec<_> = union.entries.iter().map(|e| e.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["0", "1", "2"]);
        // Entries that do not fit into one event are in two.
        let merged = run(vec![some(0..800), some(800..1600), some(1600..1700)]);
        let sizes: Vec<_> = merged
            .iter()
            .map(|e| match &e.kind {
                Some(Kind::CacheInvalidation(i)) => i.entries.len(),
                _ => 0,
            })
            .collect();
        assert_eq!(sizes, [800, 900]);
    }

    proptest! {
        /// The merged change of each account has the highest id and every type; events without a
        /// rule are all delivered, in order.
        #[test]
        fn merging_keeps_every_state_and_every_event_without_a_rule(
            acts in proptest::collection::vec(
                (0..4_usize, 0..5_usize, 1..1000_u64, 1..10_i32),
                1..60,
            )
        ) {
            let mut kinds = Vec::new();
            let mut wanted: HashMap<String, (u64, Vec<i32>, u64)> = HashMap::new();
            let mut rare = Vec::new();
            for (index, (what, account, change_id, changed)) in acts.into_iter().enumerate() {
                let account = format!("a{account}");
                if what == 0 {
                    rare.push(index.to_string());
                    kinds.push(Kind::BlockedIp(v1::BlockedIp {
                        address: "192.0.2.1".into(),
                        ..Default::default()
                    }));
                } else {
                    let known = wanted.entry(account.clone()).or_default();
                    known.0 = known.0.max(change_id);
                    known.2 += 1;
                    if !known.1.contains(&changed) {
                        known.1.push(changed);
                    }
                    kinds.push(Kind::MailboxChange(v1::MailboxChange {
                        account_id: account,
                        change_id,
                        changed_types: vec![changed],
                    }));
                }
            }
            let mut seen_rare = Vec::new();
            let mut seen = 0;
            for event in run(kinds) {
                match event.kind {
                    Some(Kind::MailboxChange(change)) => {
                        let (id, types, count) = &wanted[&change.account_id];
                        let mut got = change.changed_types.clone();
                        let mut types = types.clone();
                        got.sort_unstable();
                        types.sort_unstable();
                        prop_assert_eq!((change.change_id, got), (*id, types));
                        prop_assert_eq!(event.merged_events.max(1), *count);
                        seen += 1;
                    }
                    _ => seen_rare.push(event.event_id),
                }
            }
            prop_assert_eq!(seen, wanted.len());
            prop_assert_eq!(seen_rare, rare);
        }
    }
}
