//! Draws the view of `top`: a header, plots of the rates, the shards, the nodes, and the keys.

mod header;
mod plots;
mod tables;
mod text;

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
};

use super::view::View;

/// Shards that are listed at most, so that nodes remain visible.
const MAX_SHARDS: usize = 8;

/// Terminals with fewer lines show no plots.
const MIN_HEIGHT_FOR_PLOTS: u16 = 18;

/// Draws the view.
pub fn draw(view: &mut View, area: Rect, buf: &mut Buffer) {
    let shards = view.status().map_or(0, |status| status.shards.len()).min(MAX_SHARDS);
    let shards = u16::try_from(shards).unwrap_or(u16::MAX) + tables::HEAD;
    let plots = if area.height >= MIN_HEIGHT_FOR_PLOTS { plots::HEIGHT + 1 } else { 0 };
    let [head, plot, shard, node, keys] = Layout::vertical([
        Constraint::Length(header::HEIGHT),
        Constraint::Length(plots),
        Constraint::Length(shards),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    header::draw(view, head, buf);
    if plots > 0 {
        plots::draw(view, plot, buf);
    }
    let Some(status) = view.status() else { return header::keys(view, keys, buf) };
    tables::shards(status, shard, buf);
    view.visible = usize::from(node.height.saturating_sub(tables::HEAD));
    tables::nodes(view, node, buf);
    header::keys(view, keys, buf);
}

/// The whole view as plain text, with a line for every node.
pub fn plain(view: &View, width: u16) -> String {
    let nodes = u16::try_from(view.nodes().len()).unwrap_or(u16::MAX);
    let status = view.status().cloned().unwrap_or_default();
    let shards = u16::try_from(status.shards.len()).unwrap_or(u16::MAX);
    let mut text = String::new();
    let mut part = |height: u16, draw: &dyn Fn(Rect, &mut Buffer)| {
        let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
        draw(buffer.area, &mut buffer);
        text.push_str(&lines(&buffer));
    };
    part(header::HEIGHT, &|area, buf| header::draw(view, area, buf));
    part(shards.saturating_add(tables::HEAD), &|area, buf| tables::shards(&status, area, buf));
    part(nodes.saturating_add(tables::HEAD), &|area, buf| tables::nodes(view, area, buf));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{Event, KeyCode, KeyEvent},
    };
    use tokio::time::Instant;
    use trunkline_proto::v1::{BusLink, GetStatusResponse, Node, ShardStatus};

    use super::{
        super::{poll::Snapshot, view::Sort},
        *,
    };

    fn node(id: &str, delivered: u64, behind: u64) -> Node {
        Node {
            node_id: id.into(),
            subscription_id: format!("s-{id}"),
            gateway_id: "gateway-1".into(),
            peer: "10.0.0.7:5000".into(),
            roles: vec!["imap".into()],
            delivered_events: delivered,
            behind_events: behind,
            ..Default::default()
        }
    }

    fn snapshot(second: u64, nodes: Vec<Node>) -> Snapshot {
        let shard = ShardStatus {
            shard: 0,
            epoch: 1_760_000_000_000,
            offset: 1234,
            proven: true,
            log_events: 50,
            log_limit_events: 200,
            ..Default::default()
        };
        let link = BusLink { connected: true, ..Default::default() };
        let status = GetStatusResponse {
            gateway_id: "gateway-1".into(),
            version: "1.2.3".into(),
            bus: "redis".into(),
            serving: true,
            streams: u32::try_from(nodes.len()).unwrap(),
            published_events: 100 + 40 * second,
            delivered_events: 120 * second,
            shards: vec![shard],
            links: vec![link],
            ..Default::default()
        };
        Snapshot { status, nodes, more: false }
    }

    /// A view after two snapshots, a second apart.
    fn view() -> View {
        let mut view = View::new("10.0.0.1:7420".into(), Sort::Behind);
        let begun = Instant::now();
        view.take(snapshot(0, vec![node("mx-1", 0, 0), node("imap-1", 10, 0)]), begun);
        let later = begun + Duration::from_secs(1);
        view.take(snapshot(1, vec![node("mx-1", 5, 77), node("imap-1", 40, 0)]), later);
        view
    }

    fn frame(view: &mut View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(view, frame.area(), frame.buffer_mut())).unwrap();
        lines(terminal.backend().buffer())
    }

    fn press(view: &mut View, code: KeyCode) -> bool {
        view.key(&Event::Key(KeyEvent::from(code)))
    }

    fn position(text: &str, part: &str) -> usize {
        text.find(part).unwrap_or_else(|| panic!("{part:?} in\n{text}"))
    }

    #[test]
    fn a_frame_shows_state_rates_shards_and_nodes() {
        let text = frame(&mut view(), 110, 30);
        for expected in [
            "gateway-1  version 1.2.3, redis bus, up ",
            " SERVING  1 of 1 shards verified",
            "in 40.0/s   out 120/s   nodes 2   behind 0",
            "1 connections to the bus, all up",
            "events in  max 40.0/s",
            "shard state",
            "1760000000000         1234           50   25 %",
            "behind▼",
            "q quit",
        ] {
            position(&text, expected);
        }
        // The node that is furthest behind comes first.
        assert!(position(&text, "mx-1 ") < position(&text, "imap-1 "), "{text}");
        assert!(text.contains('█'), "{text}");
    }

    #[test]
    fn keys_sort_scroll_pause_and_quit() {
        let mut view = view();
        assert!(!press(&mut view, KeyCode::Char('r')));
        let text = frame(&mut view, 110, 30);
        assert!(position(&text, "imap-1 ") < position(&text, "mx-1 "), "{text}");
        position(&text, "events/s▼");
        press(&mut view, KeyCode::Char('r'));
        let text = frame(&mut view, 110, 30);
        assert!(position(&text, "mx-1 ") < position(&text, "imap-1 "), "{text}");

        press(&mut view, KeyCode::Char(' '));
        view.take(snapshot(2, vec![]), Instant::now());
        let text = frame(&mut view, 110, 30);
        position(&text, "PAUSED");
        position(&text, "imap-1 ");
        press(&mut view, KeyCode::Char(' '));

        let many = (0..100).map(|nth| node(&format!("n{nth:02}"), 0, 0)).collect();
        view.take(snapshot(3, many), Instant::now());
        press(&mut view, KeyCode::Char('n'));
        position(&frame(&mut view, 110, 30), "n00 ");
        press(&mut view, KeyCode::End);
        let text = frame(&mut view, 110, 30);
        position(&text, "n99 ");
        position(&text, " to 100 of 100");
        assert!(press(&mut view, KeyCode::Char('q')));
        assert!(press(&mut view, KeyCode::Esc));
    }

    #[test]
    fn without_an_answer_the_last_snapshot_stays_and_the_error_is_shown() {
        let mut view = view();
        view.set_failure("connection refused".into());
        let text = frame(&mut view, 110, 30);
        position(&text, "NO ANSWER  for 0.0s, retrying: connection refused");
        position(&text, "mx-1 ");
        let mut new = View::new("10.0.0.1:7420".into(), Sort::Behind);
        position(&frame(&mut new, 80, 24), "connecting to 10.0.0.1:7420");
    }

    #[test]
    fn every_terminal_size_can_be_drawn() {
        let mut view = view();
        for (width, height) in [(1, 1), (20, 5), (40, 12), (80, 17), (300, 100)] {
            frame(&mut view, width, height);
        }
    }

    #[test]
    fn a_restart_of_the_gateway_is_not_shown_as_a_burst() {
        let mut view = view();
        let mut restarted = snapshot(900, vec![node("mx-1", 9000, 0)]);
        restarted.status.start_time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
        view.take(restarted, Instant::now());
        assert!(view.rates().is_empty());
        position(&frame(&mut view, 110, 30), "in –/s");
    }

    #[test]
    fn plain_text_lists_every_node_without_control_characters() {
        let mut view = View::new("a".into(), Sort::Node);
        let many: Vec<_> = (0..300).map(|nth| node(&format!("n{nth:03}\u{1b}[2J"), 0, 0)).collect();
        view.take(snapshot(0, many), Instant::now());
        let text = plain(&view, 120);
        assert!(text.lines().count() > 300, "{text}");
        position(&text, "n299\\u{1b}[2J");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
