//! A new kind is one message and one row: a gateway with one kind more is built, run, and run
//! beside a gateway of this version.

#[path = "../support/mod.rs"]
mod support;

mod patched;
mod raw;

use std::collections::HashSet;

use serde_json::{Value, json};
use support::{Gateway, GatewayOptions, LIMIT, SharedRedis, process::Program};
use tonic::Code;
use trunkline_proto::{
    kinds,
    v1::{Filter, Overflow, Start, SubscribeRequest, event::Kind},
};

use self::raw::{NewEvent, next_events, publish, quota_change, subscribe};

const PUBLISHER: &str = "token-of-the-publishers";
const READER: &str = "token-of-the-readers";

/// Identities by kind and account. A gateway of this version has no name for the new kind.
fn auth(kinds: &[&str]) -> Value {
    let token = |secret: &str| json!([{ "@type": "Value", "secret": secret }]);
    json!({ "identities": [
        { "name": "publisher", "tokens": token(PUBLISHER), "nodeIds": ["publisher"],
          "publish": { "allow": { "kinds": kinds }, "deny": { "accounts": ["locked*"] } } },
        { "name": "reader", "tokens": token(READER), "nodeIds": ["reader*"],
          "receive": { "allow": { "kinds": kinds, "accounts": ["a*"] },
                       "deny": { "accounts": ["a-secret"] } } },
    ] })
}

fn request(node_id: &str, filter: Filter) -> SubscribeRequest {
    SubscribeRequest { node_id: node_id.into(), filter: Some(filter), ..Default::default() }
}

#[test]
fn the_harness_has_an_event_of_every_kind_in_the_table() {
    let events = support::events::one_of_each("a");
    let numbers = events.iter().filter_map(|event| event.kind.as_ref()).map(Kind::number);
    // Streams get the reports of links as gaps, and gateways make the events of some kinds.
    let rows = kinds::TABLE.iter().filter(|row| row.is_between_nodes());
    assert!(numbers.eq(rows.map(|row| row.number)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_and_a_row_add_a_kind_with_its_names_rules_and_merge_rule() {
    let binary = patched::binary();
    let options = GatewayOptions::embedded().set("auth", auth(&["quota_change"])).binary(&binary);
    let gateway = Gateway::start(options).await;
    let events = (1..=3000).map(|n| quota_change(&format!("e{n}"), "a1", n)).collect::<Vec<_>>();
    for events in events.chunks(1000) {
        publish(&gateway, PUBLISHER, events.to_vec()).await.expect("published");
    }

    // Merged by its rule, for a stream that is behind.
    let merging = SubscribeRequest {
        start: Start::Oldest.into(),
        overflow: Overflow::Merge.into(),
        ..request("reader", Filter { kinds: vec![30], ..Default::default() })
    };
    let mut stream = subscribe(&gateway, READER, merging).await.expect("a stream");
    let (mut merged, mut received, mut used) = (0, 0, 0);
    while merged < 3000 {
        for event in next_events(&mut stream).await {
            received += 1;
            merged += event.merged_events.max(1);
            used = event.quota_change.expect("the new kind").used;
        }
    }
    assert_eq!((merged, used), (3000, 3000));
    // The first batch is not merged: the gateway learns with it that the stream is behind.
    assert!(received <= 1001, "{received} of 3000 events");

    // Its names: metrics, command line, JSON.
    let metrics = gateway.admin("/metrics").await;
    let line = "trunkline_published_events_total{kind=\"quota_change\"} 3000";
    assert!(metrics.contains(line), "{metrics}");
    let output = Program::new(
        binary,
        [
            ["subscribe", "--gateway", &gateway.url(), "--node-id", "reader-2"].as_slice(),
            &["--kind", "quota-change", "--start", "oldest", "--max-events", "1"],
        ]
        .concat(),
    )
    .env("TRUNKLINE_TOKEN", READER)
    .run(LIMIT)
    .await
    .success();
    let printed: Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!(printed["quotaChange"], json!({ "accountId": "a1", "used": "1" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_and_a_new_gateway_route_and_authorise_a_new_account_kind_alike() {
    let redis = SharedRedis::get().await;
    let options = |gateway_id: &str| {
        GatewayOptions::redis(&redis.url, &redis.prefix)
            .set("shards", 8)
            .set("gatewayId", gateway_id)
            .set("auth", auth(&["*"]))
    };
    let binary = patched::binary();
    let old = Gateway::start(options("old")).await;
    let new = Gateway::start(options("new").binary(&binary)).await;

    let (mut all, mut of_a2) = (vec![], vec![]);
    for (gateway, name) in [(&old, "old"), (&new, "new")] {
        let everything = request(&format!("reader-{name}"), Filter::default());
        all.push(subscribe(gateway, READER, everything).await.expect("a stream"));
        let filter = Filter { accounts: vec!["a2".into()], ..Default::default() };
        let one = request(&format!("reader-of-a2-{name}"), filter);
        of_a2.push(subscribe(gateway, READER, one).await.expect("a stream"));
        // The same filter is refused by both.
        let filter = Filter { kinds: vec![30], accounts: vec!["b1".into()], ..Default::default() };
        let refused = subscribe(gateway, READER, request("reader", filter)).await;
        assert_eq!(refused.expect_err("refused").code(), Code::PermissionDenied, "{name}");
    }

    // Published on each gateway: accounts that the reader may receive, and accounts that it may
    // not.
    let mut shards = vec![];
    for (gateway, name) in [(&old, "old"), (&new, "new")] {
        let locked = vec![quota_change("locked", "locked1", 1)];
        let refused = publish(gateway, PUBLISHER, locked).await.expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}");
        let accounts = ["b1", "a1", "a-secret", "a2", "a3"];
        let id = |account: &str| format!("{account}-by-{name}");
        let events = accounts.map(|account| quota_change(&id(account), account, 1)).to_vec();
        let response = publish(gateway, PUBLISHER, events).await.expect("published");
        shards.push(response.positions.iter().map(|position| position.shard).collect::<Vec<_>>());
        // A kind that both know, of the same account, is in the same shard.
        let known = support::events::mailbox_change("a1", 1);
        let response = publish(gateway, PUBLISHER, vec![known.into()]).await.expect("published");
        assert_eq!(response.positions[0].shard, shards[0][1], "{name}");
    }
    assert_eq!(shards[0], shards[1], "old and new gateways route to the same shards");

    // Events that the reader may receive, in every shard, after all of the others.
    let last = (0..64).map(|n| quota_change("last", &format!("a-last-{n}"), 1)).collect();
    let response = publish(&old, PUBLISHER, last).await.expect("published");
    let last: HashSet<_> = response.positions.iter().map(|position| position.shard).collect();
    assert!(shards[0].iter().all(|shard| last.contains(shard)), "{shards:?} {last:?}");

    let allowed = ["a1-by-old", "a2-by-old", "a3-by-old", "a1-by-new", "a2-by-new", "a3-by-new"];
    for stream in &mut all {
        let (mut ids, mut last): (Vec<String>, usize) = (vec![], 0);
        while last < 64 {
            let events: Vec<NewEvent> = next_events(stream).await;
            for event in events.into_iter().filter(|event| event.quota_change.is_some()) {
                if event.event_id == "last" { last += 1 } else { ids.push(event.event_id) }
            }
        }
        for account in ["a1", "a2", "a3"] {
            let of_account = ids.iter().filter(|id| id.starts_with(account));
            let expected = [format!("{account}-by-old"), format!("{account}-by-new")];
            assert!(of_account.eq(expected.iter()), "in order: {ids:?}");
        }
        assert_eq!(ids.len(), allowed.len(), "no event of a forbidden account: {ids:?}");
    }
    for stream in &mut of_a2 {
        let mut ids: Vec<String> = vec![];
        while ids.len() < 2 {
            let events = next_events(stream).await;
            ids.extend(events.into_iter().map(|event| event.event_id));
        }
        assert_eq!(ids, ["a2-by-old", "a2-by-new"]);
    }
}
