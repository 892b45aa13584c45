//! The tables of shards and of nodes.

use std::time::{Duration, SystemTime};

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Rect},
    style::{Modifier, Style, Stylize},
    text::Line,
    widgets::{Cell, Row, Table, Widget},
};
use trunkline_proto::v1::{GetStatusResponse, ShardStatus};

use super::{
    super::view::{Sort, View},
    text::{clean, rate_text, right, warned},
};
use crate::cli::duration::two_units;

/// Lines of a table besides its rows: the head, and an empty line below.
pub const HEAD: u16 = 2;

/// Draws a row for each shard.
pub fn shards(status: &GetStatusResponse, area: Rect, buf: &mut Buffer) {
    let rows = status.shards.iter().map(|shard| {
        let age = shard.proof_age.and_then(|age| Duration::try_from(age).ok());
        let age = age.map_or("never".to_owned(), |age| format!("{:.1} s ago", age.as_secs_f64()));
        Row::new([
            right(shard.shard),
            if shard.proven {
                Cell::from("verified".green())
            } else {
                Cell::from("NOT VERIFIED".red().bold())
            },
            right(age),
            right(shard.epoch),
            right(shard.offset),
            right(shard.log_events),
            right(format!("{} %", full(shard))),
            right(shard.repairs),
            right(shard.epoch_changes),
        ])
    });
    let widths = [6, 13, 13, 15, 12, 12, 6, 9, 11].map(Constraint::Length);
    let head = [
        "shard",
        "state",
        "last probe",
        "epoch",
        "offset",
        "log events",
        "full",
        "repairs",
        "new epochs",
    ];
    table(rows, widths, head.map(str::to_owned), &[1]).render(area, buf);
}

/// Draws a row for each node from the first visible one on.
pub fn nodes(view: &View, area: Rect, buf: &mut Buffer) {
    let visible = usize::from(area.height.saturating_sub(HEAD));
    let nodes = view.nodes();
    let first = view.first().min(nodes.len());
    let now = SystemTime::now();
    let rows = nodes[first..].iter().take(visible).map(|node| {
        let since = node.connect_time.and_then(|time| SystemTime::try_from(time).ok());
        let since = since.and_then(|since| now.duration_since(since).ok());
        Row::new([
            Cell::from(clean(&node.node_id)),
            Cell::from(clean(&node.roles.join(","))),
            Cell::from(clean(&node.gateway_id)),
            Cell::from(clean(&node.peer)),
            right(since.map_or(String::new(), two_units)),
            right(view.rate_of(node).map_or("–".to_owned(), rate_text)),
            Cell::from(Line::from(warned(node.behind_events)).right_aligned()),
            right(node.delivered_events),
        ])
    });
    let (sort, reversed) = view.order();
    let mark = |name: &str, of: Option<Sort>| match of {
        Some(of) if of == sort => format!("{name}{}", if reversed { "▲" } else { "▼" }),
        _ => name.to_owned(),
    };
    let head = [
        mark("node", Some(Sort::Node)),
        "roles".into(),
        "gateway".into(),
        "address".into(),
        mark("connected", Some(Sort::Time)),
        mark("events/s", Some(Sort::Rate)),
        mark("behind", Some(Sort::Behind)),
        mark("delivered", Some(Sort::Delivered)),
    ];
    let widths = [
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Fill(2),
        Constraint::Length(21),
        Constraint::Length(11),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(11),
    ];
    table(rows, widths, head, &[0, 1, 2, 3]).render(area, buf);
    if nodes.is_empty() && area.height > 1 {
        let line = Rect { y: area.y + 1, height: 1, ..area };
        Line::from("no node is connected".dim()).render(line, buf);
    }
}

/// A table with a head. The columns in `texts` are aligned left, the others, which are numbers,
/// right.
fn table<'a, const N: usize>(
    rows: impl Iterator<Item = Row<'a>>,
    widths: [Constraint; N],
    head: [String; N],
    texts: &[usize],
) -> Table<'a> {
    let head = head.into_iter().enumerate().map(|(nth, name)| {
        let name = Line::from(name);
        Cell::from(if texts.contains(&nth) { name } else { name.right_aligned() })
    });
    let style = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
    Table::new(rows, widths).header(Row::new(head).style(style)).column_spacing(1)
}

/// The used part of a shard's log in percent: of its events or its bytes, whichever is larger.
fn full(shard: &ShardStatus) -> u64 {
    let part = |used: u64, limit: u64| (used * 100).checked_div(limit).unwrap_or(0);
    let events = part(shard.log_events, shard.log_limit_events);
    events.max(part(shard.log_bytes, shard.log_limit_bytes))
}
