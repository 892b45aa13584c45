//! Nodes that exceed the quotas of their identity.

use std::time::{Duration, Instant};

use serde_json::json;
use tonic::Code;

use crate::{
    error_details::{error_details, wrong_fields},
    support::{
        LIMIT,
        events::{numbered, queue_refresh},
        until,
    },
    target::Target,
};

const RATE: f64 = 200.0;
const BURST: f64 = 100.0;

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_beyond_its_rate_gets_its_rate_and_does_not_affect_other_clients() {
    let target = Target::new(json!({ "eventsPerSecond": 200, "eventBurst": 100 })).await;
    let bystander = target.bystander().await;
    let begun = Instant::now();
    let mut attack = tokio::task::JoinSet::new();
    for n in 0..4 {
        // Other connections and node ids of the same identity.
        let node = target.hostile_node(&format!("greedy-{n}")).await;
        attack.spawn(async move {
            let (mut accepted, mut refused) = (0, 0);
            while begun.elapsed() < Duration::from_secs(4) {
                match node.publish(numbered("g", 10, 1)).await {
                    Ok(_) => accepted += 10,
                    Err(status) => {
                        let error =
                            error_details(&status, Code::ResourceExhausted, "LIMIT_REACHED");
                        assert_eq!(error.metadata["limit"], "limits.eventsPerSecond");
                        assert_eq!(error.quotas, ["limits.eventsPerSecond"]);
                        let retry = error.retry.expect("a retry delay");
                        assert!(retry > Duration::ZERO && retry <= Duration::from_secs(1));
                        refused += 1;
                    }
                }
            }
            (accepted, refused)
        });
    }
    let all = attack.join_all().await;
    let took = begun.elapsed().as_secs_f64();
    let accepted: u32 = all.iter().map(|(accepted, _)| accepted).sum();
    let refused: u32 = all.iter().map(|(_, refused)| refused).sum();
    eprintln!("{accepted} accepted and {refused} refused in {took:.1} s");
    assert!(f64::from(accepted) <= RATE * took + BURST, "{accepted} in {took} s");
    assert!(f64::from(accepted) >= RATE, "it gets less than its rate: {accepted}");
    assert!(refused > 0);
    assert!((target.refused("eventsPerSecond").await - f64::from(refused)).abs() < 0.1);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_is_accepted_after_the_retry_delay() {
    let target = Target::new(json!({ "eventsPerSecond": 20, "eventBurst": 10 })).await;
    let node = target.hostile_node("patient").await;
    node.publish(numbered("a", 10, 1)).await.unwrap();
    let status = node.publish(numbered("b", 10, 1)).await.unwrap_err();
    let retry = error_details(&status, Code::ResourceExhausted, "LIMIT_REACHED").retry.unwrap();
    assert!(retry <= Duration::from_millis(500), "{retry:?}");
    tokio::time::sleep(retry).await;
    node.publish(numbered("b", 10, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_larger_than_the_burst_is_refused_as_invalid() {
    let target = Target::new(json!({ "eventsPerSecond": 1000, "eventBurst": 10 })).await;
    let node = target.hostile_node("large").await;
    let status = node.publish(numbered("a", 11, 1)).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["events"]);
    assert!(status.message().contains("limits.eventBurst is 10"), "{status:?}");
    // The refused request took nothing from the burst.
    node.publish(numbered("a", 10, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_an_identity_count_over_all_its_connections() {
    let target = Target::new(json!({ "maxStreamsPerIdentity": 3 })).await;
    let bystander = target.bystander().await;
    let mut held = Vec::new();
    for n in 0..3 {
        let node = target.hostile_node(&format!("n{n}")).await;
        held.push((node.stream(node.request()).await.unwrap(), node));
    }
    let node = target.hostile_node("n3").await;
    let status = node.stream(node.request()).await.unwrap_err();
    let error = error_details(&status, Code::ResourceExhausted, "LIMIT_REACHED");
    assert_eq!(error.metadata["limit"], "limits.maxStreamsPerIdentity");
    assert_eq!(error.metadata["allowed"], "3");
    node.publish(vec![queue_refresh()]).await.unwrap();
    held.pop();
    until(LIMIT, "a free stream permit", async || node.stream(node.request()).await.is_ok()).await;
    drop((held, node));
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_of_open_streams_count_until_the_streams_end() {
    let limits = json!({
        "maxRequestBytes": "512KiB",
        "maxPendingBytes": "8MiB",
        "maxPendingBytesPerIdentity": "2500KiB",
    });
    let target = Target::new(limits).await;
    let bystander = target.bystander().await;
    let node = target.hostile_node("n").await;
    let mut request = node.request();
    let accounts = (0..5000).map(|n| format!("{n:060}")).collect();
    request.filter = Some(trunkline_proto::v1::Filter { accounts, ..Default::default() });
    // Each request has 310 KB, and its filter takes 400 KB.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(node.stream(request.clone()).await.unwrap());
    }
    let status = node.stream(request.clone()).await.unwrap_err();
    let error = error_details(&status, Code::ResourceExhausted, "LIMIT_REACHED");
    assert_eq!(error.metadata["limit"], "limits.maxPendingBytesPerIdentity");
    held.pop();
    until(LIMIT, "a free stream permit", async || node.stream(request.clone()).await.is_ok()).await;
    drop((held, node));
    target.withstood(bystander).await;
}
