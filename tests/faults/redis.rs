//! Faults of a standalone Redis, and of the connections to it.

use std::time::{Duration, Instant};

use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::GetStatusRequest;

use crate::{
    load::{Load, Shape},
    pair, pair_on,
    report::Report,
    seconds,
    support::{
        LIMIT,
        events::{self, with_id},
        gateway::{Gateway, GatewayOptions},
        nodes::TestNode,
        proxy::Proxy,
        redis::{Data, RedisOptions, RedisServer},
        shared,
        wait::until,
    },
};

/// A dead connection is found within this time, even where TCP reports nothing.
const NOTICED: Duration = Duration::from_secs(3);

/// Tolerance for a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// Waits until both gateways answer `NOT_SERVING`; fails after the promised time.
pub async fn not_serving(gateways: [&Gateway; 2]) {
    let [one, two] =
        gateways.map(|gateway| gateway.health_is("", ServingStatus::NotServing, NOTICED + SLACK));
    tokio::join!(one, two);
}

/// Waits until both gateways serve.
pub async fn serving(gateways: [&Gateway; 2]) {
    let [one, two] = gateways
        .map(|gateway| gateway.health_is("", ServingStatus::Serving, Duration::from_secs(20)));
    tokio::join!(one, two);
}

/// The epochs of all shards, as a gateway sees them.
async fn epochs(gateway: &Gateway) -> Vec<u64> {
    let status = gateway.client().await.get_status(GetStatusRequest {}).await.expect("a status");
    status.into_inner().shards.iter().map(|shard| shard.epoch).collect()
}

async fn connections_are_killed(kind: &str, fault: &str) {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for _ in 0..seconds(20, 5).as_secs() {
        redis.cli(&["CLIENT", "KILL", "TYPE", kind]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let history = load.finish().await;
    Report::of(fault, &history).check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_subscription_connections_each_second_causes_no_gap() {
    connections_are_killed("pubsub", "CLIENT KILL TYPE pubsub, each second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_command_connections_each_second_causes_no_gap() {
    connections_are_killed("normal", "CLIENT KILL TYPE normal, each second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_is_found_and_causes_no_gap() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    redis.pause().await;
    let frozen = load.now();
    not_serving([&one, &two]).await;
    tokio::time::sleep((frozen + seconds(10, 5)).saturating_sub(load.now())).await;
    load.was_down_since(frozen);
    redis.resume();
    let healed = load.now();
    serving([&one, &two]).await;
    load.publishes(200).await;
    let history = load.finish().await;
    Report::of("Redis frozen (SIGSTOP), then resumed", &history).healed(healed).check_without_gap();
}

/// Kills Redis under load and restarts it after both gateways noticed.
async fn killed(
    options: RedisOptions,
    data: Data,
) -> (crate::history::History, Duration, [Vec<u64>; 3]) {
    let redis = RedisServer::start(options).await;
    let (one, two) = pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let before = epochs(&one).await;
    redis.kill_9();
    let down = load.now();
    not_serving([&one, &two]).await;
    load.was_down_since(down);
    redis.restart(data).await;
    let healed = load.now();
    serving([&one, &two]).await;
    load.publishes(200).await;
    let after = [before, epochs(&one).await, epochs(&two).await];
    (load.finish().await, healed, after)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_empty_gets_everything_back() {
    let (history, healed, [before, one, two]) = killed(RedisOptions::default(), Data::Wiped).await;
    let report = Report::of("standalone Redis killed, back empty", &history).healed(healed);
    report.check_without_gap();
    assert!(report.serving_after() < Duration::from_secs(2) + SLACK);
    assert_eq!(one, two, "both gateways are in the same epoch");
    assert!(one > before, "and it is a new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_with_its_data_causes_no_gap() {
    let always = ["--appendfsync", "always"].map(str::to_owned).to_vec();
    let options = RedisOptions { append_only: true, args: always, ..RedisOptions::default() };
    let (history, healed, [_, one, two]) = killed(options, Data::Kept).await;
    let report = Report::of("standalone Redis killed, back with its append-only file", &history)
        .healed(healed);
    report.check_without_gap();
    assert_eq!(one, two);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_redis_gets_everything_back() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let before = epochs(&one).await;
    redis.cli(&["FLUSHALL"]).await;
    let healed = load.now();
    load.publishes(400).await;
    until(Duration::from_secs(5), "both gateways are in one new epoch", async || {
        let (one, two) = tokio::join!(epochs(&one), epochs(&two));
        one == two && one > before
    })
    .await;
    let after = epochs(&one).await;
    load.publishes(400).await;
    assert_eq!(epochs(&one).await, after, "the epoch changed once");
    let history = load.finish().await;
    Report::of("FLUSHALL", &history).healed(healed).check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_to_redis_is_found_and_causes_no_gap() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let proxy = Proxy::start(redis.port()).await;
    let prefix = shared::prefix();
    // One gateway's connections are cut, the other's are not: events continue.
    let (one, two) = tokio::join!(
        Gateway::start(GatewayOptions::redis(&proxy.url(), &prefix)),
        Gateway::start(GatewayOptions::redis(&redis.url(), &prefix)),
    );
    let load = Load::start(&[&one, &two], Shape::default()).await;
    proxy.drop_bytes();
    let cut = load.now();
    one.health_is("", ServingStatus::NotServing, NOTICED + SLACK).await;
    assert_eq!(two.health("").await.expect("an answer"), ServingStatus::Serving);
    tokio::time::sleep((cut + seconds(10, 4)).saturating_sub(load.now())).await;
    proxy.forward();
    let healed = load.now();
    serving([&one, &two]).await;
    load.publishes(200).await;
    let history = load.finish().await;
    Report::of("half-open link between a gateway and Redis", &history)
        .healed(healed)
        .check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_subscription_is_found_and_renewed_without_a_gap() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let proxy = Proxy::start(redis.port()).await;
    let options = GatewayOptions::redis(&proxy.url(), &shared::prefix());
    let (one, two) = pair(options).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let (before, start) = (proxy.connections(), load.now());
    // Like a middlebox that lost a connection's state: it stays open, and no data arrives.
    proxy.drop_subscriptions();
    until(NOTICED + SLACK, "the subscriptions are made anew", async || {
        proxy.connections() >= before + 2
    })
    .await;
    assert!(load.now().checked_sub(start).unwrap() < NOTICED + SLACK);
    load.publishes(400).await;
    let history = load.finish().await;
    Report::of("subscriptions that receive nothing, all else works", &history).check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_moved_behind_its_address_is_followed_while_its_connections_stay_open() {
    let (master, replica) = RedisServer::with_replica().await;
    let proxy = Proxy::start(master.port()).await;
    let (one, two) = pair(GatewayOptions::redis(&proxy.url(), &shared::prefix())).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let before = proxy.connections();
    // The address leads elsewhere, and everything goes on over the open connections.
    proxy.move_to(replica.port());
    load.publishes(300).await;
    assert_eq!(proxy.connections(), before);
    // Without loss: the master waits for its replica. It lives on, and answers READONLY.
    master.cli(&["FAILOVER"]).await;
    until(LIMIT, "the replica is the master", async || {
        replica.info("replication", "role").await.as_deref() == Some("master")
    })
    .await;
    let moved = load.now();
    load.publishes(1).await;
    let back = load.now().saturating_sub(moved);
    assert!(back < Duration::from_secs(2) + SLACK, "{back:?}");
    serving([&one, &two]).await;
    load.publishes(300).await;
    for gateway in [&one, &two] {
        assert!(gateway.stderr().contains("it is a replica"), "{}", gateway.stderr());
    }
    let history = load.finish().await;
    Report::of("the master moves, its connections stay open (READONLY)", &history)
        .check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_lags_under_load_is_not_made_anew_and_has_no_gap() {
    const EVENT: usize = 20_000;
    let redis = RedisServer::start(RedisOptions::default()).await;
    let proxy = Proxy::start(redis.port()).await;
    let prefix = shared::prefix();
    let (slow, fast) = tokio::join!(
        Gateway::start(GatewayOptions::redis(&proxy.url(), &prefix)),
        Gateway::start(GatewayOptions::redis(&redis.url(), &prefix)),
    );
    let subscriber = TestNode::connect(&slow, "subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let publisher = TestNode::connect(&fast, "publisher").await;
    // Half of what is published.
    proxy.slow_subscriptions(Some(10 * EVENT));
    let begun = Instant::now();
    let mut published = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    while begun.elapsed() < seconds(20, 8) {
        pace.tick().await;
        let event = with_id(format!("e-{}", published.len()), events::large(EVENT));
        publisher.publish(vec![event]).await.expect("published");
        published.push(Instant::now());
    }
    // The backlog is more than two seconds old, and it arrives all the same.
    let arrived = collector.event_ids().len();
    let behind = published.get(arrived).map_or(Duration::ZERO, Instant::elapsed);
    assert!(behind > Duration::from_secs(2), "only {behind:?} behind");
    let last = format!("e-{}", published.len() - 1);
    let recording = collector.event(&last, LIMIT).await;
    let expected: Vec<_> = (0..published.len()).map(|index| format!("e-{index}")).collect();
    assert_eq!(recording.event_ids, expected);
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    let status = slow.client().await.get_status(GetStatusRequest {}).await.expect("a status");
    let links = status.into_inner().links;
    assert!(links.iter().all(|link| link.connected && link.reconnects == 0), "{links:?}");
    assert!(!slow.stderr().contains("does not receive what Redis accepts"), "{}", slow.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_unknown_versions_on_the_channel_are_counted_and_ignored() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let (one, two) = pair(GatewayOptions::redis(&redis.url(), &prefix)).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let channels = redis.cli(&["PUBSUB", "CHANNELS", &format!("{prefix}*")]).await;
    let channel = channels.lines().next().expect("a channel").to_owned();
    for round in 0..50 {
        let far = format!("F2 {}-{} \u{1}\u{2}", u64::MAX, round);
        let unreadable =
            ["F2 1-1 \u{7f}\u{7f}", "E2 x", "F2 99999999999999-5 x", "N2 7-7 7:x", &far];
        for garbage in ["", "hello", "T9 1-1 x"].into_iter().chain(unreadable) {
            redis.cli(&["PUBLISH", &channel, garbage]).await;
        }
    }
    load.publishes(200).await;
    for gateway in [&one, &two] {
        let status =
            gateway.client().await.get_status(GetStatusRequest {}).await.expect("a status");
        assert!(status.into_inner().unreadable_frames >= 150, "they are counted");
        assert!(gateway.stderr().contains("unknown writer"), "and logged");
    }
    let history = load.finish().await;
    Report::of("unreadable messages and frames of unknown versions", &history).check_without_gap();
}
