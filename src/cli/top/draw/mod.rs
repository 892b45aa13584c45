//! Draws the view of `top`: a header, plots of the rates, the shards, a table that can be scrolled,
//! and the keys.

mod header;
mod plots;
mod tables;
#[cfg(test)]
mod tests;
mod text;

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier},
};

use self::tables::Window;
use super::view::{Table, View};
use crate::cli::log::without_colours;

/// Shards that are listed above another table at most, so that its rows remain visible.
const MAX_SHARDS: usize = 8;

/// Terminals with fewer lines show the shards only in their own table.
const MIN_HEIGHT_FOR_SHARDS: u16 = 12;

/// The least width of a table that is printed as plain text.
const MIN_PLAIN_WIDTH: u16 = 40;

/// Terminals with fewer lines show no plots.
const MIN_HEIGHT_FOR_PLOTS: u16 = 18;

/// Draws the view, without colours if the environment asks for none.
pub fn draw(view: &mut View, area: Rect, buf: &mut Buffer) {
    let status = view.status().cloned();
    let preview = status.as_ref().filter(|_| view.table() != Table::Shards);
    let shards = preview.map_or(0, |status| status.shards.len().min(MAX_SHARDS));
    let shards = u16::try_from(shards).unwrap_or(u16::MAX) + tables::HEAD;
    let preview = preview.filter(|_| area.height >= MIN_HEIGHT_FOR_SHARDS);
    let plots = if area.height >= MIN_HEIGHT_FOR_PLOTS { plots::HEIGHT + 1 } else { 0 };
    let cells = tables::scrolled(view);
    view.max_shift = cells.width().saturating_sub(usize::from(area.width));
    let [head, plot, shard, table, keys] = Layout::vertical([
        Constraint::Length(header::height(view, area.width)),
        Constraint::Length(plots),
        Constraint::Length(if preview.is_some() { shards } else { 0 }),
        Constraint::Min(3),
        Constraint::Length(header::keys_height(view, area.width)),
    ])
    .areas(area);
    header::draw(view, head, buf);
    if plots > 0 {
        plots::draw(view, plot, buf);
    }
    if let Some(status) = preview {
        let rows = Rect { height: shard.height.saturating_sub(1), ..shard };
        tables::shards(status).draw(Window::default(), rows, buf);
    }
    if status.is_some() {
        view.visible = usize::from(table.height.saturating_sub(tables::HEAD));
        let rows = Rect { height: table.height.saturating_sub(1), ..table };
        let window = Window { first: view.first(), shift: view.shift() };
        cells.draw(window, rows, buf);
    }
    header::keys(view, keys, buf);
    if without_colours() {
        remove_colours(buf);
    }
}

/// Replaces colours: what has a ground of its own is reversed, and everything else stays as bold as
/// it is.
fn remove_colours(buf: &mut Buffer) {
    for cell in &mut buf.content {
        if cell.bg != Color::Reset {
            cell.modifier.insert(Modifier::REVERSED);
        }
        (cell.fg, cell.bg) = (Color::Reset, Color::Reset);
    }
}

/// The whole view as plain text, with a line for every node and as wide as it needs to be.
pub fn plain(view: &View) -> String {
    let status = view.status().cloned().unwrap_or_default();
    let mut text = String::new();
    let mut part = |width: u16, height: u16, draw: &dyn Fn(Rect, &mut Buffer)| {
        let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
        draw(buffer.area, &mut buffer);
        text.push_str(&lines(&buffer));
    };
    let width = header::width(view);
    part(width, header::height(view, width), &|area, buf| header::draw(view, area, buf));
    let tables = [
        (tables::shards(&status), status.shards.len()),
        (tables::gateways(view), view.gateways().len() + view.unanswered().len()),
        (tables::nodes(view), view.nodes().len()),
    ];
    let agents = view.agents().count();
    let agents = (agents > 0).then(|| (tables::agents(view), agents));
    for (cells, rows) in tables.into_iter().chain(agents) {
        // The head, a row at least, and an empty line.
        let height = u16::try_from(rows.max(1)).unwrap_or(u16::MAX).saturating_add(tables::HEAD);
        let width = u16::try_from(cells.width()).unwrap_or(u16::MAX).max(MIN_PLAIN_WIDTH);
        part(width, height, &|area, buf| {
            cells.draw(Window::default(), area, buf);
        });
    }
    text
}

/// The text of a buffer.
fn lines(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width.max(1));
    let mut text = String::new();
    for line in buffer.content.chunks(width) {
        let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
