//! The streams of nodes as a watch knows them, and what changes in them. Pure.
//!
//! A watch has a whole list from time to time (at its begin, and after each loss of its gateway),
//! and in between events about single streams, or nothing where it polls. Both lead to the same:
//! each stream is reported once when it comes, and once when it goes.

use std::collections::BTreeMap;

use trunkline_proto::v1::{Node, NodeJoined, NodeLeft, NodeLeftReason};

/// The streams of nodes.
#[derive(Debug, Default)]
pub struct Streams {
    /// By subscription id.
    known: BTreeMap<String, NodeJoined>,
    /// A list that is not complete yet.
    list: Option<BTreeMap<String, NodeJoined>>,
    /// Streams that were known before a list and are not in it. Their events follow as a rule, with
    /// the reasons: a stream that resumes gets what happened since.
    missing: BTreeMap<String, NodeJoined>,
    /// True once there was a complete list.
    listed: bool,
}

/// What is to be reported.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The first list, by node id.
    Listed(Vec<NodeJoined>),
    /// A node has a stream.
    Joined(NodeJoined),
    /// A stream has ended. The reason is unspecified where it is not known.
    Left(NodeLeft),
}

impl Streams {
    /// A list begins: what was known is compared with it when it is complete.
    pub fn begin_list(&mut self) {
        self.list = Some(BTreeMap::new());
    }

    /// A stream of the list, or one that was opened.
    pub fn joined(&mut self, stream: NodeJoined) -> Option<Change> {
        let id = stream.subscription_id.clone();
        if let Some(list) = &mut self.list {
            list.insert(id, stream);
            return None;
        }
        // One that was missing is back: a gateway that was cut off.
        let is_new = self.missing.remove(&id).is_none() && !self.known.contains_key(&id);
        self.known.insert(id, stream.clone());
        is_new.then_some(Change::Joined(stream))
    }

    /// A stream has ended. Nothing if it was not known.
    pub fn left(&mut self, left: NodeLeft) -> Option<Change> {
        let id = &left.subscription_id;
        if let Some(list) = &mut self.list {
            list.remove(id);
            return None;
        }
        let known = self.known.remove(id).or_else(|| self.missing.remove(id));
        known.map(|_| Change::Left(left))
    }

    /// The list is complete.
    pub fn list_is_complete(&mut self) -> Vec<Change> {
        let Some(list) = self.list.take() else { return vec![] };
        let before = std::mem::replace(&mut self.known, list);
        if !self.listed {
            self.listed = true;
            let mut streams: Vec<_> = self.known.values().cloned().collect();
            streams.sort_by(|a, b| a.node_id.cmp(&b.node_id));
            return vec![Change::Listed(streams)];
        }
        let joined = self
            .known
            .iter()
            .filter(|(id, _)| self.missing.remove(*id).is_none() && !before.contains_key(*id));
        let joined = joined.map(|(_, stream)| Change::Joined(stream.clone())).collect();
        let gone = before.into_iter().filter(|(id, _)| !self.known.contains_key(id));
        self.missing.extend(gone);
        joined
    }

    /// True while there are streams of which it is only known that a list did not have them.
    pub fn has_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    /// No more events about the missing streams are to be expected: they have left.
    pub fn settle(&mut self) -> Vec<Change> {
        let missing = std::mem::take(&mut self.missing);
        missing.into_values().map(|stream| Change::Left(ended(stream))).collect()
    }

    /// A whole list at once, of a gateway that was polled.
    pub fn polled(&mut self, streams: Vec<NodeJoined>) -> Vec<Change> {
        self.begin_list();
        for stream in streams {
            self.joined(stream);
        }
        let mut changes = self.list_is_complete();
        changes.extend(self.settle());
        changes
    }
}

/// A stream has ended for a reason that is not known.
fn ended(stream: NodeJoined) -> NodeLeft {
    NodeLeft {
        node_id: stream.node_id,
        incarnation: stream.incarnation,
        roles: stream.roles,
        gateway_id: stream.gateway_id,
        subscription_id: stream.subscription_id,
        reason: NodeLeftReason::Unspecified.into(),
    }
}

/// An entry of `ListNodes` as the event says it.
pub fn entry(node: Node) -> NodeJoined {
    NodeJoined {
        node_id: node.node_id,
        incarnation: node.incarnation,
        roles: node.roles,
        gateway_id: node.gateway_id,
        subscription_id: node.subscription_id,
        connect_time: node.connect_time,
        peer: node.peer,
        current: true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(id: &str) -> NodeJoined {
        let node_id = format!("node-{id}");
        NodeJoined { node_id, subscription_id: id.into(), ..NodeJoined::default() }
    }

    fn left(id: &str, reason: NodeLeftReason) -> NodeLeft {
        NodeLeft { reason: reason.into(), ..ended(stream(id)) }
    }

    /// A complete list.
    fn list(streams: &mut Streams, ids: &[&str]) -> Vec<Change> {
        streams.begin_list();
        for id in ids {
            assert_eq!(streams.joined(stream(id)), None);
        }
        streams.list_is_complete()
    }

    #[test]
    fn the_list_is_first_and_then_each_change_once() {
        let mut streams = Streams::default();
        let listed = list(&mut streams, &["b", "a"]);
        assert_eq!(listed, [Change::Listed(vec![stream("a"), stream("b")])]);
        // What the list has already changes nothing.
        assert_eq!(streams.joined(stream("a")), None);
        assert_eq!(streams.joined(stream("c")), Some(Change::Joined(stream("c"))));
        let lost = left("a", NodeLeftReason::Lost);
        assert_eq!(streams.left(lost.clone()), Some(Change::Left(lost.clone())));
        assert_eq!(streams.left(lost), None);
        assert_eq!(streams.left(left("never", NodeLeftReason::Closed)), None);
        assert!(!streams.has_missing());
    }

    #[test]
    fn a_later_list_reports_the_difference_and_events_after_it_give_the_reason() {
        let mut streams = Streams::default();
        list(&mut streams, &["a", "b", "c"]);
        // While the gateway was away, a, b and c left, and d joined.
        assert_eq!(list(&mut streams, &["d"]), [Change::Joined(stream("d"))]);
        assert!(streams.has_missing());
        let drained = left("a", NodeLeftReason::Drained);
        assert_eq!(streams.left(drained.clone()), Some(Change::Left(drained)));
        // The gateway of b was only cut off.
        assert_eq!(streams.joined(stream("b")), None);
        let settled = [Change::Left(left("c", NodeLeftReason::Unspecified))];
        assert_eq!(streams.settle(), settled);
        assert_eq!(streams.settle(), []);
        assert_eq!(streams.joined(stream("b")), None, "it is known");
    }

    #[test]
    fn one_that_a_list_lacked_and_the_next_one_has_did_not_leave() {
        let mut streams = Streams::default();
        list(&mut streams, &["a"]);
        assert_eq!(list(&mut streams, &[]), []);
        assert_eq!(list(&mut streams, &["a"]), []);
        assert_eq!(streams.settle(), []);
    }

    #[test]
    fn polled_lists_report_what_changed_between_them() {
        let mut streams = Streams::default();
        assert_eq!(streams.polled(vec![]), [Change::Listed(vec![])]);
        assert_eq!(streams.polled(vec![stream("a")]), [Change::Joined(stream("a"))]);
        assert_eq!(streams.polled(vec![stream("a")]), []);
        let changes = streams.polled(vec![stream("b")]);
        let gone = Change::Left(left("a", NodeLeftReason::Unspecified));
        assert_eq!(changes, [Change::Joined(stream("b")), gone]);
    }

    proptest! {
        /// Whoever applies the reports to the first list has the streams that there are.
        #[test]
        fn reports_lead_from_the_first_list_to_the_last_one(
            lists in prop::collection::vec(prop::collection::btree_set(0_u8..6, 0..6), 1..8),
            events in prop::collection::vec((0_u8..6, any::<bool>()), 0..8),
        ) {
            let mut streams = Streams::default();
            let mut applied = std::collections::BTreeSet::new();
            let mut apply = |changes: Vec<Change>| for change in changes {
                let fine = match change {
                    Change::Listed(list) => {
                        applied.extend(list.into_iter().map(|stream| stream.subscription_id));
                        true
                    }
                    Change::Joined(stream) => applied.insert(stream.subscription_id),
                    Change::Left(left) => applied.remove(&left.subscription_id),
                };
                assert!(fine, "reported twice");
            };
            for list in lists {
                let ids: Vec<_> = list.iter().map(u8::to_string).collect();
                streams.begin_list();
                for id in &ids {
                    streams.joined(stream(id));
                }
                apply(streams.list_is_complete());
                for (id, joins) in &events {
                    let id = id.to_string();
                    let change = if *joins {
                        streams.joined(stream(&id))
                    } else {
                        streams.left(left(&id, NodeLeftReason::Closed))
                    };
                    apply(change.into_iter().collect());
                }
            }
            apply(streams.settle());
            prop_assert!(applied.iter().eq(streams.known.keys()));
        }
    }
}
