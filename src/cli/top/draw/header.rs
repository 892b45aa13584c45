//! The lines above and below the tables: the state of the gateway, and the keys.

use std::time::{Duration, SystemTime};

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Paragraph, Widget, Wrap},
};
use trunkline_proto::v1::GetStatusResponse;

use super::{
    super::view::{Table, View},
    text::{clean, rate_text, warned},
};
use crate::cli::duration::two_units;

/// The lines that the header takes at this width, an empty one below included.
pub fn height(view: &View, width: u16) -> u16 {
    wrapped(&content(view), width) + 1
}

/// The width at which no line of the header is wrapped.
pub fn width(view: &View) -> u16 {
    let widest = content(view).iter().map(Line::width).max();
    u16::try_from(widest.unwrap_or_default()).unwrap_or(u16::MAX).max(1)
}

/// Draws the state of the gateway and its totals. Long lines are wrapped.
pub fn draw(view: &View, area: Rect, buf: &mut Buffer) {
    Paragraph::new(content(view)).wrap(Wrap { trim: false }).render(area, buf);
}

/// The lines that these lines take at this width. Wrapping leaves the end of a line empty where a
/// word does not fit.
fn wrapped(lines: &[Line<'_>], width: u16) -> u16 {
    let width = usize::from(width.max(1));
    let taken = lines.iter().map(|line| match line.width() {
        all if all <= width => 1,
        all => all.div_ceil(width) + 1,
    });
    u16::try_from(taken.sum::<usize>()).unwrap_or(u16::MAX)
}

fn content(view: &View) -> Vec<Line<'static>> {
    let dim = Style::new().add_modifier(Modifier::DIM);
    let state = match (view.failure(), view.status()) {
        (Some((why, since)), _) => {
            let time = two_units(since.elapsed().unwrap_or_default());
            Line::from(vec![
                " NO ANSWER ".bold().black().on_red(),
                format!(" for {time}, retrying: {}", clean(why)).into(),
            ])
        }
        (None, None) => Line::from(format!("connecting to {}", view.address())),
        (None, Some(status)) if status.serving => Line::from(vec![
            " SERVING ".bold().black().on_green(),
            format!(" {} of {} shards verified", verified(status), status.shards.len()).into(),
        ]),
        (None, Some(status)) => Line::from(vec![
            " NOT SERVING ".bold().black().on_red(),
            format!(" {}", clean(&status.reason)).into(),
        ]),
    };
    let Some(status) = view.status() else {
        return vec![Line::from("trunkline top".bold()), state];
    };
    let known = status.uptime.and_then(|uptime| Duration::try_from(uptime).ok());
    let started = status.start_time.and_then(|time| SystemTime::try_from(time).ok());
    let up = known.or_else(|| started?.elapsed().ok()).unwrap_or_default();
    let title = Line::from(vec![
        clean(&status.gateway_id).bold(),
        Span::styled(
            format!(
                "  version {}, {} bus, up {}, at {}",
                clean(&status.version),
                if status.bus.is_empty() { "no".into() } else { clean(&status.bus) },
                two_units(up),
                view.address()
            ),
            dim,
        ),
    ]);
    let now = view.rates().back();
    let shown = |rate: Option<f64>| rate.map_or("–".to_owned(), rate_text);
    let events = Line::from(vec![
        "in ".into(),
        format!("{}/s", shown(now.map(|rates| rates.published))).bold(),
        "   out ".into(),
        format!("{}/s", shown(now.map(|rates| rates.delivered))).bold(),
        format!("   nodes {}{}", view.nodes().len(), here(view, status)).into(),
        "   behind ".into(),
        warned(status.behind_events),
        "   gaps ".into(),
        warned(status.stream_gaps),
        ", on the bus ".into(),
        warned(status.bus_gaps),
        format!("   missed {}   errors {}", status.missed_events, status.errors).into(),
    ]);
    let down = status.links.iter().filter(|link| !link.connected).count();
    let links = match (status.links.len(), down) {
        (0, _) => Line::from(""),
        (all, 0) => Line::styled(format!("{all} connections to the bus, all up"), dim),
        (all, down) => {
            Line::from(format!("{down} of {all} connections to the bus are DOWN").red().bold())
        }
    };
    let mut lines = vec![title, state, events, links];
    let (answered, silent) = (view.answered(), view.unanswered().len());
    if silent > 0 {
        let text = format!("{silent} of {} gateways give no answer", answered + silent);
        lines.push(Line::from(text.red().bold()));
    } else if answered > 1 {
        let text = format!("in and out of {answered} gateways, the rest of the first one");
        lines.push(Line::styled(text, dim));
    }
    lines
}

/// Where the nodes are of several gateways, the number of those of this one.
fn here(view: &View, status: &GetStatusResponse) -> String {
    let more = if view.more_nodes() { " or more" } else { "" };
    match view.gateways().len() {
        0 | 1 => more.to_owned(),
        gateways => format!("{more} on {gateways} gateways, {} here", status.streams),
    }
}

/// The lines that the keys take at this width.
pub fn keys_height(view: &View, width: u16) -> u16 {
    wrapped(&[keys_line(view)], width)
}

/// Draws the keys, and what part of the table is visible.
pub fn keys(view: &View, area: Rect, buf: &mut Buffer) {
    Paragraph::new(keys_line(view)).wrap(Wrap { trim: false }).render(area, buf);
}

fn keys_line(view: &View) -> Line<'static> {
    let table = match view.table() {
        Table::Nodes => "nodes",
        Table::Gateways => "gateways",
        Table::Shards => "shards",
        Table::Links => "links",
        Table::Agents => "agents",
    };
    let mut parts: Vec<Span<'_>> = vec![
        " q".bold(),
        " quit  ".into(),
        "space".bold(),
        (if view.is_paused() { " resume  " } else { " pause  " }).into(),
        "b r n d t".bold(),
        " sort  ".into(),
        "tab".bold(),
        " tables  ".into(),
        "arrows".bold(),
        " scroll".into(),
    ];
    let (first, all) = (view.first(), view.rows());
    if all > view.visible {
        let last = (first + view.visible).min(all);
        let more = if view.table() == Table::Nodes && view.more_nodes() { " or more" } else { "" };
        parts.push(format!("  {table} {} to {last} of {all}{more}", first + 1).into());
    }
    if view.max_shift > 0 {
        parts.push("  more: ← →".into());
    }
    if view.is_paused() {
        parts.push("  ".into());
        parts.push(" PAUSED ".bold().black().on_yellow());
    }
    Line::from(parts)
}

fn verified(status: &GetStatusResponse) -> usize {
    status.shards.iter().filter(|shard| shard.proven).count()
}
