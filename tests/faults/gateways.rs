//! Faults of the gateways themselves.

use std::time::Duration;

use crate::{
    load::{Load, Shape},
    pair_on,
    report::Report,
    seconds,
    support::{
        redis::{RedisOptions, RedisServer},
        wait::until,
    },
};

/// Time limit for a gateway to end after SIGTERM: its drain limit and some tolerance.
const END: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_killed_gateway_resume_on_the_other() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for gateway in [&one, &two] {
        gateway.kill_9();
        load.publishes(500).await;
        gateway.restart().await;
        load.publishes(500).await;
    }
    let history = load.finish().await;
    Report::of("gateway killed (kill -9), its nodes resume on the other", &history)
        .check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_gateway_that_redis_cut_off_recovers_without_a_gap() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    // Redis' default limit, 8 MB for 60 s, would make the test longer.
    redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 512kb 1"]).await;
    let (one, two) = pair_on(&redis).await;
    let subscriptions =
        async || redis.clients().await.iter().filter(|client| client.is_subscriber()).count();
    assert_eq!(subscriptions().await, 2);
    // Nodes that never give up a stream stay on the frozen gateway, so that its own recovery is
    // checked.
    let shape = Shape { batch: 200, ..Shape::default() };
    let load = Load::start(&[&one, &two], shape).await;
    one.pause().await;
    let frozen = load.now();
    until(Duration::from_secs(40), "Redis has cut the frozen gateway off", async || {
        subscriptions().await == 1
    })
    .await;
    tokio::time::sleep((frozen + seconds(15, 5)).saturating_sub(load.now())).await;
    one.resume();
    let healed = load.now();
    load.publishes(2000).await;
    let history = load.finish().await;
    Report::of("gateway frozen (SIGSTOP) until Redis cut it off", &history)
        .healed(healed)
        .check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_both_gateways_loses_nothing() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for gateway in [&one, &two] {
        let ended = gateway.terminate(END).await;
        assert!(ended.status.success(), "it ended with {}", ended.status);
        load.publishes(300).await;
        gateway.restart().await;
        load.publishes(300).await;
    }
    let history = load.finish().await;
    let reported = history.nodes.iter().flat_map(crate::history::Node::items);
    let reported =
        reported.filter(|(_, item)| matches!(item, crate::history::Item::Draining)).count();
    assert!(reported >= 6, "every stream of both gateways received it: {reported}");
    Report::of("rolling restart of both gateways", &history).check_without_gap();
}
