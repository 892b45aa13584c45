//! The row of one stream, and how rows are ordered and searched.

use std::{cmp::Ordering, fmt::Write, time::SystemTime};

use serde::Serialize;
use trunkline_proto::kinds;

use super::{
    super::values::{milliseconds, state_name},
    agents::AgentRow,
    query::Column,
};
use crate::{
    observe::counters::Method,
    presence::{WatchStats, list::ListedNode},
    proto::v1::{self, NodeState},
};

/// Accounts, kinds or types of a filter that are listed by name; more are counted.
const MAX_NAMED: usize = 4;

/// The row of one stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub(super) node_id: String,
    incarnation: String,
    roles: Vec<String>,
    pub(super) gateway: String,
    /// `current`, `behind`, `draining` or `silent`.
    state: String,
    /// True when another live process has the same node id.
    duplicate: bool,
    pub(super) subscription: String,
    peer: String,
    /// Milliseconds since 1970.
    since: Option<u64>,
    /// `Subscribe` or `Watch`.
    method: &'static str,
    filter: String,
    delivered: u64,
    /// Those of the delivered events that its node has acknowledged; `None` if it acknowledges
    /// none.
    processed: Option<u64>,
    /// When it acknowledged last, in milliseconds since 1970.
    acknowledged_at: Option<u64>,
    pub(super) behind: u64,
    /// Events a second that it was sent lately; `None` at first.
    pub(super) rate: Option<f64>,
    #[serde(skip)]
    agent: Option<Box<v1::AgentReport>>,
}

impl From<&ListedNode<'_>> for Row {
    fn from(seen: &ListedNode<'_>) -> Row {
        let node = seen.node;
        let acknowledges = seen.watch.filter(|watch| watch.acknowledge_ms > 0);
        let method = if seen.watch.is_some() { Method::Watch } else { Method::Subscribe };
        let since = node.connect_time.and_then(|time| SystemTime::try_from(time).ok());
        Row {
            filter: interest(node, seen.watch),
            node_id: node.node_id.clone(),
            incarnation: node.incarnation.clone(),
            roles: node.roles.clone(),
            gateway: seen.gateway_id.to_owned(),
            state: state_name(NodeState::as_str_name(&seen.state), "NODE_STATE_"),
            duplicate: seen.duplicate,
            subscription: node.subscription_id.clone(),
            peer: node.peer.clone(),
            since: since.map(milliseconds),
            method: method.name(),
            delivered: seen.delivered,
            processed: acknowledges
                .map(|watch| seen.delivered.saturating_sub(watch.unacknowledged)),
            acknowledged_at: acknowledges.map(|watch| watch.acknowledge_ms),
            behind: seen.behind,
            rate: None,
            agent: seen.agent.clone().map(Box::new),
        }
    }
}

impl Row {
    /// The row of the agent that it is, if it is one.
    pub(super) fn agent(&self) -> Option<AgentRow> {
        self.agent.as_deref().map(|report| AgentRow::new(&self.node_id, report))
    }

    /// True when any text of the row contains `search`, which is in lower case.
    pub(super) fn matches(&self, search: &str) -> bool {
        let texts = [
            &self.node_id,
            &self.gateway,
            &self.state,
            &self.peer,
            &self.filter,
            &self.incarnation,
        ];
        let texts = texts.into_iter().chain(&self.roles).map(String::as_str);
        search.is_empty()
            || texts.chain([self.method]).any(|text| text.to_lowercase().contains(search))
    }

    /// How much the node needs attention: more is worse.
    pub(super) fn trouble(&self) -> u8 {
        match (self.duplicate, &*self.state) {
            (true, _) => 4,
            (_, "silent") => 3,
            (_, "behind") => 2,
            (_, "current") => u8::from(self.behind > 0),
            _ => 1,
        }
    }

    /// Compares two rows by a column.
    pub(super) fn order(&self, other: &Row, by: Column) -> Ordering {
        match by {
            Column::Node => self.node_id.cmp(&other.node_id),
            Column::Gateway => self.gateway.cmp(&other.gateway),
            Column::State => self.trouble().cmp(&other.trouble()),
            Column::Peer => self.peer.cmp(&other.peer),
            Column::Since => self.since.cmp(&other.since),
            Column::Rate => self.rate.unwrap_or(-1.0).total_cmp(&other.rate.unwrap_or(-1.0)),
            Column::Behind => self.behind.cmp(&other.behind),
            Column::Delivered => self.delivered.cmp(&other.delivered),
            Column::Processed => self.processed.cmp(&other.processed),
        }
    }
}

/// The interest of a stream as a text: its filter, or what has become of that by updates.
fn interest(node: &v1::Node, watch: Option<WatchStats>) -> String {
    let filter = node.filter.as_ref();
    match watch.filter(|watch| watch.updates > 0) {
        None => filter.map(describe).unwrap_or_default(),
        Some(WatchStats { accounts, custom_types, updates, .. }) => {
            let of = |count: u32, what: &str| match count {
                0 => format!("all {what}s"),
                1 => format!("1 {what}"),
                _ => format!("{count} {what}s"),
            };
            let times = if updates == 1 { "1 update" } else { &format!("{updates} updates") };
            format!("{}, {} after {times}", of(accounts, "account"), of(custom_types, "type"))
        }
    }
}

/// A filter as a text; empty for a filter that includes everything.
fn describe(filter: &v1::Filter) -> String {
    let kinds: Vec<String> = filter.kinds.iter().map(|kind| kinds::label(*kind)).collect();
    let mut text = String::new();
    for (label, values) in
        [("", &kinds), ("accounts ", &filter.accounts), ("types ", &filter.custom_types)]
    {
        if values.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        let named = values.len().min(MAX_NAMED);
        // Writing to a String does not fail.
        let _ = write!(text, "{label}{}", values[..named].join(", "));
        if values.len() > named {
            let _ = write!(text, " and {} more", values.len() - named);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: &str, behind: u64, rate: f64) -> Row {
        let node = v1::Node {
            node_id: node.into(),
            subscription_id: format!("s-{node}"),
            ..Default::default()
        };
        let seen = ListedNode {
            node: &node,
            gateway_id: "gw-1",
            own: true,
            state: NodeState::Current,
            delivered: 0,
            watch: None,
            behind,
            duplicate: false,
            agent: None,
        };
        Row { rate: Some(rate), ..Row::from(&seen) }
    }

    #[test]
    fn rows_are_ordered_by_a_column_and_searched_in_all_texts() {
        let (a, b) = (row("mx1", 5, 1.0), row("mx2", 3, 20.0));
        assert_eq!(a.order(&b, Column::Node), Ordering::Less);
        assert_eq!(a.order(&b, Column::Behind), Ordering::Greater);
        assert_eq!(a.order(&b, Column::Rate), Ordering::Less);
        let [silent, twice] = [("silent", false), ("current", true)]
            .map(|(state, duplicate)| Row { state: state.into(), duplicate, ..row("n", 0, 0.0) });
        let quiet = row("n", 0, 0.0);
        let ordered = [&twice, &silent, &a, &quiet];
        assert!(ordered.is_sorted_by(|a, b| a.order(b, Column::State) == Ordering::Greater));
        let with_roles = Row { roles: vec!["IMAP".into()], ..row("mx3", 0, 0.0) };
        assert!(with_roles.matches("imap") && with_roles.matches("mx3") && with_roles.matches(""));
        assert!(!with_roles.matches("mx4"));
    }

    #[test]
    fn the_text_of_a_filter_has_a_bounded_length() {
        assert_eq!(describe(&v1::Filter::default()), "");
        let filter = v1::Filter {
            kinds: vec![10, 11],
            accounts: (0..7).map(|nth| format!("a{nth}")).collect(),
            custom_types: vec!["org.example.*".into()],
        };
        assert_eq!(
            describe(&filter),
            "mailbox_change, email_delivery; accounts a0, a1, a2, a3 and 3 more; \
             types org.example.*"
        );
    }
}
