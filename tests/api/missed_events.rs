//! The report of a link, an event that every stream that it may concern gets as a gap.

use std::time::Duration;

use super::{
    error_details::wrong_fields,
    support::{
        SharedRedis, TestNode,
        events::{event, mailbox_change, with_id},
        gateway::{Gateway, GatewayOptions},
        nodes::{Recording, Seen},
    },
};
use trunkline_proto::v1::{
    Event, EventKind, Filter, GapReason, MissedEvents, Origin, Overflow, Start, event::Kind,
};

const LIMIT: Duration = Duration::from_secs(15);

fn report(missed_events: Option<u64>, kinds: Vec<i32>) -> Event {
    let deployments = vec!["eu".to_owned()];
    let origin = Some(Origin { deployments, node_id: String::new() });
    Event { origin, ..event(Kind::MissedEvents(MissedEvents { missed_events, kinds })) }
}

fn change(id: &str) -> Event {
    with_id(id, mailbox_change("a", 1))
}

/// Events by their ids, and gaps by their counts, in order.
fn items(recording: &Recording) -> Vec<String> {
    let mut items = vec![];
    for seen in &recording.seen {
        match seen {
            Seen::Events { events, .. } => {
                items.extend(recording.event_ids[events.clone()].iter().cloned());
            }
            Seen::Gap(gap) => {
                assert_eq!(gap.reason(), GapReason::Link);
                assert_eq!(gap.origin.as_ref().unwrap().deployments, ["eu"]);
                items.push(format!("gap of {:?}", gap.missed_events));
            }
            _ => {}
        }
    }
    items
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_a_gap_in_its_place_once_over_streams_that_resume_on_any_gateway() {
    let redis = SharedRedis::get().await;
    // One shard, so that all is in order.
    let options = || GatewayOptions::redis(&redis.url, &redis.prefix).set("shards", 1);
    let (first, second) =
        tokio::join!(Gateway::start(options()), Gateway::start(options().set("gatewayId", "g2")));
    let link = TestNode::connect(&first, "link").await;
    let node = TestNode::connect(&second, "node").await;
    let live = node.subscribe(node.request()).await;
    // The node of the link, which gets no events of its own, and one whose filter leaves all out.
    let own = link.subscribe(link.request()).await;
    let filter = Filter { accounts: vec!["other".into()], ..Filter::default() };
    let other = node.subscribe(trunkline_proto::v1::SubscribeRequest {
        filter: Some(filter),
        ..node.request()
    });
    let other = other.await;
    let merging = trunkline_proto::v1::SubscribeRequest {
        overflow: Overflow::Merge.into(),
        ..node.request()
    };
    let merging = node.subscribe(merging).await;
    let events = vec![change("e1"), report(Some(7), vec![]), report(None, vec![]), change("e2")];
    link.publish(events).await.unwrap();
    let all = ["e1", "gap of Some(7)", "gap of None", "e2"];
    let recording = live.event("e2", LIMIT).await;
    assert_eq!(items(&recording), all);
    assert_eq!(items(&merging.event("e2", LIMIT).await), all);
    for excluded in [&own, &other] {
        let gaps = |recording: &Recording| (recording.gaps().len() == 2).then(|| recording.clone());
        assert_eq!(items(&excluded.wait(LIMIT, "two gaps", gaps).await), all[1..3]);
    }
    // From each of its tokens on, the rest comes, on the other gateway and from history.
    let resuming = TestNode::connect(&first, "node").await;
    let tokens: Vec<Vec<u8>> =
        recording.seen.iter().filter_map(Seen::token).map(<[u8]>::to_vec).collect();
    assert!(tokens.len() >= 5, "subscribed, e1, two gaps, e2");
    for (had, token) in tokens.iter().enumerate().take(5) {
        let mut request = resuming.request();
        request.resume_token.clone_from(token);
        let resumed = resuming.subscribe(request).await;
        let last = format!("last-{had}");
        link.publish(vec![change(&last)]).await.unwrap();
        let rest = items(&resumed.event(&last, LIMIT).await);
        let (rest, later) = rest.split_at(rest.len().min(4 - had));
        assert_eq!(rest, &all[had..]);
        assert!(later.iter().all(|item| item.starts_with("last-")), "{later:?}");
    }
    let mut oldest = node.request();
    oldest.start = Start::Oldest.into();
    let oldest = node.subscribe(oldest).await;
    assert_eq!(items(&oldest.event("e2", LIMIT).await)[..4], all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_for_the_kinds_that_it_names() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let node = TestNode::connect(&gateway, "node").await;
    let mut request = node.request();
    let kinds = vec![EventKind::MailboxChange.into()];
    request.filter = Some(Filter { kinds, ..Filter::default() });
    let stream = node.subscribe(request).await;
    let link = TestNode::connect(&gateway, "link").await;
    let blocked_ip = report(Some(1), vec![EventKind::BlockedIp.into()]);
    let both = vec![EventKind::BlockedIp.into(), EventKind::MailboxChange.into()];
    link.publish(vec![blocked_ip, report(Some(2), both)]).await.unwrap();
    // What is counted are the gaps that it gets.
    assert_eq!(stream.gap(LIMIT).await.missed_events, Some(2));
    link.publish(vec![change("last")]).await.unwrap();
    assert_eq!(items(&stream.event("last", LIMIT).await), ["gap of Some(2)", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ways_and_reports_that_are_too_long_are_refused() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let link = TestNode::connect(&gateway, "link").await;
    let names = |count: usize| (0..count).map(|nth| format!("d{nth}")).collect::<Vec<_>>();
    let way = |node_id: &str, deployments: Vec<String>| {
        let origin = Some(Origin { node_id: node_id.into(), deployments });
        Event { origin, ..mailbox_change("a", 1) }
    };
    link.publish(vec![way("n", names(64))]).await.unwrap();
    let long = "i".repeat(129);
    for (wrong, field) in [
        (way("n", names(65)), "events[0].origin.deployments"),
        (way("n", vec![String::new()]), "events[0].origin.deployments[0]"),
        (way(&long, names(1)), "events[0].origin.node_id"),
        (report(None, vec![10; 91]), "events[0].missed_events.kinds"),
    ] {
        let status = link.publish(vec![wrong]).await.unwrap_err();
        assert_eq!(wrong_fields(&status), [field]);
    }
}
