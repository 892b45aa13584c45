//! `GetStatus` and `ListNodes`.

use std::time::{Duration, SystemTime};

use tonic::Code;
use trunkline_proto::v1::{
    Filter, GetStatusRequest, GetStatusResponse, ListNodesRequest, ListNodesResponse,
    SubscribeRequest,
};

use crate::{
    deployment::Deployment,
    error_details::wrong_fields,
    on_both_buses,
    support::{Collector, Gateway, LIMIT, events::numbered, until},
};

on_both_buses!(the_status_of_a_gateway_is_complete, nodes_are_listed_while_they_are_connected);

async fn status(gateway: &Gateway) -> GetStatusResponse {
    gateway.client().await.get_status(GetStatusRequest {}).await.unwrap().into_inner()
}

async fn list(gateway: &Gateway, page_size: i32, page_token: &str) -> ListNodesResponse {
    let request =
        ListNodesRequest { page_size, page_token: page_token.into(), ..Default::default() };
    gateway.client().await.list_nodes(request).await.unwrap().into_inner()
}

async fn the_status_of_a_gateway_is_complete(deployment: Deployment) {
    let (publisher, subscriber) = (deployment.node("p").await, deployment.node("s").await);
    let one = subscriber.subscribe(subscriber.request()).await;
    let two = subscriber.subscribe(subscriber.request()).await;
    let positions = publisher.publish(numbered("e", 10, 1)).await.unwrap();
    deployment.remote("p").await.publish(numbered("f", 5, 1)).await.unwrap();
    one.events(15, LIMIT).await;
    two.events(15, LIMIT).await;

    let seen = status(&deployment.gateway).await;
    let redis = deployment.redis_server().is_some();
    assert_eq!(seen.gateway_id, one.subscribed().await.gateway_id);
    assert_eq!(seen.version, env!("CARGO_PKG_VERSION"));
    let started = SystemTime::try_from(seen.start_time.unwrap()).unwrap();
    assert!(started.elapsed().is_ok_and(|age| age < Duration::from_mins(2)));
    assert!(seen.serving && seen.reason.is_empty(), "{seen:?}");
    assert_eq!(seen.bus, if redis { "redis" } else { "embedded" });
    assert_eq!((seen.streams, seen.behind_events), (2, 0));
    // Those that came through this gateway; those that were sent, to each stream.
    assert_eq!((seen.published_events, seen.delivered_events), (if redis { 10 } else { 15 }, 30));
    assert_eq!((seen.bus_gaps, seen.unreadable_frames), (0, 0));
    assert_eq!(seen.shards.len(), 1);
    let shard = &seen.shards[0];
    assert!(shard.proven, "{shard:?}");
    assert_eq!(shard.epoch, positions[0].epoch);
    assert_eq!(shard.offset, positions[0].offset + 14);
    assert!(shard.log_events >= 15 && shard.log_bytes > 100, "{shard:?}");
    assert_eq!((shard.received_events, shard.epoch_changes), (15, 0));
    assert!(shard.log_limit_events > 15 && shard.log_limit_bytes > shard.log_bytes, "{shard:?}");
    assert_eq!((seen.stream_gaps, seen.missed_events, seen.errors), (0, 0, 0));
    let by_kind: Vec<_> = seen.published_by_kind.iter().map(|count| count.events).collect();
    assert_eq!(by_kind, [seen.published_events], "all of one kind");
    if redis {
        let links: Vec<_> =
            seen.links.iter().map(|link| (&*link.purpose, link.connected)).collect();
        assert_eq!(links, [("subscribe", true)]);
        let age = Duration::try_from(shard.proof_age.unwrap()).unwrap();
        assert!(age < Duration::from_secs(3), "{age:?}");
    }
    publisher.publish(vec![]).await.unwrap_err();
    assert_eq!(status(&deployment.gateway).await.errors, 1);
    drop(two);
    until(LIMIT, "one stream less", async || status(&deployment.gateway).await.streams == 1).await;
}

async fn nodes_are_listed_while_they_are_connected(deployment: Deployment) {
    let filter =
        Filter { kinds: vec![10], accounts: vec!["account-0".into()], ..Default::default() };
    let request = SubscribeRequest {
        node_id: "s".into(),
        incarnation: "boot 7".into(),
        roles: vec!["imap".into(), "mta".into()],
        filter: Some(filter.clone()),
        ..Default::default()
    };
    let collector = deployment.node("s").await.subscribe(request).await;
    let subscribed = collector.subscribed().await;
    deployment.node("p").await.publish(numbered("e", 10, 2)).await.unwrap();
    collector.events(5, LIMIT).await;
    let nodes = list(&deployment.gateway, 0, "").await.nodes;
    assert_eq!(nodes.len(), 1, "who only publishes holds no stream");
    let node = &nodes[0];
    assert_eq!((node.node_id.as_str(), node.incarnation.as_str()), ("s", "boot 7"));
    assert_eq!(node.roles, ["imap", "mta"]);
    assert_eq!(node.gateway_id, subscribed.gateway_id);
    assert_eq!(node.subscription_id, subscribed.subscription_id);
    assert_eq!(node.filter, Some(filter));
    assert_eq!((node.delivered_events, node.behind_events), (5, 0));
    assert!(node.peer.starts_with("127.0.0.1:"), "{}", node.peer);
    let connected = SystemTime::try_from(node.connect_time.unwrap()).unwrap();
    assert!(connected.elapsed().is_ok_and(|age| age < Duration::from_mins(1)));
    drop(collector);
    until(LIMIT, "nobody", async || list(&deployment.gateway, 0, "").await.nodes.is_empty()).await;
}

#[tokio::test]
async fn pages_hold_every_node_once_in_order() {
    let deployment = Deployment::embedded().await;
    let client = deployment.node("any").await;
    let mut held: Vec<Collector> = Vec::new();
    // Two streams of each; ids that a naive token would trip over.
    for n in 0..25 {
        for _ in 0..2 {
            let node_id = format!("n{n:02} a,b/c?d&e\u{e9}");
            held.push(client.subscribe(SubscribeRequest { node_id, ..Default::default() }).await);
        }
    }
    for size in [1, 7, 49, 50, 51] {
        let (mut token, mut seen, mut pages) = (String::new(), Vec::new(), 0);
        loop {
            let page = list(&deployment.gateway, size, &token).await;
            assert!(page.nodes.len() <= usize::try_from(size).unwrap());
            seen.extend(page.nodes.into_iter().map(|node| (node.node_id, node.subscription_id)));
            token = page.next_page_token;
            pages += 1;
            assert!(
                token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            );
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(pages, 50_i32.div_euclid(size) + i32::from(50 % size != 0));
        assert_eq!(seen.len(), 50);
        assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] != pair[1]));
    }
    // The default is a hundred, and more than the most is the most.
    assert_eq!(list(&deployment.gateway, 0, "").await.nodes.len(), 50);
    assert_eq!(list(&deployment.gateway, i32::MAX, "").await.nodes.len(), 50);
    // A token stays valid after the node that it names has disconnected.
    let first = list(&deployment.gateway, 10, "").await;
    held.clear();
    until(LIMIT, "nobody", async || list(&deployment.gateway, 0, "").await.nodes.is_empty()).await;
    assert!(list(&deployment.gateway, 10, &first.next_page_token).await.nodes.is_empty());
}

#[tokio::test]
async fn a_page_of_large_nodes_fits_the_default_message_limit() {
    let deployment = Deployment::embedded().await;
    let client = deployment.node("any").await;
    // As large as a node can be: 400 of them are more than the 4 MiB of a message.
    let roles: Vec<String> = (0..64).map(|n| format!("{n:0>128}")).collect();
    let accounts = (0..64).map(|n| format!("{n:0>128}")).collect();
    let filter = Some(Filter { accounts, ..Default::default() });
    let mut held: Vec<Collector> = Vec::new();
    for n in 0..400 {
        let request = SubscribeRequest {
            node_id: format!("n{n:0>127}"),
            roles: roles.clone(),
            filter: filter.clone(),
            ..Default::default()
        };
        held.push(client.subscribe(request).await);
    }
    let (mut token, mut seen, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let page = list(&deployment.gateway, 1000, &token).await;
        seen.extend(page.nodes.into_iter().map(|node| node.node_id));
        token = page.next_page_token;
        pages += 1;
        if token.is_empty() {
            break;
        }
    }
    assert!(seen.len() == 400 && seen.is_sorted_by(|a, b| a < b), "{}", seen.len());
    assert!((2..10).contains(&pages), "{pages}");
}

#[tokio::test]
async fn an_invalid_page_is_refused() {
    let deployment = Deployment::embedded().await;
    let mut client = deployment.gateway.client().await;
    let mut refused = async |page_size, page_token: &str| {
        let request =
            ListNodesRequest { page_size, page_token: page_token.into(), ..Default::default() };
        let status = client.list_nodes(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        wrong_fields(&status)
    };
    assert_eq!(refused(-1, "").await, ["page_size"]);
    for token in ["?", "abc", "a\nb", "\u{e9}", "////"] {
        assert_eq!(refused(0, token).await, ["page_token"], "{token:?}");
    }
    assert_eq!(refused(-1, "?").await, ["page_size", "page_token"]);
}
