//! Nodes that want more than their share.

use std::time::{Duration, Instant};

use serde_json::json;
use tonic::Code;

use crate::{
    scene::Scene,
    support::{
        LIMIT,
        events::{numbered, queue_refresh},
        until,
    },
    told::{told, wrong_fields},
};

const RATE: f64 = 200.0;
const BURST: f64 = 100.0;

#[tokio::test(flavor = "multi_thread")]
async fn who_publishes_far_beyond_its_rate_gets_its_rate_and_others_get_theirs() {
    let scene = Scene::new(json!({ "eventsPerSecond": 200, "eventBurst": 100 })).await;
    let bystander = scene.bystander().await;
    let begun = Instant::now();
    let mut attack = tokio::task::JoinSet::new();
    for n in 0..4 {
        // Another connection and another name are no other identity.
        let node = scene.hostile_node(&format!("greedy-{n}")).await;
        attack.spawn(async move {
            let (mut accepted, mut refused) = (0, 0);
            while begun.elapsed() < Duration::from_secs(4) {
                match node.publish(numbered("g", 10, 1)).await {
                    Ok(_) => accepted += 10,
                    Err(status) => {
                        let told = told(&status, Code::ResourceExhausted, "LIMIT_REACHED");
                        assert_eq!(told.metadata["limit"], "limits.eventsPerSecond");
                        assert_eq!(told.quotas, ["limits.eventsPerSecond"]);
                        let retry = told.retry.expect("when it would fit");
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
    assert!(f64::from(accepted) >= RATE, "its own rate is not taken from it: {accepted}");
    assert!(refused > 0);
    assert!((scene.refused("eventsPerSecond").await - f64::from(refused)).abs() < 0.1);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_as_long_as_it_was_told_is_served() {
    let scene = Scene::new(json!({ "eventsPerSecond": 20, "eventBurst": 10 })).await;
    let node = scene.hostile_node("patient").await;
    node.publish(numbered("a", 10, 1)).await.unwrap();
    let status = node.publish(numbered("b", 10, 1)).await.unwrap_err();
    let retry = told(&status, Code::ResourceExhausted, "LIMIT_REACHED").retry.unwrap();
    assert!(retry <= Duration::from_millis(500), "{retry:?}");
    tokio::time::sleep(retry).await;
    node.publish(numbered("b", 10, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_larger_than_the_burst_is_told_at_once_that_it_never_fits() {
    let scene = Scene::new(json!({ "eventsPerSecond": 1000, "eventBurst": 10 })).await;
    let node = scene.hostile_node("large").await;
    let status = node.publish(numbered("a", 11, 1)).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["events"]);
    assert!(status.message().contains("limits.eventBurst is 10"), "{status:?}");
    // It took nothing of the burst.
    node.publish(numbered("a", 10, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_of_an_identity_are_counted_over_all_its_connections() {
    let scene = Scene::new(json!({ "maxStreamsPerIdentity": 3 })).await;
    let bystander = scene.bystander().await;
    let mut held = Vec::new();
    for n in 0..3 {
        let node = scene.hostile_node(&format!("n{n}")).await;
        held.push((node.stream(node.request()).await.unwrap(), node));
    }
    let node = scene.hostile_node("n3").await;
    let status = node.stream(node.request()).await.unwrap_err();
    let told = told(&status, Code::ResourceExhausted, "LIMIT_REACHED");
    assert_eq!(told.metadata["limit"], "limits.maxStreamsPerIdentity");
    assert_eq!(told.metadata["allowed"], "3");
    node.publish(vec![queue_refresh()]).await.unwrap();
    held.pop();
    until(LIMIT, "room again", async || node.stream(node.request()).await.is_ok()).await;
    drop((held, node));
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filters_of_open_streams_count_until_they_end() {
    let limits = json!({
        "maxRequestBytes": "512KiB", "maxPendingBytes": "2MiB", "maxPendingBytesPerIdentity": "1MiB",
    });
    let scene = Scene::new(limits).await;
    let bystander = scene.bystander().await;
    let node = scene.hostile_node("n").await;
    let mut request = node.request();
    let accounts = (0..5000).map(|n| format!("{n:060}")).collect();
    request.filter = Some(trunkline_proto::v1::Filter { accounts, ..Default::default() });
    // Each has 310 KB.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(node.stream(request.clone()).await.unwrap());
    }
    let status = node.stream(request.clone()).await.unwrap_err();
    let told = told(&status, Code::ResourceExhausted, "LIMIT_REACHED");
    assert_eq!(told.metadata["limit"], "limits.maxPendingBytesPerIdentity");
    held.pop();
    until(LIMIT, "room again", async || node.stream(request.clone()).await.is_ok()).await;
    drop((held, node));
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}
