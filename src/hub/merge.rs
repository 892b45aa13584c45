//! Merges what a stream that fell behind has not got yet, where a later event says all that the earlier ones said.
//!
//! Mailbox changes and deliveries are most of what a mail cluster sends, and of an account only the latest state counts; so
//! they are merged by account. Queue refreshes become one, and cache invalidations their union. Everything else is rare and
//! passes untouched: it must never be merged away.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;

use super::{cursor::Events, log::events_of};
use crate::{
    bus::put_event,
    proto::v1::{self, cache_invalidation::Scope, event::Kind},
};

/// Entries of one merged cache invalidation at the most; the same as a published one may have.
const MAX_ENTRIES: usize = 1000;

/// Changed types that a merged change lists; more say "anything".
const MAX_TYPES: usize = 64;

/// Events that are merged with each other. A target is part of it: who gets the one gets the other.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    subject: Subject,
    target: Option<Vec<u8>>,
}

#[derive(PartialEq, Eq, Hash)]
enum Subject {
    Change(String),
    Delivery(String),
    Refresh,
    /// The nth union of invalidations: one that is full is followed by another.
    Invalidation(usize),
}

/// One event of the result.
enum Out {
    Untouched(Bytes),
    Merged(Box<v1::Event>),
}

/// Merges a batch. Each merged event stands where the last of its events stood, so that nothing is shown before its time.
pub(super) fn merge(events: &Events) -> Events {
    let mut out: Vec<Option<Out>> = Vec::new();
    let mut positions: HashMap<Key, usize> = HashMap::new();
    let mut invalidations = 0;
    for chunk in &events.chunks {
        for bytes in events_of(chunk) {
            let Some((mut event, mut key)) = decode(&bytes, invalidations) else {
                out.push(Some(Out::Untouched(bytes)));
                continue;
            };
            if let Some(before) = positions.get(&key) {
                let Some(Out::Merged(earlier)) = out[*before].take() else { continue };
                if let Some(earlier) = join(*earlier, &mut event) {
                    // Full: the earlier one stays as it is, and another union begins.
                    out[*before] = Some(Out::Merged(Box::new(earlier)));
                    invalidations += 1;
                    key.subject = Subject::Invalidation(invalidations);
                }
            }
            positions.insert(key, out.len());
            out.push(Some(Out::Merged(Box::new(event))));
        }
    }
    let mut merged = Events::up_to(1);
    let mut body = Vec::new();
    for event in out.into_iter().flatten() {
        match event {
            Out::Untouched(bytes) => put_event(&mut body, &bytes),
            Out::Merged(event) => put_event(&mut body, &event.encode_to_vec()),
        }
        merged.count += 1;
    }
    merged.oldest_ms = events.oldest_ms;
    merged.bytes = body.len();
    merged.chunks.push(body.into());
    merged
}

/// An event of a kind that may be merged, and with which others.
fn decode(bytes: &Bytes, invalidations: usize) -> Option<(v1::Event, Key)> {
    let event = v1::Event::decode(bytes.clone()).ok()?;
    let subject = match event.kind.as_ref()? {
        Kind::MailboxChange(change) => Subject::Change(change.account_id.clone()),
        Kind::EmailDelivery(delivery) => Subject::Delivery(delivery.account_id.clone()),
        Kind::QueueRefresh(_) => Subject::Refresh,
        // Dropping everything is no union of entries.
        Kind::CacheInvalidation(i) if !matches!(i.scope(), Scope::All | Scope::AllNegative) => {
            Subject::Invalidation(invalidations)
        }
        _ => return None,
    };
    let target = event.target.as_ref().map(Message::encode_to_vec);
    Some((event, Key { subject, target }))
}

/// Joins an earlier event into a later one; gives the earlier back where both do not fit into one.
fn join(earlier: v1::Event, later: &mut v1::Event) -> Option<v1::Event> {
    match (&earlier.kind, &mut later.kind) {
        (Some(Kind::MailboxChange(before)), Some(Kind::MailboxChange(after))) => {
            after.change_id = after.change_id.max(before.change_id);
            // No types: anything may have changed, and that stays so.
            if before.changed_types.is_empty() || after.changed_types.is_empty() {
                after.changed_types.clear();
            } else {
                for changed in &before.changed_types {
                    if !after.changed_types.contains(changed) {
                        after.changed_types.push(*changed);
                    }
                }
                if after.changed_types.len() > MAX_TYPES {
                    after.changed_types.clear();
                }
            }
        }
        (Some(Kind::EmailDelivery(before)), Some(Kind::EmailDelivery(after))) => {
            after.change_id = after.change_id.max(before.change_id);
            if after.email_id != before.email_id {
                after.email_id.clear();
            }
        }
        (Some(Kind::CacheInvalidation(before)), Some(Kind::CacheInvalidation(after))) => {
            let fresh = before.entries.iter().filter(|entry| !after.entries.contains(entry));
            let fresh: Vec<_> = fresh.cloned().collect();
            if fresh.len() + after.entries.len() > MAX_ENTRIES {
                return Some(earlier);
            }
            after.entries.splice(0..0, fresh);
        }
        _ => {}
    }
    later.merged_events = later.merged_events.max(1) + earlier.merged_events.max(1);
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
    fn a_change_of_anything_stays_one() {
        let merged = run(vec![change("a", 1, &[]), change("a", 2, &[v1::ChangedType::Email])]);
        assert_eq!(merged[0].kind, Some(change("a", 2, &[])));
    }

    #[test]
    fn invalidations_become_their_union_and_dropping_all_stays_apart() {
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
        // What does not fit into one is two.
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
        /// Of each account the last merged change has the highest id and every type; rare kinds all come, in order.
        #[test]
        fn nothing_that_counts_is_merged_away(
            acts in proptest::collection::vec((0..4_usize, 0..5_usize, 1..1000_u64, 1..10_i32), 1..60)
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
