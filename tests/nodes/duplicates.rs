//! Two live processes with one node id are notified; a single process never is.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use trunkline_proto::v1::{Notice, NoticeReason, SubscribeRequest};

use super::{
    node_ids, nodes, one_more, redis,
    support::{Collector, Gateway, LIMIT, TestNode, until},
    two,
};

/// The time after which two connected processes are duplicates in these tests, and the time after
/// that in which they are notified.
const TAKEOVER: Duration = Duration::from_secs(7);
const TOLD: Duration = Duration::from_secs(TAKEOVER.as_secs() + 8);

async fn open(gateway: &Gateway, node_id: &str, incarnation: &str) -> Collector {
    let node = TestNode::connect(gateway, node_id).await;
    let incarnation = incarnation.to_owned();
    node.subscribe(SubscribeRequest { incarnation, ..node.request() }).await
}

/// Waits for the `count`th notice of a stream.
async fn notice(collector: &Collector, count: usize) -> Notice {
    let look = |recording: &super::support::Recording| {
        recording.notices().get(count).map(|notice| (*notice).clone())
    };
    collector.wait(TOLD, "a notice", look).await
}

/// The value of the metric.
async fn duplicate_nodes(gateway: &Gateway) -> String {
    let mut stream = TcpStream::connect(gateway.admin_address()).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("trunkline_duplicate_nodes "));
    line.unwrap_or_default().to_owned()
}

async fn duplicates(gateway: &Gateway) -> Vec<bool> {
    nodes(gateway).await.iter().map(|node| node.duplicate).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_one_id_are_notified_on_both_gateways_until_one_leaves() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let bystander = open(&a, "another", "boot-9").await;
    let one = open(&a, "node", "boot-1").await;
    let begun = Instant::now();
    let two = open(&b, "node", "boot-2").await;
    for (stream, own, other, gateway) in
        [(&one, "boot-1", "boot-2", "gw-b"), (&two, "boot-2", "boot-1", "gw-a")]
    {
        let notice = notice(stream, 0).await;
        assert_eq!(notice.reason(), NoticeReason::DuplicateNodeId);
        assert!(notice.text.contains(other) && !notice.text.contains(own), "{}", notice.text);
        assert_eq!(notice.other_processes.len(), 1, "{notice:?}");
        let process = &notice.other_processes[0];
        assert_eq!((&*process.incarnation, &*process.gateway_id), (other, gateway));
    }
    assert!(begun.elapsed() >= TAKEOVER, "{:?}", begun.elapsed());
    for gateway in [&a, &b] {
        until(LIMIT, "listed", async || duplicates(gateway).await == [false, true, true]).await;
        until(LIMIT, "counted", async || duplicate_nodes(gateway).await == "1").await;
        gateway.stderr_has("boot-2", LIMIT).await;
    }
    drop(two);
    let ended = notice(&one, 1).await;
    assert_eq!(ended.reason(), NoticeReason::DuplicateNodeIdEnded);
    for gateway in [&a, &b] {
        until(LIMIT, "listed", async || duplicates(gateway).await == [false, false]).await;
        until(LIMIT, "counted", async || duplicate_nodes(gateway).await == "0").await;
    }
    one.with(|recording| assert_eq!(recording.notices().len(), 2));
    bystander.with(|recording| assert!(recording.notices().is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_of_one_process_and_its_reconnects_are_not_duplicates() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    // Many streams of one process: by its incarnation, or by its one connection.
    let mut held = vec![
        open(&a, "stated", "boot-1").await,
        open(&a, "stated", "boot-1").await,
        open(&b, "stated", "boot-1").await,
    ];
    let silent = TestNode::connect(&a, "silent").await;
    for _ in 0..2 {
        held.push(silent.subscribe(silent.request()).await);
    }
    // One that comes back again and again, to either.
    let mut returns = open(&a, "returns", "").await;
    let begun = Instant::now();
    for round in 0.. {
        if begun.elapsed() > TOLD {
            break;
        }
        returns = open(if round % 2 == 0 { &b } else { &a }, "returns", "").await;
        for gateway in [&a, &b] {
            assert!(duplicates(gateway).await.iter().all(|duplicate| !duplicate));
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    for stream in held.iter().chain([&returns]) {
        stream.with(|recording| assert!(recording.notices().is_empty()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moves_from_a_dead_gateway_is_not_a_duplicate() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let witness = one_more(&redis, "gw-c").await;
    let lost = open(&a, "node", "boot-1").await;
    until(LIMIT, "it is known", async || node_ids(&b).await == ["node"]).await;
    a.kill_9();
    // Restarted: another incarnation, beside one whose dead connection is not closed yet.
    let back = open(&b, "node", "boot-2").await;
    let begun = Instant::now();
    while begun.elapsed() < TOLD {
        for gateway in [&b, &witness] {
            assert!(duplicates(gateway).await.iter().all(|duplicate| !duplicate));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    back.with(|recording| assert!(recording.notices().is_empty()));
    assert_eq!(node_ids(&b).await, ["node"]);
    drop(lost);
}
