//! A subscription goes on over everything that happens to its gateway: nothing lost, nothing twice.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use trunkline_client::{Notification, SubscribeOptions, Subscription};
use trunkline_proto::v1::EventKind;

use super::{Pair, client_of, gaps, ids, next, subscribed, until, until_event};
use crate::support::{
    Gateway, TestNode,
    events::{mailbox_change, with_id},
};

/// A reconnection waits no longer than this, unless the gateway asked for it.
const MAX: Duration = Duration::from_secs(2);

/// Publishes events `e0`, `e1`, ... of one account one after the other, until it is told to stop.
struct Flow {
    stop: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

impl Flow {
    async fn start(gateway: &Gateway) -> Flow {
        let node = TestNode::connect(gateway, "flow").await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                let event = with_id(format!("e{count}"), mailbox_change("a1", count as u64));
                node.publish(vec![event]).await.expect("published");
                count += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let last = with_id("last", mailbox_change("a1", 0));
            node.publish(vec![last]).await.expect("published");
            count
        });
        Flow { stop, task }
    }

    /// How many there were, before the event `last`.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic")
    }
}

/// Every event came once and in order, and nothing was told as missing.
fn assert_whole(seen: &[Notification], first: usize, count: usize) {
    assert!(gaps(seen).is_empty(), "{:?}", gaps(seen));
    let expected: Vec<String> =
        (first..count).map(|number| format!("e{number}")).chain(["last".into()]).collect();
    let found = ids(seen);
    let distinct: HashSet<&str> = found.iter().copied().collect();
    assert_eq!(found.len(), distinct.len(), "some came twice");
    assert_eq!(found, expected);
}

fn waits(seen: &[Notification]) -> Vec<Duration> {
    seen.iter()
        .filter_map(|seen| match seen {
            Notification::Reconnecting { wait, .. } => Some(*wait),
            _ => None,
        })
        .collect()
}

/// Takes all up to a stream that was opened again.
async fn resumed(subscription: &mut Subscription) -> Vec<Notification> {
    until(subscription, |seen| matches!(seen, Notification::Subscribed(_))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn its_gateway_is_killed_and_started_again_while_events_flow() {
    let pair = Pair::start().await;
    let mut subscription = client_of(&pair.first, "n1").subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    let flow = Flow::start(&pair.second).await;
    let mut seen = until_event(&mut subscription, "e50").await;

    pair.first.kill_9();
    // Nobody serves for a while: several attempts fail.
    let lost = |seen: &Notification| matches!(seen, Notification::Reconnecting { .. });
    seen.extend(until(&mut subscription, lost).await);
    seen.push(next(&mut subscription).await);
    seen.push(next(&mut subscription).await);
    pair.first.restart().await;
    seen.extend(resumed(&mut subscription).await);

    let waits = waits(&seen);
    assert!(waits.len() >= 3 && waits.iter().all(|wait| *wait <= MAX), "{waits:?}");
    let count = flow.end().await;
    seen.extend(until_event(&mut subscription, "last").await);
    assert_whole(&seen, 0, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_gateway_is_killed_and_it_goes_to_the_next() {
    let pair = Pair::start().await;
    let mut subscription = pair.client("n1").subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    let flow = Flow::start(&pair.second).await;
    let mut seen = until_event(&mut subscription, "e50").await;
    pair.first.kill_9();
    seen.extend(resumed(&mut subscription).await);
    let count = flow.end().await;
    seen.extend(until_event(&mut subscription, "last").await);
    assert_whole(&seen, 0, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_gateway_freezes_and_the_missing_heartbeats_tell() {
    let pair = Pair::start().await;
    let options = SubscribeOptions::new().heartbeat_interval(Duration::from_secs(1));
    let mut subscription = pair.client("n1").subscribe(options);
    subscribed(&mut subscription).await;
    let flow = Flow::start(&pair.second).await;
    let mut seen = until_event(&mut subscription, "e50").await;
    pair.first.pause().await;
    seen.extend(resumed(&mut subscription).await);
    let told = seen.iter().any(|seen| {
        matches!(seen, Notification::Reconnecting { reason, .. } if reason.contains("nothing came"))
    });
    assert!(told, "{seen:?}");
    let count = flow.end().await;
    seen.extend(until_event(&mut subscription, "last").await);
    assert_whole(&seen, 0, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_gateway_drains_and_it_goes_to_the_next_after_the_wait_it_was_told() {
    let drain = serde_json::json!({ "spread": "700ms" });
    let pair = Pair::with(|options| options.set("drain", drain.clone())).await;
    let mut subscription = pair.client("n1").subscribe(SubscribeOptions::new());
    let Notification::Subscribed(first) = next(&mut subscription).await else { panic!("opened") };
    let flow = Flow::start(&pair.second).await;
    let mut seen = until_event(&mut subscription, "e50").await;

    pair.first.signal_term();
    let draining = |seen: &Notification| matches!(seen, Notification::Draining(_));
    seen.extend(until(&mut subscription, draining).await);
    let Some(Notification::Draining(told)) = seen.last() else { panic!("draining") };
    let asked = Duration::try_from(told.reconnect_delay.expect("a delay")).expect("positive");
    assert_eq!(asked, Duration::from_millis(700));
    let Notification::Reconnecting { wait, reason } = next(&mut subscription).await else {
        panic!("reconnecting comes next")
    };
    assert!(wait >= asked && wait <= MAX, "{wait:?}");
    assert!(reason.contains("going away"), "{reason}");
    let before = std::time::Instant::now();
    let Notification::Subscribed(second) = next(&mut subscription).await else {
        panic!("the next gateway is tried at once after the wait")
    };
    assert!(before.elapsed() >= wait, "{:?}", before.elapsed());
    assert!(second.resumed && second.gateway_id != first.gateway_id, "{second:?}");

    let count = flow.end().await;
    seen.extend(until_event(&mut subscription, "last").await);
    assert_whole(&seen, 0, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_is_lost_and_comes_back() {
    let pair = Pair::start().await;
    let options = SubscribeOptions::new().kind(EventKind::MailboxChange);
    let mut subscription = pair.client("n1").subscribe(options);
    subscribed(&mut subscription).await;
    let publisher = pair.client("n2");
    let event = |id: &str| [with_id(id, mailbox_change("a1", 1))];
    publisher.publish(event("before")).await.expect("published");
    pair.redis.pause().await;
    let publishing = tokio::spawn({
        let (publisher, event) = (publisher.clone(), event("after"));
        async move { publisher.publish(event).await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    pair.redis.resume();
    publishing.await.expect("no panic").expect("published");
    let seen = until_event(&mut subscription, "after").await;
    assert_eq!(ids(&seen), ["before", "after"]);
    assert!(gaps(&seen).is_empty(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_continues_with_the_token_on_another_gateway() {
    let pair = Pair::start().await;
    let mut subscription = client_of(&pair.first, "n1").subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    let flow = Flow::start(&pair.second).await;
    let seen = until_event(&mut subscription, "e50").await;
    // The token stands for whole batches: take what is left of this one.
    let mut token = subscription.resume_token().to_vec();
    let mut received = ids(&seen).len();
    while subscription.resume_token() == token {
        if let Notification::Event(_) = next(&mut subscription).await {
            received += 1;
        }
    }
    token = subscription.resume_token().to_vec();
    drop(subscription);

    let options = SubscribeOptions::new().resume_token(token);
    let mut subscription = client_of(&pair.second, "n1").subscribe(options);
    let Notification::Subscribed(opened) = next(&mut subscription).await else { panic!("opened") };
    assert!(opened.resumed, "{opened:?}");
    let count = flow.end().await;
    let seen = until_event(&mut subscription, "last").await;
    assert_whole(&seen, received, count);
}
