//! What a link holds while the destination is away.

use std::time::Duration;

use trunkline_client::{PublisherOptions, SubscribeOptions};

use crate::{
    stage::{Link, Recorder, client, deployment, gaps},
    support::{
        LIMIT,
        events::{mailbox_change, with_id},
        long_line::LongLine,
        until,
    },
};

const EVENTS: usize = 60_000;

/// The least that `--in-flight` can be.
const IN_FLIGHT: f64 = 1024.0 * 1024.0;

/// Far less than all events would take.
const MAX_RSS: u64 = 96 << 20;
const MAX_STATE: u64 = 20 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn while_the_destination_is_away_a_link_holds_what_it_may_and_the_source_keeps_the_rest() {
    let (a, b) = (deployment("a").await, deployment("b").await);
    let line = LongLine::start(b.port(), Duration::from_millis(1)).await;
    let reader = Recorder::start(&client("reader", &[b.url()]), SubscribeOptions::new()).await;
    let link = Link::start(&[a.url()], &[line.gateway_url()], &["--in-flight", "1"]);
    link.is_connected().await;
    reader.gaps(1).await;
    line.cut();
    let publisher = client("mx1", &[a.url()]).publisher(PublisherOptions::new());
    for number in 0..EVENTS {
        let event = with_id(format!("e{number}"), mailbox_change("a1", number as u64));
        publisher.publish(event).await.expect("taken");
    }
    publisher.close().await;
    until(LIMIT, "it holds what it may", async || {
        link.metric("link_waiting_bytes").await.is_some_and(|bytes| bytes > IN_FLIGHT * 0.9)
    })
    .await;
    let bytes = link.metric("link_waiting_bytes").await.expect("a metric");
    assert!(bytes <= IN_FLIGHT, "{bytes} bytes wait");
    assert!(link.process().rss_bytes() < MAX_RSS, "{} bytes", link.process().rss_bytes());
    until(LIMIT, "it is not ready", async || {
        link.admin("/readyz").await.is_ok_and(|answer| answer.contains("accepts no events"))
    })
    .await;
    line.restore();
    until(4 * LIMIT, "all events came", async || reader.ids().len() >= EVENTS).await;
    let expected: Vec<String> = (0..EVENTS).map(|number| format!("e{number}")).collect();
    assert!(reader.ids() == expected, "each once, and in order");
    assert_eq!(gaps(&reader.received.lock()).len(), 1);
    assert!(link.process().stderr().contains("the destination accepts events again"));
    assert!(link.process().rss_bytes() < MAX_RSS, "{} bytes", link.process().rss_bytes());
    let state = std::fs::metadata(link.state()).expect("a file").len();
    assert!(state < MAX_STATE, "{state} bytes of state");
}
