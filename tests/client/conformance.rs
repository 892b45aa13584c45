//! What every client does, whatever its language: clients are driven by lines of JSON, as
//! docs/conformance.md says, over real gateways and real faults.

mod driver;
mod faults;

use serde_json::{Value, json};
use trunkline_proto::v1::{ListNodesRequest, Node};
use uuid::Uuid;

use self::driver::Driver;
use super::{Pair, example};
use crate::support::{
    Data, Gateway, GatewayOptions, LIMIT, RedisOptions, TestNode,
    events::{mailbox_change, with_id},
    process::Program,
    proxy::Proxy,
    tools, until,
};

/// Starts a driver of one language.
type Language = fn() -> Program;

fn rust() -> Program {
    Program::new(example::binary("conformance"), [""; 0])
}

fn python() -> Program {
    tools::python_client(["-m", "trunkline.conformance"])
}

/// A test of each scenario in a language.
macro_rules! tests {
    ($language:ident: $($scenario:ident),* $(,)?) => {
        mod $language {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $scenario() {
                super::$scenario(super::$language).await;
            })*
        }
    };
}

/// All scenarios, in all languages.
macro_rules! in_all_languages {
    ($($scenario:ident,)*) => {
        tests!(rust: $($scenario),*);
        tests!(python: $($scenario),*);
    };
}

in_all_languages! {
    a_publisher_publishes_everything_once_over_a_killed_gateway_and_a_restart_of_redis,
    what_was_accepted_without_an_answer_is_not_published_again,
    a_drain_moves_a_publisher,
    a_publisher_whose_id_another_process_has_is_told_and_publishes_nothing_more,
    a_rejected_event_fails_alone,
    a_full_buffer_does_what_its_owner_chose,
    a_request_that_is_wrong_is_refused_at_once,
    who_waits_for_nodes_learns_who_has_the_events_and_who_has_not,
    what_is_added_is_delivered_and_what_is_removed_is_not,
    interest_outlives_the_gateway_and_nothing_is_lost_or_repeated,
    an_interest_of_many_accounts_is_sent_in_parts_on_every_stream,
    accounts_that_a_gateway_rejects_change_nothing,
    acknowledgements_show_at_the_gateway_also_after_a_reconnect,
    a_publisher_that_waits_learns_that_a_watch_has_acknowledged,
    a_silent_gateway_is_left_after_two_heartbeat_intervals,
    a_draining_gateway_is_left_after_the_wait_that_it_asks_for,
    a_token_that_is_damaged_gives_a_gap_and_not_an_error,
}

fn changes(prefix: &str, count: usize) -> Vec<Value> {
    let one = |number: usize| {
        let account = format!("account-{}", number % 7);
        json!({"eventId": format!("{prefix}-{number}"), "mailboxChange": {"accountId": account}})
    };
    (0..count).map(one).collect()
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

async fn publishes(node: &TestNode, id: &str, account: &str) {
    node.publish(vec![with_id(id, mailbox_change(account, 1))]).await.expect("published");
}

async fn a_publisher_publishes_everything_once_over_a_killed_gateway_and_a_restart_of_redis(
    language: Language,
) {
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let pair = Pair::on(options, |options| options).await;
    let node = TestNode::connect(&pair.second, "observer").await;
    let observer = node.subscribe(node.request()).await;
    let driver = Driver::start(language, "n", &[&pair.first, &pair.second]);
    driver.say("open_publisher", json!({}));
    let publish = |prefix: &str| {
        driver.say("publish_stream", json!({"id": prefix, "events": changes(prefix, 1000)}));
    };
    publish("a");
    observer.event("a-0", LIMIT).await;
    // In the middle of what is on its way.
    pair.first.kill_9();
    publish("b");
    observer.event("b-0", LIMIT).await;
    pair.redis.kill_9();
    publish("c");
    pair.redis.restart(Data::Kept).await;
    driver.say("flush", json!({"id": "flushed"}));
    driver.done("flushed").await.expect("everything has an answer");
    assert_eq!(driver.all("failed"), Vec::<Value>::new());
    let recording = observer.events(3000, LIMIT).await;
    assert_eq!(recording.event_ids, [ids("a", 1000), ids("b", 1000), ids("c", 1000)].concat());
    assert!(recording.gaps().is_empty());
    driver.end().await;
}

/// The gateway dies between the bus and its answer, which only the publisher's id makes up for.
async fn what_was_accepted_without_an_answer_is_not_published_again(language: Language) {
    let pair = Pair::start().await;
    let node = TestNode::connect(&pair.second, "observer").await;
    let observer = node.subscribe(node.request()).await;
    let proxy = Proxy::start(pair.first.port()).await;
    let driver = Driver::start_at(language, "n", &[proxy.gateway_url(), pair.second.url()]);
    driver.say("open_publisher", json!({}));
    let publish = |prefix: &str| {
        driver.say("publish_stream", json!({"id": prefix, "events": changes(prefix, 20)}));
    };
    publish("a");
    driver.answer("a", 19).await.expect("published");
    proxy.drop_answers();
    publish("b");
    observer.event("b-19", LIMIT).await;
    pair.first.kill_9();
    publish("c");
    for prefix in ["b", "c"] {
        driver.answer(prefix, 19).await.expect("published");
    }
    let recording = observer.event("c-19", LIMIT).await;
    assert_eq!(recording.event_ids, [ids("a", 20), ids("b", 20), ids("c", 20)].concat());
    assert_eq!(driver.all("failed"), Vec::<Value>::new());
    driver.end().await;
}

async fn a_drain_moves_a_publisher(language: Language) {
    let pair = Pair::start().await;
    let node = TestNode::connect(&pair.second, "observer").await;
    let observer = node.subscribe(node.request()).await;
    let driver = Driver::start(language, "n", &[&pair.first, &pair.second]);
    driver.say("open_publisher", json!({}));
    driver.say("publish_stream", json!({"id": "a", "events": changes("a", 1)}));
    driver.answer("a", 0).await.expect("published");
    pair.first.signal_term();
    driver.say("publish_stream", json!({"id": "b", "events": changes("b", 500)}));
    driver.say("flush", json!({"id": "flushed"}));
    driver.done("flushed").await.expect("everything has an answer");
    let recording = observer.events(501, LIMIT).await;
    assert_eq!(recording.event_ids, [ids("a", 1), ids("b", 500)].concat());
    assert!(pair.first.ends(LIMIT).await.status.success());
    driver.end().await;
}

/// As a forked process does, or the restored image of a machine.
async fn a_publisher_whose_id_another_process_has_is_told_and_publishes_nothing_more(
    language: Language,
) {
    let pair = Pair::start().await;
    let node = TestNode::connect(&pair.second, "observer").await;
    let observer = node.subscribe(node.request()).await;
    let proxy = Proxy::start(pair.first.port()).await;
    proxy.record();
    let driver = Driver::start_at(language, "n", &[proxy.gateway_url(), pair.second.url()]);
    driver.say("open_publisher", json!({}));
    driver.say("publish_stream", json!({"id": "a", "events": changes("a", 20)}));
    driver.answer("a", 19).await.expect("published");
    // It goes on behind what was accepted, with events of its own.
    let copy = TestNode::connect(&pair.second, "n").await;
    let mut copy = copy.producer(publisher_id(&proxy.received())).await.expect("a stream");
    let event = |number: u64| with_id(format!("copy-{number}"), mailbox_change("account-0", 1));
    copy.events(21, (0..10).map(event).collect()).await;
    copy.until(30).await;
    driver.say("publish_stream", json!({"id": "b", "events": changes("b", 20)}));
    driver.say("flush", json!({"id": "flushed"}));
    driver.done("flushed").await.expect("everything has an answer");
    for index in 0..20 {
        let error = driver.answer("b", index).await.expect_err("it is taken over");
        assert_eq!(error["kind"], "TAKEN_OVER", "{error}");
    }
    copy.events(31, vec![event(10)]).await;
    copy.until(31).await;
    let recording = observer.events(31, LIMIT).await;
    assert_eq!(recording.event_ids, [ids("a", 20), ids("copy", 11)].concat());
    driver.end().await;
}

/// The field `publisher_id` of the first request of a stream.
fn publisher_id(received: &[u8]) -> String {
    let field = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes.strip_prefix(&[2 << 3 | 2, 36])?).ok()?;
        Uuid::parse_str(text).ok()
    };
    received.windows(2 + 36).find_map(field).expect("a publisher").to_string()
}

async fn a_rejected_event_fails_alone(language: Language) {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let driver = Driver::start(language, "n", &[&gateway]);
    driver.say("open_publisher", json!({}));
    let mut events = changes("e", 3);
    events[1]["mailboxChange"]["accountId"] = "".into();
    driver.say("publish_stream", json!({"id": 1, "events": events}));
    driver.say("flush", json!({"id": "flushed"}));
    driver.done("flushed").await.expect("everything has an answer");
    let error = driver.answer(1, 1).await.expect_err("it has no account");
    assert_eq!(error["kind"], "INVALID");
    // Its index is that in its message.
    let field = error["violations"][0][0].as_str().expect("a field");
    assert!(field.ends_with("].mailbox_change.account_id"), "{error}");
    for index in [0, 2] {
        driver.answer(1, index).await.expect("the others are published");
    }
    driver.end().await;
}

async fn a_full_buffer_does_what_its_owner_chose(language: Language) {
    let publish = |when_full: &str, max_age: f64| {
        // Nobody listens there.
        let driver = Driver::start_at(language, "n", &["http://127.0.0.1:1".into()]);
        let options = json!({"max_events": 2, "when_full": when_full, "max_age": max_age});
        driver.say("open_publisher", options);
        driver.say("publish_stream", json!({"id": 1, "events": changes("e", 3)}));
        driver
    };
    let full = publish("FAIL", 60.0);
    assert_eq!(full.answer(1, 2).await.expect_err("no room")["kind"], "FULL");
    let full = publish("DROP_OLDEST", 60.0);
    assert_eq!(full.answer(1, 0).await.expect_err("dropped")["kind"], "UNAVAILABLE");
    assert_eq!(full.all("failed").len(), 1);
    // There is room once the first ones are too old; then the last one is.
    let full = publish("WAIT", 0.3);
    for index in 0..3 {
        assert_eq!(full.answer(1, index).await.expect_err("too old")["kind"], "UNAVAILABLE");
    }
}

async fn a_request_that_is_wrong_is_refused_at_once(language: Language) {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let driver = Driver::start(language, "n", &[&gateway]);
    let wrong = json!([{"mailboxChange": {}}]);
    driver.say("publish", json!({"id": 1, "events": wrong}));
    let error = driver.done(1).await.expect_err("it has no account");
    assert_eq!(error["kind"], "INVALID");
    assert_eq!(error["violations"][0][0], "events[0].mailbox_change.account_id", "{error}");
    driver.say("publish", json!({"id": 2, "events": changes("e", 2)}));
    let positions = driver.done(2).await.expect("published");
    assert_eq!(positions.as_array().map(Vec::len), Some(2), "{positions}");
    driver.end().await;
}

async fn who_waits_for_nodes_learns_who_has_the_events_and_who_has_not(language: Language) {
    let pair = Pair::start().await;
    let node = TestNode::connect(&pair.second, "imap-2").await;
    let collector = node.subscribe(node.request()).await;
    let driver = Driver::start(language, "n", &[&pair.first, &pair.second]);
    driver.say("publish_and_wait", json!({"id": 1, "events": changes("e", 3), "timeout": 30.0}));
    let report = driver.done(1).await.expect("published");
    assert_eq!(report["complete"], true, "{report}");
    assert_eq!((&report["concernedNodes"], &report["doneNodes"]), (&json!(1), &json!(1)));
    collector.event("e-2", LIMIT).await;
    // A node that holds a `Subscribe` cannot acknowledge.
    let events = changes("f", 1);
    let command = json!({"id": 2, "events": events, "acknowledged": true, "timeout": 0.5});
    driver.say("publish_and_wait", command);
    let report = driver.done(2).await.expect("published");
    assert_eq!(report["complete"].as_bool(), None, "{report}");
    assert_eq!(report["pendingNodeIds"], json!(["imap-2"]), "{report}");
    collector.event("f-0", LIMIT).await;
    // More than the minute that gateways wait.
    driver.say("publish_and_wait", json!({"id": 3, "events": changes("g", 1), "timeout": 61.0}));
    let error = driver.done(3).await.expect_err("too long");
    assert_eq!(
        (&error["kind"], &error["violations"][0][0]),
        (&json!("INVALID"), &json!("wait_timeout"))
    );
    driver.end().await;
}

/// Two gateways, a publisher on the second, and a driver that watches on the first.
async fn watching(language: Language, options: Value) -> (Pair, TestNode, Driver) {
    let pair = Pair::start().await;
    let publisher = TestNode::connect(&pair.second, "publisher").await;
    let driver = Driver::start(language, "n", &[&pair.first, &pair.second]);
    driver.say("watch", options);
    (pair, publisher, driver)
}

async fn what_is_added_is_delivered_and_what_is_removed_is_not(language: Language) {
    let (_pair, publisher, driver) = watching(language, json!({"accounts": ["a"]})).await;
    driver.streams(1).await;
    publishes(&publisher, "not-1", "b").await;
    publishes(&publisher, "2", "a").await;
    // An update is in force from where its gateway has read to, and that is past both.
    driver.has_events(&["2"]).await;
    driver.change("add", &["b", "c"]).await.expect("added");
    publishes(&publisher, "3", "b").await;
    driver.has_events(&["2", "3"]).await;
    driver.change("remove", &["a"]).await.expect("removed");
    publishes(&publisher, "not-4", "a").await;
    driver.change("replace", &["d", "c"]).await.expect("replaced");
    publishes(&publisher, "not-5", "b").await;
    publishes(&publisher, "6", "c").await;
    publishes(&publisher, "7", "d").await;
    driver.has_events(&["2", "3", "6", "7"]).await;
    driver.end().await;
}

async fn interest_outlives_the_gateway_and_nothing_is_lost_or_repeated(language: Language) {
    let (pair, publisher, driver) = watching(language, json!({"accounts": ["a"]})).await;
    driver.change("add", &["b"]).await.expect("added");
    publishes(&publisher, "1", "b").await;
    driver.has_events(&["1"]).await;
    pair.first.kill_9();
    publishes(&publisher, "2", "b").await;
    // Waits for the next stream, and is part of it.
    driver.change("add", &["c"]).await.expect("added");
    publishes(&publisher, "3", "c").await;
    publishes(&publisher, "not-4", "d").await;
    publishes(&publisher, "5", "a").await;
    driver.has_events(&["1", "2", "3", "5"]).await;
    assert_eq!(driver.streams(2).await["resumed"], true);
    assert!(driver.all("gap").is_empty());
    driver.end().await;
}

async fn an_interest_of_many_accounts_is_sent_in_parts_on_every_stream(language: Language) {
    let (pair, publisher, driver) = watching(language, json!({})).await;
    let many: Vec<String> = (0..25_000).map(|n| format!("account-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    driver.change("replace", &many).await.expect("replaced");
    publishes(&publisher, "1", "account-24999").await;
    publishes(&publisher, "not-2", "account-25000").await;
    driver.has_events(&["1"]).await;
    pair.first.kill_9();
    driver.change("add", &["last"]).await.expect("added on the next stream");
    publishes(&publisher, "3", "account-0").await;
    publishes(&publisher, "4", "last").await;
    driver.has_events(&["1", "3", "4"]).await;
    driver.end().await;
}

async fn accounts_that_a_gateway_rejects_change_nothing(language: Language) {
    let limits = json!({ "maxAccountsPerStream": 3 });
    let gateway = Gateway::start(GatewayOptions::embedded().set("limits", limits)).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let driver = Driver::start(language, "n", &[&gateway]);
    driver.say("watch", json!({"accounts": ["a", "b"]}));
    let error = driver.change("add", &["c", "d"]).await.expect_err("too many");
    assert_eq!(error["kind"], "INVALID", "{error}");
    driver.change("add", &["c"]).await.expect("as many as allowed");
    publishes(&publisher, "not-1", "d").await;
    publishes(&publisher, "2", "c").await;
    driver.has_events(&["2"]).await;
    driver.end().await;
}

async fn acknowledgements_show_at_the_gateway_also_after_a_reconnect(language: Language) {
    let (pair, publisher, driver) = watching(language, json!({"accounts": ["a"]})).await;
    driver.streams(1).await;
    publishes(&publisher, "1", "a").await;
    driver.has_events(&["1"]).await;
    assert_eq!(node(&pair.first).await.expect("it is listed").unacknowledged_events, 1);
    driver.say("acknowledge", json!({}));
    let acknowledged = async |gateway: &Gateway| {
        node(gateway).await.is_some_and(|node| node.unacknowledged_events == 0)
    };
    until(LIMIT, "acknowledged", async || acknowledged(&pair.first).await).await;
    pair.first.kill_9();
    // It has nothing of the new stream, and must not end it.
    driver.all_of("reconnecting", 1).await;
    driver.say("acknowledge", json!({}));
    driver.streams(2).await;
    publishes(&publisher, "2", "a").await;
    driver.has_events(&["1", "2"]).await;
    driver.say("acknowledge", json!({}));
    until(LIMIT, "acknowledged", async || acknowledged(&pair.second).await).await;
    assert_eq!(driver.all("subscribed").len(), 2);
    driver.end().await;
}

async fn a_publisher_that_waits_learns_that_a_watch_has_acknowledged(language: Language) {
    let (pair, _, watcher) = watching(language, json!({"accounts": ["a"]})).await;
    watcher.streams(1).await;
    let driver = Driver::start(language, "p", &[&pair.second]);
    let events = json!([{"eventId": "e", "mailboxChange": {"accountId": "a"}}]);
    let command = json!({"id": 1, "events": events, "acknowledged": true, "timeout": 30.0});
    driver.say("publish_and_wait", command);
    watcher.has_events(&["e"]).await;
    watcher.say("acknowledge", json!({}));
    let report = driver.done(1).await.expect("published");
    assert_eq!((&report["complete"], &report["doneNodes"]), (&json!(true), &json!(1)), "{report}");
    driver.end().await;
    watcher.end().await;
}

/// The stream of the client that this gateway serves.
async fn node(gateway: &Gateway) -> Option<Node> {
    let request = ListNodesRequest { node_id: "n".into(), ..ListNodesRequest::default() };
    let nodes = gateway.client().await.list_nodes(request).await.expect("a list").into_inner();
    nodes.nodes.into_iter().find(|node| node.gateway_address == gateway.address())
}

async fn a_silent_gateway_is_left_after_two_heartbeat_intervals(language: Language) {
    let (pair, publisher, driver) =
        watching(language, json!({"accounts": ["a"], "heartbeat_interval": 1.0})).await;
    driver.streams(1).await;
    publishes(&publisher, "1", "a").await;
    driver.has_events(&["1"]).await;
    // The connection stays open without any message.
    pair.first.pause().await;
    publishes(&publisher, "2", "a").await;
    let lost = driver.all_of("reconnecting", 1).await.remove(0);
    let reason = lost["reason"].as_str().expect("a reason");
    assert!(reason.contains("nothing received for 2"), "{reason}");
    assert_eq!(driver.streams(2).await["resumed"], true);
    driver.has_events(&["1", "2"]).await;
    pair.first.resume();
    driver.end().await;
}

async fn a_draining_gateway_is_left_after_the_wait_that_it_asks_for(language: Language) {
    let spread = json!({ "spread": "400ms" });
    let pair = Pair::with(|options| options.set("drain", spread.clone())).await;
    let publisher = TestNode::connect(&pair.second, "publisher").await;
    let driver = Driver::start(language, "n", &[&pair.first, &pair.second]);
    driver.say("subscribe", json!({}));
    let first = driver.streams(1).await["gatewayId"].clone();
    publishes(&publisher, "1", "a").await;
    driver.has_events(&["1"]).await;
    pair.first.signal_term();
    publishes(&publisher, "2", "a").await;
    let second = driver.streams(2).await;
    assert_eq!(second["resumed"], true);
    assert_ne!(second["gatewayId"], first);
    let asked = driver.all("draining")[0]["reconnectDelay"].clone();
    let asked = asked.as_str().and_then(|asked| asked.strip_suffix('s')).unwrap_or("0");
    let asked: f64 = asked.parse().expect("seconds");
    let waited = driver.all("reconnecting")[0]["wait"].as_f64().expect("seconds");
    assert!(waited >= asked, "it waited for {waited} s, and not for {asked} s");
    driver.has_events(&["1", "2"]).await;
    driver.end().await;
}

async fn a_token_that_is_damaged_gives_a_gap_and_not_an_error(language: Language) {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let driver = Driver::start(language, "n", &[&gateway]);
    driver.say("subscribe", json!({"resume_token": "bm8gdG9rZW4="}));
    driver.streams(1).await;
    let gaps = driver.all("gap");
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0]["reason"], "GAP_REASON_UNKNOWN_EPOCH");
    publishes(&publisher, "1", "a").await;
    driver.has_events(&["1"]).await;
    driver.end().await;
}
