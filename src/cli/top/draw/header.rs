//! The lines above and below the tables: the state of the gateway, and the keys.

use std::time::{Duration, SystemTime};

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Paragraph, Widget},
};
use trunkline_proto::v1::GetStatusResponse;

use super::{
    super::view::View,
    text::{clean, rate_text, warned},
};
use crate::cli::duration::two_units;

/// Lines of the header.
pub const HEIGHT: u16 = 5;

/// Draws the state of the gateway and its totals.
pub fn draw(view: &View, area: Rect, buf: &mut Buffer) {
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
        Paragraph::new(vec![Line::from("trunkline top".bold()), state]).render(area, buf);
        return;
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
        format!("   nodes {}   behind ", status.streams).into(),
        warned(status.behind_events),
        "   gaps ".into(),
        warned(status.stream_gaps + status.bus_gaps),
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
    Paragraph::new(vec![title, state, events, links]).render(area, buf);
}

/// Draws the keys, and what part of the nodes is visible.
pub fn keys(view: &View, area: Rect, buf: &mut Buffer) {
    let mut parts: Vec<Span<'_>> = vec![
        " q".bold(),
        " quit  ".into(),
        "space".bold(),
        (if view.is_paused() { " resume  " } else { " pause  " }).into(),
        "b r n d t".bold(),
        " sort  ".into(),
        "arrows".bold(),
        " scroll".into(),
    ];
    let (first, all) = (view.first(), view.nodes().len());
    if all > view.visible {
        let last = (first + view.visible).min(all);
        let more = if view.more_nodes() { " or more" } else { "" };
        parts.push(format!("  nodes {} to {last} of {all}{more}", first + 1).into());
    }
    if view.is_paused() {
        parts.push("  ".into());
        parts.push(" PAUSED ".bold().black().on_yellow());
    }
    Line::from(parts).render(area, buf);
}

fn verified(status: &GetStatusResponse) -> usize {
    status.shards.iter().filter(|shard| shard.proven).count()
}
