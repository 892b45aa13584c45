//! The tables of nodes and of gateways: those of all gateways.
//!
//! The streams are read on request only, at most once a [`READ_INTERVAL`] however many pages are
//! open, and at most [`MAX_READ`] of them.

mod agents;
mod query;
mod row;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

pub use self::query::Query;
use self::{agents::AgentRow, row::Row};
use super::values::{state_name, whole};
use crate::{
    observe::admin::Sources,
    proto::v1::{self, GatewayState},
};

/// The age up to which a reading is shown again.
const READ_INTERVAL: Duration = Duration::from_millis(900);

/// Streams that are read, this gateway's first.
const MAX_READ: usize = 20_000;

/// Agents of an answer.
const MAX_AGENTS: usize = 100;

/// Other gateways report their counts when they change, and no more often than this. A count that
/// does not change for longer stands still.
const REPORT_INTERVAL: Duration = Duration::from_secs(7);

/// The last reading of all streams.
#[derive(Default)]
pub struct NodeTable(Mutex<State>);

#[derive(Default)]
struct State {
    read_at: Option<Instant>,
    rows: Arc<Vec<Row>>,
    /// All streams, those that were not read included.
    total: usize,
    /// The delivered events of each stream, by its subscription id.
    deliveries: HashMap<String, Deliveries>,
}

/// The events that a stream had been sent at a time.
#[derive(Clone, Copy, Debug)]
struct Deliveries {
    at: Instant,
    delivered: u64,
    /// Events a second before that time.
    rate: Option<f64>,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// All streams.
    total: usize,
    /// Streams that match the search.
    matching: usize,
    /// Node ids that two live processes have, streams of gateways that do not report, and streams
    /// that are late, by their states.
    duplicates: usize,
    silent: usize,
    late: usize,
    /// The first of those, in the requested order.
    nodes: Vec<Row>,
    /// Those that are agents: the first ones.
    agents: Vec<AgentRow>,
    gateways: Vec<GatewayRow>,
}

/// The row of one gateway. `behind` and `rate` are sums over its streams that were read.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayRow {
    id: String,
    /// True for the gateway that answers.
    this: bool,
    version: String,
    address: String,
    /// `serving`, `not_serving`, `draining` or `silent`.
    state: String,
    /// Milliseconds since its last report.
    age: u64,
    streams: u32,
    behind: u64,
    rate: f64,
}

impl NodeTable {
    /// Answers a query.
    pub fn answer(&self, sources: &Sources, query: &Query) -> Answer {
        let (rows, total) = self.rows(sources);
        let mut sums: HashMap<&str, (u64, f64)> = HashMap::new();
        for row in rows.iter() {
            let (behind, rate) = sums.entry(&row.gateway).or_default();
            *behind += row.behind;
            *rate += row.rate.unwrap_or(0.0);
        }
        let gateways = sources.nodes.gateways().into_iter().map(|gateway| {
            let (behind, rate) = sums.get(&*gateway.gateway_id).copied().unwrap_or_default();
            let this = gateway.gateway_id == sources.gateway.about.gateway_id;
            GatewayRow { this, behind, rate, ..GatewayRow::from(gateway) }
        });
        let mut gateways: Vec<_> = gateways.collect();
        // They are in the order of their ids; trouble comes first, and then the one that answers.
        gateways.sort_by_key(|gateway| (gateway.state == "serving", !gateway.this));
        let count = |trouble| rows.iter().filter(|row| row.trouble() == trouble).count();
        let duplicates: HashSet<_> =
            rows.iter().filter(|row| row.trouble() == 4).map(|row| &row.node_id).collect();
        let mut matching: Vec<&Row> =
            rows.iter().filter(|row| row.matches(&query.search)).collect();
        matching.sort_by(|a, b| {
            let order = a.order(b, query.sort);
            let order = if query.descending { order.reverse() } else { order };
            // Equal rows keep their order from one second to the next.
            order
                .then_with(|| a.node_id.cmp(&b.node_id))
                .then_with(|| a.subscription.cmp(&b.subscription))
        });
        Answer {
            total,
            duplicates: duplicates.len(),
            silent: count(3),
            late: count(2),
            agents: rows.iter().filter_map(Row::agent).take(MAX_AGENTS).collect(),
            matching: if query.search.is_empty() { total } else { matching.len() },
            nodes: matching.into_iter().take(query.rows).cloned().collect(),
            gateways,
        }
    }

    /// The rows of the streams that were read, and the number of all streams.
    fn rows(&self, sources: &Sources) -> (Arc<Vec<Row>>, usize) {
        let mut state = self.0.lock();
        let now = Instant::now();
        if state.read_at.is_none_or(|at| now.duration_since(at) >= READ_INTERVAL) {
            state.read_at = Some(now);
            let before = std::mem::take(&mut state.deliveries);
            let (mut rows, mut deliveries) = (Vec::with_capacity(before.len()), HashMap::new());
            deliveries.reserve(before.len());
            state.total = sources.nodes.each(MAX_READ, |seen| {
                let id = &seen.node.subscription_id;
                let now = match before.get(id) {
                    Some(then) => then.next(now, seen.delivered, seen.own),
                    None => Deliveries { at: now, delivered: seen.delivered, rate: None },
                };
                let mut row = Row::from(seen);
                row.rate = now.rate;
                rows.push(row);
                deliveries.insert(id.clone(), now);
            });
            (state.rows, state.deliveries) = (Arc::new(rows), deliveries);
        }
        (state.rows.clone(), state.total)
    }
}

impl Deliveries {
    /// The next reading. An unchanged count of another gateway's stream (`own` is false) is no new
    /// reading until its report is due.
    #[allow(clippy::cast_precision_loss)]
    fn next(self, now: Instant, delivered: u64, own: bool) -> Deliveries {
        let span = now.duration_since(self.at);
        if !own && delivered == self.delivered && span < REPORT_INTERVAL {
            return self;
        }
        // An average over a long time says nothing about the present.
        let is_recent = !span.is_zero() && span <= Duration::from_secs(10);
        let rate = is_recent.then(|| {
            let rate = delivered.saturating_sub(self.delivered) as f64 / span.as_secs_f64();
            (rate * 10.0).round() / 10.0
        });
        Deliveries { at: now, delivered, rate }
    }
}

impl From<v1::Gateway> for GatewayRow {
    fn from(gateway: v1::Gateway) -> GatewayRow {
        let age = gateway.age.and_then(|age| Duration::try_from(age).ok());
        GatewayRow {
            state: state_name(GatewayState::as_str_name(&gateway.state()), "GATEWAY_STATE_"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_of_the_last_seconds() {
        let now = Instant::now();
        let first = Deliveries { at: now, delivered: 10, rate: None };
        let rate = |span, own| first.next(now + span, 25, own).rate;
        assert_eq!(rate(Duration::from_secs(2), true), Some(7.5));
        assert_eq!(rate(Duration::from_secs(2), false), Some(7.5));
        assert_eq!(rate(Duration::from_mins(1), true), None);
        assert_eq!(rate(Duration::ZERO, true), None);
        // Another gateway reports now and then: in between, its streams do not stand still.
        let reported = first.next(now + Duration::from_secs(5), 60, false);
        let second = now + Duration::from_secs(6);
        assert_eq!(reported.next(second, 60, false).rate, Some(10.0));
        assert_eq!(reported.next(second, 60, true).rate, Some(0.0));
        assert_eq!(reported.next(now + Duration::from_secs(13), 60, false).rate, Some(0.0));
    }
}
