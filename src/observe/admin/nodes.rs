//! Nodes and gateways, as the page lists them: those of all gateways.
//!
//! However many look, the streams are read at most once a [`READ_EVERY`], no more than [`MOST_READ`] of them, and not at all while
//! nobody looks.

use std::{
    cmp::Ordering,
    collections::HashMap,
    fmt::Write,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::observe::admin::{
    metrics::kind_name,
    view::{milliseconds, whole},
};
use crate::{
    presence::list::Seen,
    proto::v1::{self, GatewayState, NodeState},
    rpc::service::Shared,
};

/// How old what is shown may be.
const READ_EVERY: Duration = Duration::from_millis(900);

/// Streams that are read at most, this gateway's first.
const MAX_READ: usize = 20_000;

/// Other gateways tell their figures when they changed, this often at the most; what did not change for longer is at rest.
const TOLD_EVERY: Duration = Duration::from_secs(7);

/// Rows that a request gets unless it asks for another number, and the most that it can get.
const ROWS: usize = 100;
const MAX_ROWS: usize = 1000;

/// Accounts, kinds or types of a filter that are named; the others are counted.
const NAMED: usize = 4;

/// The last reading.
#[derive(Default)]
pub struct Board(Mutex<State>);

#[derive(Default)]
struct State {
    read_at: Option<Instant>,
    rows: Arc<Vec<Row>>,
    /// Streams that there are.
    total: usize,
    /// What each stream had been sent when.
    before: HashMap<String, Sent>,
}

/// What a stream had been sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    when: Instant,
    delivered: u64,
    /// Events a second up to then.
    rate: Option<f64>,
}

/// One stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    node_id: String,
    incarnation: String,
    roles: Vec<String>,
    gateway: String,
    /// `current`, `behind`, `draining` or `silent`.
    state: String,
    /// Whether another live process has its id.
    duplicate: bool,
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

/// One gateway. What it does is the sum over its streams that were read.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayRow {
    id: String,
    /// Whether it is the one that answers.
    this: bool,
    version: String,
    address: String,
    /// `serving`, `not_serving`, `draining` or `silent`.
    state: String,
    /// Milliseconds since its last word.
    age: u64,
    streams: u32,
    behind: u64,
    rate: f64,
}

impl Board {
    /// Answers a query.
    pub fn answer(&self, shared: &Shared, query: &Query) -> Answer {
        let (rows, total) = self.rows(shared);
        let mut does: HashMap<&str, (u64, f64)> = HashMap::new();
        for row in rows.iter() {
            let (behind, rate) = does.entry(&row.gateway).or_default();
            *behind += row.behind;
            *rate += row.rate.unwrap_or(0.0);
        }
        let gateways = shared.gateways().into_iter().map(|gateway| {
            let (behind, rate) = does.get(&*gateway.gateway_id).copied().unwrap_or_default();
            let this = gateway.gateway_id == shared.gateway_id;
            GatewayRow { this, behind, rate, ..GatewayRow::from(gateway) }
        });
        let mut gateways: Vec<_> = gateways.collect();
        // They come by their ids; the one that answers stands first.
        gateways.sort_by_key(|gateway| !gateway.this);
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
            total,
            matching: if query.search.is_empty() { total } else { matching.len() },
            nodes: matching.into_iter().take(query.rows).cloned().collect(),
            gateways,
        }
    }

    /// The streams that were read, and how many there are.
    fn rows(&self, shared: &Shared) -> (Arc<Vec<Row>>, usize) {
        let mut state = self.0.lock();
        let now = Instant::now();
        if state.read_at.is_none_or(|at| now.duration_since(at) >= READ_EVERY) {
            state.read_at = Some(now);
            let before = std::mem::take(&mut state.before);
            let (mut rows, mut sent) = (Vec::with_capacity(before.len()), HashMap::new());
            sent.reserve(before.len());
            state.total = shared.each_node(MAX_READ, |seen| {
                let id = &seen.node.subscription_id;
                let now = match before.get(id) {
                    Some(then) => then.until(now, seen.delivered, seen.own),
                    None => Sent { when: now, delivered: seen.delivered, rate: None },
                };
                rows.push(Row { rate: now.rate, ..Row::from(seen) });
                sent.insert(id.clone(), now);
            });
            (state.rows, state.before) = (Arc::new(rows), sent);
        }
        (state.rows.clone(), state.total)
    }
}

impl Sent {
    /// The next reading. Of other gateways' streams nothing is read anew until they tell more.
    #[allow(clippy::cast_precision_loss)]
    fn until(self, now: Instant, delivered: u64, own: bool) -> Sent {
        let span = now.duration_since(self.when);
        if !own && delivered == self.delivered && span < TOLD_EVERY {
            return self;
        }
        // The first look after a long time tells nothing about now.
        let tells = !span.is_zero() && span <= Duration::from_secs(10);
        let rate = tells.then(|| {
            let rate = delivered.saturating_sub(self.delivered) as f64 / span.as_secs_f64();
            (rate * 10.0).round() / 10.0
        });
        Sent { when: now, delivered, rate }
    }
}

impl From<v1::Gateway> for GatewayRow {
    fn from(gateway: v1::Gateway) -> GatewayRow {
        let age = gateway.age.and_then(|age| Duration::try_from(age).ok());
        GatewayRow {
            state: word(GatewayState::as_str_name(&gateway.state()), "GATEWAY_STATE_"),
            id: gateway.gateway_id,
            this: false,
            version: gateway.version,
            address: gateway.address,
            age: age.map_or(0, whole),
            streams: gateway.streams,
            behind: 0,
            rate: 0.0,
        }
    }
}

/// The name of a state, as the page has it.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

impl From<&Seen<'_>> for Row {
    fn from(seen: &Seen<'_>) -> Row {
        let node = seen.node;
        let since = node.connect_time.and_then(|time| SystemTime::try_from(time).ok());
        Row {
            filter: node.filter.as_ref().map(describe).unwrap_or_default(),
            node_id: node.node_id.clone(),
            incarnation: node.incarnation.clone(),
            roles: node.roles.clone(),
            gateway: seen.gateway_id.to_owned(),
            state: word(NodeState::as_str_name(&seen.state), "NODE_STATE_"),
            duplicate: seen.duplicate,
            subscription: node.subscription_id.clone(),
            peer: node.peer.clone(),
            since: since.map(milliseconds),
            delivered: seen.delivered,
            behind: seen.behind,
            rate: None,
        }
    }
}

impl Row {
    fn has(&self, search: &str) -> bool {
        let texts = [
            &self.node_id,
            &self.gateway,
            &self.state,
            &self.peer,
            &self.filter,
            &self.incarnation,
        ];
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
                    query.rows = value.parse().map_or(ROWS, |rows: usize| rows.min(MAX_ROWS));
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
        let seen = Seen {
            node: &node,
            gateway_id: "gw-1",
            own: true,
            state: NodeState::Current,
            delivered: 0,
            behind,
            duplicate: false,
        };
        Row { rate: Some(rate), ..Row::from(&seen) }
    }

    #[test]
    fn a_query_is_read_and_its_nonsense_is_not_said() {
        let query = Query::parse("search=MX%201&sort=behind&order=descending&rows=7&x=y");
        assert_eq!((&*query.search, query.sort), ("mx 1", Column::Behind));
        assert_eq!((query.descending, query.rows), (true, 7));
        assert_eq!(Query::parse("sort=colour&rows=-3"), Query::parse(""));
        assert_eq!(Query::parse("rows=1000000").rows, MAX_ROWS);
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
        let first = Sent { when: now, delivered: 10, rate: None };
        let rate = |span, own| first.until(now + span, 25, own).rate;
        assert_eq!(rate(Duration::from_secs(2), true), Some(7.5));
        assert_eq!(rate(Duration::from_secs(2), false), Some(7.5));
        assert_eq!(rate(Duration::from_mins(1), true), None);
        assert_eq!(rate(Duration::ZERO, true), None);
        // Another gateway tells its figures now and then: between, its streams are not at rest.
        let told = first.until(now + Duration::from_secs(5), 60, false);
        let second = now + Duration::from_secs(6);
        assert_eq!(told.until(second, 60, false).rate, Some(10.0));
        assert_eq!(told.until(second, 60, true).rate, Some(0.0));
        assert_eq!(told.until(now + Duration::from_secs(13), 60, false).rate, Some(0.0));
    }
}
