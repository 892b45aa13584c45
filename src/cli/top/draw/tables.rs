//! The tables: nodes, gateways, shards, links and agents. Their columns are as wide as what they
//! hold.

use std::time::{Duration, SystemTime};

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::Widget,
};
use trunkline_proto::v1::{
    AgentChannel, GatewayState, GetStatusResponse, Node, NodeState, ShardStatus,
};

use super::{
    super::view::{Rates, Sort, Table, View},
    text::{clean, rate_text, state_name, warned},
};
use crate::cli::{agents, duration::two_units};

/// Lines of a table besides its rows: the head, and an empty line below.
pub const HEAD: u16 = 2;

/// A table with a head and rows of cells.
pub struct Cells {
    /// The name of each column, and true if it holds numbers.
    head: Vec<(String, bool)>,
    rows: Vec<Vec<Span<'static>>>,
    /// Shown in place of rows, if there are none.
    empty: &'static str,
}

/// The part of a table that is shown.
#[derive(Clone, Copy, Default)]
pub struct Window {
    /// The first row.
    pub first: usize,
    /// Characters of all columns but the first that are scrolled out to the left.
    pub shift: usize,
}

impl Cells {
    fn new(head: &[(&str, bool)], empty: &'static str) -> Cells {
        let head = head.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        Cells { head, rows: vec![], empty }
    }

    /// The width of each column, the space after it included.
    fn widths(&self) -> Vec<usize> {
        let cell = |column: usize| self.rows.iter().map(move |row| row[column].width()).max();
        let head = self.head.iter().enumerate();
        head.map(|(nth, (name, _))| {
            let name = Span::raw(name.as_str()).width();
            name.max(cell(nth).unwrap_or_default()) + 2
        })
        .collect()
    }

    /// The width of the whole table.
    pub fn width(&self) -> usize {
        self.widths().iter().sum()
    }

    /// Draws the part of the table that `window` shows.
    pub fn draw(&self, window: Window, area: Rect, buf: &mut Buffer) {
        let widths = self.widths();
        let all: usize = widths.iter().sum();
        let room = usize::from(area.width);
        // The first column, which names the row, stays where it is, unless it takes most of the
        // room.
        let fixed = if widths[0] * 2 <= room { widths[0] } else { 0 };
        let max_shift = all.saturating_sub(room);
        let shift = window.shift.min(max_shift);
        let style = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
        let names = self.head.iter().map(|(name, _)| Span::styled(name.clone(), style)).collect();
        let shown = self.rows.iter().skip(window.first);
        let rows = std::iter::once(&names).chain(shown).take(usize::from(area.height));
        for (y, row) in (area.y..).zip(rows) {
            let mut from = 0;
            for (nth, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let is_fixed = nth == 0 && fixed > 0;
                // The position on the screen, of a number at the right end of its column.
                let lead = if self.head[nth].1 { width - 2 - cell.width() } else { 0 };
                let (start, end) = (from + lead, from + lead + cell.width());
                from += width;
                let (left, right) =
                    if is_fixed { (0, room) } else { (fixed + shift, room + shift) };
                if end <= left || start >= right {
                    continue;
                }
                let moved = if is_fixed { 0 } else { shift };
                let hidden = left.saturating_sub(start);
                let text: String = cell.content.chars().skip(hidden).collect();
                let (x, room) = (start + hidden - moved, right - start - hidden);
                let x = area.x + u16::try_from(x).unwrap_or(u16::MAX);
                buf.set_stringn(x, y, text, room, cell.style);
            }
        }
        if self.rows.is_empty() && area.height > 1 {
            let line = Rect { y: area.y + 1, height: 1, ..area };
            Line::from(self.empty.dim()).render(line, buf);
        }
        if area.height > 0 && area.width > 0 {
            let mark = Style::new().add_modifier(Modifier::REVERSED);
            if shift < max_shift {
                buf.set_string(area.right() - 1, area.y, "›", mark);
            }
            if shift > 0 {
                let x = area.x + u16::try_from(fixed).unwrap_or_default();
                buf.set_string(x, area.y, "‹", mark);
            }
        }
    }
}

/// The table that can be scrolled.
pub fn scrolled(view: &View) -> Cells {
    let status = view.status().cloned().unwrap_or_default();
    match view.table() {
        Table::Nodes => nodes(view),
        Table::Gateways => gateways(view),
        Table::Shards => shards(&status),
        Table::Links => links(&status),
        Table::Agents => agents(view),
    }
}

/// A row for each shard; those that are not verified first.
pub fn shards(status: &GetStatusResponse) -> Cells {
    let head = [
        ("shard", true),
        ("state", false),
        ("last probe", true),
        ("epoch", true),
        ("offset", true),
        ("log events", true),
        ("full", true),
        ("repairs", true),
        ("new epochs", true),
    ];
    let mut cells = Cells::new(&head, "the bus has not started");
    let mut shards: Vec<_> = status.shards.iter().collect();
    shards.sort_by_key(|shard| shard.proven);
    for shard in shards {
        let age = shard.proof_age.and_then(|age| Duration::try_from(age).ok());
        let age = age.map_or("never".to_owned(), |age| format!("{:.1} s ago", age.as_secs_f64()));
        cells.rows.push(vec![
            shard.shard.to_string().into(),
            if shard.proven { "verified".green() } else { "NOT VERIFIED".red().bold() },
            age.into(),
            shard.epoch.to_string().into(),
            shard.offset.to_string().into(),
            shard.log_events.to_string().into(),
            format!("{} %", full(shard)).into(),
            shard.repairs.to_string().into(),
            shard.epoch_changes.to_string().into(),
        ]);
    }
    cells
}

/// A row for each connection to the bus; those that are down first.
pub fn links(status: &GetStatusResponse) -> Cells {
    let head = [("server", false), ("purpose", false), ("state", false), ("reconnects", true)];
    let mut cells = Cells::new(&head, "the bus has no connections");
    let mut links: Vec<_> = status.links.iter().collect();
    links.sort_by_key(|link| link.connected);
    for link in links {
        cells.rows.push(vec![
            clean(&link.address).into(),
            clean(&link.purpose).into(),
            if link.connected { "up".green() } else { "DOWN".red().bold() },
            link.reconnects.to_string().into(),
        ]);
    }
    cells
}

/// A row for each gateway, and for each address that gave no answer. The values of those that were
/// not asked are not known.
pub fn gateways(view: &View) -> Cells {
    let head = [
        ("gateway", false),
        ("state", false),
        ("nodes", true),
        ("in/s", true),
        ("out/s", true),
        ("behind", true),
        ("gaps", true),
        ("verified", true),
        ("version", false),
        ("address", false),
        ("up", true),
        ("last report", true),
    ];
    let mut cells = Cells::new(&head, "no gateway is known");
    let now = SystemTime::now();
    let unknown = || Span::from("–");
    for (address, why) in view.unanswered() {
        let mut row = vec![clean(address).into(), "NO ANSWER".red().bold()];
        row.extend((0..6).map(|_| unknown()));
        row.extend([unknown(), clean(why).into(), unknown(), unknown()]);
        cells.rows.push(row);
    }
    for gateway in view.gateways() {
        let status = view.status_of(&gateway.gateway_id);
        let rates = view.rates_of(&gateway.gateway_id);
        let rate = |of: fn(Rates) -> f64| rates.map_or(unknown(), |all| rate_text(of(all)).into());
        let started = gateway.start_time.and_then(|time| SystemTime::try_from(time).ok());
        let up = started.and_then(|started| now.duration_since(started).ok());
        let age = gateway.age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
        let state = state_name(gateway.state().as_str_name(), "GATEWAY_STATE_");
        cells.rows.push(vec![
            clean(&gateway.gateway_id).into(),
            if gateway.state() == GatewayState::Serving {
                state.green()
            } else {
                state.yellow().bold()
            },
            gateway.streams.to_string().into(),
            rate(|rates| rates.published),
            rate(|rates| rates.delivered),
            status.map_or_else(unknown, |status| warned(status.behind_events)),
            status.map_or_else(unknown, |status| warned(status.stream_gaps)),
            status.map_or_else(unknown, verified),
            clean(&gateway.version).into(),
            clean(&gateway.address).into(),
            up.map_or(String::new(), two_units).into(),
            if age.is_zero() { "now".into() } else { format!("{} ago", two_units(age)).into() },
        ]);
    }
    cells
}

/// A row for each node.
pub fn nodes(view: &View) -> Cells {
    let (sort, reversed) = view.order();
    let head = [
        ("node", false, Some(Sort::Node)),
        ("state", false, None),
        ("roles", false, None),
        ("gateway", false, None),
        ("address", false, None),
        ("connected", true, Some(Sort::Time)),
        ("events/s", true, Some(Sort::Rate)),
        ("behind", true, Some(Sort::Behind)),
        ("delivered", true, Some(Sort::Delivered)),
        ("processed", true, None),
        ("stream", false, None),
        ("version", false, None),
    ];
    let head = head.map(|(name, number, of)| match of {
        Some(of) if of == sort => (format!("{name}{}", if reversed { "▲" } else { "▼" }), number),
        _ => (name.to_owned(), number),
    });
    let mut cells = Cells { head: head.into(), rows: vec![], empty: "no node is connected" };
    let now = SystemTime::now();
    for node in view.nodes() {
        let since = node.connect_time.and_then(|time| SystemTime::try_from(time).ok());
        let since = since.and_then(|since| now.duration_since(since).ok());
        let state = state_name(node.state().as_str_name(), "NODE_STATE_");
        cells.rows.push(vec![
            clean(&node.node_id).into(),
            match (node.duplicate, node.state()) {
                (true, _) => "DUPLICATE".red().bold(),
                (_, NodeState::Current) => state.into(),
                _ => state.yellow().bold(),
            },
            clean(&node.roles.join(",")).into(),
            clean(&node.gateway_id).into(),
            clean(&node.peer).into(),
            since.map_or(String::new(), two_units).into(),
            view.rate_of(node).map_or("–".to_owned(), rate_text).into(),
            warned(node.behind_events),
            node.delivered_events.to_string().into(),
            processed(node).map_or("–".to_owned(), |events| events.to_string()).into(),
            if node.watch { "Watch" } else { "Subscribe" }.into(),
            clean(&node.client_version).into(),
        ]);
    }
    cells
}

/// A row for each agent.
pub fn agents(view: &View) -> Cells {
    let head = [
        ("agent", false),
        ("host", false),
        ("programs", false),
        ("channel of Redis", false),
        ("subscribers", true),
        ("messages in", true),
        ("events in", true),
        ("events out", true),
        ("undecodable", true),
        ("given up", true),
        ("waiting", true),
        ("healings", true),
        ("last healing", false),
    ];
    let mut cells = Cells::new(&head, "no agent is connected");
    for (node, agent) in view.agents() {
        let ids: Vec<String> = agent
            .programs
            .iter()
            .map(|program| {
                let id = clean(&program.program_id);
                let version = clean(&program.version);
                let mark = if program.duplicate { " DUPLICATE" } else { "" };
                format!("{id} ({version}){mark}")
            })
            .collect();
        let ids = ids.join(", ");
        let any_duplicate = agent.programs.iter().any(|program| program.duplicate);
        let waiting = agents::waiting(agent);
        cells.rows.push(vec![
            clean(&node.node_id).into(),
            clean(&agent.host).into(),
            if any_duplicate { ids.red().bold() } else { ids.into() },
            agent.joined_channel.as_ref().map_or_else(String::new, joined).into(),
            agent.subscribers.to_string().into(),
            agent.published_messages.to_string().into(),
            agent.published_events.to_string().into(),
            agent.received_events.to_string().into(),
            warned(agent.undecodable_messages),
            warned(agent.lost_events),
            if agent.waiting_age.is_some() { waiting.yellow().bold() } else { waiting.into() },
            agent.healings.to_string().into(),
            agent.last_healings.first().map_or_else(String::new, agents::healing).into(),
        ]);
    }
    cells
}

/// The channel of Redis that an agent has joined, and whether it carries it.
fn joined(channel: &AgentChannel) -> String {
    let state = if channel.carried { "carries" } else { "waits for" };
    format!("{state} {}", clean(&channel.channel))
}

/// The shards of a gateway that are verified, of all.
fn verified(status: &GetStatusResponse) -> Span<'static> {
    let (proven, all) =
        (status.shards.iter().filter(|shard| shard.proven).count(), status.shards.len());
    let text = format!("{proven} of {all}");
    if proven < all { text.red().bold() } else { text.into() }
}

/// The events that the node has acknowledged, if it acknowledges any.
fn processed(node: &Node) -> Option<u64> {
    let left = node.acknowledge_time.map(|_| node.unacknowledged_events)?;
    Some(node.delivered_events.saturating_sub(left))
}

/// The used part of a shard's log in percent: of its events or its bytes, whichever is larger.
fn full(shard: &ShardStatus) -> u64 {
    let part = |used: u64, limit: u64| (used * 100).checked_div(limit).unwrap_or(0);
    let events = part(shard.log_events, shard.log_limit_events);
    events.max(part(shard.log_bytes, shard.log_limit_bytes))
}
