//! `Subscribe` requests that are wrong, and tokens that are strange.

use prost_types::Duration;
use tonic::{Code, Status};
use trunkline_proto::v1::{Filter, GapAction, GapReason, SubscribeRequest};

use crate::{
    deployment::Deployment,
    error_details::{error_details, wrong_fields},
    support::{
        Gateway, GatewayOptions, LIMIT, Seen, TestNode,
        events::{self, with_id},
        shared,
    },
};

fn n1() -> SubscribeRequest {
    SubscribeRequest { node_id: "n1".into(), ..Default::default() }
}

async fn refused(deployment: &Deployment, request: SubscribeRequest) -> Status {
    let mut client = deployment.gateway.client().await;
    let answer = client.subscribe(request.clone()).await;
    answer.err().unwrap_or_else(|| panic!("not refused: {request:?}"))
}

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

#[tokio::test]
async fn every_violation_of_a_request_is_reported_at_once() {
    let deployment = Deployment::embedded().await;
    let request = SubscribeRequest {
        node_id: String::new(),
        incarnation: "i".repeat(129),
        roles: vec![String::new(), "mta".into()],
        filter: Some(Filter {
            kinds: vec![10, 0, -1, 9, 100],
            accounts: vec!["a".repeat(129)],
            custom_types: ["", "a*b", "no spaces", "com.example.*", "*"].map(String::from).into(),
        }),
        resume_token: b"not a token".to_vec(),
        start: 9,
        heartbeat_interval: Some(Duration { seconds: 0, nanos: 999_999_999 }),
        max_duration: Some(seconds(0)),
        overflow: 9,
        ..Default::default()
    };
    let fields = [
        "node_id",
        "incarnation",
        "roles[0]",
        "filter.kinds[1]",
        "filter.kinds[2]",
        "filter.kinds[3]",
        "filter.kinds[4]",
        "filter.accounts[0]",
        "filter.custom_types[0]",
        "filter.custom_types[1]",
        "filter.custom_types[2]",
    ];
    let of_the_rest = SubscribeRequest { start: 0, ..request.clone() };
    let of_the_rest = SubscribeRequest {
        overflow: 0,
        heartbeat_interval: None,
        max_duration: None,
        resume_token: vec![],
        ..of_the_rest
    };
    assert_eq!(wrong_fields(&refused(&deployment, of_the_rest).await), fields);
    let status = refused(&deployment, SubscribeRequest { filter: None, ..request }).await;
    let fields = [
        "node_id",
        "incarnation",
        "roles[0]",
        "start",
        "overflow",
        "heartbeat_interval",
        "max_duration",
        "resume_token",
    ];
    assert_eq!(wrong_fields(&status), fields);
}

#[tokio::test]
async fn every_list_of_a_request_has_a_limit() {
    let deployment = Deployment::embedded().await;
    let filter = Filter {
        accounts: vec!["a".into(); 10_001],
        custom_types: vec!["t".into(); 257],
        kinds: vec![10; 91],
    };
    let request = SubscribeRequest { roles: vec!["r".into(); 65], filter: Some(filter), ..n1() };
    let fields = ["roles", "filter.kinds", "filter.accounts", "filter.custom_types"];
    assert_eq!(wrong_fields(&refused(&deployment, request).await), fields);
}

#[tokio::test]
async fn a_heartbeat_interval_must_be_one_second_to_one_hour() {
    let deployment = Deployment::embedded().await;
    for wrong in [seconds(-1), seconds(0), seconds(3601), seconds(i64::MAX)] {
        let request = SubscribeRequest { heartbeat_interval: Some(wrong), ..n1() };
        assert_eq!(wrong_fields(&refused(&deployment, request).await), ["heartbeat_interval"]);
    }
    let node = deployment.node("n1").await;
    for right in [seconds(1), seconds(3600)] {
        let request = SubscribeRequest { heartbeat_interval: Some(right), ..n1() };
        let subscribed = node.subscribe(request).await.subscribed().await;
        assert_eq!(subscribed.heartbeat_interval, Some(right));
    }
    let subscribed = node.subscribe(n1()).await.subscribed().await;
    assert_eq!(subscribed.heartbeat_interval, Some(seconds(15)));
}

#[tokio::test]
async fn the_longest_duration_is_accepted() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n1").await;
    let request = SubscribeRequest { max_duration: Some(seconds(i64::MAX)), ..n1() };
    let collector = node.subscribe(request).await;
    deployment.node("n2").await.publish(vec![events::queue_refresh()]).await.unwrap();
    collector.events(1, LIMIT).await;
    for wrong in [seconds(-1), Duration { seconds: 0, nanos: -1 }] {
        let request = SubscribeRequest { max_duration: Some(wrong), ..n1() };
        assert_eq!(wrong_fields(&refused(&deployment, request).await), ["max_duration"]);
    }
}

#[tokio::test]
async fn a_filter_may_name_kinds_that_only_newer_peers_know() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n1").await;
    let filter = Filter { kinds: vec![10, 42, 99], ..Default::default() };
    node.subscribe(SubscribeRequest { filter: Some(filter), ..n1() }).await;
}

#[tokio::test]
async fn a_malformed_token_is_reported() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n1").await;
    let mut damaged = node.subscribe(n1()).await.last_token();
    damaged[5] ^= 1;
    for (token, why) in
        [(b"?".to_vec(), "too short"), (vec![7; 4000], "checksum"), (damaged, "checksum")]
    {
        let status = refused(&deployment, SubscribeRequest { resume_token: token, ..n1() }).await;
        let error_details = error_details(&status, Code::InvalidArgument, "RESUME_TOKEN_MALFORMED");
        assert_eq!(error_details.violations.len(), 1);
        assert_eq!(error_details.violations[0].0, "resume_token");
        assert!(error_details.violations[0].1.contains(why), "{error_details:?}");
        assert_eq!(error_details.retry, None);
    }
}

#[tokio::test]
async fn a_token_of_another_deployment_begins_with_a_gap_and_continues() {
    let here = Deployment::embedded().await;
    // Another prefix, and another number of shards.
    let elsewhere =
        Gateway::start(GatewayOptions::embedded().set("prefix", "elsewhere").set("shards", 3))
            .await;
    // The same prefix: only the epochs differ.
    let namesake = Gateway::start(GatewayOptions::embedded()).await;
    let (publisher, subscriber) = (here.node("n2").await, here.node("n1").await);
    publisher.publish(vec![events::queue_refresh()]).await.unwrap();
    for other_deployment in [elsewhere, namesake] {
        let node = TestNode::connect(&other_deployment, "n1").await;
        let token = node.subscribe(node.request()).await.last_token();
        let request = SubscribeRequest { resume_token: token, ..n1() };
        let collector = subscriber.subscribe(request).await;
        assert!(!collector.subscribed().await.resumed);
        let gap = collector.gap(LIMIT).await;
        assert_eq!(gap.reason(), GapReason::UnknownEpoch);
        assert_eq!(gap.action(), GapAction::Resync);
        assert_eq!(gap.missed_events, None, "nobody can know");
        let to = gap.to.expect("where it ends");
        assert!(to.epoch > 0 && to.offset > 0, "{to:?}");
        let next = publisher.publish(vec![events::queue_refresh()]).await.unwrap();
        let recording = collector.events(1, LIMIT).await;
        assert_eq!(recording.gaps().len(), 1);
        assert!(matches!(recording.seen[1], Seen::Gap(_)), "the gap comes before the event");
        assert_eq!(next[0].offset, to.offset + 1);
        // The gap's token is the position after it.
        let request = SubscribeRequest { resume_token: gap.resume_token, ..n1() };
        let again = subscriber.subscribe(request).await;
        assert!(again.subscribed().await.resumed);
        assert_eq!(again.events(1, LIMIT).await.event_ids, recording.event_ids);
    }
}

#[tokio::test]
async fn a_token_of_another_deployment_begins_with_a_gap_over_redis_too() {
    let token_of_another = async |prefix: &str| {
        let gateway = Gateway::start(GatewayOptions::embedded().set("prefix", prefix)).await;
        let node = TestNode::connect(&gateway, "n1").await;
        node.publish(vec![events::queue_refresh(); 9]).await.unwrap();
        node.subscribe(node.request()).await.last_token()
    };
    let prefix = shared::prefix();
    // Of an epoch that is lower than all here, of a higher one, and of another prefix.
    let lower = token_of_another(&prefix).await;
    let here = Deployment::redis_with(|options| options.set("prefix", prefix.clone())).await;
    let (higher, other) = (token_of_another(&prefix).await, token_of_another("elsewhere").await);
    let (publisher, subscriber) = (here.node("n2").await, here.remote("n1").await);
    publisher.publish(vec![events::queue_refresh()]).await.unwrap();
    for (name, token) in [("lower", lower), ("higher", higher), ("other", other)] {
        let collector =
            subscriber.subscribe(SubscribeRequest { resume_token: token, ..n1() }).await;
        assert!(!collector.subscribed().await.resumed, "{name}");
        collector.gap(LIMIT).await;
        publisher.publish(vec![with_id(name, events::queue_refresh())]).await.unwrap();
        let recording = collector.event(name, LIMIT).await;
        assert!(matches!(recording.seen[1], Seen::Gap(_)), "{name}: the gap comes first");
        assert_eq!(recording.gaps().len(), 1, "{name}: {:?}", recording.gaps());
    }
}
