//! Merges events for a stream that fell behind, if a later event says all that the earlier ones
//! said.
//!
//! The rules are those of the table of kinds. Mailbox changes and deliveries are most of what a
//! mail cluster sends, and only the latest state of an account counts, so they are merged by
//! account. Kinds without a rule, unknown ones included, are rare: their events pass untouched and
//! are never merged away.

mod rewrite;

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use trunkline_proto::{
    kinds::{self, Merge},
    v1::event::Kind,
};

use self::rewrite::Encoded;
use super::{batch::Events, event::EventView, log::events_of};
use crate::proto::v1;

/// Events with the same key may be merged with each other. The target is part of it: the same nodes
/// get both events.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    kind: u8,
    account: String,
    target: Bytes,
}

/// An event of the result: the publisher's bytes, except for the fields that merging changes.
struct Output {
    bytes: Bytes,
    /// Its kind, if that has a merge rule.
    kind: Option<Box<Kind>>,
    /// The number of events that it stands for.
    count: u64,
    /// True if an earlier event was merged into it.
    merged: bool,
}

/// Merges a batch. A merged event takes the position of the last of its events, so that nothing is
/// delivered early.
pub(super) fn merge(events: &Events) -> Events {
    let mut output: Vec<Option<Output>> = Vec::new();
    // By key: the index of the event with which later ones are merged.
    let mut indexes: HashMap<Key, usize> = HashMap::new();
    for bytes in events.chunks.iter().flat_map(events_of) {
        let mut next = Output { bytes, kind: None, count: 1, merged: false };
        if let Some((event, key)) = decode(&next.bytes) {
            next.count = event.merged_events.max(1);
            next.kind = event.kind.map(Box::new);
            let before = indexes.get(&key).copied();
            let earlier = before.and_then(|before| output[before].as_ref());
            let outcome = earlier.map_or(Merge::Apart, |earlier| join(earlier, &mut next));
            if outcome == Merge::Joined {
                before.map(|before| output[before].take());
            }
            if outcome != Merge::Aside {
                indexes.insert(key, output.len());
            }
        }
        output.push(Some(next));
    }
    let encoded: Vec<Bytes> = output.into_iter().flatten().map(Output::encode).collect();
    Events { oldest_ms: events.oldest_ms, ..Events::of(encoded.iter().map(|event| &event[..])) }
}

impl Output {
    fn encode(self) -> Bytes {
        if self.merged { rewrite::with_merged_events(&self.bytes, self.count) } else { self.bytes }
    }
}

/// Decodes an event of a kind that has a merge rule, with its key. Not one with several kinds, of
/// which readers that know different kinds see different ones.
fn decode(bytes: &Bytes) -> Option<(v1::Event, Key)> {
    let view = EventView::peek(bytes).ok().filter(|view| !view.meta().has_several_kinds())?;
    let row = kinds::of(view.kind()).filter(|row| row.merges)?;
    let event = v1::Event::decode(bytes.clone()).ok()?;
    let account = view.account().unwrap_or_default().to_owned();
    let target = rewrite::target(bytes);
    Some((event, Key { kind: row.number, account, target }))
}

/// Merges an earlier event into a later one, by the rule of their kind.
fn join(earlier: &Output, later: &mut Output) -> Merge {
    let (Some(earlier_kind), Some(later_kind)) = (&earlier.kind, &later.kind) else {
        return Merge::Apart;
    };
    let mut joined = later_kind.clone();
    let outcome = kinds::merge(earlier_kind, &mut joined);
    if outcome != Merge::Joined {
        return outcome;
    }
    let earlier_event = Encoded { event: &earlier.bytes, kind: earlier_kind };
    let later_event = Encoded { event: &later.bytes, kind: later_kind };
    let Some(bytes) = rewrite::with_kind(earlier_event, later_event, &joined) else {
        return Merge::Apart;
    };
    later.bytes = bytes;
    later.kind = Some(joined);
    later.count += earlier.count;
    later.merged = true;
    outcome
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        bus::put_event,
        hub::event::wire::{put_field, put_varint},
        proto::v1::{cache_invalidation::Scope, mailbox_change::TypeState},
    };

    /// The changed types of the property test: those below this number. 0 stands for one that no
    /// event names.
    const TYPES: i32 = 8;

    fn event(id: usize, kind: Kind) -> v1::Event {
        v1::Event { event_id: id.to_string(), kind: Some(kind), ..Default::default() }
    }

    fn change(account: &str, change_id: u64, types: &[v1::ChangedType]) -> Kind {
        Kind::MailboxChange(v1::MailboxChange {
            account_id: account.into(),
            change_id,
            changed_types: types.iter().map(|t| *t as i32).collect(),
            ..Default::default()
        })
    }

    /// A change with states of types.
    fn stated(
        (account, change_id, types): (&str, u64, &[v1::ChangedType]),
        states: &[(u64, &[v1::ChangedType])],
    ) -> Kind {
        let numbers = |types: &[v1::ChangedType]| types.iter().map(|t| *t as i32).collect();
        let states = states.iter().map(|(change_id, types)| TypeState {
            change_id: *change_id,
            changed_types: numbers(types),
        });
        Kind::MailboxChange(v1::MailboxChange {
            account_id: account.into(),
            change_id,
            changed_types: numbers(types),
            type_states: states.collect(),
        })
    }

    /// The state of a type, as the comments of `MailboxChange.type_states` say.
    fn state_of(change: &v1::MailboxChange, changed: i32) -> Option<u64> {
        let types = &change.changed_types;
        if !types.is_empty() && !types.contains(&changed) {
            return None;
        }
        let entries = || change.type_states.iter();
        let named = entries().find(|entry| entry.changed_types.contains(&changed));
        let entry = named.or_else(|| entries().find(|entry| entry.changed_types.is_empty()));
        Some(entry.map_or(change.change_id, |entry| entry.change_id))
    }

    fn run_encoded(encoded: &[Vec<u8>]) -> Vec<Bytes> {
        let mut events = Events::up_to(1);
        for event in encoded {
            let mut chunk = Vec::new();
            put_event(&mut chunk, event);
            events.chunks.push(chunk.into());
        }
        let merged = merge(&events);
        let bytes = Bytes::from(merged.chunks.concat());
        assert_eq!(bytes.len(), merged.bytes);
        let events: Vec<_> = events_of(&bytes).collect();
        assert_eq!(events.len() as u64, merged.count);
        events
    }

    fn run(kinds: Vec<Kind>) -> Vec<v1::Event> {
        let events = kinds.into_iter().enumerate();
        let encoded: Vec<_> = events.map(|(id, kind)| event(id, kind).encode_to_vec()).collect();
        run_encoded(&encoded).into_iter().map(|event| v1::Event::decode(event).unwrap()).collect()
    }

    /// A length-delimited field.
    fn field(number: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_field(&mut bytes, number, content);
        bytes
    }

    fn number(number: u32, value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, u64::from(number << 3));
        put_varint(&mut bytes, value);
        bytes
    }

    #[test]
    fn changes_of_an_account_join_their_types_and_keep_the_latest_id_of_each() {
        use v1::ChangedType::{Email, Mailbox, ShareNotification};
        let merged = run(vec![
            change("a", 9, &[Email]),
            change("b", 1, &[Email]),
            change("a", 7, &[Mailbox]),
        ]);
        assert_eq!(merged.len(), 2);
        assert_eq!((merged[0].event_id.as_str(), merged[0].merged_events), ("1", 0));
        assert_eq!((merged[1].event_id.as_str(), merged[1].merged_events), ("2", 2));
        let both = stated(("a", 7, &[Mailbox, Email]), &[(9, &[Email])]);
        assert_eq!(merged[1].kind, Some(both.clone()));
        // What was merged is merged again, and the number of another counter stays where it was.
        let share = 343_216_267_687_114_240;
        let merged = run(vec![
            change("a", share, &[ShareNotification]),
            both,
            change("a", 10, &[Email]),
            change("a", 11, &[Email]),
        ]);
        let all: &[_] = &[Email, Mailbox, ShareNotification];
        let states: &[(u64, &[_])] = &[(7, &[Mailbox]), (share, &[ShareNotification])];
        assert_eq!(merged[0].kind, Some(stated(("a", 11, all), states)));
        assert_eq!(merged[0].merged_events, 4);
        // 0 is an unknown state, and as late as any other.
        let merged = run(vec![change("a", 7, &[Email]), change("a", 0, &[Email])]);
        assert_eq!(merged[0].kind, Some(change("a", 0, &[Email])));
    }

    #[test]
    fn deliveries_of_an_account_keep_the_latest_id_and_the_message_if_it_is_one() {
        let delivery = |email_id: &str, change_id| {
            Kind::EmailDelivery(v1::EmailDelivery {
                account_id: "a".into(),
                email_id: email_id.into(),
                change_id,
            })
        };
        let merged = run(vec![delivery("m", 7), delivery("m", 3)]);
        assert_eq!(merged[0].kind, Some(delivery("m", 3)));
        let merged = run(vec![delivery("m", 7), delivery("n", 0)]);
        assert_eq!(merged[0].kind, Some(delivery("", 0)));
    }

    #[test]
    fn merging_changes_the_fields_concerned_and_keeps_all_other_bytes() {
        let content = |types: &[u8], new: &[u8]| {
            [field(77, new), field(3, types), number(2, 5), field(1, b"a"), number(78, 1)].concat()
        };
        let event = |id: &[u8], content: &[u8]| {
            [field(900, b"new"), field(10, content), field(1, id), number(901, 3)].concat()
        };
        // The same types: only the count is new.
        let earlier = event(b"1", &content(&[1], b"first"));
        let later = event(b"2", &content(&[1], b"second"));
        let merged = run_encoded(&[earlier.clone(), later.clone()]);
        assert_eq!(merged, [[later, number(5, 2)].concat()]);
        // Further types: their field changes, and the rest of the kind does not.
        let later = event(b"2", &content(&[4], b"second"));
        let merged = run_encoded(&[earlier.clone(), later]);
        let kind =
            [field(77, b"second"), number(2, 5), field(1, b"a"), number(78, 1), field(3, &[4, 1])];
        assert_eq!(merged, [[event(b"2", &kind.concat()), number(5, 2)].concat()]);
        // A count that is there already is replaced.
        let later = event(b"2", &content(&[1], b"second"));
        let merged = run_encoded(&[earlier, [number(5, 3), later.clone()].concat()]);
        assert_eq!(merged, [[later, number(5, 4)].concat()]);
    }

    #[test]
    fn entries_with_unknown_fields_are_joined_as_they_came_or_their_event_stays() {
        let entry = |id: &[u8], new: &[u8]| [field(1, b"c"), field(2, id), field(9, new)].concat();
        let event = |id: &[u8], entries: &[Vec<u8>]| {
            let entries: Vec<u8> = entries.iter().flat_map(|entry| field(1, entry)).collect();
            [field(1, id), field(17, &entries)].concat()
        };
        let one = event(b"1", &[entry(b"x", b"new")]);
        let two = event(b"2", &[entry(b"y", b"newer")]);
        let merged = run_encoded(&[one.clone(), two]);
        let both = event(b"2", &[entry(b"x", b"new"), entry(b"y", b"newer")]);
        assert_eq!(merged, [[both, number(5, 2)].concat()]);
        // Equal in what this version knows, and only in that.
        let other = event(b"2", &[entry(b"x", b"other")]);
        assert_eq!(run_encoded(&[one.clone(), other.clone()]), [one, other]);
    }

    #[test]
    fn events_with_different_targets_or_several_kinds_are_not_merged() {
        let change = [field(1, b"a"), number(2, 1)].concat();
        let plain = field(10, &change);
        let to = |new: &[u8]| [plain.clone(), field(4, &field(9, new))].concat();
        let all = [plain.clone(), to(b"x"), to(b"y"), [plain.clone(), plain.clone()].concat()];
        assert_eq!(run_encoded(&all), all);
        let merged = run_encoded(&[to(b"x"), to(b"x")]);
        assert_eq!(merged, [[to(b"x"), number(5, 2)].concat()]);
    }

    #[test]
    fn a_change_of_anything_stays_a_change_of_anything() {
        use v1::ChangedType::{Email, Mailbox};
        let merged = run(vec![change("a", 1, &[]), change("a", 2, &[Email])]);
        let expected = stated(("a", 2, &[]), &[(1, &[]), (2, &[Email])]);
        assert_eq!(merged[0].kind, Some(expected.clone()));
        let merged = run(vec![expected, change("a", 2, &[Mailbox])]);
        let expected = stated(("a", 2, &[]), &[(1, &[]), (2, &[Mailbox, Email])]);
        assert_eq!(merged[0].kind, Some(expected.clone()));
        // It says all that was said before it.
        let merged = run(vec![expected, change("a", 3, &[])]);
        assert_eq!(merged[0].kind, Some(change("a", 3, &[])));
    }

    #[test]
    fn more_types_than_a_change_may_have_become_a_change_of_anything_in_an_unknown_state() {
        let some = |change_id, types: std::ops::Range<i32>| {
            Kind::MailboxChange(v1::MailboxChange {
                account_id: "a".into(),
                change_id,
                changed_types: types.collect(),
                ..Default::default()
            })
        };
        let merged = run(vec![some(1, 1..64), some(2, 64..65)]);
        let Some(Kind::MailboxChange(change)) = &merged[0].kind else { panic!("no change") };
        assert_eq!((state_of(change, 63), state_of(change, 64)), (Some(1), Some(2)));
        let merged = run(vec![some(1, 1..64), some(2, 64..66)]);
        assert_eq!(merged[0].kind, Some(stated(("a", 2, &[]), &[(0, &[])])));
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

    /// Unknown fields: numbers and contents.
    fn unknown(first: u32) -> impl Strategy<Value = Vec<u8>> {
        let content = proptest::collection::vec(any::<u8>(), 0..4);
        proptest::collection::vec((first..first + 9, content), 0..4)
            .prop_map(|all| all.iter().flat_map(|(number, bytes)| field(*number, bytes)).collect())
    }

    /// The bytes of an event without what merging may change.
    fn without_merged(event: &[u8]) -> Vec<u8> {
        let mut kept = Vec::new();
        for outer in rewrite::fields(event).unwrap().iter().filter(|field| field.number != 5) {
            if outer.number == 10 {
                let inner = rewrite::fields(outer.content).unwrap();
                let inner = inner.iter().filter(|field| !matches!(field.number, 3 | 4));
                kept.extend(inner.flat_map(|field| field.bytes));
            } else {
                kept.extend(outer.bytes);
            }
        }
        kept
    }

    proptest! {
        /// The merged change of each account has the latest id of each type; events without a rule
        /// are all delivered, in order.
        #[test]
        fn merging_keeps_every_state_and_every_event_without_a_rule(
            acts in proptest::collection::vec(
                (
                    0..4_usize,
                    0..5_usize,
                    0..4_u64,
                    proptest::collection::vec(1..TYPES, 0..3),
                    proptest::collection::vec(
                        (0..4_u64, proptest::collection::vec(1..TYPES, 0..3)),
                        0..3,
                    ),
                ),
                1..60,
            )
        ) {
            let mut kinds = Vec::new();
            // Of each account: the state of each type, the latest id, the number of events.
            let mut wanted: HashMap<String, ([Option<u64>; TYPES as usize], u64, u64)> =
                HashMap::new();
            let mut rare = Vec::new();
            for (index, (what, account, change_id, changed_types, states)) in
                acts.into_iter().enumerate()
            {
                let account_id = format!("a{account}");
                if what == 0 {
                    rare.push(index.to_string());
                    kinds.push(Kind::BlockedIp(v1::BlockedIp {
                        address: "192.0.2.1".into(),
                        ..Default::default()
                    }));
                    continue;
                }
                let states = states.into_iter().map(|(change_id, changed_types)| TypeState {
                    change_id,
                    changed_types,
                });
                let change = v1::MailboxChange {
                    account_id,
                    change_id,
                    changed_types,
                    type_states: states.collect(),
                };
                let known = wanted.entry(change.account_id.clone()).or_default();
                for (changed, state) in (0..).zip(&mut known.0) {
                    *state = state_of(&change, changed).or(*state);
                }
                known.1 = change_id;
                known.2 += 1;
                kinds.push(Kind::MailboxChange(change));
            }
            let mut seen_rare = Vec::new();
            let mut seen = 0;
            for event in run(kinds) {
                match event.kind {
                    Some(Kind::MailboxChange(change)) => {
                        let (states, id, count) = &wanted[&change.account_id];
                        for (changed, state) in (0..).zip(states) {
                            prop_assert_eq!(state_of(&change, changed), *state);
                        }
                        prop_assert_eq!(change.change_id, *id);
                        prop_assert_eq!(event.merged_events.max(1), *count);
                        seen += 1;
                    }
                    _ => seen_rare.push(event.event_id),
                }
            }
            prop_assert_eq!(seen, wanted.len());
            prop_assert_eq!(seen_rare, rare);
        }

        /// Merged or not, an event has every byte of its publisher but for the types, their states
        /// and the count.
        #[test]
        fn merging_keeps_the_bytes_that_it_does_not_change(
            acts in proptest::collection::vec(
                (
                    0..3_u8,
                    proptest::collection::vec(0..9_i32, 0..3),
                    [unknown(100), unknown(20), unknown(110)],
                ),
                1..30,
            )
        ) {
            let acts = acts.into_iter().enumerate();
            let encoded: Vec<Vec<u8>> = acts.map(|(id, (account, types, new))| {
                let change = v1::MailboxChange {
                    account_id: account.to_string(),
                    change_id: id as u64,
                    changed_types: types,
                    ..Default::default()
                };
                let [before, within, after] = new;
                let change = [within, change.encode_to_vec()].concat();
                let id = field(1, id.to_string().as_bytes());
                [before, field(10, &change), id, after].concat()
            }).collect();
            for merged in run_encoded(&encoded) {
                let id: usize = EventView::peek(&merged).unwrap().event_id().parse().unwrap();
                prop_assert_eq!(without_merged(&merged), without_merged(&encoded[id]));
            }
        }
    }
}
