//! A subscription continues over every fault of its gateway: no event is lost or repeated.

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
    Gateway, GatewayOptions, TestNode,
    events::{mailbox_change, with_id},
};

/// The longest wait before a reconnection, unless the gateway asks for a longer one.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Publishes events `e0`, `e1`, ... of one account, one after the other, until it is stopped.
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

    /// Stops it. The number of events before the event `last`.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic")
    }
}

/// Asserts that every event was received once and in order, without a gap.
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

/// Takes notifications until a stream is open again.
async fn resumed(subscription: &mut Subscription) -> Vec<Notification> {
    until(subscription, |seen| matches!(seen, Notification::Subscribed(_))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_resumes_when_its_killed_gateway_restarts() {
    let pair = Pair::start().await;
    let mut subscription = client_of(&pair.first, "n1").subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    let flow = Flow::start(&pair.second).await;
    let mut seen = until_event(&mut subscription, "e50").await;

    pair.first.kill_9();
    // No gateway serves for a while: several attempts fail.
    let lost = |seen: &Notification| matches!(seen, Notification::Reconnecting { .. });
    seen.extend(until(&mut subscription, lost).await);
    seen.push(next(&mut subscription).await);
    seen.push(next(&mut subscription).await);
    pair.first.restart().await;
    seen.extend(resumed(&mut subscription).await);

    let waits = waits(&seen);
    assert!(waits.len() >= 3 && waits.iter().all(|wait| *wait <= MAX_WAIT), "{waits:?}");
    let count = flow.end().await;
    seen.extend(until_event(&mut subscription, "last").await);
    assert_whole(&seen, 0, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_moves_to_the_next_gateway_when_its_own_is_killed() {
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
async fn missing_heartbeats_of_a_paused_gateway_move_a_subscription_to_the_next() {
    let pair = Pair::start().await;
    let options = SubscribeOptions::new().heartbeat_interval(Duration::from_secs(1));
    let mut subscription = pair.client("n1").subscribe(options);
    subscribed(&mut subscription).await;
    let flow = Flow::start(&pair.second).await;
    let mut seen = until_event(&mut subscription, "e50").await;
    pair.first.pause().await;
    seen.extend(resumed(&mut subscription).await);
    let reported = seen.iter().any(|seen| {
        let Notification::Reconnecting { reason, .. } = seen else { return false };
        reason.contains("nothing received")
    });
    assert!(reported, "{seen:?}");
    let count = flow.end().await;
    seen.extend(until_event(&mut subscription, "last").await);
    assert_whole(&seen, 0, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_moves_a_subscription_to_the_next_gateway_after_the_requested_delay() {
    let drain = serde_json::json!({ "spread": "700ms" });
    let pair = Pair::with(|options| options.set("drain", drain.clone())).await;
    let mut subscription = pair.client("n1").subscribe(SubscribeOptions::new());
    let Notification::Subscribed(first) = next(&mut subscription).await else { panic!("opened") };
    let flow = Flow::start(&pair.second).await;
    let mut seen = until_event(&mut subscription, "e50").await;

    pair.first.signal_term();
    let draining = |seen: &Notification| matches!(seen, Notification::Draining(_));
    seen.extend(until(&mut subscription, draining).await);
    let Some(Notification::Draining(drain)) = seen.last() else { panic!("draining") };
    let asked = Duration::try_from(drain.reconnect_delay.expect("a delay")).expect("positive");
    assert_eq!(asked, Duration::from_millis(700));
    let Notification::Reconnecting { wait, reason } = next(&mut subscription).await else {
        panic!("reconnecting comes next")
    };
    assert!(wait >= asked && wait <= MAX_WAIT, "{wait:?}");
    assert!(reason.contains("another gateway"), "{reason}");
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
async fn a_subscription_continues_when_the_bus_comes_back() {
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
async fn resuming_with_a_token_on_another_gateway_repeats_and_loses_nothing() {
    let pair = Pair::start().await;
    let mut subscription = client_of(&pair.first, "n1").subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    let flow = Flow::start(&pair.second).await;
    let seen = until_event(&mut subscription, "e50").await;
    // A token covers whole batches: take the rest of this one.
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

/// Its gateway has lost the event and the request, and accepts a retry as a new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_accepted_again_after_everything_was_lost_is_handed_on_once() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let mut subscription = client_of(&gateway, "subscriber").subscribe(SubscribeOptions::new());
    subscribed(&mut subscription).await;
    let request = uuid::Uuid::new_v4().to_string();
    let publish = async || {
        let publisher = client_of(&gateway, "publisher");
        let batch = || vec![mailbox_change("a1", 1), mailbox_change("a1", 2)];
        publisher.publish_as(&request, batch()).await.expect("published");
    };
    publish().await;
    let is_event = |seen: &Notification| matches!(seen, Notification::Event(_));
    until(&mut subscription, is_event).await;
    until(&mut subscription, is_event).await;
    gateway.restart().await;
    resumed(&mut subscription).await;
    publish().await;
    let other = client_of(&gateway, "other");
    other.publish([with_id("last", mailbox_change("a1", 3))]).await.expect("published");
    let seen = until_event(&mut subscription, "last").await;
    assert_eq!(ids(&seen), ["last"]);
}
