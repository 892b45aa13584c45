//! How `top` looks. What a node calls itself is shown without control characters: it must not speak to the terminal.

use std::time::{Duration, SystemTime};

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Sparkline, Table, Widget},
};
use trunkline_proto::v1::{GetStatusResponse, ShardStatus};

use super::view::{Sort, View};

/// Lines of a plot, its title included.
const PLOT: u16 = 4;

/// Shards that are listed while there are nodes to list too.
const SHARDS: usize = 8;

/// Below this many lines there are no plots.
const SMALL: u16 = 18;

/// Draws the view.
pub fn draw(view: &mut View, area: Rect, buf: &mut Buffer) {
    let shards = view.status().map_or(0, |status| status.shards.len()).min(SHARDS);
    let shards = u16::try_from(shards).unwrap_or(u16::MAX) + 2;
    let plots = if area.height >= SMALL { PLOT + 1 } else { 0 };
    let [head, plot, shard, node, keys] = Layout::vertical([
        Constraint::Length(5),
        Constraint::Length(plots),
        Constraint::Length(shards),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    header(view, head, buf);
    if plots > 0 {
        rates(view, plot, buf);
    }
    let Some(status) = view.status() else { return footer(view, keys, buf) };
    shard_table(status, shard, buf);
    view.visible = usize::from(node.height.saturating_sub(2));
    node_table(view, node, buf);
    footer(view, keys, buf);
}

/// The whole view as plain text, every node on a line.
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
    part(5, &|area, buf| header(view, area, buf));
    part(shards.saturating_add(2), &|area, buf| shard_table(&status, area, buf));
    part(nodes.saturating_add(2), &|area, buf| node_table(view, area, buf));
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

fn header(view: &View, area: Rect, buf: &mut Buffer) {
    let faint = Style::new().add_modifier(Modifier::DIM);
    let state = match (view.trouble(), view.status()) {
        (Some((why, since)), _) => {
            let ago = ago(since.elapsed().unwrap_or_default());
            Line::from(vec![
                " NO ANSWER ".bold().black().on_red(),
                format!(" for {ago}, trying again: {}", clean(why)).into(),
            ])
        }
        (None, None) => Line::from(format!("asking {}", view.address())),
        (None, Some(status)) if status.serving => Line::from(vec![
            " SERVING ".bold().black().on_green(),
            format!(" {} of {} shards proven", proven(status), status.shards.len()).into(),
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
    let started = status.start_time.and_then(|time| SystemTime::try_from(time).ok());
    let up = started.and_then(|started| started.elapsed().ok()).unwrap_or_default();
    let title = Line::from(vec![
        clean(&status.gateway_id).bold(),
        Span::styled(
            format!(
                "  version {}, {} bus, up {}, at {}",
                clean(&status.version),
                if status.bus.is_empty() { "no" } else { &status.bus },
                ago(up),
                view.address()
            ),
            faint,
        ),
    ]);
    let now = view.rates().back();
    let said = |rate: Option<f64>| rate.map_or("–".to_owned(), rate_text);
    let events = Line::from(vec![
        "in ".into(),
        format!("{}/s", said(now.map(|rates| rates.published))).bold(),
        "   out ".into(),
        format!("{}/s", said(now.map(|rates| rates.delivered))).bold(),
        format!("   nodes {}   behind ", status.streams).into(),
        warned(status.behind_events),
        "   gaps ".into(),
        warned(status.stream_gaps + status.bus_gaps),
        format!("   missed {}   errors {}", status.missed_events, status.errors).into(),
    ]);
    let down = status.links.iter().filter(|link| !link.connected).count();
    let links = match (status.links.len(), down) {
        (0, _) => Line::from(""),
        (all, 0) => Line::styled(format!("{all} links to the bus, all up"), faint),
        (all, down) => {
            Line::from(format!("{down} of {all} links to the bus are DOWN").red().bold())
        }
    };
    Paragraph::new(vec![title, state, events, links]).render(area, buf);
}

fn rates(view: &View, area: Rect, buf: &mut Buffer) {
    let [left, _, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(2), Constraint::Fill(1)])
            .areas(area);
    let mut plot = |area: Rect, title: &str, colour: Color, of: fn(&super::view::Rates) -> f64| {
        let [top, bars] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(PLOT - 1)]).areas(area);
        let wide = usize::from(area.width);
        let values: Vec<f64> = view.rates().iter().map(of).collect();
        let shown = &values[values.len().saturating_sub(wide)..];
        let most = shown.iter().copied().fold(0.0, f64::max);
        let most =
            if most > 0.0 { format!("at most {}/s", rate_text(most)) } else { String::new() };
        Line::from(vec![title.to_owned().bold(), format!("  {most}").dim()]).render(top, buf);
        // A rate below one is an event too.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let mut bars_of: Vec<u64> = shown.iter().map(|rate| (rate * 10.0) as u64).collect();
        // The newest stands at the right.
        let empty = wide.saturating_sub(bars_of.len());
        bars_of.splice(0..0, std::iter::repeat_n(0, empty));
        Sparkline::default().data(&bars_of).style(Style::new().fg(colour)).render(bars, buf);
    };
    plot(left, "events in", Color::Cyan, |rates| rates.published);
    plot(right, "events out", Color::Blue, |rates| rates.delivered);
}

fn shard_table(status: &GetStatusResponse, area: Rect, buf: &mut Buffer) {
    let rows = status.shards.iter().map(|shard| {
        let age = shard.proof_age.and_then(|age| Duration::try_from(age).ok());
        let age = age.map_or("never".to_owned(), |age| format!("{:.1} s ago", age.as_secs_f64()));
        Row::new([
            right(shard.shard),
            if shard.proven {
                Cell::from("proven".green())
            } else {
                Cell::from("NOT PROVEN".red().bold())
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
    let widths = [6, 11, 13, 15, 12, 12, 6, 9, 11].map(Constraint::Length);
    let head = [
        "shard",
        "state",
        "last proof",
        "epoch",
        "offset",
        "log events",
        "full",
        "repairs",
        "new epochs",
    ];
    table(rows, widths, head.map(str::to_owned), &[1]).render(area, buf);
}

fn node_table(view: &View, area: Rect, buf: &mut Buffer) {
    let visible = usize::from(area.height.saturating_sub(2));
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
            right(since.map_or(String::new(), ago)),
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
        Line::from("no node holds a stream".dim()).render(line, buf);
    }
}

/// A table with a header; numbers stand at the right, texts at the left.
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

fn footer(view: &View, area: Rect, buf: &mut Buffer) {
    let mut parts: Vec<Span<'_>> = vec![
        " q".bold(),
        " quit  ".into(),
        "space".bold(),
        (if view.is_paused() { " go on  " } else { " stand still  " }).into(),
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
        parts.push(" STANDING STILL ".bold().black().on_yellow());
    }
    Line::from(parts).render(area, buf);
}

// A number or a text, which is made for it.
#[allow(clippy::needless_pass_by_value)]
fn right<'a>(value: impl ToString) -> Cell<'a> {
    Cell::from(Line::from(value.to_string()).right_aligned())
}

/// A number that had better be zero.
fn warned(number: u64) -> Span<'static> {
    let text = number.to_string();
    if number > 0 { text.yellow().bold() } else { text.into() }
}

fn proven(status: &GetStatusResponse) -> usize {
    status.shards.iter().filter(|shard| shard.proven).count()
}

/// How much of the log is used, in percent: events or bytes, whichever is nearer to its limit.
fn full(shard: &ShardStatus) -> u64 {
    let part = |used: u64, limit: u64| (used * 100).checked_div(limit).unwrap_or(0);
    let events = part(shard.log_events, shard.log_limit_events);
    events.max(part(shard.log_bytes, shard.log_limit_bytes))
}

fn rate_text(rate: f64) -> String {
    if rate >= 100.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

/// A time in its two largest units.
fn ago(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{Event, KeyCode, KeyEvent},
    };
    use tokio::time::Instant;
    use trunkline_proto::v1::{BusLink, Node};

    use super::{super::poll::Snapshot, *};

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

    /// Two looks, a second apart.
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

    fn at(text: &str, what: &str) -> usize {
        text.find(what).unwrap_or_else(|| panic!("{what:?} in\n{text}"))
    }

    #[test]
    fn a_frame_says_state_rates_shards_and_nodes() {
        let text = frame(&mut view(), 110, 30);
        for expected in [
            "gateway-1  version 1.2.3, redis bus, up ",
            " SERVING  1 of 1 shards proven",
            "in 40.0/s   out 120/s   nodes 2   behind 0",
            "1 links to the bus, all up",
            "events in  at most 40.0/s",
            "shard state",
            "1760000000000         1234           50   25 %",
            "behind▼",
            "q quit",
        ] {
            at(&text, expected);
        }
        // The one that is behind stands first.
        assert!(at(&text, "mx-1 ") < at(&text, "imap-1 "), "{text}");
        assert!(text.contains('█'), "{text}");
    }

    #[test]
    fn keys_sort_scroll_stand_still_and_quit() {
        let mut view = view();
        assert!(!press(&mut view, KeyCode::Char('r')));
        let text = frame(&mut view, 110, 30);
        assert!(at(&text, "imap-1 ") < at(&text, "mx-1 "), "{text}");
        at(&text, "events/s▼");
        press(&mut view, KeyCode::Char('r'));
        let text = frame(&mut view, 110, 30);
        assert!(at(&text, "mx-1 ") < at(&text, "imap-1 "), "{text}");

        press(&mut view, KeyCode::Char(' '));
        view.take(snapshot(2, vec![]), Instant::now());
        let text = frame(&mut view, 110, 30);
        at(&text, "STANDING STILL");
        at(&text, "imap-1 ");
        press(&mut view, KeyCode::Char(' '));

        let many = (0..100).map(|nth| node(&format!("n{nth:02}"), 0, 0)).collect();
        view.take(snapshot(3, many), Instant::now());
        press(&mut view, KeyCode::Char('n'));
        at(&frame(&mut view, 110, 30), "n00 ");
        press(&mut view, KeyCode::End);
        let text = frame(&mut view, 110, 30);
        at(&text, "n99 ");
        at(&text, " to 100 of 100");
        assert!(press(&mut view, KeyCode::Char('q')));
        assert!(press(&mut view, KeyCode::Esc));
    }

    #[test]
    fn no_answer_is_said_and_the_last_look_stays() {
        let mut view = view();
        view.no_answer("connection refused".into());
        let text = frame(&mut view, 110, 30);
        at(&text, "NO ANSWER  for 0 s, trying again: connection refused");
        at(&text, "mx-1 ");
        let mut new = View::new("10.0.0.1:7420".into(), Sort::Behind);
        at(&frame(&mut new, 80, 24), "asking 10.0.0.1:7420");
    }

    #[test]
    fn any_size_will_do() {
        let mut view = view();
        for (width, height) in [(1, 1), (20, 5), (40, 12), (80, 17), (300, 100)] {
            frame(&mut view, width, height);
        }
    }

    #[test]
    fn a_restart_is_no_burst() {
        let mut view = view();
        let mut again = snapshot(900, vec![node("mx-1", 9000, 0)]);
        again.status.start_time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
        view.take(again, Instant::now());
        assert!(view.rates().is_empty());
        at(&frame(&mut view, 110, 30), "in –/s");
    }

    #[test]
    fn plain_text_has_every_node_and_nothing_that_speaks_to_a_terminal() {
        let mut view = View::new("a".into(), Sort::Node);
        let many: Vec<_> = (0..300).map(|nth| node(&format!("n{nth:03}\u{1b}[2J"), 0, 0)).collect();
        view.take(snapshot(0, many), Instant::now());
        let text = plain(&view, 120);
        assert!(text.lines().count() > 300, "{text}");
        at(&text, "n299\u{fffd}[2J");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
