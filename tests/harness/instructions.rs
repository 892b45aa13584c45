#![forbid(unsafe_code)]
//! Instructions that a gateway executes to publish and deliver an event, counted by callgrind. The
//! count hardly varies between runs, so that a change that makes a path slower is noticed.
//!
//! A whole gateway runs under valgrind, HTTP/2 and gRPC included, in the profile of the tests. The
//! load is in lockstep (each request is answered and delivered everywhere before the next), so that
//! it is the same each time. Two loads of different length are counted and subtracted, which
//! removes the cost of the start and of the connections. `tests/harness/instructions.json` has the
//! expected counts; to write them anew: `TRUNKLINE_TEST_INSTRUCTIONS=write ./test instructions`.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use super::support::{
    events::mailbox_change,
    folder,
    gateway::{binary, client, connect},
    ports::Port,
    process::{Process, Program},
    tools, until,
};
use serde_json::json;
use tokio::time::timeout;
use tonic::Streaming;
use trunkline_proto::v1::{
    PublishRequest, SubscribeRequest, SubscribeResponse,
    coordination_service_client::CoordinationServiceClient, subscribe_response::Response,
};

/// The test fails above the expected count by this part. Runs of one build differ by a few percent.
const TOLERANCE: f64 = 0.10;

/// Requests of the shorter load, and the additional requests of the longer one.
const FEW: usize = 60;
const MORE: usize = 240;

/// Time limit of one step under valgrind.
const SLOW: Duration = Duration::from_mins(1);

/// Load of one request: its events, and the streams that each is delivered to.
#[derive(Clone, Copy)]
struct Load {
    events: usize,
    subscribers: usize,
}

/// Waits until a stream has delivered so many events.
async fn receive(stream: &mut Streaming<SubscribeResponse>, mut events: usize) {
    while events > 0 {
        let message = timeout(SLOW, stream.message()).await.expect("in time").expect("a message");
        if let Some(Response::Events(batch)) = message.expect("an open stream").response {
            events -= batch.events.len();
        }
    }
}

/// Instructions of a gateway from start to exit, with so many requests in between.
async fn count(load: Load, requests: usize) -> u64 {
    let folder = folder::new();
    let port = Port::free();
    let config = folder.path().join("trunkline.json");
    let listen = format!("127.0.0.1:{}", port.number());
    let drain = json!({ "spread": "0s" });
    let text = json!({ "listen": listen, "admin": null, "drain": drain }).to_string();
    fs::write(&config, text).expect("a file");
    let counts = folder.path().join("callgrind.out");
    let args = [
        "--tool=callgrind".to_owned(),
        format!("--callgrind-out-file={}", counts.display()),
        binary().display().to_string(),
        "serve".to_owned(),
        "--config".to_owned(),
        config.display().to_string(),
    ];
    // With two workers, work stealing would make the count vary.
    let program = Program::new(tools::valgrind(), args).env("TOKIO_WORKER_THREADS", "1");
    let gateway = Process::start("gateway under callgrind", program);
    let url = format!("http://{listen}");
    until(SLOW, "the gateway listens", async || connect(&url).await.is_ok()).await;

    let mut streams = Vec::new();
    for node in 0..load.subscribers {
        let request =
            SubscribeRequest { node_id: format!("node-{node}"), ..SubscribeRequest::default() };
        let stream = client(&url).await.subscribe(request).await;
        let mut stream = stream.expect("a stream").into_inner();
        let first = timeout(SLOW, stream.message()).await.expect("in time").expect("a message");
        assert!(matches!(first.and_then(|first| first.response), Some(Response::Subscribed(_))));
        streams.push(stream);
    }
    let mut publisher: CoordinationServiceClient<_> = client(&url).await;
    for _ in 0..requests {
        let request = PublishRequest {
            node_id: "publisher".into(),
            events: (0..load.events).map(|_| mailbox_change("account-1", 7)).collect(),
            ..PublishRequest::default()
        };
        let answer = timeout(SLOW, publisher.publish(request)).await.expect("in time");
        assert_eq!(answer.expect("accepted").into_inner().positions.len(), load.events);
        for stream in &mut streams {
            receive(stream, load.events).await;
        }
    }
    drop((streams, publisher));
    gateway.signal("TERM");
    gateway.wait(SLOW).await;
    total(&counts)
}

/// The total in a file that callgrind wrote.
fn total(file: &Path) -> u64 {
    let text = fs::read_to_string(file).expect("the file of callgrind");
    let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
    line.and_then(|count| count.trim().parse().ok()).expect("a sum")
}

/// Instructions of one request of a load.
async fn of_one_request(load: Load) -> f64 {
    let few = count(load, FEW).await;
    let many = count(load, FEW + MORE).await;
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let more = (many - few) as f64;
    more / f64::from(u32::try_from(MORE).expect("small"))
}

#[tokio::test]
async fn publishing_and_delivering_take_no_more_instructions_than_recorded() {
    let one = of_one_request(Load { events: 1, subscribers: 0 }).await;
    let hundred = of_one_request(Load { events: 100, subscribers: 0 }).await;
    let one_to_ten = of_one_request(Load { events: 1, subscribers: 10 }).await;
    let hundred_to_ten = of_one_request(Load { events: 100, subscribers: 10 }).await;
    let counted = BTreeMap::from([
        ("publish a request of one event", one),
        ("publish an event, of a hundred in a request", hundred / 100.0),
        ("deliver a message of one event", (one_to_ten - one) / 10.0),
        ("deliver an event, of a hundred in a message", (hundred_to_ten - hundred) / 1000.0),
    ]);
    let counted: BTreeMap<String, u64> = counted
        .into_iter()
        .map(|(path, count)| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // rounded, positive
            (path.to_owned(), count.round() as u64)
        })
        .collect();
    let text = serde_json::to_string_pretty(&counted).expect("JSON");
    println!("instructions: {text}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/harness/instructions.json");
    if std::env::var("TRUNKLINE_TEST_INSTRUCTIONS").is_ok_and(|mode| mode == "write") {
        fs::write(&file, text + "\n").expect("a file");
        return;
    }
    let expected = fs::read_to_string(&file).expect("tests/harness/instructions.json");
    let expected: BTreeMap<String, u64> = serde_json::from_str(&expected).expect("its form");
    assert!(expected.keys().eq(counted.keys()), "tests/harness/instructions.json has other keys");
    for (path, expected) in expected {
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let (count, expected) = (counted[&path] as f64, expected as f64);
        assert!(
            count <= expected * (1.0 + TOLERANCE),
            "to {path} takes {count} instructions, expected {expected}; \
             if that is justified, write the counts anew"
        );
    }
}
