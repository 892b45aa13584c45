//! A server that starts after the gateway, and one that restarts.

use std::time::{Duration, Instant};

use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;
use trunkline_proto::v1::GetStatusRequest;

use super::{
    ids,
    support::{
        Data, Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events,
        gateway::Ready, wait::eventually,
    },
    two_gateways,
};

/// The time limit until gateways serve again once Redis answers. One second is promised; a busy
/// machine is slow.
const BACK: Duration = Duration::from_secs(2);

/// The time limit until a gateway notices that Redis is down.
const NOTICED: Duration = Duration::from_secs(5);

/// Restarts Redis, and returns the time from its first answer until the gateways serve.
async fn serving_again(redis: &RedisServer, data: Data, gateways: &[&Gateway]) -> Duration {
    redis.restart(data).await;
    let back = Instant::now();
    for gateway in gateways {
        gateway.health_is("", ServingStatus::Serving, LIMIT).await;
    }
    back.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_waits_for_a_redis_that_is_down() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.kill_9();
    let options = GatewayOptions::redis(&redis.url(), "early").ready(Ready::Listening);
    let gateway = Gateway::start(options).await;
    gateway.stderr_has("waiting for Redis", LIMIT).await;
    for service in ["", "trunkline.v1.CoordinationService"] {
        assert_eq!(gateway.health(service).await.unwrap(), ServingStatus::NotServing);
    }

    // It answers, and reports why it does not serve.
    let node = TestNode::connect(&gateway, "node").await;
    let refused = node.publish(vec![events::queue_refresh()]).await.expect_err("no bus");
    assert_eq!(refused.code(), Code::Unavailable);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("BUS_UNAVAILABLE"));
    assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "{details:?}");
    let refused = node.stream(node.request()).await.expect_err("no bus");
    assert_eq!(refused.code(), Code::Unavailable);
    let mut client = gateway.client().await;
    let status = client.get_status(GetStatusRequest {}).await.expect("a status").into_inner();
    assert!(!status.serving && status.reason.contains("the bus has not started"), "{status:?}");

    let took = serving_again(&redis, Data::Wiped, &[&gateway]).await;
    eprintln!("serving {took:?} after Redis was there");
    assert!(took < BACK, "{took:?}");
    let collector = node.subscribe(node.request()).await;
    let other = TestNode::connect(&gateway, "other").await;
    other.publish(events::numbered("e", 1, 1)).await.expect("published");
    collector.event("e-0", LIMIT).await;
}

/// Kills Redis until both gateways have noticed, restarts it, and returns the time until they serve
/// again. Open streams continue without gap or repeat.
async fn killed_and_back(options: RedisOptions, data: Data) -> Duration {
    let redis = RedisServer::start(options).await;
    let timeout = Duration::from_secs(1);
    let options = || {
        let millis = u64::try_from(timeout.as_millis()).expect("small");
        GatewayOptions::redis(&redis.url(), "back").set_bus("timeout", millis)
    };
    let (one, two) = two_gateways(options).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let subscriber = TestNode::connect(&two, "subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    publisher.publish(events::numbered("before", 20, 5)).await.expect("published");
    collector.event("before-19", LIMIT).await;

    redis.kill_9();
    for gateway in [&one, &two] {
        gateway.health_is("", ServingStatus::NotServing, NOTICED).await;
    }
    let start = Instant::now();
    let refused = publisher.publish(vec![events::queue_refresh()]).await.expect_err("no bus");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(start.elapsed() < timeout + Duration::from_secs(1), "{:?}", start.elapsed());

    let took = serving_again(&redis, data, &[&one, &two]).await;
    publisher.publish(events::numbered("after", 20, 5)).await.expect("published");
    let recording = collector.event("after-19", LIMIT).await;
    let mut seen = recording.event_ids.clone();
    // Events that were not acknowledged may arrive or not.
    seen.retain(|id| id.starts_with("before") || id.starts_with("after"));
    assert_eq!(seen, [ids("before", 0..20), ids("after", 0..20)].concat());
    // To a Redis that came back empty the gateways have brought everything back.
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_serve_again_after_redis_restarts_with_its_data() {
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let took = killed_and_back(options, Data::Kept).await;
    eprintln!("serving {took:?} after Redis was back with its data");
    assert!(took < BACK, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_serve_again_after_redis_restarts_empty() {
    let took = killed_and_back(RedisOptions::default(), Data::Wiped).await;
    eprintln!("serving {took:?} after Redis was back, empty");
    assert!(took < BACK, "{took:?}");
}

/// Publishers do not notice an outage that is shorter than `timeout`.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_outage_delays_publishes_and_fails_none() {
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let redis = RedisServer::start(options).await;
    let (one, two) = two_gateways(|| GatewayOptions::redis(&redis.url(), "short")).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let subscriber = TestNode::connect(&two, "subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    publisher.publish(events::numbered("before", 5, 5)).await.expect("published");
    collector.event("before-4", LIMIT).await;
    redis.kill_9();
    let publishing = {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(events::numbered("while", 5, 5)).await })
    };
    // Long enough for a first attempt to fail: the gateway reports that the connection is lost.
    eventually(LIMIT, "the loss in both logs", async || {
        [&one, &two]
            .iter()
            .all(|gateway| gateway.stderr().contains("subscription lost"))
            .then_some(())
    })
    .await;
    assert!(!publishing.is_finished());
    redis.restart(Data::Kept).await;
    publishing.await.expect("no panic").expect("published");
    let recording = collector.event("while-4", LIMIT).await;
    assert_eq!(recording.event_ids, [ids("before", 0..5), ids("while", 0..5)].concat());
    assert!(recording.gaps().is_empty());
}
