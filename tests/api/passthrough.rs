//! A rolling upgrade loses nothing: kinds and fields of a newer peer are delivered as they came,
//! byte by byte. And bytes that are no protobuf are the sender's error.

use prost::Message;
use tonic::{Code, Status};
use trunkline_proto::v1::{
    Event, EventKind, Filter, GetStatusRequest, ListNodesResponse, Overflow, PublishResponse,
    Start, SubscribeRequest, event::Kind,
};

use crate::{
    deployment::Deployment,
    error_details::wrong_fields,
    on_both_buses,
    raw::{self, Bytes},
    support::{
        LIMIT,
        events::{self, with_id},
    },
};

on_both_buses!(
    fields_of_newer_peers_arrive_untouched,
    merged_events_keep_the_fields_of_newer_peers,
    kinds_of_newer_peers_are_delivered,
);

/// A length-delimited field.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn everything(node_id: &str) -> SubscribeRequest {
    SubscribeRequest { node_id: node_id.into(), ..Default::default() }
}

async fn fields_of_newer_peers_arrive_untouched(deployment: Deployment) {
    let mut stream = raw::subscribe(deployment.other(), everything("s")).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().batch.is_none(), "subscribed");
    // Beside the kind, and in it; not in the order of their numbers.
    let kind = [field(1, b"account"), field(77, b"new in mailbox_change")].concat();
    let event =
        [field(900, b"new in Event"), field(10, &kind), field(1, b"id"), field(6, b"")].concat();
    raw::publish(&deployment.gateway, "p", vec![event.clone()]).await.unwrap();
    let arrived = raw::events(&mut stream).await;
    assert_eq!(arrived.len(), 1);
    assert!(arrived[0].starts_with(&event), "{arrived:?}");
    let known = Event::decode(&arrived[0][..]).unwrap();
    assert_eq!((known.event_id.as_str(), known.source.as_str()), ("id", "p"));
    assert_eq!(known.kind, {
        let mut expected = events::mailbox_change("account", 0);
        if let Some(trunkline_proto::v1::event::Kind::MailboxChange(change)) = &mut expected.kind {
            change.changed_types.clear();
        }
        expected.kind
    });
}

async fn merged_events_keep_the_fields_of_newer_peers(deployment: Deployment) {
    const EVENTS: usize = 2500;
    let event = |n: usize| {
        let mut kind = [field(77, b"new in mailbox_change"), field(1, b"merged")].concat();
        // The state of the last one is unknown, and it is the latest all the same.
        if n < EVENTS - 1 {
            prost::encoding::uint64::encode(2, &7, &mut kind);
        }
        let id = field(1, format!("m{n}").as_bytes());
        [field(900, b"new in Event"), field(10, &kind), id].concat()
    };
    let all: Vec<_> = (0..EVENTS).map(event).collect();
    for events in all.chunks(500) {
        raw::publish(&deployment.gateway, "p", events.to_vec()).await.unwrap();
    }
    let request = SubscribeRequest {
        filter: Some(Filter { accounts: vec!["merged".into()], ..Default::default() }),
        start: Start::Oldest.into(),
        overflow: Overflow::Merge.into(),
        ..everything("behind")
    };
    let mut stream = raw::subscribe(&deployment.gateway, request).await.unwrap();
    let (mut received, mut stands_for, mut last) = (0, 0, Vec::new());
    while stands_for < EVENTS as u64 {
        for event in raw::events(&mut stream).await {
            received += 1;
            stands_for += Event::decode(&event[..]).unwrap().merged_events.max(1);
            last = event;
        }
    }
    assert!(received < EVENTS, "{received} of {EVENTS} events, merged");
    assert!(last.starts_with(&all[EVENTS - 1]), "{last:?}");
    let known = Event::decode(&last[..]).unwrap();
    assert!(known.merged_events > 1, "{known:?}");
    let Some(Kind::MailboxChange(change)) = known.kind else { panic!("another kind") };
    assert_eq!(change.change_id, 0);
}

async fn kinds_of_newer_peers_are_delivered(deployment: Deployment) {
    let newer = [field(42, b"\x0a\x03new"), field(1, b"newer")].concat();
    let mut all = raw::subscribe(deployment.other(), everything("all")).await.unwrap();
    let filter = Filter { kinds: vec![42], ..Default::default() };
    let request = SubscribeRequest { filter: Some(filter), ..everything("only") };
    let mut only = raw::subscribe(deployment.other(), request).await.unwrap();
    let others = deployment.remote("others").await;
    let filter = Filter { kinds: vec![EventKind::QueueRefresh.into()], ..Default::default() };
    let request = SubscribeRequest { filter: Some(filter), ..others.request() };
    let others = others.subscribe(request).await;
    for stream in [&mut all, &mut only] {
        assert!(stream.message().await.unwrap().unwrap().batch.is_none(), "subscribed");
    }
    raw::publish(&deployment.gateway, "p", vec![newer.clone()]).await.unwrap();
    for stream in [&mut all, &mut only] {
        let arrived = raw::events(stream).await;
        assert_eq!(arrived.len(), 1);
        assert!(arrived[0].starts_with(&newer) && contains(&arrived[0], &field(2, b"p")));
    }
    deployment
        .node("p")
        .await
        .publish(vec![with_id("known", events::queue_refresh())])
        .await
        .unwrap();
    assert_eq!(others.events(1, LIMIT).await.event_ids, ["known"]);
}

#[tokio::test]
async fn an_event_that_is_not_protobuf_is_reported_by_its_index() {
    let deployment = Deployment::embedded().await;
    let refused = async |events: Vec<Vec<u8>>| {
        raw::publish(&deployment.gateway, "p", events).await.unwrap_err()
    };
    let good = events::queue_refresh().encode_to_vec();
    // Cut off; no field; not UTF-8; a kind of a wrong wire type; an account that is none.
    let bad = [
        good[..good.len() - 1].to_vec(),
        vec![0xff; 20],
        field(1, b"\xff\xfe"),
        vec![10 << 3, 1],
        field(10, &field(1, b"\xff")),
    ];
    for bytes in bad {
        let status = refused(vec![good.clone(), bytes.clone()]).await;
        assert_eq!(wrong_fields(&status), ["events[1]"], "{bytes:?}");
    }
    // Only numbers that are reserved for kinds are kinds.
    let status = refused(vec![field(900, b"no kind"), field(100, b"")]).await;
    assert_eq!(wrong_fields(&status), ["events[0].kind", "events[1].kind"]);
}

#[tokio::test]
async fn an_event_has_exactly_one_kind_field_known_or_not() {
    let deployment = Deployment::embedded().await;
    let kind = |number| field(number, &field(1, b"account"));
    for (first, second) in [(10, 42), (42, 10), (10, 11), (10, 10), (42, 43), (55, 10)] {
        let events = vec![[kind(first), kind(second)].concat()];
        let status = raw::publish(&deployment.gateway, "p", events).await.unwrap_err();
        assert_eq!(wrong_fields(&status), ["events[0].kind"], "{first} and {second}");
    }
    // The account of an unknown kind that concerns one is required, as that of a known kind.
    let events = vec![field(10, b""), field(42, b""), field(55, b"")];
    let status = raw::publish(&deployment.gateway, "p", events).await.unwrap_err();
    let fields = ["events[0].mailbox_change.account_id", "events[1].kind.account_id"];
    assert_eq!(wrong_fields(&status), fields);
}

#[tokio::test]
async fn a_request_that_is_not_protobuf_is_an_invalid_argument() {
    let deployment = Deployment::embedded().await;
    let garbage = Bytes(vec![0xff; 50]);
    let refusals: [Status; 4] = [
        raw::call::<_, PublishResponse>(&deployment.gateway, "Publish", garbage.clone())
            .await
            .unwrap_err(),
        raw::call::<_, ListNodesResponse>(&deployment.gateway, "ListNodes", garbage.clone())
            .await
            .unwrap_err(),
        raw::call::<_, Bytes>(&deployment.gateway, "Subscribe", garbage.clone()).await.unwrap_err(),
        raw::call::<_, Bytes>(&deployment.gateway, "GetStatus", garbage).await.unwrap_err(),
    ];
    for status in refusals {
        assert_eq!(wrong_fields(&status), ["request"], "{status:?}");
    }
    // A node id that is not UTF-8.
    let request = raw::RawPublish { node_id: vec![0xff], events: vec![] };
    let status =
        raw::call::<_, PublishResponse>(&deployment.gateway, "Publish", request).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["request"]);
    let unknown =
        raw::call::<_, Bytes>(&deployment.gateway, "NoSuchMethod", GetStatusRequest {}).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}
