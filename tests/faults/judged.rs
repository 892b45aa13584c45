//! Each validator is shown to be able to fail: a history that breaks its promise is found out, and by that promise; one that
//! keeps them all passes.

use std::time::Duration;

use crate::{
    history::{Acknowledged, Gap, History, Item, Memory, Node, Sent, Stream, Wants},
    promises::{PROMISES, broken},
};

const NODE: &str = "node";

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Three acknowledged events of one shard, and a node that got them all.
fn kept() -> History {
    let sent = |number: u64| Sent {
        event_id: format!("e{number}"),
        source: "publisher".into(),
        account: "a".into(),
        at: at(number),
        acknowledged: Some(Acknowledged { shard: 0, place: (1, number), at: at(number) }),
    };
    let items = vec![
        (at(0), Item::Subscribed { resumed: false }),
        (at(1), event("e1")),
        (at(2), event("e2")),
        (at(3), event("e3")),
    ];
    let stream = Stream { with_token: false, items };
    let node = Node { node_id: NODE.into(), wants: Wants::default(), streams: vec![stream] };
    History { sent: (1..=3).map(sent).collect(), nodes: vec![node], ..History::default() }
}

fn event(event_id: &str) -> Item {
    Item::Event { event_id: event_id.into(), source: "publisher".into(), account: "a".into() }
}

fn gap(from: u64, to: u64, missed: Option<u64>) -> Item {
    Item::Gap(Gap { shard: 0, reason: "test".into(), from: (1, from), to: (1, to), missed })
}

/// The items of the node's first stream.
fn items(history: &mut History) -> &mut Vec<(Duration, Item)> {
    &mut history.nodes[0].streams[0].items
}

/// The promise is broken by the history, and the validator of that name says so.
fn breaks(promise: &str, history: &History) {
    let judge = PROMISES.iter().find(|other| other.name == promise).expect("a promise");
    assert!(!(judge.broken)(history).is_empty(), "{promise} was not found broken");
}

#[test]
fn a_history_that_keeps_every_promise_passes() {
    assert_eq!(broken(&kept()), Vec::<String>::new());
    // A gap tells what is missing.
    let mut told = kept();
    items(&mut told)[2] = (at(2), gap(1, 2, Some(1)));
    assert_eq!(broken(&told), Vec::<String>::new());
    // What was not acknowledged need not come.
    let mut refused = kept();
    refused.sent[2].acknowledged = None;
    items(&mut refused).truncate(3);
    assert_eq!(broken(&refused), Vec::<String>::new());
    // Nor what was sent before the node was there.
    let mut late = kept();
    items(&mut late)[0].0 = at(2);
    items(&mut late).remove(1);
    assert_eq!(broken(&late), Vec::<String>::new());
}

#[test]
fn acknowledged_is_broken_by_an_ok_while_the_bus_was_down_and_by_a_place_given_twice() {
    let mut history = kept();
    history.outages.push((at(2), at(2)));
    breaks("Acknowledged", &history);
    let mut history = kept();
    history.sent[1].acknowledged = history.sent[0].acknowledged;
    breaks("Acknowledged", &history);
    let mut history = kept();
    history.sent[1].acknowledged = Some(Acknowledged { shard: 0, place: (0, 0), at: at(2) });
    breaks("Acknowledged", &history);
}

#[test]
fn confirmed_is_broken_by_an_event_that_an_open_stream_missed() {
    let mut history = kept();
    items(&mut history).remove(2);
    breaks("Confirmed", &history);
}

#[test]
fn ordered_is_broken_by_two_events_in_the_wrong_order() {
    let mut history = kept();
    items(&mut history).swap(1, 2);
    breaks("Ordered", &history);
}

#[test]
fn unique_is_broken_by_an_event_that_comes_again_on_the_next_stream() {
    let mut history = kept();
    let again = vec![(at(4), Item::Subscribed { resumed: true }), (at(5), event("e3"))];
    history.nodes[0].streams.push(Stream { with_token: true, items: again });
    breaks("Unique", &history);
}

#[test]
fn no_silent_loss_is_broken_by_an_event_that_was_lost_between_two_streams() {
    let mut history = kept();
    items(&mut history).truncate(2);
    items(&mut history).push((at(1), Item::Ended(None)));
    let next = vec![(at(4), Item::Subscribed { resumed: true })];
    history.nodes[0].streams.push(Stream { with_token: true, items: next });
    breaks("NoSilentLoss", &history);
    // The same is no breach of Confirmed: no stream was open.
    let confirmed = PROMISES.iter().find(|promise| promise.name == "Confirmed").expect("there");
    assert!((confirmed.broken)(&history).is_empty());
}

#[test]
fn no_false_gap_is_broken_by_an_empty_gap_a_wrong_count_and_an_event_that_came() {
    for told in [gap(1, 1, None), gap(1, 2, Some(0)), gap(1, 2, Some(7)), gap(0, 1, Some(1))] {
        let mut history = kept();
        items(&mut history).insert(2, (at(2), told));
        breaks("NoFalseGap", &history);
    }
}

#[test]
fn resumable_is_broken_by_a_stream_that_begins_anew_without_a_gap() {
    let mut history = kept();
    let next = vec![(at(4), Item::Subscribed { resumed: false })];
    history.nodes[0].streams.push(Stream { with_token: true, items: next });
    breaks("Resumable", &history);
}

#[test]
fn no_echo_is_broken_by_an_event_of_the_node_itself() {
    let mut history = kept();
    history.nodes[0].node_id = "publisher".into();
    breaks("NoEcho", &history);
    history.nodes[0].wants.own = true;
    assert_eq!(broken(&history), Vec::<String>::new());
}

#[test]
fn filtered_is_broken_by_an_event_that_the_filter_excludes() {
    let mut history = kept();
    history.nodes[0].wants.accounts = Some(["b".to_owned()].into());
    breaks("Filtered", &history);
}

#[test]
fn bounded_is_broken_by_a_process_that_holds_more_than_it_may() {
    let mut history = kept();
    history.memory.push(Memory { process: "gateway".into(), bytes: 11, bound: 10 });
    breaks("Bounded", &history);
}

#[test]
fn drained_is_broken_by_a_stream_that_ends_otherwise_or_is_not_resumed() {
    let told = |reason: Option<&str>| {
        let mut history = kept();
        items(&mut history).push((at(4), Item::Draining));
        items(&mut history).push((at(4), Item::Ended(reason.map(str::to_owned))));
        history
    };
    let next =
        |resumed| Stream { with_token: true, items: vec![(at(5), Item::Subscribed { resumed })] };
    breaks("Drained", &told(Some("DRAINING")));
    let mut history = told(None);
    history.nodes[0].streams.push(next(true));
    breaks("Drained", &history);
    let mut history = told(Some("DRAINING"));
    history.nodes[0].streams.push(next(false));
    breaks("Drained", &history);
    let mut history = told(Some("DRAINING"));
    history.nodes[0].streams.push(next(true));
    assert_eq!(broken(&history), Vec::<String>::new());
}
