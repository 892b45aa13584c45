//! Faults of a Redis whose master sentinels name.

use std::time::Duration;

use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    load::{Load, Shape},
    pair,
    redis::serving,
    report::Report,
    support::{
        gateway::{Gateway, GatewayOptions},
        redis::{ConnectedClient, Data, RedisOptions},
        sentinel::{SentinelOptions, SentinelSet},
        shared,
        wait::{self, until},
    },
};

/// Serving again after the sentinels' own failover.
const LIMIT: Duration = Duration::from_secs(2);

/// Tolerance for a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// A set whose servers can be hidden from the sentinels: nobody else comes to them without a
/// password.
async fn with_password() -> SentinelSet {
    let server = RedisOptions { password: Some("open".to_owned()), ..Default::default() };
    SentinelSet::with(SentinelOptions { server, ..Default::default() }).await
}

fn options(set: &SentinelSet) -> GatewayOptions {
    let secret = json!({ "@type": "Value", "secret": "open" });
    GatewayOptions::redis_sentinel(&set.urls(), &shared::prefix()).set_bus("authSecret", secret)
}

async fn pair_over(set: &SentinelSet) -> (Gateway, Gateway) {
    pair(GatewayOptions::redis_sentinel(&set.urls(), &shared::prefix())).await
}

/// Waits until both gateways serve; fails if that takes longer than promised.
async fn serving_again(load: &Load, healed: Duration, gateways: [&Gateway; 2]) {
    serving(gateways).await;
    load.publishes(1).await;
    let took = load.now().saturating_sub(healed);
    assert!(took < LIMIT + SLACK, "serving again {took:?} after the failover");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_of_sentinels_loses_nothing() {
    let set = SentinelSet::start().await;
    let (one, two) = pair_over(&set).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let master = set.master().await;
    set.server(master).kill_9();
    set.taken_over(master).await;
    let healed = load.now();
    serving_again(&load, healed, [&one, &two]).await;
    load.publishes(300).await;
    set.server(master).restart(Data::Wiped).await;
    set.settled().await;
    load.publishes(300).await;
    let history = load.finish().await;
    let report = Report::of("master of sentinels killed (kill -9)", &history).healed(healed);
    report.check();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_master_of_sentinels_loses_nothing() {
    let set = SentinelSet::start().await;
    let (one, two) = pair_over(&set).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let master = set.master().await;
    // Connections to it stay open, and nothing on them is answered.
    set.server(master).pause().await;
    set.taken_over(master).await;
    let healed = load.now();
    serving_again(&load, healed, [&one, &two]).await;
    load.publishes(300).await;
    // It wakes up as a master, until the sentinels make it a replica.
    set.server(master).resume();
    set.settled().await;
    load.publishes(300).await;
    let history = load.finish().await;
    let report = Report::of("master of sentinels frozen (SIGSTOP), then resumed", &history);
    report.check();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn failovers_of_sentinels_by_command_cause_no_gap() {
    let set = SentinelSet::start().await;
    let (one, two) = pair_over(&set).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for _ in 0..2 {
        set.fail_over().await;
        let healed = load.now();
        serving_again(&load, healed, [&one, &two]).await;
        load.publishes(200).await;
        set.settled().await;
    }
    let history = load.finish().await;
    let report = Report::of("SENTINEL FAILOVER, there and back", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_sentinels_do_not_reach_is_left_by_gateways() {
    let set = with_password().await;
    let (one, two) = pair(options(&set)).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let master = set.master().await;
    set.hide(master).await;
    set.taken_over(master).await;
    let healed = load.now();
    assert!(set.is_master(master).await, "it does not know that it is one no more");
    serving_again(&load, healed, [&one, &two]).await;
    until(LIMIT + SLACK, "no gateway has a connection to it", async || {
        let clients = set.server(master).clients().await;
        !clients.iter().any(ConnectedClient::is_subscriber)
    })
    .await;
    load.publishes(200).await;
    set.show(master).await;
    set.settled().await;
    load.publishes(200).await;
    let history = load.finish().await;
    let report = Report::of("master cut off from its sentinels alone", &history).healed(healed);
    report.check();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_on_both_masters_of_a_split_brain_come_together_without_loss() {
    let set = with_password().await;
    for sentinel in set.sentinels() {
        sentinel.cli(&["ACL", "SETUSER", "one", "on", ">one", "&*", "+@all"]).await;
    }
    let options = options(&set);
    let secret = json!({ "@type": "Value", "secret": "one" });
    let of_one =
        options.clone().set_bus("sentinelUsername", "one").set_bus("sentinelSecret", secret);
    let (one, two) = tokio::join!(Gateway::start(of_one), Gateway::start(options));
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let master = set.master().await;
    // One gateway gets no answer from the sentinels any more, and these none from the master.
    for sentinel in set.sentinels() {
        sentinel.cli(&["ACL", "SETUSER", "one", "off"]).await;
        sentinel.cli(&["CLIENT", "KILL", "USER", "one"]).await;
    }
    set.hide(master).await;
    let other = set.taken_over(master).await;
    until(wait::LIMIT, "the gateways are at different masters", async || {
        let subscribed = async |server: usize| {
            set.server(server)
                .clients()
                .await
                .iter()
                .filter(|client| client.is_subscriber())
                .count()
        };
        // Sentinels subscribe too, where they can.
        subscribed(master).await == 1 && subscribed(other).await >= 1
    })
    .await;
    load.publishes(400).await;
    // The master is made a replica, and loses what it alone had.
    set.show(master).await;
    set.settled().await;
    for sentinel in set.sentinels() {
        sentinel.cli(&["ACL", "SETUSER", "one", "on"]).await;
    }
    let healed = load.now();
    serving_again(&load, healed, [&one, &two]).await;
    load.publishes(300).await;
    let history = load.finish().await;
    Report::of("split brain: a gateway at each of two masters", &history).healed(healed).check();
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_serve_without_sentinels_as_long_as_the_master_lives() {
    let set = SentinelSet::start().await;
    let (one, two) = pair_over(&set).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for sentinel in set.sentinels() {
        sentinel.kill_9();
        load.publishes(100).await;
    }
    one.stderr_has("the sentinels name no other master", wait::LIMIT).await;
    for gateway in [&one, &two] {
        assert_eq!(gateway.health("").await.expect("an answer"), ServingStatus::Serving);
    }
    for sentinel in set.sentinels() {
        sentinel.restart(Data::Kept).await;
    }
    set.settled().await;
    // They are asked again.
    set.fail_over().await;
    let healed = load.now();
    serving_again(&load, healed, [&one, &two]).await;
    load.publishes(200).await;
    let history = load.finish().await;
    let report = Report::of("all sentinels killed, and back", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_behind_proxies_are_reached_as_they_announce_and_as_the_map_says() {
    let set =
        SentinelSet::with(SentinelOptions { behind_proxies: true, ..Default::default() }).await;
    let map: Vec<_> = (0..2)
        .map(|index| {
            json!({ "announced": format!("127.0.0.1:{}", set.announced(index)),
                "reachable": format!("127.0.0.1:{}", set.server(index).port()) })
        })
        .collect();
    let options = GatewayOptions::redis_sentinel(&set.urls(), &shared::prefix());
    let mapped = options.clone().set_bus("addressMap", map);
    let (one, two) = tokio::join!(Gateway::start(options), Gateway::start(mapped));
    let load = Load::start(&[&one, &two], Shape::default()).await;
    load.publishes(200).await;
    let master = set.master().await;
    // For the sentinels and the first gateway it is gone; the second one reaches it still.
    set.proxy(master).drop_bytes();
    set.taken_over(master).await;
    let healed = load.now();
    assert!(set.is_master(master).await);
    serving_again(&load, healed, [&one, &two]).await;
    load.publishes(200).await;
    set.proxy(master).forward();
    set.settled().await;
    load.publishes(200).await;
    let history = load.finish().await;
    let report = Report::of("announced addresses of a master dead, the server alive", &history);
    report.check();
    report.unseen_by_publishers();
}
