//! Frames of the view, as text.

use std::time::Duration;

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{Event, KeyCode, KeyEvent},
    style::Style,
};
use tokio::time::Instant;
use trunkline_proto::v1::{
    AgentChannel, AgentHealing, AgentProgram, AgentReport, BusLink, Gateway, GatewayState,
    GetStatusResponse, Node, ShardStatus,
};

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
    let gateway = |id: &str, state: GatewayState| Gateway {
        gateway_id: id.into(),
        state: state.into(),
        address: "10.0.0.1:7420".into(),
        ..Default::default()
    };
    let gateways = vec![
        gateway("gateway-1", GatewayState::Serving),
        gateway("gateway-2", GatewayState::Silent),
    ];
    Snapshot { status, gateways, nodes, ..Default::default() }
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
        "in 40.0/s   out 120/s   nodes 2 on 2 gateways, 2 here   behind 0",
        "1 connections to the bus, all up",
        "events in  max 40.0/s",
        "shard  state",
        "1760000000000    1234          50  25 %",
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
fn processed_events_stand_beside_those_that_were_sent() {
    let mut view = View::new("10.0.0.1:7420".into(), Sort::Node);
    let watch = |id: &str, acknowledged: bool| Node {
        watch: true,
        unacknowledged_events: 10,
        acknowledge_time: acknowledged.then(Default::default),
        ..node(id, 123, 0)
    };
    let nodes = vec![watch("a", true), watch("b", false), node("c", 123, 0)];
    view.take(snapshot(0, nodes), Instant::now());
    let text = frame(&mut view, 160, 30);
    let row = |id: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(id)).expect("a row");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for (id, cells) in [
        ("a ", ["123", "113", "Watch"]),
        ("b ", ["123", "–", "Watch"]),
        ("c ", ["123", "–", "Subscribe"]),
    ] {
        let row = row(id);
        assert!(row.windows(3).any(|part| part == cells), "{row:?} in\n{text}");
    }
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
    let text = plain(&view);
    assert!(text.lines().count() > 300, "{text}");
    position(&text, "n299\\u{1b}[2J");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

/// A view of a node with long names.
fn wide() -> View {
    let mut view = View::new("a".into(), Sort::Node);
    let node = Node {
        node_id: "mx-1".into(),
        gateway_id: format!("gateway-{}", "x".repeat(60)),
        peer: "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".into(),
        client_version: "imapd 2.4.1 (the end)".into(),
        ..Default::default()
    };
    view.take(snapshot(0, vec![node]), Instant::now());
    view
}

#[test]
fn every_column_can_be_scrolled_to_and_the_first_one_stays() {
    let mut view = wide();
    let text = frame(&mut view, 80, 30);
    position(&text, "more: ← →");
    assert!(text.contains('›') && !text.contains("imapd"), "{text}");
    let mut seen = text;
    for _ in 0..20 {
        press(&mut view, KeyCode::Right);
        let text = frame(&mut view, 80, 30);
        position(&text, "mx-1 ");
        seen.push_str(&text);
    }
    for part in ["]:65535", "imapd 2.4.1 (the end)", "delivered", "events/s", "version"] {
        position(&seen, part);
    }
    let head = |view: &mut View| {
        let text = frame(view, 80, 30);
        text.lines().find(|line| line.contains("node▼")).expect("the head").to_owned()
    };
    let end = head(&mut view);
    assert!(end.contains('‹') && !end.contains('›'), "{end}");
    // At the end the arrow does nothing more.
    press(&mut view, KeyCode::Left);
    assert!(head(&mut view).contains('›'));
    // In a terminal that is narrower than the name of the node, everything scrolls.
    for _ in 0..40 {
        press(&mut view, KeyCode::Right);
        seen.push_str(&frame(&mut view, 7, 30));
    }
    position(&frame(&mut view, 7, 30), "end)");
}

#[test]
fn plain_text_cuts_nothing() {
    let text = plain(&wide());
    for part in ["]:65535", "imapd 2.4.1 (the end)", "new epochs", "gateway-2  SILENT"] {
        position(&text, part);
    }
    assert!(!text.contains(['›', '‹']), "{text}");
}

#[test]
fn tab_shows_all_gateways_shards_and_links() {
    let mut view = view();
    press(&mut view, KeyCode::Tab);
    let text = frame(&mut view, 110, 30);
    // The one that does not serve comes first.
    assert!(position(&text, "gateway-2") < position(&text, "gateway-1  serving"), "{text}");
    let mut many = snapshot(2, vec![]);
    let shard = many.status.shards[0];
    many.status.shards = (0..30).map(|nth| ShardStatus { shard: nth, ..shard }).collect();
    many.status.shards[17].proven = false;
    view.take(many, Instant::now());
    press(&mut view, KeyCode::Tab);
    let text = frame(&mut view, 110, 30);
    assert!(text.contains("shards 1 to "), "{text}");
    let first_row = text.lines().skip_while(|line| !line.contains("last probe")).nth(1);
    assert!(first_row.is_some_and(|row| row.contains("17  NOT VERIFIED")), "{text}");
    press(&mut view, KeyCode::End);
    position(&frame(&mut view, 110, 30), "   29  verified");
    press(&mut view, KeyCode::Tab);
    position(&frame(&mut view, 110, 30), "server  purpose  state  reconnects");
    press(&mut view, KeyCode::Tab);
    position(&frame(&mut view, 110, 30), "no agent is connected");
    press(&mut view, KeyCode::Tab);
    position(&frame(&mut view, 110, 30), "no node is connected");
    press(&mut view, KeyCode::BackTab);
    press(&mut view, KeyCode::BackTab);
    position(&frame(&mut view, 110, 30), "reconnects");
}

#[test]
fn agents_are_shown_with_their_programs_and_what_waits() {
    let program = |id: &str, duplicate| AgentProgram {
        program_id: id.into(),
        version: "0.16.19".into(),
        duplicate,
        ..Default::default()
    };
    let agent = AgentReport {
        host: "mx-host".into(),
        programs: vec![program("0", false), program("3", true)],
        published_messages: 71,
        waiting_events: 5,
        joined_channel: Some(AgentChannel {
            channel: "stwt.agora".into(),
            carried: true,
            ..Default::default()
        }),
        waiting_age: Some(prost_types::Duration { seconds: 12, nanos: 0 }),
        last_healings: vec![AgentHealing {
            reason: "it has subscribed".into(),
            programs: 1,
            accounts: 9,
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut view = View::new("a".into(), Sort::Node);
    let nodes = vec![node("plain", 0, 0), Node { agent: Some(agent), ..node("agent-1", 0, 0) }];
    view.take(snapshot(0, nodes), Instant::now());
    press(&mut view, KeyCode::BackTab);
    let text = frame(&mut view, 250, 30);
    for part in [
        "agent-1  mx-host  0 (0.16.19), 3 (0.16.19) DUPLICATE  carries stwt.agora",
        "5 waiting for 12.0s",
        "it has subscribed: 1 program, with 9 accounts",
    ] {
        position(&text, part);
    }
    assert!(!text.contains("plain"), "{text}");
    position(&plain(&view), "3 (0.16.19) DUPLICATE");
}

#[test]
fn the_gateways_that_are_asked_are_shown_with_their_rates_and_those_without_an_answer_too() {
    let mut view = View::new("a,b,c".into(), Sort::Node);
    let begun = Instant::now();
    for second in 0..2 {
        let mut all = snapshot(second, vec![]);
        let other = GetStatusResponse {
            gateway_id: "gateway-2".into(),
            published_events: 10 * second,
            delivered_events: 30 * second,
            behind_events: 4,
            ..all.status.clone()
        };
        all.others = vec![GetStatusResponse { shards: vec![ShardStatus::default()], ..other }];
        all.unanswered = vec![("c:7420".into(), "connection refused".into())];
        view.take(all, begun + Duration::from_secs(second));
    }
    let text = frame(&mut view, 160, 30);
    // Of both together.
    position(&text, "in 50.0/s   out 150/s");
    position(&text, "1 of 3 gateways give no answer");
    press(&mut view, KeyCode::Tab);
    let text = frame(&mut view, 160, 30);
    let line = |id: &str| text.lines().rfind(|line| line.starts_with(id)).unwrap_or_default();
    let cells = |id: &str| line(id).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert!(line("c:7420").contains("NO ANSWER"), "{text}");
    assert!(line("c:7420").contains("connection refused"), "{text}");
    assert_eq!(cells("gateway-1")[3..10], ["40.0", "120", "0", "0", "1", "of", "1"], "{text}");
    assert_eq!(cells("gateway-2")[3..10], ["10.0", "30.0", "4", "0", "0", "of", "1"], "{text}");
    let json = view.to_json().unwrap();
    assert_eq!(json["publishedPerSecond"], 50.0);
    assert_eq!(json["gateways"][1]["deliveredPerSecond"], 120.0);
    assert_eq!(json["unanswered"][0]["why"], "connection refused");
    assert_eq!(json["otherStatuses"][0]["gatewayId"], "gateway-2");
}

#[test]
fn a_gateway_that_the_first_one_does_not_list_has_a_row_too() {
    let mut view = View::new("a,b".into(), Sort::Node);
    let mut all = snapshot(0, vec![]);
    let listed = all.gateways.len();
    let other =
        GetStatusResponse { gateway_id: "elsewhere".into(), streams: 7, ..all.status.clone() };
    all.others = vec![other];
    all.add_unlisted();
    all.add_unlisted();
    assert_eq!(all.gateways.len(), listed + 1, "once");
    view.take(all, Instant::now());
    press(&mut view, KeyCode::Tab);
    let text = frame(&mut view, 160, 30);
    let row = text.lines().find(|line| line.starts_with("elsewhere")).unwrap_or_default();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[1..3], ["serving", "7"], "{text}");
}

#[test]
fn a_long_reason_is_wrapped() {
    let mut not_serving = snapshot(0, vec![]);
    not_serving.status.serving = false;
    not_serving.status.reason = format!("{}the end", "shard 3: no master. ".repeat(12));
    let mut view = View::new("a".into(), Sort::Node);
    view.take(not_serving, Instant::now());
    position(&frame(&mut view, 60, 30), "the end");
}

#[test]
fn without_colours_grounds_are_reversed() {
    let mut buffer = Buffer::empty(Rect::new(0, 0, 30, 1));
    let style = Style::new().fg(Color::Black).bg(Color::Red).add_modifier(Modifier::BOLD);
    buffer.set_string(0, 0, "x", style);
    buffer.set_string(1, 0, "y", Style::new().fg(Color::Green));
    remove_colours(&mut buffer);
    assert!(buffer.content.iter().all(|c| (c.fg, c.bg) == (Color::Reset, Color::Reset)));
    assert_eq!(buffer.content[0].modifier, Modifier::BOLD | Modifier::REVERSED);
    assert!(buffer.content[1].modifier.is_empty());
}
