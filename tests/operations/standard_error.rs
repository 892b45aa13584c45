//! A standard error that takes no lines: the gateway serves, counts what it dropped, and ends.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use super::support::{
    Gateway, GatewayOptions, LIMIT, TestNode,
    events::numbered,
    folder,
    gateway::binary,
    process::{Process, Program},
    until,
};

/// A program that starts the gateway with another standard error: `redirect` in the words of a
/// shell.
fn redirected(folder: &Path, redirect: &str) -> std::path::PathBuf {
    let script = folder.join("trunkline");
    let program = binary().display().to_string();
    fs::write(&script, format!("#!/bin/bash\nexec '{program}' \"$@\" {redirect}\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

fn noisy(binary: &Path) -> GatewayOptions {
    GatewayOptions::embedded().binary(binary).set("logLevel", "trace")
}

async fn dropped(gateway: &Gateway) -> u64 {
    let metrics = gateway.admin("/metrics").await;
    let name = "trunkline_log_lines_dropped_total ";
    metrics.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap()
}

/// Streams are opened, and events cross, whatever becomes of the lines about them.
async fn serves(gateway: &Gateway) {
    for round in 0..20 {
        let node = TestNode::connect(gateway, format!("node-{round}")).await;
        let stream = node.subscribe(node.request()).await;
        let other = TestNode::connect(gateway, "other").await;
        for batch in numbered(&format!("e{round}"), 100, 7).chunks(10) {
            other.publish(batch.to_vec()).await.unwrap();
        }
        stream.event(&format!("e{round}-99"), LIMIT).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_a_closed_pipe_and_a_closed_descriptor_stop_nothing() {
    let folder = folder::new();
    for (redirect, drops) in
        [("2>/dev/full", true), ("2> >(exec true)", true), ("2>&-", false), ("2>/dev/null", false)]
    {
        let gateway = Gateway::start(noisy(&redirected(folder.path(), redirect))).await;
        serves(&gateway).await;
        assert_eq!(dropped(&gateway).await > 0, drops, "{redirect}");
        let ended = gateway.terminate(LIMIT).await;
        assert!(ended.status.success(), "{redirect}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_nobody_reads_stops_nothing_and_a_late_reader_is_told() {
    let folder = folder::new();
    let fifo = folder.path().join("fifo").display().to_string();
    Program::new("mkfifo", [fifo.as_str()]).run(LIMIT).await.success();
    // Opened for both: so it is open, and nobody reads.
    let redirect = format!("3<>'{fifo}' 2>'{fifo}'");
    let gateway = Gateway::start(noisy(&redirected(folder.path(), &redirect))).await;
    until(LIMIT, "lines are dropped", async || {
        serves(&gateway).await;
        dropped(&gateway).await > 100
    })
    .await;
    let memory = gateway.rss_bytes();
    serves(&gateway).await;
    assert!(gateway.rss_bytes() < memory + (16 << 20), "the queue is bounded");

    let reader = Process::start("reader", Program::new("cat", [fifo.as_str()]));
    until(LIMIT, "the reader is notified", async || {
        serves(&gateway).await;
        reader.stdout().contains("log lines were dropped")
    })
    .await;
    reader.kill_9();
    // Nobody reads again: the end does not wait for a reader.
    until(LIMIT, "the pipe is full again", async || {
        let before = dropped(&gateway).await;
        serves(&gateway).await;
        dropped(&gateway).await > before
    })
    .await;
    let ended = gateway.terminate(LIMIT).await;
    assert!(ended.status.success() && ended.took < Duration::from_secs(10), "{ended:?}");
}

#[tokio::test]
async fn an_error_of_the_configuration_ends_a_gateway_whose_errors_nobody_reads() {
    let folder = folder::new();
    let fifo = folder.path().join("fifo").display().to_string();
    Program::new("mkfifo", [fifo.as_str()]).run(LIMIT).await.success();
    for redirect in ["2>/dev/full".to_owned(), format!("3<>'{fifo}' 2>'{fifo}'")] {
        // The pipe is full before the gateway writes its first line.
        let fill = format!("{redirect}; true");
        let script = redirected(folder.path(), &redirect);
        let fills = format!("exec {fill} && yes >&2 & sleep 0.2; kill $!");
        Program::new("bash", ["-c", &fills]).run(LIMIT).await;
        let program = Program::new(script, ["serve", "--set", "shards=0"]);
        let ended = program.run(LIMIT).await;
        assert_eq!(ended.status.code(), Some(78), "{redirect}: {ended:?}");
        assert!(ended.took < Duration::from_secs(10), "{ended:?}");
    }
}
