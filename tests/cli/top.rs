//! `trunkline top`, in a real terminal and without one.

use std::process::{Command, Stdio};

use super::{gateway, run, to, unused_address};
use crate::support::{
    Gateway, LIMIT, TestNode, events::numbered, folder, gateway::binary, tools, until,
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
    assert!(line.ends_with("0.0         0           3"), "{line:?}");
    assert!(!output.contains('\u{1b}'), "{output:?}");
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
