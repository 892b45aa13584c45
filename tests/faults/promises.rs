//! One validator for each promise of the README: it reads a history and says where the promise was broken.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::history::{Acknowledged, Gap, History, Item, Node, Place, Sent};

/// A promise by its name, and who judges it.
pub struct Promise {
    pub name: &'static str,
    /// Says where a history breaks it; nothing where it holds.
    pub broken: fn(&History) -> Vec<String>,
}

/// All promises.
pub const PROMISES: [Promise; 11] = [
    Promise { name: "Acknowledged", broken: acknowledged },
    Promise { name: "Confirmed", broken: confirmed },
    Promise { name: "Ordered", broken: ordered },
    Promise { name: "Unique", broken: unique },
    Promise { name: "NoSilentLoss", broken: no_silent_loss },
    Promise { name: "NoFalseGap", broken: no_false_gap },
    Promise { name: "Resumable", broken: resumable },
    Promise { name: "NoEcho", broken: no_echo },
    Promise { name: "Filtered", broken: filtered },
    Promise { name: "Bounded", broken: bounded },
    Promise { name: "Drained", broken: drained },
];

/// All that a history breaks: the promise's name and how.
pub fn broken(history: &History) -> Vec<String> {
    let judge = |promise: &Promise| {
        let broken = (promise.broken)(history);
        broken.into_iter().map(|how| format!("{}: {how}", promise.name)).collect::<Vec<_>>()
    };
    PROMISES.iter().flat_map(judge).collect()
}

/// OK is said of events that have a place, no two the same; and never while the bus could not accept any.
fn acknowledged(history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    let mut places = HashMap::new();
    for (sent, acknowledged) in all_acknowledged(history) {
        let Acknowledged { shard, place, at } = acknowledged;
        if place.0 == 0 || place.1 == 0 {
            broken.push(format!("{} has no place: {place:?}", sent.event_id));
        }
        if let Some(other) = places.insert((shard, place), &sent.event_id) {
            broken.push(format!("{other} and {} share {place:?} of {shard}", sent.event_id));
        }
        for (from, to) in &history.outages {
            if sent.at >= *from && at <= *to {
                broken.push(format!("{} was accepted by a bus that was down", sent.event_id));
            }
        }
    }
    broken
}

/// What was sent while a stream was confirmed, and acknowledged before it ended, is delivered to its node or told as a gap.
fn confirmed(history: &History) -> Vec<String> {
    let covered = |node: &Node, sent: &Sent, acknowledged: &Acknowledged| {
        node.streams.iter().any(|stream| {
            stream.subscribed().is_some_and(|subscribed| subscribed <= sent.at)
                && stream.ended().is_none_or(|ended| acknowledged.at <= ended)
        })
    };
    missing(history, covered)
}

/// Events of one epoch of a shard come in the order of their places, unless a later epoch had begun for the node before: what
/// Redis had lost is appended again, in the order in which its publishers come to it.
fn ordered(history: &History) -> Vec<String> {
    let places: HashMap<&str, (u32, Place)> = all_acknowledged(history)
        .map(|(sent, acknowledged)| {
            (sent.event_id.as_str(), (acknowledged.shard, acknowledged.place))
        })
        .collect();
    let mut broken = Vec::new();
    for node in &history.nodes {
        let mut last: HashMap<u32, (Place, &str)> = HashMap::new();
        for event_id in node.events() {
            let Some((shard, place)) = places.get(event_id) else { continue };
            match last.get(shard) {
                Some((before, _)) if place.0 < before.0 => {}
                Some((before, other)) if place < before => broken.push(format!(
                    "{} got {event_id} ({place:?}) after {other} ({before:?})",
                    node.node_id
                )),
                _ => {
                    last.insert(*shard, (*place, event_id));
                }
            }
        }
    }
    broken
}

/// No event comes twice, over all streams of a node.
fn unique(history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    for node in &history.nodes {
        let mut seen = HashSet::new();
        let again = node.events().filter(|event_id| !seen.insert(*event_id));
        broken.extend(again.map(|event_id| format!("{} got {event_id} twice", node.node_id)));
    }
    broken
}

/// What was sent after a node was first subscribed, and acknowledged, is delivered to it or told as a gap.
fn no_silent_loss(history: &History) -> Vec<String> {
    missing(history, |node, sent, _| node.first_subscribed().is_some_and(|at| at <= sent.at))
}

/// A gap says what is true: it has an extent, nothing that lies in it comes in spite of it (unless Redis lost its memory and
/// a gateway gave it back), and its count is that of the places in it.
fn no_false_gap(history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    for node in &history.nodes {
        let delivered: HashSet<&str> = node.events().collect();
        for gap in node.gaps() {
            if gap.to <= gap.from || gap.missed == Some(0) {
                broken.push(format!("{} was told of an empty gap: {gap:?}", node.node_id));
            }
            let one_epoch = gap.from.0 == gap.to.0;
            if one_epoch && gap.missed.is_some_and(|missed| missed != gap.to.1 - gap.from.1) {
                broken.push(format!("{} was told a wrong count: {gap:?}", node.node_id));
            }
            if one_epoch {
                broken.extend(
                    in_gap(history, gap).filter(|id| delivered.contains(id)).map(|id| {
                        format!("{} got {id}, which lies in a gap: {gap:?}", node.node_id)
                    }),
                );
            }
        }
    }
    broken
}

/// A stream that was opened with a token goes on where the one before ended, or says that it cannot, by a gap.
fn resumable(history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    for node in &history.nodes {
        for stream in node.streams.iter().filter(|stream| stream.with_token) {
            let refused =
                |(_, item): &(Duration, Item)| matches!(item, Item::Subscribed { resumed: false });
            let told = stream.items.iter().any(|(_, item)| matches!(item, Item::Gap(_)));
            if stream.items.iter().any(refused) && !told && stream.ended().is_none() {
                broken.push(format!("{} was not resumed, and told no gap", node.node_id));
            }
        }
    }
    broken
}

/// No node gets an event of its own, unless it asked.
fn no_echo(history: &History) -> Vec<String> {
    wrongly_delivered(history, |node, source, _| !node.wants.own && source == node.node_id)
}

/// No node gets what its filter excludes. (That it gets all that the filter includes is NoSilentLoss.)
fn filtered(history: &History) -> Vec<String> {
    wrongly_delivered(history, |node, _, account| {
        node.wants.accounts.as_ref().is_some_and(|accounts| !accounts.contains(account))
    })
}

/// No process holds more memory than it may.
fn bounded(history: &History) -> Vec<String> {
    let over = history.memory.iter().filter(|memory| memory.bytes > memory.bound);
    over.map(|memory| format!("{} holds {} of {}", memory.process, memory.bytes, memory.bound))
        .collect()
}

/// A stream that was told to go elsewhere ends with DRAINING, and its node goes on there with its token.
fn drained(history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    for node in &history.nodes {
        for (index, stream) in node.streams.iter().enumerate() {
            let told = stream.items.iter().position(|(_, item)| matches!(item, Item::Draining));
            let Some(told) = told else { continue };
            match stream.items.get(told + 1) {
                Some((_, Item::Ended(Some(reason)))) if reason == "DRAINING" => {}
                other => broken.push(format!("{} after draining: {other:?}", node.node_id)),
            }
            let later = node.streams[index + 1..].iter().find(|next| next.subscribed().is_some());
            let resumed =
                |(_, item): &(Duration, Item)| matches!(item, Item::Subscribed { resumed: true });
            if !later.is_some_and(|next| next.with_token && next.items.iter().any(resumed)) {
                broken.push(format!("{} was not resumed after a drain", node.node_id));
            }
        }
    }
    broken
}

/// The acknowledged events that a node was to get, by `owed`, and that neither came nor lie in a gap.
fn missing(history: &History, owed: impl Fn(&Node, &Sent, &Acknowledged) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for node in &history.nodes {
        let delivered: HashSet<&str> = node.events().collect();
        let gaps: Vec<&Gap> = node.gaps().collect();
        for (sent, acknowledged) in all_acknowledged(history) {
            if delivered.contains(sent.event_id.as_str())
                || !node.wants.includes(&node.node_id, &sent.source, &sent.account)
                || gaps.iter().any(|gap| gap.holds(acknowledged.shard, acknowledged.place))
                || !owed(node, sent, &acknowledged)
            {
                continue;
            }
            broken.push(format!(
                "{} lacks {} (shard {} {:?}, acknowledged at {:?})",
                node.node_id,
                sent.event_id,
                acknowledged.shard,
                acknowledged.place,
                acknowledged.at
            ));
        }
    }
    broken
}

fn wrongly_delivered(history: &History, wrong: impl Fn(&Node, &str, &str) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for node in &history.nodes {
        for (_, item) in node.items() {
            if let Item::Event { event_id, source, account } = item
                && wrong(node, source, account)
            {
                broken.push(format!("{} got {event_id} of {source}", node.node_id));
            }
        }
    }
    broken
}

/// The ids of the acknowledged events that lie in a gap.
pub fn in_gap<'a>(history: &'a History, gap: &'a Gap) -> impl Iterator<Item = &'a str> {
    all_acknowledged(history)
        .filter(|(_, acknowledged)| gap.holds(acknowledged.shard, acknowledged.place))
        .map(|(sent, _)| sent.event_id.as_str())
}

/// The events that were acknowledged.
pub fn all_acknowledged(history: &History) -> impl Iterator<Item = (&Sent, Acknowledged)> {
    history.sent.iter().filter_map(|sent| Some((sent, sent.acknowledged?)))
}
