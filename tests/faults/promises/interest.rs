//! `InterestExact`: the validator of streams whose interest changes.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::all_acknowledged;
use crate::history::{Acknowledged, Gap, History, Item, Node, Position, Sent, Stream, Update};

/// Each update is answered, in order. What follows the answer is filtered by the new interest. An
/// event of an account that was sent after the answer that the account is in the interest is
/// delivered or lies in a gap, as long as the account stays.
///
/// An update is in force from the place that its gateway has reached. So an event that was accepted
/// before an account is removed need not be delivered, unless the stream has delivered a later one
/// of its shard before.
pub fn interest_exact(history: &History) -> Vec<String> {
    let mut events: HashMap<&str, Vec<(&Sent, Acknowledged)>> = HashMap::new();
    for (sent, acknowledged) in all_acknowledged(history) {
        events.entry(&sent.account).or_default().push((sent, acknowledged));
    }
    let places: HashMap<&str, (u32, Position)> = all_acknowledged(history)
        .filter_map(|(sent, acknowledged)| Some((sent.event_id.as_str(), acknowledged.place?)))
        .collect();
    let mut violations = Vec::new();
    for node in history.nodes.iter().filter(|node| node.interest.changes) {
        let mut check = Check {
            node,
            events: &events,
            places: &places,
            delivered: node.events().collect(),
            gaps: node.gaps().collect(),
            included: HashMap::new(),
            reached: HashMap::new(),
            violations: &mut violations,
        };
        for stream in &node.streams {
            check.stream(stream);
        }
        for (account, since) in std::mem::take(&mut check.included) {
            check.owed(account, since, None);
        }
    }
    violations
}

/// The check of one node, stream after stream.
struct Check<'a> {
    node: &'a Node,
    /// Acknowledged events, by account.
    events: &'a HashMap<&'a str, Vec<(&'a Sent, Acknowledged)>>,
    places: &'a HashMap<&'a str, (u32, Position)>,
    delivered: HashSet<&'a str>,
    gaps: Vec<&'a Gap>,
    /// The accounts of the interest, with the time since when.
    included: HashMap<&'a str, Duration>,
    /// The last position that was delivered in each shard.
    reached: HashMap<u32, Position>,
    violations: &'a mut Vec<String>,
}

impl<'a> Check<'a> {
    fn stream(&mut self, stream: &'a Stream) {
        let node_id = &self.node.node_id;
        let mut sent: VecDeque<&Update> = VecDeque::new();
        for (at, item) in &stream.items {
            match item {
                Item::Subscribed { .. } => {
                    let gone: Vec<&str> = (self.included.keys().copied())
                        .filter(|account| !stream.accounts.contains(*account))
                        .collect();
                    for account in gone {
                        self.leaves(account, *at);
                    }
                    for account in &stream.accounts {
                        self.joins(account, *at);
                    }
                }
                Item::Updating(update) => sent.push_back(update),
                Item::Updated(id) => match sent.pop_front() {
                    Some(update) if update.id == *id => {
                        update.remove.iter().for_each(|account| self.leaves(account, *at));
                        update.add.iter().for_each(|account| self.joins(account, *at));
                    }
                    other => self
                        .violations
                        .push(format!("{node_id}: {other:?} was answered as update {id}")),
                },
                Item::Event { event_id, account, .. } => {
                    if !self.included.contains_key(account.as_str()) {
                        self.violations.push(format!(
                            "{node_id} got {event_id} of {account}, which is not in its interest"
                        ));
                    }
                    if let Some((shard, position)) = self.places.get(event_id.as_str()) {
                        let reached = self.reached.entry(*shard).or_insert(*position);
                        *reached = (*reached).max(*position);
                    }
                }
                Item::Gap(_) | Item::Draining | Item::Ended(_) => {}
            }
        }
        if stream.ended().is_none() {
            let unanswered = sent.iter().map(|update| update.id);
            self.violations
                .extend(unanswered.map(|id| format!("{node_id}: update {id} was not answered")));
        }
    }

    fn joins(&mut self, account: &'a str, at: Duration) {
        self.included.entry(account).or_insert(at);
    }

    fn leaves(&mut self, account: &'a str, at: Duration) {
        if let Some(since) = self.included.remove(account) {
            self.owed(account, since, Some(at));
        }
    }

    /// Looks for events of an account that was in the interest for a time, or to the end.
    fn owed(&mut self, account: &str, since: Duration, until: Option<Duration>) {
        let events = self.events.get(account).map_or(&[][..], |events| events);
        for (sent, acknowledged) in events {
            let was_passed = || {
                acknowledged.place.is_some_and(|(shard, place)| {
                    let reached = self.reached.get(&shard);
                    reached.is_some_and(|reached| reached.0 == place.0 && *reached > place)
                })
            };
            if sent.at < since
                || until.is_some_and(|until| sent.at > until || !was_passed())
                || sent.source == self.node.node_id
                || self.delivered.contains(sent.event_id.as_str())
                || self.gaps.iter().any(|gap| acknowledged.is_in(gap))
            {
                continue;
            }
            self.violations.push(format!(
                "{} lacks {} of {account}, in its interest since {since:?} until {until:?} (sent \
                 at {:?}, acknowledged at {:?} as {:?})",
                self.node.node_id, sent.event_id, sent.at, acknowledged.at, acknowledged.place
            ));
        }
    }
}
