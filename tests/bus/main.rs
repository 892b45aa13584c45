//! The buses: conformance of each to the rules of a bus, and the bus over real Redis servers: how
//! they are reached, what they keep, and what gateways agree on.

#[path = "../support/mod.rs"]
mod support;

mod acl;
mod agreement;
mod authenticated;
mod causes;
mod cluster;
mod conformance;
mod doctor;
mod history;
mod logins;
mod memory;
mod odd;
mod partial;
mod promises;
mod reach;
mod reconnect;
mod rights;
mod sentinel;
mod sizes;
mod third_bus;
mod tls;
mod urls;
mod verify;

use support::{Gateway, GatewayOptions, LIMIT, TestNode, events};

/// Two gateways, started at once.
async fn two_gateways(options: impl Fn() -> GatewayOptions) -> (Gateway, Gateway) {
    tokio::join!(Gateway::start(options()), Gateway::start(options()))
}

/// What is published on one gateway arrives on the other, once and in order.
async fn crosses(one: &Gateway, two: &Gateway) {
    let publisher = TestNode::connect(one, "publisher").await;
    let subscriber = TestNode::connect(two, "subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    for batch in events::numbered("e", 300, 30).chunks(20) {
        publisher.publish(batch.to_vec()).await.expect("published");
    }
    let recording = collector.event("e-299", LIMIT).await;
    assert_eq!(recording.event_ids, ids("e", 0..300));
    assert!(recording.gaps().is_empty());
}

/// `<prefix>-<number>`, as `events::numbered` names them.
fn ids(prefix: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("{prefix}-{number}")).collect()
}
