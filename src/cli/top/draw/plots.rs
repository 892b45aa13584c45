//! The plots of the event rates.

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::Line,
    widgets::{Sparkline, Widget},
};

use super::{
    super::view::{Rates, View},
    text::rate_text,
};

/// Lines of a plot, its title included.
pub const HEIGHT: u16 = 4;

/// Draws the rates of received and of sent events side by side.
pub fn draw(view: &View, area: Rect, buf: &mut Buffer) {
    let [left, _, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(2), Constraint::Fill(1)])
            .areas(area);
    let mut plot = |area: Rect, title: &str, colour: Color, of: fn(&Rates) -> f64| {
        let [top, bars] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(HEIGHT - 1)]).areas(area);
        let wide = usize::from(area.width);
        let values: Vec<f64> = view.rates().iter().map(of).collect();
        let shown = &values[values.len().saturating_sub(wide)..];
        let max = shown.iter().copied().fold(0.0, f64::max);
        let max = if max > 0.0 { format!("max {}/s", rate_text(max)) } else { String::new() };
        Line::from(vec![title.to_owned().bold(), format!("  {max}").dim()]).render(top, buf);
        // In tenths, so that a rate below one is visible too.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let mut bars_of: Vec<u64> = shown.iter().map(|rate| (rate * 10.0) as u64).collect();
        // The newest is at the right edge.
        let empty = wide.saturating_sub(bars_of.len());
        bars_of.splice(0..0, std::iter::repeat_n(0, empty));
        Sparkline::default().data(&bars_of).style(Style::new().fg(colour)).render(bars, buf);
    };
    plot(left, "events in", Color::Cyan, |rates| rates.published);
    plot(right, "events out", Color::Blue, |rates| rates.delivered);
}
