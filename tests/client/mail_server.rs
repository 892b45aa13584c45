//! The example `mail_server`, as real processes over real gateways.

use super::{
    Pair, example,
    support::{
        self, Gateway, GatewayOptions, LIMIT, TestNode,
        events::numbered,
        folder,
        process::{Process, Program},
        until,
    },
};
use serde_json::json;

/// A running node with these commands as its input.
fn node(args: &[&str], gateways: &[&Gateway], commands: &str) -> Process {
    let mut program =
        Program::new(example::binary("mail_server"), args.iter().copied()).stdin(commands);
    for gateway in gateways {
        program.args.extend(["--gateway".to_owned(), gateway.url()]);
    }
    Process::start(&format!("mail server {}", args[0]), program)
}

/// Waits until a node has printed a line that begins with `line`.
async fn says(node: &Process, line: &str) -> String {
    support::eventually(LIMIT, &format!("the line {line:?} of {}", node.stdout()), async || {
        node.stdout().lines().find(|found| found.starts_with(line)).map(str::to_owned)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_receives_the_events_of_the_other_over_two_gateways() {
    let Pair { redis: _redis, first, second } = Pair::start().await;

    let mx2 = node(&["mx2", "--role", "mta"], &[&second], "idle alice\nlogin bob\nlogin bob\n");
    says(&mx2, "load: banned networks").await;
    says(&mx2, "alice: IDLE").await;
    says(&mx2, "bob: permissions looked up").await;
    says(&mx2, "bob: permissions cached").await;

    let commands =
        "idle alice\ndeliver alice\nban 192.0.2.7\npassword bob\nrenew example.org\nwhat\n";
    let mx1 = node(&["mx1"], &[&first], commands);
    says(&mx2, "alice: wake 1 IDLE (change ").await;
    says(&mx2, "alice: push message-").await;
    says(&mx2, "reread the queue (mx1)").await;
    says(&mx2, "refuse 192.0.2.7: too many failed logins (mx1)").await;
    says(&mx2, "drop the cached permissions of bob").await;
    says(&mx2, "load certificate acme-example.org for example.org (mx1)").await;
    // Its own client is woken directly, and its own events do not come back.
    says(&mx1, "idle|deliver|").await;
    let woken = mx1.stdout().lines().filter(|line| line.starts_with("alice: wake")).count();
    assert_eq!(woken, 1, "{}", mx1.stdout());
    assert!(!mx1.stdout().contains("(mx1)"), "{}", mx1.stdout());

    for node in [mx1, mx2] {
        node.signal("TERM");
        let (status, _) = node.wait(LIMIT).await;
        assert!(status.success(), "{status}: {}", node.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_a_node_receives_missed_events_or_reloads() {
    let options = GatewayOptions::embedded()
        .set("log", json!({ "maxEvents": 30 }))
        .set("history", json!({ "maxFrames": 30 }));
    let gateway = Gateway::start(options).await;
    let folder = folder::new();
    let state = folder.path().join("token").display().to_string();
    let start = || node(&["mx2", "--state", &state], &[&gateway], "idle account-0\n");
    let stop = async |node: Process| {
        node.signal("TERM");
        assert!(node.wait(LIMIT).await.0.success());
    };

    let mx2 = start();
    says(&mx2, "account-0: IDLE").await;
    stop(mx2).await;
    let publisher = TestNode::connect(&gateway, "mx1").await;
    publisher.publish(support::events::one_of_each("account-0")).await.expect("published");
    let mx2 = start();
    says(&mx2, "account-0: push message-1 (mx1)").await;
    says(&mx2, "refuse 192.0.2.7").await;
    stop(mx2).await;

    for event in numbered("e", 100, 1) {
        publisher.publish(vec![event]).await.expect("published");
    }
    let mx2 = start();
    let missed = says(&mx2, "missed ").await;
    let count: u64 = missed.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    assert!((60..100).contains(&count), "{missed}");
    // Once at the start and once for the gap.
    until(LIMIT, "everything is reloaded", async || {
        mx2.stdout().matches("load: banned networks").count() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_gateway_refuses_exits_with_the_error() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let refused = node(&["n".repeat(200).as_str()], &[&gateway], "");
    let (status, _) = refused.wait(LIMIT).await;
    assert_eq!(status.code(), Some(1));
    assert!(refused.stderr().contains("node_id"), "{}", refused.stderr());
}
