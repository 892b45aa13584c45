//! The model of `top`: the last snapshot, the rates since the one before, and the settings that
//! keys change.

use std::{
    collections::{HashMap, VecDeque},
    time::SystemTime,
};

use clap::ValueEnum;
use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::{Value, json};
use tokio::time::Instant;
use trunkline::json;
use trunkline_proto::v1::{AgentReport, Gateway, GatewayState, GetStatusResponse, Node};

use super::poll::Snapshot;

/// Most rates that are kept for the plots.
const MAX_RATES: usize = 600;

/// Order of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// By the events that they are behind, the furthest first.
    Behind,
    /// By the rate of their events, the fastest first.
    Rate,
    /// By their ids.
    Node,
    /// By the events delivered to them, the most first.
    Delivered,
    /// By the time since they connected, the longest first.
    Time,
}

/// The tables that can be scrolled; one of them has the large part of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The nodes of all gateways.
    Nodes,
    /// All gateways.
    Gateways,
    /// The shards of the gateway.
    Shards,
    /// The connections of the gateway to the bus.
    Links,
    /// The agents among the nodes.
    Agents,
}

/// Characters by which an arrow key scrolls the columns.
const SHIFT: usize = 12;

/// Everything that the view draws.
pub struct View {
    address: String,
    snapshot: Option<Snapshot>,
    /// The time of the snapshot, and the totals of each stream in it.
    taken: Option<Instant>,
    delivered: HashMap<String, u64>,
    node_rates: HashMap<String, f64>,
    rates: VecDeque<Rates>,
    /// The rates of each gateway that was asked, by its id.
    gateway_rates: HashMap<String, Rates>,
    /// The error that prevents newer snapshots, and the time of the first.
    failure: Option<(String, SystemTime)>,
    sort: Sort,
    reversed: bool,
    paused: bool,
    table: Table,
    scroll: usize,
    /// Characters of the columns that are scrolled out to the left.
    shift: usize,
    /// Rows of the table that were visible when the view was last drawn.
    pub visible: usize,
    /// The largest shift with which something new is visible.
    pub max_shift: usize,
}

/// Events per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Accepted from publishers.
    pub published: f64,
    /// Sent to subscribers.
    pub delivered: f64,
}

impl View {
    /// A view without a snapshot yet.
    pub fn new(address: String, sort: Sort) -> View {
        View {
            address,
            snapshot: None,
            taken: None,
            delivered: HashMap::new(),
            node_rates: HashMap::new(),
            rates: VecDeque::new(),
            gateway_rates: HashMap::new(),
            failure: None,
            sort,
            reversed: false,
            paused: false,
            table: Table::Nodes,
            scroll: 0,
            shift: 0,
            visible: 1,
            max_shift: 0,
        }
    }

    /// Replaces the snapshot and computes the rates, unless the view is paused.
    #[allow(clippy::cast_precision_loss)]
    pub fn take(&mut self, snapshot: Snapshot, now: Instant) {
        if self.paused {
            return;
        }
        self.failure = None;
        let before = self.snapshot.as_ref().map(|before| &before.status);
        // After a restart of the gateway the totals start from zero.
        let same = before.is_some_and(|before| before.start_time == snapshot.status.start_time);
        let span = self.taken.map(|then| now.duration_since(then).as_secs_f64());
        let span = span.filter(|span| same && *span > 0.0);
        let per_second =
            |now: u64, then: u64| span.map(|span| now.saturating_sub(then) as f64 / span);
        self.gateway_rates.clear();
        for status in snapshot.statuses() {
            let mut before = self.snapshot.iter().flat_map(Snapshot::statuses);
            let before = before.find(|before| {
                before.gateway_id == status.gateway_id && before.start_time == status.start_time
            });
            let Some(before) = before else { continue };
            let published = per_second(status.published_events, before.published_events);
            let delivered = per_second(status.delivered_events, before.delivered_events);
            if let (Some(published), Some(delivered)) = (published, delivered) {
                let rates = Rates { published, delivered };
                self.gateway_rates.insert(status.gateway_id.clone(), rates);
            }
        }
        if span.is_some() {
            if self.rates.len() == MAX_RATES {
                self.rates.pop_front();
            }
            let sum = |of: fn(&Rates) -> f64| self.gateway_rates.values().map(of).sum();
            let published = sum(|rates| rates.published);
            self.rates.push_back(Rates { published, delivered: sum(|rates| rates.delivered) });
        } else {
            self.rates.clear();
            self.delivered.clear();
        }
        self.node_rates.clear();
        let mut delivered = HashMap::with_capacity(snapshot.nodes.len());
        for node in &snapshot.nodes {
            let then = self.delivered.get(&node.subscription_id);
            if let Some(rate) = then.and_then(|then| per_second(node.delivered_events, *then)) {
                self.node_rates.insert(node.subscription_id.clone(), rate);
            }
            delivered.insert(node.subscription_id.clone(), node.delivered_events);
        }
        self.delivered = delivered;
        self.taken = Some(now);
        self.snapshot = Some(snapshot);
        self.sort_nodes();
    }

    /// Records that the gateway did not answer. The last snapshot stays.
    pub fn set_failure(&mut self, why: String) {
        let since = self.failure.take().map_or_else(SystemTime::now, |(_, since)| since);
        self.failure = Some((why, since));
    }

    /// Handles an event of the terminal. True if it quits.
    pub fn key(&mut self, event: &Event) -> bool {
        let Event::Key(key) = event else { return false };
        if key.kind == KeyEventKind::Release {
            return false;
        }
        let page = self.visible.max(1);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char(' ' | 'p') => self.paused = !self.paused,
            KeyCode::Char('b') => self.sort_by(Sort::Behind),
            KeyCode::Char('r') => self.sort_by(Sort::Rate),
            KeyCode::Char('n') => self.sort_by(Sort::Node),
            KeyCode::Char('d') => self.sort_by(Sort::Delivered),
            KeyCode::Char('t') => self.sort_by(Sort::Time),
            KeyCode::Tab => self.show(match self.table {
                Table::Nodes => Table::Gateways,
                Table::Gateways => Table::Shards,
                Table::Shards => Table::Links,
                Table::Links => Table::Agents,
                Table::Agents => Table::Nodes,
            }),
            KeyCode::BackTab => self.show(match self.table {
                Table::Nodes => Table::Agents,
                Table::Agents => Table::Links,
                Table::Gateways => Table::Nodes,
                Table::Shards => Table::Gateways,
                Table::Links => Table::Shards,
            }),
            KeyCode::Right | KeyCode::Char('l') => self.shift += SHIFT,
            KeyCode::Left | KeyCode::Char('h') => self.shift = self.shift.saturating_sub(SHIFT),
            KeyCode::Down | KeyCode::Char('j') => self.scroll += 1,
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown => self.scroll += page,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(page),
            KeyCode::Home => self.scroll = 0,
            KeyCode::End => self.scroll = usize::MAX,
            _ => {}
        }
        self.scroll = self.scroll.min(self.rows().saturating_sub(page));
        self.shift = self.shift.min(self.max_shift);
        false
    }

    fn show(&mut self, table: Table) {
        (self.table, self.scroll, self.shift) = (table, 0, 0);
    }

    /// The table that can be scrolled.
    pub fn table(&self) -> Table {
        self.table
    }

    /// The number of rows of that table.
    pub fn rows(&self) -> usize {
        match (self.table, self.status()) {
            (Table::Nodes, _) => self.nodes().len(),
            (Table::Gateways, _) => self.gateways().len() + self.unanswered().len(),
            (Table::Shards, status) => status.map_or(0, |status| status.shards.len()),
            (Table::Links, status) => status.map_or(0, |status| status.links.len()),
            (Table::Agents, _) => self.agents().count(),
        }
    }

    /// Characters of its columns that are scrolled out to the left.
    pub fn shift(&self) -> usize {
        self.shift
    }

    /// The gateways of the snapshot, those first that do not serve.
    pub fn gateways(&self) -> &[Gateway] {
        self.snapshot.as_ref().map_or(&[], |snapshot| &snapshot.gateways)
    }

    /// The snapshot and the rates, as JSON.
    pub fn to_json(&self) -> Result<Value, String> {
        let snapshot = self.snapshot.clone().unwrap_or_default();
        let others = snapshot.others.iter();
        let others = others.map(|status| json::to_json("GetStatusResponse", status));
        let unanswered = snapshot.unanswered.iter();
        let unanswered = unanswered.map(|(address, why)| json!({ "address": address, "why": why }));
        let gateways = snapshot.gateways.iter().map(|gateway| {
            let mut json = json::to_json("Gateway", gateway)?;
            if let Some(rates) = self.rates_of(&gateway.gateway_id) {
                json["publishedPerSecond"] = rates.published.into();
                json["deliveredPerSecond"] = rates.delivered.into();
            }
            Ok(json)
        });
        let nodes = snapshot.nodes.iter().map(|node| {
            let mut json = json::to_json("Node", node)?;
            json["eventsPerSecond"] = self.rate_of(node).into();
            Ok(json)
        });
        let rates = self.rates.back();
        Ok(json!({
            "status": json::to_json("GetStatusResponse", &snapshot.status)?,
            "otherStatuses": others.collect::<Result<Vec<_>, String>>()?,
            "unanswered": unanswered.collect::<Vec<_>>(),
            "publishedPerSecond": rates.map(|rates| rates.published),
            "deliveredPerSecond": rates.map(|rates| rates.delivered),
            "gateways": gateways.collect::<Result<Vec<_>, String>>()?,
            "nodes": nodes.collect::<Result<Vec<_>, String>>()?,
            "moreNodes": snapshot.more,
        }))
    }

    /// The address of the gateway.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The status of the gateway in the snapshot.
    pub fn status(&self) -> Option<&GetStatusResponse> {
        self.snapshot.as_ref().map(|snapshot| &snapshot.status)
    }

    /// The nodes of the snapshot, sorted.
    pub fn nodes(&self) -> &[Node] {
        self.snapshot.as_ref().map_or(&[], |snapshot| &snapshot.nodes)
    }

    /// Those of them that are agents.
    pub fn agents(&self) -> impl Iterator<Item = (&Node, &AgentReport)> {
        self.nodes().iter().filter_map(|node| Some((node, node.agent.as_ref()?)))
    }

    /// True if there are nodes that the snapshot does not list.
    pub fn more_nodes(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.more)
    }

    /// Events per second that a node was sent between the last two snapshots; none for a new node.
    pub fn rate_of(&self, node: &Node) -> Option<f64> {
        self.node_rates.get(&node.subscription_id).copied()
    }

    /// The status of a gateway, if it was asked and answered.
    pub fn status_of(&self, gateway_id: &str) -> Option<&GetStatusResponse> {
        let mut statuses = self.snapshot.iter().flat_map(Snapshot::statuses);
        statuses.find(|status| status.gateway_id == gateway_id)
    }

    /// The rates of a gateway between the last two snapshots, if it answered both times.
    pub fn rates_of(&self, gateway_id: &str) -> Option<Rates> {
        self.gateway_rates.get(gateway_id).copied()
    }

    /// The gateways that were asked and answered.
    pub fn answered(&self) -> usize {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.statuses().count())
    }

    /// The addresses that gave no answer in the snapshot, and why.
    pub fn unanswered(&self) -> &[(String, String)] {
        self.snapshot.as_ref().map_or(&[], |snapshot| &snapshot.unanswered)
    }

    /// The rates between snapshots of all gateways that were asked together, the oldest first.
    pub fn rates(&self) -> &VecDeque<Rates> {
        &self.rates
    }

    /// The error that prevents newer snapshots, and the time of the first.
    pub fn failure(&self) -> Option<(&str, SystemTime)> {
        self.failure.as_ref().map(|(why, since)| (&**why, *since))
    }

    /// The reason for which the gateway did not serve, if it did not.
    pub fn why_not_serving(&self) -> Option<String> {
        let status = self.status()?;
        (!status.serving).then(|| status.reason.clone())
    }

    /// The order of the nodes, and whether it is reversed.
    pub fn order(&self) -> (Sort, bool) {
        (self.sort, self.reversed)
    }

    /// True while new snapshots are ignored.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The first row to show.
    pub fn first(&self) -> usize {
        self.scroll
    }

    fn sort_by(&mut self, sort: Sort) {
        self.reversed = self.sort == sort && !self.reversed;
        self.sort = sort;
        self.sort_nodes();
    }

    fn sort_nodes(&mut self) {
        let Some(snapshot) = &mut self.snapshot else { return };
        let rates = &self.node_rates;
        let rate = |node: &Node| rates.get(&node.subscription_id).copied().unwrap_or(-1.0);
        let since = |node: &Node| node.connect_time.map(|time| (time.seconds, time.nanos));
        let sort = self.sort;
        snapshot.nodes.sort_by(|a, b| {
            let order = match sort {
                Sort::Behind => b.behind_events.cmp(&a.behind_events),
                Sort::Rate => rate(b).total_cmp(&rate(a)),
                Sort::Node => a.node_id.cmp(&b.node_id),
                Sort::Delivered => b.delivered_events.cmp(&a.delivered_events),
                Sort::Time => since(a).cmp(&since(b)),
            };
            let order = if self.reversed { order.reverse() } else { order };
            // A stable order from snapshot to snapshot.
            order
                .then_with(|| a.node_id.cmp(&b.node_id))
                .then_with(|| a.subscription_id.cmp(&b.subscription_id))
        });
        // Trouble comes first.
        snapshot.gateways.sort_by(|a, b| {
            let order =
                (a.state() == GatewayState::Serving).cmp(&(b.state() == GatewayState::Serving));
            order.then_with(|| a.gateway_id.cmp(&b.gateway_id))
        });
        self.scroll = self.scroll.min(self.rows().saturating_sub(1));
    }
}
