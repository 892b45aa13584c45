//! Subscriptions whose accounts change while they live.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use trunkline_client::{ErrorKind, Interest, Notification, SubscribeOptions};

use super::{Pair, client_of};
use crate::support::{
    GatewayOptions, LIMIT, TestNode,
    events::{mailbox_change, with_id},
    wait::attempt,
};

/// A subscription that is read, and the ids of its events.
struct Reader {
    interest: Interest,
    ids: Arc<Mutex<Vec<String>>>,
    gaps: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Reader {
    async fn start(client: &trunkline_client::Client, accounts: &[&str]) -> Reader {
        let mut options = SubscribeOptions::new();
        for account in accounts {
            options = options.account(*account);
        }
        let (mut subscription, interest) = client.watch(options);
        let (ids, gaps) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<usize>>::default());
        let (received, lost) = (ids.clone(), gaps.clone());
        let task = tokio::spawn(async move {
            while let Some(notification) = subscription.next().await {
                match notification.expect("no error") {
                    Notification::Event(event) => received.lock().push(event.event_id),
                    Notification::Gap(_) => *lost.lock() += 1,
                    _ => {}
                }
            }
        });
        // In force once it is open.
        interest.add(Vec::<String>::new()).await.expect("open");
        Reader { interest, ids, gaps, task }
    }

    async fn has(&self, expected: &[&str]) {
        let has = async || {
            let ids = self.ids.lock();
            if *ids == expected { Ok(()) } else { Err(format!("{ids:?}")) }
        };
        attempt(LIMIT, &format!("{expected:?}"), has).await;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publishes(node: &TestNode, id: &str, account: &str) {
    node.publish(vec![with_id(id, mailbox_change(account, 1))]).await.expect("published");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_added_is_delivered_at_once_and_what_is_removed_is_not() {
    let pair = Pair::start().await;
    let publisher = TestNode::connect(&pair.second, "publisher").await;
    let reader = Reader::start(&pair.client("n1"), &["a"]).await;
    publishes(&publisher, "not-1", "b").await;
    publishes(&publisher, "2", "a").await;
    // An update is in force from where its gateway has read to, and that is past both.
    reader.has(&["2"]).await;
    reader.interest.add(["b", "c"]).await.expect("added");
    publishes(&publisher, "3", "b").await;
    reader.has(&["2", "3"]).await;
    reader.interest.remove(["a"]).await.expect("removed");
    publishes(&publisher, "not-4", "a").await;
    reader.interest.replace(["d", "c"]).await.expect("replaced");
    publishes(&publisher, "not-5", "b").await;
    publishes(&publisher, "6", "c").await;
    publishes(&publisher, "7", "d").await;
    reader.has(&["2", "3", "6", "7"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interest_outlives_the_gateway_and_nothing_is_lost_or_repeated() {
    let pair = Pair::start().await;
    let publisher = TestNode::connect(&pair.second, "publisher").await;
    let reader = Reader::start(&pair.client("n1"), &["a"]).await;
    reader.interest.add(["b"]).await.expect("added");
    publishes(&publisher, "1", "b").await;
    reader.has(&["1"]).await;
    pair.first.kill_9();
    publishes(&publisher, "2", "b").await;
    // Waits for the next stream, and is part of it.
    reader.interest.add(["c"]).await.expect("added");
    publishes(&publisher, "3", "c").await;
    publishes(&publisher, "not-4", "d").await;
    publishes(&publisher, "5", "a").await;
    reader.has(&["1", "2", "3", "5"]).await;
    assert_eq!(*reader.gaps.lock(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interest_of_many_accounts_is_sent_in_parts_on_every_stream() {
    let pair = Pair::start().await;
    let publisher = TestNode::connect(&pair.second, "publisher").await;
    let reader = Reader::start(&pair.client("n1"), &[]).await;
    let many: Vec<String> = (0..25_000).map(|n| format!("account-{n}")).collect();
    reader.interest.replace(many).await.expect("replaced");
    publishes(&publisher, "1", "account-24999").await;
    publishes(&publisher, "not-2", "account-25000").await;
    reader.has(&["1"]).await;
    pair.first.kill_9();
    reader.interest.add(["last"]).await.expect("added on the next stream");
    publishes(&publisher, "3", "account-0").await;
    publishes(&publisher, "4", "last").await;
    reader.has(&["1", "3", "4"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_a_gateway_rejects_change_nothing() {
    let limits = serde_json::json!({ "maxAccountsPerStream": 3 });
    let set = |options: GatewayOptions| options.set("limits", limits.clone());
    let pair = Pair::with(set).await;
    let publisher = TestNode::connect(&pair.second, "publisher").await;
    let reader = Reader::start(&client_of(&pair.first, "n1"), &["a", "b"]).await;
    let error = reader.interest.add(["c", "d"]).await.expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    reader.interest.add(["c"]).await.expect("as many as allowed");
    publishes(&publisher, "not-1", "d").await;
    publishes(&publisher, "2", "c").await;
    reader.has(&["2"]).await;
    drop(pair);
    let ended = tokio::time::timeout(Duration::from_millis(100), reader.interest.add(["e"])).await;
    assert!(ended.is_err(), "it waits for a gateway");
}
