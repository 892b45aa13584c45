//! Each gateway lists the nodes of all.

use std::time::{Duration, Instant, SystemTime};

use trunkline_proto::v1::{GatewayState, ListNodesRequest, NodeState, SubscribeRequest};

use super::{
    gateway_ids, named, node_ids, nodes, one_more, page, redis,
    support::{Collector, Gateway, GatewayOptions, LIMIT, SharedCluster, TestNode, until},
    two,
};

/// The time in which a dead gateway is removed: its time to live, and one round of the reader.
const FORGOTTEN: Duration = Duration::from_secs(10 + 5);

async fn open(gateway: &Gateway, node_id: &str) -> Collector {
    let node = TestNode::connect(gateway, node_id).await;
    node.subscribe(node.request()).await
}

async fn each_lists_both(a: &Gateway, b: &Gateway) {
    let _on_a = open(a, "node-a").await;
    let on_b = TestNode::connect(b, "node-b").await;
    let request = SubscribeRequest {
        roles: vec!["imap".into(), "mta".into()],
        incarnation: "boot-7".into(),
        client_version: "imapd 2.4.1".into(),
        ..on_b.request()
    };
    let on_b = on_b.subscribe(request).await;
    let subscribed = on_b.subscribed().await;
    for gateway in [a, b] {
        until(LIMIT, "both nodes", async || node_ids(gateway).await == ["node-a", "node-b"]).await;
        assert_eq!(gateway_ids(gateway).await, ["gw-a", "gw-b"]);
        let node = nodes(gateway).await.remove(1);
        assert_eq!(node.roles, ["imap", "mta"]);
        assert_eq!((&*node.incarnation, &*node.client_version), ("boot-7", "imapd 2.4.1"));
        assert_eq!((&*node.gateway_id, &node.gateway_address), ("gw-b", &b.address()));
        assert_eq!(node.gateway_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(node.subscription_id, subscribed.subscription_id);
        assert_eq!((node.state(), node.duplicate), (NodeState::Current, false));
        let since = SystemTime::try_from(node.connect_time.unwrap()).unwrap();
        assert!(since.elapsed().is_ok_and(|age| age < Duration::from_mins(1)));

        let of_a = ListNodesRequest { gateway_id: "gw-a".into(), ..Default::default() };
        let of_a = page(gateway, of_a).await.nodes;
        assert_eq!(of_a.len(), 1);
        assert_eq!(of_a[0].node_id, "node-a");
        let of_b = ListNodesRequest { node_id: "node-b".into(), ..Default::default() };
        let of_b = page(gateway, of_b).await.nodes;
        assert_eq!(of_b.len(), 1);
        assert_eq!(of_b[0].node_id, "node-b");
    }
    drop(on_b);
    until(LIMIT, "one node less", async || node_ids(a).await == ["node-a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_list_the_nodes_of_both() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    each_lists_both(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_on_a_cluster_list_the_nodes_of_both() {
    let cluster = SharedCluster::get().await;
    let options = |id| named(GatewayOptions::redis_cluster(&cluster.urls, &cluster.prefix), id);
    let (a, b) = tokio::join!(Gateway::start(options("gw-a")), Gateway::start(options("gw-b")));
    each_lists_both(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_list_each_remaining_node_once_while_others_come_and_go() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let (on_a, on_b) = (TestNode::connect(&a, "").await, TestNode::connect(&b, "").await);
    let stream = async |node: &TestNode, id: String| {
        node.subscribe(SubscribeRequest { node_id: id, ..Default::default() }).await
    };
    let mut stay = Vec::new();
    let mut expected = Vec::new();
    for n in 0..100 {
        let id = format!("stays-{n:03}");
        stay.push(stream(if n % 2 == 0 { &on_a } else { &on_b }, id.clone()).await);
        expected.push(id);
    }
    until(LIMIT, "all", async || node_ids(&a).await == expected).await;
    until(LIMIT, "all", async || node_ids(&b).await == expected).await;
    for round in 0..5 {
        for gateway in [&a, &b] {
            let (mut token, mut seen) = (String::new(), Vec::new());
            for number in 0.. {
                // They lie between those that stay, on both gateways.
                let id = format!("stays-{:03}-comes", (number * 13 + round) % 100);
                let on_a = stream(&on_a, id.clone()).await;
                let on_b = stream(&on_b, id).await;
                let request = ListNodesRequest {
                    page_size: 9,
                    page_token: std::mem::take(&mut token),
                    ..Default::default()
                };
                let page = page(gateway, request).await;
                seen.extend(page.nodes.into_iter().map(|node| node.node_id));
                token = page.next_page_token;
                drop((on_a, on_b));
                if token.is_empty() {
                    break;
                }
            }
            assert!(seen.is_sorted(), "{seen:?}");
            seen.retain(|id| !id.ends_with("-comes"));
            assert_eq!(seen, expected);
        }
    }
    until(LIMIT, "those who went", async || node_ids(&a).await == expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_gateway_is_removed_after_its_ttl_and_a_draining_one_at_once() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let c = one_more(&redis, "gw-c").await;
    let _held = [open(&a, "node-a").await, open(&b, "node-b").await, open(&c, "node-c").await];
    let all = ["node-a", "node-b", "node-c"];
    until(LIMIT, "all nodes", async || node_ids(&a).await == all).await;

    b.kill_9();
    let killed = Instant::now();
    // Before it is forgotten it is seen to be silent.
    until(FORGOTTEN, "it is silent", async || {
        let page = page(&a, ListNodesRequest::default()).await;
        page.gateways.iter().any(|g| g.gateway_id == "gw-b" && g.state() == GatewayState::Silent)
            && page.nodes.iter().any(|n| n.node_id == "node-b" && n.state() == NodeState::Silent)
    })
    .await;
    until(FORGOTTEN, "it is forgotten", async || gateway_ids(&a).await == ["gw-a", "gw-c"]).await;
    assert!(killed.elapsed() > Duration::from_secs(5), "{:?}", killed.elapsed());
    assert_eq!(node_ids(&a).await, ["node-a", "node-c"]);

    c.terminate(LIMIT).await;
    let ended = Instant::now();
    until(LIMIT, "it is gone", async || gateway_ids(&a).await == ["gw-a"]).await;
    assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
    assert_eq!(node_ids(&a).await, ["node-a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn member_records_that_redis_lost_are_written_again() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let _held = [open(&a, "node-a").await, open(&b, "node-b").await];
    until(LIMIT, "both nodes", async || node_ids(&a).await == ["node-a", "node-b"]).await;
    until(LIMIT, "both nodes", async || node_ids(&b).await == ["node-a", "node-b"]).await;
    for _ in 0..2 {
        redis.cli(&["FLUSHALL"]).await;
        // Both go on listing both.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            assert_eq!(node_ids(&a).await, ["node-a", "node-b"]);
            assert_eq!(node_ids(&b).await, ["node-a", "node-b"]);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    // And a new gateway reads both there.
    let c = one_more(&redis, "gw-c").await;
    until(LIMIT, "both nodes", async || node_ids(&c).await == ["node-a", "node-b"]).await;
    assert_eq!(gateway_ids(&c).await, ["gw-a", "gw-b", "gw-c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_while_redis_loses_all_is_forgotten() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let c = one_more(&redis, "gw-c").await;
    for gateway in [&a, &b] {
        until(LIMIT, "all", async || gateway_ids(gateway).await.len() == 3).await;
    }
    c.kill_9();
    redis.cli(&["FLUSHALL"]).await;
    for gateway in [&a, &b] {
        until(2 * FORGOTTEN, "it is gone", async || gateway_ids(gateway).await == ["gw-a", "gw-b"])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_of_earlier_versions_are_listed_and_forgotten() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    // Its number has no mark: it writes no changes, and removes what is over without a trace.
    let now = redis.command::<Vec<u64>>(&["TIME"]).await.unwrap()[0] * 1000;
    // `gateway_id`, the first field of its record.
    let record = format!("{} {now} 7 \n\u{6}gw-old", now + 60_000);
    let (heads, member) = ("nodes:{members}:heads", "00000000000000aa");
    let _: u32 = redis.command(&["HSET", heads, member, &record]).await.unwrap();
    for gateway in [&a, &b] {
        let all = ["gw-a", "gw-b", "gw-old"];
        until(LIMIT, "it is listed", async || gateway_ids(gateway).await == all).await;
    }
    let _: u32 = redis.command(&["HDEL", heads, member]).await.unwrap();
    for gateway in [&a, &b] {
        until(LIMIT, "it is gone", async || gateway_ids(gateway).await == ["gw-a", "gw-b"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_no_gateway_wrote_stop_no_list() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let changes = "nodes:{members}:changes";
    let long = "x".repeat(1 << 20);
    let mut held = vec![];
    for (nth, last) in
        ["1e300", "inf", "-inf", "nan", "-1", "7.5", "rubbish", "", "18446744073709551616", &long]
            .into_iter()
            .enumerate()
    {
        let _: u32 = redis.command(&["HSET", changes, "last", last]).await.unwrap();
        let _: u32 = redis.command(&["HSET", changes, "swept", last]).await.unwrap();
        held.push(open(&a, &format!("node-{nth}")).await);
        for gateway in [&a, &b] {
            until(LIMIT, last, async || node_ids(gateway).await.len() == nth + 1).await;
        }
    }
    // The content of the last change, and a gateway that begins with all that.
    let last: String = redis.command(&["HGET", changes, "last"]).await.unwrap();
    let _: u32 = redis.command(&["HSET", changes, &last, &long]).await.unwrap();
    held.push(open(&b, "node-b").await);
    let c = one_more(&redis, "gw-c").await;
    for gateway in [&a, &b, &c] {
        let count = held.len();
        until(LIMIT, "all nodes", async || node_ids(gateway).await.len() == count).await;
    }
    assert_eq!(gateway_ids(&c).await, ["gw-a", "gw-b", "gw-c"]);
}
