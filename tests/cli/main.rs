//! The command line: the real binary, as people and scripts use it.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod check;
mod cookbook;
mod errors;
mod gaps;
mod getting_started;
mod init;
mod nodes_watch;
mod publish;
mod serve;
mod status;
mod subscribe;
mod top;

use std::time::Duration;

use serde_json::Value;
use support::{
    Gateway, GatewayOptions, LIMIT, TestNode, folder,
    gateway::trunkline,
    process::{Output, Process, Program},
};

/// Runs a command until it exits.
async fn run<const N: usize>(args: [&str; N]) -> Output {
    trunkline(args).run(LIMIT).await
}

/// The exit code of a command that was not killed.
fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{}: {}", output.status, output.stderr))
}

async fn gateway() -> Gateway {
    Gateway::start(GatewayOptions::embedded()).await
}

/// A program that talks to a gateway.
fn to<const N: usize>(gateway: &Gateway, args: [&str; N]) -> Program {
    trunkline(args).env("TRUNKLINE_GATEWAY", gateway.url())
}

/// A `subscribe` in the background, its stream open.
async fn subscribe<const N: usize>(gateway: &Gateway, args: [&str; N]) -> Process {
    let mut program = to(gateway, ["subscribe", "--heartbeats"]);
    program.args.extend(args.map(str::to_owned));
    let process = Process::start("subscribe", program);
    process.stderr_has("subscriptionId", LIMIT).await;
    process
}

/// The next `count` lines of standard output, as JSON.
async fn lines(process: &Process, count: usize) -> Vec<Value> {
    let lines = process.stdout_lines(count, LIMIT).await;
    lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// An address at which nothing listens.
fn unused_address() -> (support::ports::Port, String) {
    let port = support::ports::Port::free();
    let address = format!("127.0.0.1:{}", port.number());
    (port, address)
}

const COMMANDS: [&str; 15] = [
    "serve",
    "check",
    "config",
    "doctor",
    "publish",
    "subscribe",
    "explain",
    "status",
    "nodes",
    "gaps",
    "top",
    "bench",
    "verify",
    "completions",
    "man",
];

#[tokio::test]
async fn the_help_of_every_command_has_examples() {
    let help = run(["--help"]).await.success();
    for expected in ["Examples:\n  trunkline  ", "Exit codes:\n  0 ", "\n  78 "] {
        assert!(help.contains(expected), "{expected:?} in {help}");
    }
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} in {help}");
        let own = run([command, "--help"]).await.success();
        let (_, examples) = own.split_once("Examples:\n").unwrap_or_else(|| panic!("{own}"));
        assert!(examples.contains(&format!("trunkline {command}")), "{own}");
        for line in own.lines() {
            assert!(line.chars().count() <= 132, "{command}: {line}");
        }
    }
}

#[tokio::test]
async fn shells_complete_every_command_and_each_has_a_manual_page() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(["completions", shell]).await.success();
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}: {script}");
        assert!(script.contains("change-id"), "{shell}: the flags of kinds too");
    }
    // The shell itself takes it.
    let script = run(["completions", "bash"]).await.success();
    let complete = "source /dev/stdin; COMP_WORDS=(trunkline sub); COMP_CWORD=1; \
         _trunkline trunkline sub trunkline; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let bash = Program::new("bash", ["--norc", "-c", complete]).stdin(script);
    assert_eq!(bash.run(LIMIT).await.success(), "subscribe\n");

    let folder = folder::new();
    run(["man", &folder.path().display().to_string()]).await.success();
    for command in COMMANDS {
        let page = folder.path().join(format!("trunkline-{command}.1"));
        let page = std::fs::read_to_string(page).expect("its page");
        assert!(page.contains("Examples:"), "{page}");
    }
    let page = std::fs::read_to_string(folder.path().join("trunkline.1")).expect("a page");
    assert!(page.contains("Exit codes:"), "{page}");
    let file = folder.path().join("trunkline.1").display().to_string();
    let output = run(["man", &file]).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    assert!(output.stderr.contains(&format!("{file}: ")), "{}", output.stderr);
}

#[tokio::test]
async fn the_version_is_printed() {
    let version = run(["--version"]).await.success();
    assert_eq!(version, format!("trunkline {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_wrong_command_line_exits_with_2_and_says_what_is_right() {
    for (args, expected) in [
        (vec!["subscrib"], "subscribe"),
        (vec!["subscribe", "--knd", "custom"], "--kind"),
        (vec!["subscribe", "--kind", "mailbox"], "mailbox-change"),
        (vec!["subscribe", "--for", "10"], "10s"),
        (vec!["subscribe", "--resume", "%"], "base64"),
        (vec!["subscribe", "--gateway", "ftp://a:7420"], "http://"),
        (vec!["subscribe", "--gateway", "http://"], "invalid value 'http://'"),
        (vec!["publish"], "--help"),
        (vec!["publish", "blocked-ip"], "<ADDRESS>"),
        (vec!["publish", "mailbox-change", "--account", "a", "--types", "mail"], "email"),
        (vec!["publish", "cache-invalidation"], "<ENTRIES>"),
        (vec!["publish", "custom", "x", "--label", "a"], "KEY=VALUE"),
        (vec!["check", "--set", "prefix"], "KEY=VALUE"),
    ] {
        let output = trunkline(args.clone()).run(LIMIT).await;
        assert_eq!(code(&output), 2, "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(expected), "{args:?}: {}", output.stderr);
        assert!(output.stdout.is_empty(), "{args:?}: {}", output.stdout);
    }
}

#[tokio::test]
async fn without_a_gateway_commands_exit_with_69_at_once() {
    let (_port, address) = unused_address();
    let event = "{\"queueRefresh\":{}}";
    for args in [
        vec!["status"],
        vec!["nodes"],
        vec!["gaps"],
        vec!["bench"],
        vec!["subscribe"],
        vec!["publish", "queue-refresh"],
        vec!["publish", "--json", event],
    ] {
        let output = trunkline(args.clone()).env("TRUNKLINE_GATEWAY", &address).run(LIMIT).await;
        assert_eq!(code(&output), 69, "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(&address), "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains("refused"), "{args:?}: {}", output.stderr);
        assert!(output.took < Duration::from_secs(10), "{args:?}: {:?}", output.took);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_standard_output_is_not_an_error() {
    let gateway = gateway().await;
    let node = TestNode::connect(&gateway, "n1").await;
    let _collector = node.subscribe(node.request()).await;
    let folder = support::folder::new();
    let gate = folder.path().join("gate").display().to_string();
    // The right side closes its input before it opens the gate for the left side.
    let script = "mkfifo \"$1\"
        { cat \"$1\"; \"$0\" $2; echo \"code $?\" >&2; } | { exec <&-; echo > \"$1\"; }
        rm \"$1\"";
    for command in ["status --json", "status", "nodes --json", "nodes", "gaps", "check", "--help"] {
        let shell = Program::new("sh", ["-c", script, &binary(), &gate, command])
            .env("TRUNKLINE_GATEWAY", gateway.url())
            .run(LIMIT)
            .await;
        assert_eq!(shell.stderr, "code 0\n", "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_stand_before_and_after_the_command_and_after_the_kind() {
    let gateway = gateway().await;
    let url = gateway.url();
    let subscriber = subscribe(&gateway, ["--role", "mta"]).await;
    for args in [
        &["--gateway", &url, "status"][..],
        &["status", "--gateway", &url],
        &["--json", "--gateway", &url, "nodes"],
        &["--gateway", &url, "publish", "queue-refresh", "--to-role", "mta", "--node-id", "n"],
        &["publish", "--to-role", "mta", "queue-refresh", "--node-id", "n", "--gateway", &url],
        &["--node-id", "n", "--to-role", "mta", "publish", "queue-refresh", "--gateway", &url],
    ] {
        trunkline(args.iter().copied()).run(LIMIT).await.success();
    }
    for event in lines(&subscriber, 3).await {
        assert_eq!((&event["source"], &event["target"]["roles"][0]), (&"n".into(), &"mta".into()));
    }
    // A flag of another command is refused, wherever it stands.
    let output = run(["--gateway", &url, "check"]).await;
    assert_eq!(code(&output), 2, "{}", output.stderr);
    assert!(output.stderr.contains("'--gateway'"), "{}", output.stderr);
    let output = run(["--tls-cert", "a.pem", "--gateway", &url, "status"]).await;
    assert_eq!(code(&output), 2, "{}", output.stderr);
    assert!(output.stderr.contains("--tls-key"), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_given_without_a_port_and_the_next_one_is_tried() {
    let gateway = gateway().await;
    let (_port, unused) = unused_address();
    let both = format!("{unused},{}", gateway.address());
    run(["status", "--gateway", &both]).await.success();
    // Nothing listens at the default port of this address of loopback.
    let output = run(["status", "--gateway", "127.7.4.20"]).await;
    assert_eq!(code(&output), 69, "{}", output.stderr);
    let output = run(["subscribe", "--gateway", "127.7.4.20,[::1]:1"]).await;
    assert_eq!(code(&output), 69, "{}", output.stderr);
    assert!(output.stderr.contains("127.7.4.20: ") && output.stderr.contains("[::1]:1: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_json_where_json_is_asked_for() {
    let (_port, address) = unused_address();
    let folder = support::folder::new();
    let wrong = folder.path().join("wrong.json").display().to_string();
    std::fs::write(&wrong, r#"{"logFormat": "json", "shards": 0}"#).expect("a file");
    let event = r#"{"queueRefreshed":{}}"#;
    for (args, expected, kind) in [
        (&["status", "--json"][..], 69, "unavailable"),
        (&["--json", "nodes"], 69, "unavailable"),
        (&["top", "--json"], 69, "unavailable"),
        (&["bench", "--json"], 69, "unavailable"),
        (&["subscribe", "--json"], 69, "unavailable"),
        (&["status", "--json", "--jsn"], 2, "usage"),
        (&["explain", "--json", "--event", event], 3, "input"),
        (&["doctor", "--json", "--config", &wrong], 1, "other"),
    ] {
        let program = trunkline(args.iter().copied()).env("TRUNKLINE_GATEWAY", &address);
        let output = program.run(LIMIT).await;
        assert_eq!(code(&output), expected, "{args:?}: {}", output.stderr);
        let error: Value = serde_json::from_str(&output.stderr).expect(&output.stderr);
        assert_eq!(error["error"]["kind"], kind, "{error}");
        assert_eq!(error["error"]["exitCode"], expected, "{error}");
        assert!(error["error"]["message"].as_str().is_some_and(|text| !text.is_empty()));
    }
    // So it is in the log of a gateway.
    let output = run(["serve", "--config", &wrong]).await;
    assert_eq!(code(&output), 78);
    let line: Value = serde_json::from_str(&output.stderr).expect(&output.stderr);
    assert_eq!(line["level"], "ERROR", "{line}");
    assert!(line["message"].as_str().is_some_and(|text| text.contains("shards")), "{line}");
    let options = GatewayOptions::embedded().set("logFormat", "json");
    let gateway = Gateway::start(options).await;
    gateway.stderr_has("commands to try", LIMIT).await;
    for line in gateway.stderr().lines() {
        let line: Value = serde_json::from_str(line).expect(line);
        assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
    }
}

/// The binary under test, for a shell.
fn binary() -> String {
    support::gateway::binary().display().to_string()
}
