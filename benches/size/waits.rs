//! How long publishers wait until nodes of several gateways have an event.

use std::time::{Duration, Instant};

use trunkline_proto::v1::{Filter, PublishRequest, WaitFor};

use super::support::{
    Gateway, GatewayOptions, RedisServer,
    events::mailbox_change,
    nodes::{Keep, TestNode},
    shared,
};

/// Publishes that are measured, one after the other, and those before them that are not.
const MEASURED: usize = 300;
const WARM: usize = 20;

/// Starts real gateways with so many nodes in all, which concern every event, and prints the times
/// in which `WAIT_FOR_DELIVERED` is answered.
pub async fn measure(gateways: usize, nodes: usize) {
    let redis = RedisServer::start(super::support::RedisOptions::default()).await;
    let prefix = shared::prefix();
    let mut started = Vec::new();
    for _ in 0..gateways {
        let options = GatewayOptions::redis(&redis.url(), &prefix).set("shards", 16);
        started.push(Gateway::start(options).await);
    }
    let mut streams = Vec::new();
    for (number, gateway) in (0..nodes).zip(started.iter().cycle()) {
        let node = TestNode::connect(gateway, format!("node-{number}")).await;
        let filter = Filter { accounts: vec!["a".into()], ..Filter::default() };
        let mut request = node.request();
        request.filter = Some(filter);
        let stream = node.collect(request, Keep::Ids).await.expect("a stream");
        stream.subscribed().await;
        streams.push(stream);
    }
    let mut client = started[0].client().await;
    let mut times = Vec::new();
    for number in 0..WARM + MEASURED {
        let request = PublishRequest {
            node_id: "publisher".into(),
            events: vec![mailbox_change("a", 1)],
            wait_for: WaitFor::Delivered.into(),
            ..Default::default()
        };
        let begun = Instant::now();
        let answer = client.publish(request).await.expect("accepted").into_inner();
        let report = answer.delivery.expect("a report");
        assert!(report.complete && report.done_nodes as usize == nodes, "{report:?}");
        if number >= WARM {
            times.push(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times.sort();
    let ms = |share: usize| times[(MEASURED * share / 100).min(MEASURED - 1)].as_secs_f64() * 1e3;
    println!("| gateways | nodes | p50, ms | p90, ms | p99, ms |");
    println!("|---|---|---|---|---|");
    println!("| {gateways} | {nodes} | {:.1} | {:.1} | {:.1} |", ms(50), ms(90), ms(99));
}
