//! Real gateways over a bus that only the tests know: it needs its folder and one registered line.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use trunkline::{bus::Registry, gateway};

use super::{
    ids,
    memory::{Fault, MemoryFactory},
    support::{LIMIT, TestNode, config, events, eventually},
};

/// A gateway in this process.
struct InProcess {
    url: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl InProcess {
    async fn start(memory: &MemoryFactory) -> InProcess {
        let registry = Registry::default().with("Memory", memory.clone());
        let content = json!({"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "shards": 3});
        let config = config(&content);
        let (listening, address) = oneshot::channel::<SocketAddr>();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let bus = registry.get("Memory").expect("a registered bus");
            let listens = |address| listening.send(address).expect("the test waits");
            let (_reload, reloads) = mpsc::channel(1);
            let serving = gateway::serve(config, bus, listens, stopped.cancelled(), reloads);
            serving.await.expect("served");
        });
        let url = format!("http://{}", address.await.expect("an address"));
        // It listens before its bus has started.
        let first = TestNode::connect_to(&url, "first").await;
        eventually(LIMIT, "a stream", async || first.stream(first.request()).await.ok()).await;
        InProcess { url, stop, task }
    }

    async fn node(&self, id: &str) -> TestNode {
        TestNode::connect_to(&self.url, id).await
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.task).await.expect("in time").expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_over_a_third_bus_deliver_each_event_once_through_its_faults() {
    let memory = MemoryFactory::default();
    let (one, two) = tokio::join!(InProcess::start(&memory), InProcess::start(&memory));
    let publisher = one.node("publisher").await;
    let subscriber = two.node("subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let publish = async |name: &str| {
        for batch in events::numbered(name, 60, 20).chunks(6) {
            let id = uuid::Uuid::new_v4().to_string();
            eventually(LIMIT, "a publish", async || {
                publisher.publish_as(id.as_str(), batch.to_vec()).await.ok()
            })
            .await;
        }
    };
    publish("plain").await;
    collector.event("plain-59", LIMIT).await;
    for (name, fault) in [
        ("delayed", Fault::Delay),
        ("unanswered", Fault::LostAnswer),
        ("refused", Fault::Unavailable),
    ] {
        memory.inject(fault);
        let healed = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            memory.heal();
        };
        tokio::join!(publish(name), healed);
    }
    // Every event is delivered; then the store loses the last frames, and gateways restore them.
    collector.events(4 * 60, LIMIT).await;
    let token = collector.last_token();
    memory.lose_tail(5, true);
    publish("after").await;
    let recording = collector.events(5 * 60, LIMIT).await;
    let mut delivered = recording.event_ids.clone();
    delivered.sort();
    let mut expected: Vec<String> = ["plain", "delayed", "unanswered", "refused", "after"]
        .iter()
        .flat_map(|name| ids(name, 0..60))
        .collect();
    expected.sort();
    assert_eq!(delivered, expected, "each event once");
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());

    // A stream resumes on the other gateway, after the loss, and repeats nothing.
    let moved = one.node("subscriber").await;
    let mut request = moved.request();
    request.resume_token = token;
    let resumed = moved.subscribe(request).await.events(60, LIMIT).await;
    let mut delivered = resumed.event_ids.clone();
    delivered.sort();
    let mut expected = ids("after", 0..60);
    expected.sort();
    assert_eq!(delivered, expected);
    assert!(resumed.gaps().is_empty(), "{:?}", resumed.gaps());
    tokio::join!(one.end(), two.end());
}
