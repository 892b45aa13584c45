//! How fast a link carries events over a long line.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use trunkline_client::{Notification, PublisherOptions, SubscribeOptions};

use crate::{
    stage::{Link, client},
    support::{
        events::{mailbox_change, with_id},
        gateway::{Gateway, GatewayOptions},
        long_line::LongLine,
        until,
    },
};

const DELAY: Duration = Duration::from_millis(100);
const EVENTS: u32 = 1_000_000;
const PUBLISHERS: u32 = 2;

/// Measures; the figure is in `docs/regions.md`. Half of it is asserted.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it alone, with the profile of releases"]
async fn fifty_thousand_events_a_second_over_a_line_of_100_ms() {
    let large = json!({ "maxFrames": 1_000_000, "maxBytes": "1GiB" });
    let options = |name: &str| {
        GatewayOptions::embedded()
            .set("deployment", name)
            .set("history", large.clone())
            .set("log", json!({ "maxBytes": "512MiB", "maxEvents": 2_000_000 }))
            .set("limits", json!({ "streamWindow": "4MiB" }))
    };
    let far = std::env::var("TRUNKLINE_TEST_FAR").unwrap_or_else(|_| "destination".into());
    let (a, b) = (Gateway::start(options("a")).await, Gateway::start(options("b")).await);
    let line = if far == "source" { a.port() } else { b.port() };
    let line = LongLine::start(line, DELAY).await;
    let (from, to) =
        if far == "source" { (line.gateway_url(), b.url()) } else { (a.url(), line.gateway_url()) };
    let link = Link::start(&[from], &[to], &[]);
    link.is_connected().await;
    let mut reader = client("reader", &[b.url()]).subscribe(SubscribeOptions::new());
    while !matches!(reader.next().await, Some(Ok(Notification::Subscribed(_)))) {}
    // What waits at the source is carried at full speed.
    let publishers = (0..PUBLISHERS).map(async |nth| {
        let options = PublisherOptions::new().max_events(50_000);
        let publisher = client(&format!("mx{nth}"), &[a.url()]).publisher(options);
        for number in 0..EVENTS / PUBLISHERS {
            let event = mailbox_change(&format!("account-{}", number % 1000), number.into());
            let event = with_id(format!("{nth}-{number}"), event);
            publisher.publish(event).await.expect("taken");
        }
        publisher.close().await;
    });
    let begun = Instant::now();
    let reading = async {
        let (mut count, mut first) = (0, None);
        while count < EVENTS {
            match reader.next().await.expect("open").expect("no error") {
                Notification::Event(_) => count += 1,
                Notification::Gap(gap) => assert_eq!(gap.missed_events, None, "{gap:?}"),
                _ => {}
            }
            if count > 0 {
                first.get_or_insert_with(Instant::now);
            }
        }
        first.expect("an event").elapsed()
    };
    let (_, took) = tokio::join!(join_all(publishers), reading);
    until(Duration::from_secs(30), "it is counted", async || {
        link.metric("link_waiting_events").await == Some(0.0)
    })
    .await;
    let rate = f64::from(EVENTS) / took.as_secs_f64();
    let (all, rss) = (begun.elapsed(), link.process().rss_bytes() >> 20);
    println!("{far} far: {rate:.0} events/s ({EVENTS} in {took:?}, {all:?}), {rss} MiB");
    assert!(rate > 25_000.0, "{rate} events/s");
}
