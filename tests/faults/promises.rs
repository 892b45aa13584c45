//! One validator for each promise: it reads a history and lists the violations.

// Where another test takes this file in, too.
#[path = "promises/interest.rs"]
mod interest;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use trunkline_proto::v1::GapReason;

use self::interest::interest_exact;
use crate::history::{Acknowledged, Gap, History, Item, Node, Position, Sent};

/// A promise and its validator.
pub struct Promise {
    pub name: &'static str,
    /// Lists what in a history violates the promise; empty where it holds.
    pub violations: fn(&History) -> Vec<String>,
}

/// All promises.
pub const PROMISES: [Promise; 12] = [
    Promise { name: "Acknowledged", violations: acknowledged },
    Promise { name: "Confirmed", violations: confirmed },
    Promise { name: "Ordered", violations: ordered },
    Promise { name: "Unique", violations: unique },
    Promise { name: "NoSilentLoss", violations: no_silent_loss },
    Promise { name: "NoFalseGap", violations: no_false_gap },
    Promise { name: "Resumable", violations: resumable },
    Promise { name: "NoEcho", violations: no_echo },
    Promise { name: "Filtered", violations: filtered },
    Promise { name: "InterestExact", violations: interest_exact },
    Promise { name: "Bounded", violations: bounded },
    Promise { name: "Drained", violations: drained },
];

/// All violations in a history, each with the name of the promise.
pub fn violations(history: &History) -> Vec<String> {
    let check = |promise: &Promise| {
        let violations = (promise.violations)(history);
        violations.into_iter().map(|how| format!("{}: {how}", promise.name)).collect::<Vec<_>>()
    };
    PROMISES.iter().flat_map(check).collect()
}

/// Every acknowledged event has a position of its own, and none was acknowledged while the bus was
/// down.
fn acknowledged(history: &History) -> Vec<String> {
    let mut violations = Vec::new();
    let mut positions = HashMap::new();
    for (sent, acknowledged) in all_acknowledged(history) {
        let Acknowledged { place, at } = acknowledged;
        if let Some((shard, position)) = place {
            if position.0 == 0 || position.1 == 0 {
                violations.push(format!("{} has no position: {position:?}", sent.event_id));
            }
            if let Some(other) = positions.insert((shard, position), &sent.event_id) {
                violations
                    .push(format!("{other} and {} share {position:?} of {shard}", sent.event_id));
            }
        }
        for (from, to) in &history.outages {
            if sent.at >= *from && at <= *to {
                violations.push(format!("{} was accepted by a bus that was down", sent.event_id));
            }
        }
    }
    violations
}

/// An event sent after `Subscribed` and acknowledged before the stream ended is delivered or lies
/// in a gap.
fn confirmed(history: &History) -> Vec<String> {
    let covered = |node: &Node, sent: &Sent, acknowledged: &Acknowledged| {
        node.streams.iter().any(|stream| {
            stream.subscribed().is_some_and(|subscribed| subscribed <= sent.at)
                && stream.ended().is_none_or(|ended| acknowledged.at <= ended)
        })
    };
    missing(history, covered)
}

/// Events of one epoch of a shard are delivered in the order of their positions, unless a later
/// epoch had begun for the node before: what Redis lost is re-appended, in the order in which its
/// publishers reach the new epoch.
fn ordered(history: &History) -> Vec<String> {
    let positions: HashMap<&str, (u32, Position)> = all_acknowledged(history)
        .filter_map(|(sent, acknowledged)| Some((sent.event_id.as_str(), acknowledged.place?)))
        .collect();
    let mut violations = Vec::new();
    for node in &history.nodes {
        let mut last: HashMap<u32, (Position, &str)> = HashMap::new();
        for event_id in node.events() {
            let Some((shard, position)) = positions.get(event_id) else { continue };
            match last.get(shard) {
                Some((before, _)) if position.0 < before.0 => {}
                Some((before, other)) if position < before => violations.push(format!(
                    "{} got {event_id} ({position:?}) after {other} ({before:?})",
                    node.node_id
                )),
                _ => {
                    last.insert(*shard, (*position, event_id));
                }
            }
        }
    }
    violations
}

/// No event is delivered twice, over all streams of a node.
fn unique(history: &History) -> Vec<String> {
    let mut violations = Vec::new();
    for node in &history.nodes {
        let mut seen = HashSet::new();
        let again = node.events().filter(|event_id| !seen.insert(*event_id));
        violations.extend(again.map(|event_id| format!("{} got {event_id} twice", node.node_id)));
    }
    violations
}

/// An acknowledged event sent after a node's first `Subscribed` is delivered to it or lies in a
/// gap.
fn no_silent_loss(history: &History) -> Vec<String> {
    missing(history, |node, sent, _| node.first_subscribed().is_some_and(|at| at <= sent.at))
}

/// A gap is true: it is not empty, nothing that lies in it is delivered (unless Redis lost its data
/// and a gateway restored it), and its count is the number of positions in it.
fn no_false_gap(history: &History) -> Vec<String> {
    let mut violations = Vec::new();
    for node in &history.nodes {
        let delivered: HashSet<&str> = node.events().collect();
        for gap in node.gaps() {
            if gap.to <= gap.from || gap.missed == Some(0) {
                violations.push(format!("{} received an empty gap: {gap:?}", node.node_id));
            }
            let one_epoch = gap.from.0 == gap.to.0;
            if one_epoch && gap.missed.is_some_and(|missed| missed != gap.to.1 - gap.from.1) {
                violations.push(format!("{} received a wrong count: {gap:?}", node.node_id));
            }
            if one_epoch {
                violations.extend(
                    in_gap(history, gap).filter(|id| delivered.contains(id)).map(|id| {
                        format!("{} got {id}, which lies in a gap: {gap:?}", node.node_id)
                    }),
                );
            }
        }
    }
    violations
}

/// Gaps for events that the bus lost, as the gateway says, although another node got them: if the
/// gateway that had them lives, it can bring them back. Not one of the promises above: in some
/// tests it does not live.
pub fn false_gaps(history: &History) -> Vec<String> {
    let mut had = HashMap::new();
    for node in &history.nodes {
        had.extend(node.events().map(|event_id| (event_id, node.node_id.as_str())));
    }
    let mut violations = Vec::new();
    for node in &history.nodes {
        let lost = node.gaps().filter(|gap| gap.reason != GapReason::HistoryExpired);
        for (gap, event_id) in lost.flat_map(|gap| in_gap(history, gap).map(move |id| (gap, id))) {
            if let Some(other) = had.get(event_id) {
                violations.push(format!(
                    "{}: {event_id} is lost ({gap:?}), but {other} got it",
                    node.node_id
                ));
            }
        }
    }
    violations
}

/// A stream opened with a token continues where the one before ended, or begins with a gap.
fn resumable(history: &History) -> Vec<String> {
    let mut violations = Vec::new();
    for node in &history.nodes {
        for stream in node.streams.iter().filter(|stream| stream.with_token) {
            let refused =
                |(_, item): &(Duration, Item)| matches!(item, Item::Subscribed { resumed: false });
            let reported = stream.items.iter().any(|(_, item)| matches!(item, Item::Gap(_)));
            if stream.items.iter().any(refused) && !reported && stream.ended().is_none() {
                violations.push(format!("{} was not resumed, and received no gap", node.node_id));
            }
        }
    }
    violations
}

/// No node gets its own events, unless it asked for them.
fn no_echo(history: &History) -> Vec<String> {
    wrongly_delivered(history, |node, source, _| !node.interest.own && source == node.node_id)
}

/// No node gets an event that its filter excludes. (Another validator checks that it gets all
/// that are included, and another one both where the filter changes.)
fn filtered(history: &History) -> Vec<String> {
    wrongly_delivered(history, |node, _, account| {
        let accounts = node.interest.accounts.as_ref().filter(|_| !node.interest.changes);
        accounts.is_some_and(|accounts| !accounts.contains(account))
    })
}

/// No process exceeds its memory limit.
fn bounded(history: &History) -> Vec<String> {
    let over = history.memory.iter().filter(|memory| memory.bytes > memory.bound);
    over.map(|memory| format!("{} holds {} of {}", memory.process, memory.bytes, memory.bound))
        .collect()
}

/// A stream that received `Draining` ends with DRAINING, and the node resumes elsewhere with its
/// token.
fn drained(history: &History) -> Vec<String> {
    let mut violations = Vec::new();
    for node in &history.nodes {
        for (index, stream) in node.streams.iter().enumerate() {
            let reported = stream.items.iter().position(|(_, item)| matches!(item, Item::Draining));
            let Some(reported) = reported else { continue };
            match stream.items.get(reported + 1) {
                Some((_, Item::Ended(Some(reason)))) if reason == "DRAINING" => {}
                other => violations.push(format!("{} after draining: {other:?}", node.node_id)),
            }
            let later = node.streams[index + 1..].iter().find(|next| next.subscribed().is_some());
            let resumed =
                |(_, item): &(Duration, Item)| matches!(item, Item::Subscribed { resumed: true });
            if !later.is_some_and(|next| next.with_token && next.items.iter().any(resumed)) {
                violations.push(format!("{} was not resumed after a drain", node.node_id));
            }
        }
    }
    violations
}

/// Acknowledged events that a node was to get, according to `owed`, and that were neither delivered
/// nor in a gap.
fn missing(history: &History, owed: impl Fn(&Node, &Sent, &Acknowledged) -> bool) -> Vec<String> {
    let mut violations = Vec::new();
    for node in &history.nodes {
        let delivered: HashSet<&str> = node.events().collect();
        let gaps: Vec<&Gap> = node.gaps().collect();
        for (sent, acknowledged) in all_acknowledged(history) {
            if delivered.contains(sent.event_id.as_str())
                || !node.interest.includes(&node.node_id, &sent.source, &sent.account)
                || gaps.iter().any(|gap| acknowledged.is_in(gap))
                || !owed(node, sent, &acknowledged)
            {
                continue;
            }
            violations.push(format!(
                "{} lacks {} (at {:?}, acknowledged at {:?})",
                node.node_id, sent.event_id, acknowledged.place, acknowledged.at
            ));
        }
    }
    violations
}

fn wrongly_delivered(history: &History, wrong: impl Fn(&Node, &str, &str) -> bool) -> Vec<String> {
    let mut violations = Vec::new();
    for node in &history.nodes {
        for (_, item) in node.items() {
            if let Item::Event { event_id, source, account } = item
                && wrong(node, source, account)
            {
                violations.push(format!("{} got {event_id} of {source}", node.node_id));
            }
        }
    }
    violations
}

/// The ids of acknowledged events that lie in a gap.
pub fn in_gap<'a>(history: &'a History, gap: &'a Gap) -> impl Iterator<Item = &'a str> {
    all_acknowledged(history)
        .filter(|(_, acknowledged)| acknowledged.place.is_some() && acknowledged.is_in(gap))
        .map(|(sent, _)| sent.event_id.as_str())
}

/// All events that were acknowledged.
pub fn all_acknowledged(history: &History) -> impl Iterator<Item = (&Sent, Acknowledged)> {
    history.sent.iter().filter_map(|sent| Some((sent, sent.acknowledged?)))
}
