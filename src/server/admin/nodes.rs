//! Nodes and gateways, as the page lists them.
//!
//! However many look, the streams are read at most once a [`READ_EVERY`], and not at all while nobody looks.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    fmt::Write,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::{metrics::kind_name, view::milliseconds};
use crate::{
    proto::v1,
    server::{nodes::NodeEntry, service::Shared},
};

/// How old what is shown may be.
const READ_EVERY: Duration = Duration::from_millis(900);

/// Rows that a request gets unless it asks for another number, and the most that it can get.
const ROWS: usize = 100;
const MOST_ROWS: usize = 1000;

/// Accounts, kinds or types of a filter that are named; the others are counted.
const NAMED: usize = 4;

/// The last reading.
#[derive(Default)]
pub struct Board(Mutex<State>);

#[derive(Default)]
struct State {
    read_at: Option<Instant>,
    rows: Arc<Vec<Row>>,
    /// What each stream had been sent when.
    before: HashMap<String, (Instant, u64)>,
}

/// One stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    node_id: String,
    incarnation: String,
    roles: Vec<String>,
    gateway: String,
    subscription: String,
    peer: String,
    /// Milliseconds since 1970.
    since: Option<u64>,
    filter: String,
    delivered: u64,
    behind: u64,
    /// Events a second that it was sent lately; none on the first look.
    rate: Option<f64>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// In any of a row's words, whatever the case.
    search: String,
    sort: Column,
    descending: bool,
    rows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Node,
    Gateway,
    Peer,
    Since,
    Rate,
    Behind,
    Delivered,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Streams that there are.
    total: usize,
    /// Of those, how many match the search.
    matching: usize,
    /// The first of those, in the order asked for.
    nodes: Vec<Row>,
    gateways: Vec<GatewayRow>,
}

/// One gateway, by its streams.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayRow {
    id: String,
    /// Whether it is the one that answers.
    this: bool,
    streams: u64,
    behind: u64,
    rate: f64,
}

/// The open streams that are shown.
fn shown(shared: &Shared) -> Vec<Arc<NodeEntry>> {
    shared.nodes.all()
}

impl Board {
    /// Answers a query.
    pub fn answer(&self, shared: &Shared, query: &Query) -> Answer {
        let rows = self.rows(shared);
        let mut gateways = BTreeMap::new();
        // One without streams is there too.
        let own = GatewayRow { id: shared.gateway_id.clone(), this: true, ..Default::default() };
        gateways.insert((false, &*shared.gateway_id), own);
        for row in rows.iter() {
            let this = row.gateway == shared.gateway_id;
            let gateway = gateways
                .entry((!this, &*row.gateway))
                .or_insert_with(|| GatewayRow { id: row.gateway.clone(), ..Default::default() });
            gateway.streams += 1;
            gateway.behind += row.behind;
            gateway.rate += row.rate.unwrap_or(0.0);
        }
        let mut matching: Vec<&Row> = rows.iter().filter(|row| row.has(&query.search)).collect();
        matching.sort_by(|a, b| {
            let order = a.order(b, query.sort);
            let order = if query.descending { order.reverse() } else { order };
            // Equal ones do not change places from one second to the next.
            order
                .then_with(|| a.node_id.cmp(&b.node_id))
                .then_with(|| a.subscription.cmp(&b.subscription))
        });
        Answer {
            total: rows.len(),
            matching: matching.len(),
            nodes: matching.into_iter().take(query.rows).cloned().collect(),
            gateways: gateways.into_values().collect(),
        }
    }

    fn rows(&self, shared: &Shared) -> Arc<Vec<Row>> {
        let mut state = self.0.lock();
        let now = Instant::now();
        if state.read_at.is_none_or(|at| now.duration_since(at) >= READ_EVERY) {
            state.read_at = Some(now);
            let before = std::mem::take(&mut state.before);
            let entries = shown(shared);
            state.before.reserve(entries.len());
            let mut rows = Vec::with_capacity(entries.len());
            for entry in entries {
                let (node, delivered) = (entry.node(), entry.delivered());
                let then = before.get(&node.subscription_id);
                let rate = then.and_then(|then| rate(*then, now, delivered));
                state.before.insert(node.subscription_id.clone(), (now, delivered));
                let gateway = shared.gateway_id.clone();
                rows.push(Row { gateway, rate, ..Row::new(node, delivered, entry.behind()) });
            }
            state.rows = Arc::new(rows);
        }
        state.rows.clone()
    }
}

/// What was sent in the time between, a second.
#[allow(clippy::cast_precision_loss)]
fn rate((then, delivered): (Instant, u64), now: Instant, delivered_now: u64) -> Option<f64> {
    let span = now.duration_since(then);
    // The first look after a long time tells nothing about now.
    if span.is_zero() || span > Duration::from_secs(10) {
        return None;
    }
    let rate = delivered_now.saturating_sub(delivered) as f64 / span.as_secs_f64();
    Some((rate * 10.0).round() / 10.0)
}

impl Row {
    fn new(node: &v1::Node, delivered: u64, behind: u64) -> Row {
        let since = node.connect_time.and_then(|time| SystemTime::try_from(time).ok());
        Row {
            filter: node.filter.as_ref().map(describe).unwrap_or_default(),
            node_id: node.node_id.clone(),
            incarnation: node.incarnation.clone(),
            roles: node.roles.clone(),
            gateway: String::new(),
            subscription: node.subscription_id.clone(),
            peer: node.peer.clone(),
            since: since.map(milliseconds),
            delivered,
            behind,
            rate: None,
        }
    }

    fn has(&self, search: &str) -> bool {
        let texts = [&self.node_id, &self.gateway, &self.peer, &self.filter, &self.incarnation];
        search.is_empty()
            || texts.into_iter().chain(&self.roles).any(|text| text.to_lowercase().contains(search))
    }

    fn order(&self, other: &Row, by: Column) -> Ordering {
        match by {
            Column::Node => self.node_id.cmp(&other.node_id),
            Column::Gateway => self.gateway.cmp(&other.gateway),
            Column::Peer => self.peer.cmp(&other.peer),
            Column::Since => self.since.cmp(&other.since),
            Column::Rate => self.rate.unwrap_or(-1.0).total_cmp(&other.rate.unwrap_or(-1.0)),
            Column::Behind => self.behind.cmp(&other.behind),
            Column::Delivered => self.delivered.cmp(&other.delivered),
        }
    }
}

impl Query {
    /// Reads the part of a URL behind the `?`. What is unknown or wrong counts as not said.
    pub fn parse(text: &str) -> Query {
        let mut query =
            Query { search: String::new(), sort: Column::Node, descending: false, rows: ROWS };
        for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
            match &*key {
                "search" => query.search = value.trim().to_lowercase(),
                "sort" => query.sort = Column::parse(&value).unwrap_or(Column::Node),
                "order" => query.descending = value == "descending",
                "rows" => {
                    query.rows = value.parse().map_or(ROWS, |rows: usize| rows.min(MOST_ROWS));
                }
                _ => {}
            }
        }
        query
    }
}

impl Column {
    fn parse(name: &str) -> Option<Column> {
        Some(match name {
            "node" => Column::Node,
            "gateway" => Column::Gateway,
            "peer" => Column::Peer,
            "since" => Column::Since,
            "rate" => Column::Rate,
            "behind" => Column::Behind,
            "delivered" => Column::Delivered,
            _ => return None,
        })
    }
}

/// A filter in words; nothing for the one that lets everything through.
fn describe(filter: &v1::Filter) -> String {
    let kinds: Vec<String> = filter
        .kinds
        .iter()
        .map(|kind| kind_name(*kind).unwrap_or_else(|| format!("kind {kind}")))
        .collect();
    let mut text = String::new();
    for (what, values) in
        [("", &kinds), ("accounts ", &filter.accounts), ("types ", &filter.custom_types)]
    {
        if values.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        let named = values.len().min(NAMED);
        // Writing to a string does not fail.
        let _ = write!(text, "{what}{}", values[..named].join(", "));
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
        Row { rate: Some(rate), ..Row::new(&node, 0, behind) }
    }

    #[test]
    fn a_query_is_read_and_its_nonsense_is_not_said() {
        let query = Query::parse("search=MX%201&sort=behind&order=descending&rows=7&x=y");
        assert_eq!((&*query.search, query.sort), ("mx 1", Column::Behind));
        assert_eq!((query.descending, query.rows), (true, 7));
        assert_eq!(Query::parse("sort=colour&rows=-3"), Query::parse(""));
        assert_eq!(Query::parse("rows=1000000").rows, MOST_ROWS);
    }

    #[test]
    fn rows_are_ordered_by_what_is_asked_and_searched_in_all_words() {
        let (a, b) = (row("mx1", 5, 1.0), row("mx2", 3, 20.0));
        assert_eq!(a.order(&b, Column::Node), Ordering::Less);
        assert_eq!(a.order(&b, Column::Behind), Ordering::Greater);
        assert_eq!(a.order(&b, Column::Rate), Ordering::Less);
        let with_roles = Row { roles: vec!["IMAP".into()], ..row("mx3", 0, 0.0) };
        assert!(with_roles.has("imap") && with_roles.has("mx3") && with_roles.has(""));
        assert!(!with_roles.has("mx4"));
    }

    #[test]
    fn a_filter_is_told_in_words_of_bounded_length() {
        assert_eq!(describe(&v1::Filter::default()), "");
        let filter = v1::Filter {
            kinds: vec![10, 11],
            accounts: (0..7).map(|nth| format!("a{nth}")).collect(),
            custom_types: vec!["org.example.*".into()],
        };
        assert_eq!(
            describe(&filter),
            "mailbox_change, email_delivery; accounts a0, a1, a2, a3 and 3 more; types org.example.*"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_of_now() {
        let now = Instant::now();
        assert_eq!(rate((now, 10), now + Duration::from_secs(2), 25), Some(7.5));
        assert_eq!(rate((now, 10), now + Duration::from_mins(1), 25), None);
        assert_eq!(rate((now, 10), now, 25), None);
    }
}
