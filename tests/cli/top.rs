//! `trunkline top`, in a real terminal and without one.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{gateway, run, to, unused_address};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events::numbered, folder,
    gateway::binary, shared, tools, until,
};

/// A terminal without a screen: a tmux server of its own.
struct Terminal {
    folder: tempfile::TempDir,
}

impl Terminal {
    /// Opens a terminal with a shell whose prompt is `ready$`.
    fn open() -> Terminal {
        let terminal = Terminal { folder: folder::new() };
        let shell = "exec env PS1='ready$ ' sh -i";
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "40", shell]);
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let socket = self.folder.path().join("tmux");
        let mut command = Command::new(tools::tmux());
        // The server must not keep the output of the test runner open.
        command.arg("-S").arg(socket).args(args).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().expect("tmux");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn types(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    fn presses(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn runs(&self, command: &str) {
        self.types(command);
        self.presses("Enter");
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// A flag of the terminal, as `alternate_on`.
    fn has(&self, flag: &str) -> bool {
        self.tmux(&["display-message", "-p", &format!("#{{{flag}}}")]).trim() == "1"
    }

    async fn shows(&self, text: &str) -> String {
        until(LIMIT, &format!("{text:?} on the screen"), async || self.screen().contains(text))
            .await;
        self.screen()
    }

    /// Waits until the terminal is restored and the shell is back.
    async fn is_restored(&self) {
        until(LIMIT, "the restored terminal", async || {
            !self.has("alternate_on")
                && self.has("cursor_flag")
                && !self.screen().contains("behind")
        })
        .await;
        // In raw mode the input would not be echoed, and lines would not end.
        self.runs("echo as it $((1 + 1))was");
        self.shows("\nas it 2was\n").await;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_ends_with_its_terminal() {
    let gateway = gateway().await;
    let terminal = Terminal::open();
    terminal.shows("ready$").await;
    terminal.runs(&format!("exec {}", top(&gateway)));
    terminal.shows("SERVING").await;
    let pid = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]).trim().to_owned();
    let process = std::path::Path::new("/proc").join(pid);
    let name = std::fs::read_to_string(process.join("comm")).expect("the view runs");
    assert_eq!(name.trim(), "trunkline");
    terminal.tmux(&["kill-server"]);
    until(LIMIT, "the end of the view", async || !process.exists()).await;
}

fn top(gateway: &Gateway) -> String {
    format!("{} top --gateway {} --interval 0.2", binary().display(), gateway.url())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_shows_nodes_handles_keys_and_restores_the_terminal() {
    let gateway = gateway().await;
    let (quiet, busy) = (
        TestNode::connect(&gateway, "quiet-1").await,
        TestNode::connect(&gateway, "xbusy-1").await,
    );
    let mut request = quiet.request();
    request.filter = Some(trunkline_proto::v1::Filter { kinds: vec![14], ..Default::default() });
    let _quiet = quiet.subscribe(request).await;
    let _busy = busy.subscribe(busy.request()).await;

    let terminal = Terminal::open();
    terminal.shows("ready$").await;
    terminal.runs(&top(&gateway));
    let screen = terminal.shows("xbusy-1").await;
    assert!(screen.contains("SERVING") && screen.contains("embedded bus"), "{screen}");
    assert!(screen.find("quiet-1") < screen.find("xbusy-1"), "{screen}");
    assert!(terminal.has("alternate_on"));

    quiet.publish(numbered("e", 50, 1)).await.expect("published");
    terminal.shows("nodes 2").await;
    terminal.presses("d");
    until(LIMIT, "the busy one first", async || {
        let screen = terminal.screen();
        screen.contains("delivered▼") && screen.find("xbusy-1") < screen.find("quiet-1")
    })
    .await;
    terminal.presses("Space");
    terminal.shows("PAUSED").await;
    terminal.presses("Space");
    // A smaller window is redrawn at once, without plots.
    terminal.tmux(&["resize-window", "-x", "90", "-y", "14"]);
    until(LIMIT, "the smaller view", async || {
        let screen = terminal.screen();
        screen.contains("xbusy-1") && screen.contains("q quit") && !screen.contains("events in")
    })
    .await;
    terminal.tmux(&["resize-window", "-x", "120", "-y", "40"]);
    terminal.shows("events in").await;

    // The gateway is killed and restarted.
    gateway.kill_9();
    terminal.shows("NO ANSWER").await;
    gateway.restart().await;
    terminal.shows("SERVING  1 of 1").await;
    terminal.presses("q");
    terminal.is_restored().await;

    // Ctrl-C and a signal from another process restore the terminal too.
    terminal.runs("clear");
    terminal.runs(&top(&gateway));
    terminal.shows("SERVING  1 of 1").await;
    terminal.presses("C-c");
    terminal.is_restored().await;
    terminal.runs("clear");
    terminal.runs(&format!("{} & top=$!; (sleep 2; kill -TERM $top) & fg %1", top(&gateway)));
    terminal.shows("SERVING  1 of 1").await;
    terminal.is_restored().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_one_frame_is_printed() {
    let gateway = gateway().await;
    let node = TestNode::connect(&gateway, "mx1").await;
    let collector = node.subscribe(node.request()).await;
    TestNode::connect(&gateway, "p").await.publish(numbered("e", 3, 1)).await.expect("published");
    collector.events(3, LIMIT).await;
    let output = to(&gateway, ["top", "--interval", "0.1"]).run(LIMIT).await.success();
    for expected in ["SERVING  1 of 1 shards verified", "in 0.0/s   out 0.0/s   nodes 1   behind 0"]
    {
        assert!(output.contains(expected), "{expected:?} in {output}");
    }
    let line = output.lines().find(|line| line.starts_with("mx1 ")).expect("the node");
    let cells: Vec<_> = line.split_whitespace().collect();
    assert!(cells.windows(3).any(|cells| cells == ["0.0", "0", "3"]), "{line:?}");
    assert!(!output.contains('\u{1b}'), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_of_all_gateways_are_shown_as_text_and_as_json() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = |id: &str| GatewayOptions::redis(&redis.url(), &prefix).set("gatewayId", id);
    let (one, two) = tokio::join!(Gateway::start(options("gw-1")), Gateway::start(options("gw-2")));
    let (near, far) = (TestNode::connect(&one, "near").await, TestNode::connect(&two, "far").await);
    let _streams = (near.subscribe(near.request()).await, far.subscribe(far.request()).await);
    until(LIMIT, "the node of the other gateway", async || {
        let json = to(&one, ["--json", "top", "--interval", "0.1"]).run(LIMIT).await.success();
        let json: Value = serde_json::from_str(&json).expect("JSON");
        let of = |key: &str, id: &str| {
            let mut ids: Vec<_> = json[key].as_array().expect("a list").iter().collect();
            ids.sort_by_key(|one| one[id].to_string());
            ids.iter().map(|one| one[id].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(json["status"]["gatewayId"], "gw-1");
        of("nodes", "nodeId") == ["far", "near"] && of("gateways", "gatewayId") == ["gw-1", "gw-2"]
    })
    .await;
    let text = to(&one, ["top", "--once", "--interval", "0.1"]).run(LIMIT).await.success();
    assert!(text.contains("nodes 2 on 2 gateways, 1 here"), "{text}");
    for start in ["far ", "near ", "gw-1 ", "gw-2 "] {
        assert!(text.lines().any(|line| line.starts_with(start)), "{start} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_colours_are_used_where_the_environment_asks_for_none() {
    let gateway = gateway().await;
    let colours = async |command: String| {
        let terminal = Terminal::open();
        terminal.shows("ready$").await;
        terminal.runs(&command);
        terminal.shows("SERVING").await;
        let screen = terminal.tmux(&["capture-pane", "-p", "-e"]);
        // Foregrounds and grounds: 30 to 49, and 90 to 107.
        let codes = screen.split('\u{1b}').filter_map(|part| part.strip_prefix('['));
        let codes = codes.filter_map(|part| part.split_once('m'));
        let numbers = codes.flat_map(|(codes, _)| codes.split(';').map(str::parse::<u8>));
        let is_colour =
            |code: &u8| (30..39).contains(code) || (40..49).contains(code) || *code > 89;
        numbers.flatten().filter(is_colour).count()
    };
    assert!(colours(top(&gateway)).await > 0);
    assert_eq!(colours(format!("NO_COLOR=1 {}", top(&gateway))).await, 0);
}

#[tokio::test]
async fn a_missing_gateway_and_a_wrong_interval_are_reported() {
    let (_port, address) = unused_address();
    let output = run(["top", "--once", "--gateway", &address]).await;
    assert_eq!(output.status.code(), Some(69), "{}", output.stderr);
    let output = run(["top", "--interval", "0"]).await;
    assert_eq!(output.status.code(), Some(2), "{}", output.stderr);
    assert!(output.stderr.contains("0.1 to 3600"), "{}", output.stderr);
}
