//! Each validator is shown to be able to fail: it finds a history that breaks its promise; a
//! history that keeps all promises passes.

use std::time::Duration;

use trunkline_proto::v1::GapReason;

use crate::{
    history::{Acknowledged, Gap, History, Interest, Item, Memory, Node, Sent, Stream, Update},
    promises::{PROMISES, false_gaps, violations},
};

const NODE: &str = "node";

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A history with three acknowledged events of one shard, all delivered to one node.
fn intact() -> History {
    let sent = |number: u64| Sent {
        event_id: format!("e{number}"),
        source: "publisher".into(),
        account: "a".into(),
        at: at(number),
        acknowledged: Some(Acknowledged { place: Some((0, (1, number))), at: at(number) }),
    };
    let items = vec![
        (at(0), Item::Subscribed { resumed: false }),
        (at(1), event("e1")),
        (at(2), event("e2")),
        (at(3), event("e3")),
    ];
    let stream = Stream { items, ..Stream::default() };
    let node = Node { node_id: NODE.into(), interest: Interest::default(), streams: vec![stream] };
    History { sent: (1..=3).map(sent).collect(), nodes: vec![node], ..History::default() }
}

fn event(event_id: &str) -> Item {
    Item::Event { event_id: event_id.into(), source: "publisher".into(), account: "a".into() }
}

fn gap(from: u64, to: u64, missed: Option<u64>) -> Item {
    let reason = GapReason::EpochChanged;
    Item::Gap(Gap { reason, shard: 0, from: (1, from), to: (1, to), missed })
}

/// The items of the node's first stream.
fn items(history: &mut History) -> &mut Vec<(Duration, Item)> {
    &mut history.nodes[0].streams[0].items
}

/// Asserts that the promise's validator finds a violation in the history.
fn breaks(promise: &str, history: &History) {
    let check = PROMISES.iter().find(|other| other.name == promise).expect("a promise");
    assert!(!(check.violations)(history).is_empty(), "the validator of {promise} found nothing");
}

#[test]
fn a_history_that_keeps_every_promise_passes() {
    assert_eq!(violations(&intact()), Vec::<String>::new());
    // A gap covers the event that is missing.
    let mut reported = intact();
    items(&mut reported)[2] = (at(2), gap(1, 2, Some(1)));
    assert_eq!(violations(&reported), Vec::<String>::new());
    // An event that was not acknowledged need not be delivered.
    let mut refused = intact();
    refused.sent[2].acknowledged = None;
    items(&mut refused).truncate(3);
    assert_eq!(violations(&refused), Vec::<String>::new());
    // Nor one that was sent before the node subscribed.
    let mut late = intact();
    items(&mut late)[0].0 = at(2);
    items(&mut late).remove(1);
    assert_eq!(violations(&late), Vec::<String>::new());
}

#[test]
fn acknowledged_fails_on_an_ok_while_the_bus_was_down_and_on_a_position_given_twice() {
    let mut history = intact();
    history.outages.push((at(2), at(2)));
    breaks("Acknowledged", &history);
    let mut history = intact();
    history.sent[1].acknowledged = history.sent[0].acknowledged;
    breaks("Acknowledged", &history);
    let mut history = intact();
    history.sent[1].acknowledged = Some(Acknowledged { place: Some((0, (0, 0))), at: at(2) });
    breaks("Acknowledged", &history);
}

#[test]
fn confirmed_fails_on_an_event_that_an_open_stream_missed() {
    let mut history = intact();
    items(&mut history).remove(2);
    breaks("Confirmed", &history);
}

#[test]
fn ordered_fails_on_two_events_in_the_wrong_order() {
    let mut history = intact();
    items(&mut history).swap(1, 2);
    breaks("Ordered", &history);
}

#[test]
fn unique_fails_on_an_event_that_the_next_stream_repeats() {
    let mut history = intact();
    let again = vec![(at(4), Item::Subscribed { resumed: true }), (at(5), event("e3"))];
    history.nodes[0].streams.push(Stream { with_token: true, items: again, ..Stream::default() });
    breaks("Unique", &history);
}

#[test]
fn no_silent_loss_fails_on_an_event_lost_between_two_streams() {
    let mut history = intact();
    items(&mut history).truncate(2);
    items(&mut history).push((at(1), Item::Ended(None)));
    let next = vec![(at(4), Item::Subscribed { resumed: true })];
    history.nodes[0].streams.push(Stream { with_token: true, items: next, ..Stream::default() });
    breaks("NoSilentLoss", &history);
    // The same does not break Confirmed: no stream was open.
    let confirmed = PROMISES.iter().find(|promise| promise.name == "Confirmed").expect("there");
    assert!((confirmed.violations)(&history).is_empty());
}

#[test]
fn no_false_gap_fails_on_an_empty_gap_a_wrong_count_and_an_event_that_was_received() {
    for reported in [gap(1, 1, None), gap(1, 2, Some(0)), gap(1, 2, Some(7)), gap(0, 1, Some(1))] {
        let mut history = intact();
        items(&mut history).insert(2, (at(2), reported));
        breaks("NoFalseGap", &history);
    }
}

#[test]
fn resumable_fails_on_a_stream_that_begins_anew_without_a_gap() {
    let mut history = intact();
    let next = vec![(at(4), Item::Subscribed { resumed: false })];
    history.nodes[0].streams.push(Stream { with_token: true, items: next, ..Stream::default() });
    breaks("Resumable", &history);
}

#[test]
fn no_echo_fails_on_an_event_of_the_node_itself() {
    let mut history = intact();
    history.nodes[0].node_id = "publisher".into();
    breaks("NoEcho", &history);
    history.nodes[0].interest.own = true;
    assert_eq!(violations(&history), Vec::<String>::new());
}

#[test]
fn filtered_fails_on_an_event_that_the_filter_excludes() {
    let mut history = intact();
    history.nodes[0].interest.accounts = Some(["b".to_owned()].into());
    breaks("Filtered", &history);
}

/// A history of a node that adds account "b" before the first event of it, and removes it before
/// the last one. All events are of "b", but for one of "a" that it has all the time.
fn watching() -> History {
    let mut history = intact();
    let event = |number: u64, account: &str| Sent {
        event_id: format!("e{number}"),
        account: account.into(),
        at: at(2 * number),
        acknowledged: Some(Acknowledged { place: Some((0, (1, number))), at: at(2 * number) }),
        ..history.sent[0].clone()
    };
    history.sent = vec![event(1, "b"), event(2, "b"), event(3, "a"), event(4, "b")];
    let accounts: std::collections::HashSet<String> = ["a".to_owned()].into();
    let update = |id, add: &[&str], remove: &[&str]| {
        let [add, remove] =
            [add, remove].map(|names| names.iter().map(|&name| name.to_owned()).collect());
        Item::Updating(Update { id, add, remove })
    };
    let got = |number: u64, account: &str| Item::Event {
        event_id: format!("e{number}"),
        source: "publisher".into(),
        account: account.into(),
    };
    let node = &mut history.nodes[0];
    node.interest = Interest { accounts: Some(accounts.clone()), changes: true, own: false };
    node.streams[0].accounts = accounts;
    node.streams[0].items = vec![
        (at(0), Item::Subscribed { resumed: false }),
        (at(2), update(1, &["b"], &[])),
        (at(3), Item::Updated(1)),
        (at(4), got(2, "b")),
        (at(6), got(3, "a")),
        (at(6), update(2, &[], &["b"])),
        (at(7), Item::Updated(2)),
    ];
    history
}

#[test]
fn interest_exact_fails_on_an_event_of_an_added_account_that_is_missed() {
    assert_eq!(violations(&watching()), Vec::<String>::new());
    let mut history = watching();
    // The next event of the shard shows that the stream had passed it.
    items(&mut history).remove(3);
    breaks("InterestExact", &history);
    // Without that, the account may have been removed before the gateway received the event.
    items(&mut history).remove(3);
    breaks("NoSilentLoss", &history);
    history.sent.remove(2);
    assert_eq!(violations(&history), Vec::<String>::new());
    // An account that stays has no excuse: not on the next stream either.
    items(&mut history).truncate(3);
    breaks("InterestExact", &history);
    items(&mut history).push((at(3), Item::Ended(None)));
    let accounts = ["a".to_owned(), "b".to_owned()].into();
    let next = vec![(at(9), Item::Subscribed { resumed: true })];
    history.nodes[0].streams.push(Stream { with_token: true, accounts, items: next });
    breaks("InterestExact", &history);
    // A gap tells of it.
    items(&mut history).push((at(3), gap(1, 4, Some(3))));
    assert_eq!(violations(&history), Vec::<String>::new());
}

#[test]
fn interest_exact_fails_on_an_event_of_an_account_that_is_not_in_the_interest() {
    for (before, late) in [(2, "before it was added"), (7, "after it was removed")] {
        let mut history = watching();
        let event = items(&mut history).remove(3);
        items(&mut history).insert(before.min(6), event);
        let node = &history.nodes[0];
        assert!(!(violations(&history)).is_empty(), "{late}: {node:?}");
        breaks("InterestExact", &history);
    }
    // With which it was not resumed.
    let mut history = watching();
    items(&mut history).truncate(3);
    items(&mut history).push((at(3), Item::Ended(None)));
    let next = vec![(at(9), Item::Subscribed { resumed: true }), (at(9), event("e3"))];
    let accounts = ["b".to_owned()].into();
    history.nodes[0].streams.push(Stream { with_token: true, accounts, items: next });
    breaks("InterestExact", &history);
}

#[test]
fn interest_exact_fails_on_an_update_without_its_answer() {
    let mut history = watching();
    items(&mut history).pop();
    breaks("InterestExact", &history);
    // Unless the stream has ended.
    items(&mut history).push((at(7), Item::Ended(None)));
    let next = vec![(at(9), Item::Subscribed { resumed: true })];
    let accounts = ["a".to_owned()].into();
    history.nodes[0].streams.push(Stream { with_token: true, accounts, items: next });
    assert_eq!(violations(&history), Vec::<String>::new());
    let mut history = watching();
    items(&mut history)[2].1 = Item::Updated(2);
    breaks("InterestExact", &history);
    let mut history = watching();
    items(&mut history).push((at(8), Item::Updated(3)));
    breaks("InterestExact", &history);
}

#[test]
fn bounded_fails_on_a_process_above_its_memory_limit() {
    let mut history = intact();
    history.memory.push(Memory { process: "gateway".into(), bytes: 11, bound: 10 });
    breaks("Bounded", &history);
}

#[test]
fn drained_fails_on_a_stream_that_ends_otherwise_or_is_not_resumed() {
    let reported = |reason: Option<&str>| {
        let mut history = intact();
        items(&mut history).push((at(4), Item::Draining));
        items(&mut history).push((at(4), Item::Ended(reason.map(str::to_owned))));
        history
    };
    let next = |resumed| Stream {
        with_token: true,
        items: vec![(at(5), Item::Subscribed { resumed })],
        ..Stream::default()
    };
    breaks("Drained", &reported(Some("DRAINING")));
    let mut history = reported(None);
    history.nodes[0].streams.push(next(true));
    breaks("Drained", &history);
    let mut history = reported(Some("DRAINING"));
    history.nodes[0].streams.push(next(false));
    breaks("Drained", &history);
    let mut history = reported(Some("DRAINING"));
    history.nodes[0].streams.push(next(true));
    assert_eq!(violations(&history), Vec::<String>::new());
}

#[test]
fn an_event_that_one_node_got_and_another_was_told_is_lost_is_a_false_gap() {
    let mut history = intact();
    let other = Node { node_id: "other".into(), ..history.nodes[0].clone() };
    items(&mut history)[2] = (at(2), gap(1, 2, Some(1)));
    assert_eq!(false_gaps(&history), Vec::<String>::new(), "nobody got it");
    history.nodes.push(other);
    assert_eq!(false_gaps(&history).len(), 1);
    // It is true that history has expired for one node and not for another.
    let Item::Gap(gap) = &mut items(&mut history)[2].1 else { panic!("a gap") };
    gap.reason = GapReason::HistoryExpired;
    assert_eq!(false_gaps(&history), Vec::<String>::new());
}
