//! What is carried from one deployment to another.

use trunkline_client::SubscribeOptions;
use trunkline_proto::v1::{
    BlockedIp, Event, EventKind, QueueStatus, Target, event::Kind, queue_status::State,
};

use crate::{
    stage::{Link, Recorder, client, client_with_role, deployment, gaps, is_of},
    support::{
        LIMIT,
        events::{email_delivery, event, mailbox_change, with_id},
        gateway::{Gateway, GatewayOptions},
        nodes::TestNode,
        until,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_says_where_it_was_published_and_keeps_its_id_and_time() {
    let (a, b) = (deployment("a").await, deployment("b").await);
    let reader = Recorder::of(&b, "reader").await;
    let link = Link::between(&a, &b, &["--kinds", "mailbox-change"]);
    link.is_connected().await;
    // Nobody knows what was published before the link had a state.
    is_of(&reader.gaps(1).await[0], "a", None);
    let local = Recorder::of(&a, "local").await;
    let publisher = TestNode::connect(&a, "mx1").await;
    let wrong_kind = with_id("no", email_delivery("a1", "m"));
    publisher.publish(vec![wrong_kind, with_id("e1", mailbox_change("a1", 7))]).await.expect("a");
    let (here, there) = (local.event("e1").await, reader.event("e1").await);
    let origin = there.origin.expect("an origin");
    assert_eq!((&*origin.node_id, &origin.deployments[..]), ("mx1", &["a".to_owned()][..]));
    assert_eq!((&*there.source, &*here.source), ("link-a-b", "mx1"));
    assert_eq!((there.publish_time, there.kind), (here.publish_time, here.kind));
    assert_eq!(reader.ids(), ["e1"]);
    assert!(here.origin.is_none());
    until(LIMIT, "it is counted", async || {
        // The report of the gap, and the event.
        link.metric("link_carried_events_total").await == Some(2.0)
    })
    .await;
    assert!(link.admin("/readyz").await.expect("an answer").ends_with("ready\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_around_a_ring_of_three_links_once() {
    let (a, b) = (deployment("a").await, deployment("b").await);
    let c = deployment("c").await;
    let links = [(&a, &b), (&b, &c), (&c, &a)];
    let links = links.map(|(from, to)| Link::between(from, to, &["--transit"]));
    let mut readers = vec![];
    for gateway in [&a, &b, &c] {
        readers.push(Recorder::of(gateway, "reader").await);
    }
    for link in &links {
        link.is_connected().await;
    }
    let publisher = TestNode::connect(&a, "mx1").await;
    for id in ["e1", "e2"] {
        publisher.publish(vec![with_id(id, mailbox_change("a1", 1))]).await.expect("published");
    }
    for reader in &readers {
        reader.event("e2").await;
    }
    // It has come to the last link, which leaves it out.
    until(LIMIT, "both are left out", async || {
        let name = "link_left_out_events_total{reason=\"was_there\"}";
        links[2].metric(name).await == Some(2.0)
    })
    .await;
    for reader in &readers {
        assert_eq!(reader.ids(), ["e1", "e2"]);
    }
    // And neither do gaps go around for ever: each deployment had those of the other two, once.
    let publisher = TestNode::connect(&c, "mx3").await;
    publisher.publish(vec![with_id("e3", mailbox_change("a1", 1))]).await.expect("published");
    for reader in &readers {
        reader.event("e3").await;
        let gaps = gaps(&reader.received.lock());
        assert!(gaps.len() <= 2, "{gaps:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_transit_links_of_both_directions_carry_what_was_published_at_their_source() {
    let (a, b) = (deployment("a").await, deployment("b").await);
    let links = [Link::between(&a, &b, &[]), Link::between(&b, &a, &[])];
    let readers = [Recorder::of(&a, "reader").await, Recorder::of(&b, "reader").await];
    for link in &links {
        link.is_connected().await;
    }
    for (gateway, id) in [(&a, "of-a"), (&b, "of-b"), (&a, "last-of-a"), (&b, "last-of-b")] {
        let publisher = TestNode::connect(gateway, "mx").await;
        publisher.publish(vec![with_id(id, mailbox_change("a1", 1))]).await.expect("published");
    }
    for reader in &readers {
        for id in ["last-of-a", "last-of-b"] {
            reader.event(id).await;
        }
        let mut ids = reader.ids();
        ids.sort();
        assert_eq!(ids, ["last-of-a", "last-of-b", "of-a", "of-b"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_history_lost_while_the_link_was_away_is_a_gap_with_its_count_there() {
    let small = GatewayOptions::embedded()
        .set("deployment", "a")
        .set("log", serde_json::json!({ "maxEvents": 50 }))
        .set("history", serde_json::json!({ "maxFrames": 10 }));
    let (a, b) = (Gateway::start(small).await, deployment("b").await);
    let b_client = client("reader", &[b.url()]);
    let options = SubscribeOptions::new;
    let all = Recorder::start(&b_client, options()).await;
    // Its account may have been among those that are missing.
    let other = options().kind(EventKind::MailboxChange).account("another");
    let other = Recorder::start(&b_client, other).await;
    let not_concerned = options().kind(EventKind::EmailDelivery);
    let not_concerned = Recorder::start(&b_client, not_concerned).await;
    let mut link = Link::between(&a, &b, &["--kinds", "mailbox-change"]);
    link.is_connected().await;
    let publisher = TestNode::connect(&a, "mx1").await;
    let number = |n: u64| with_id(format!("e{n}"), mailbox_change("a1", n));
    publisher.publish(vec![number(0)]).await.expect("published");
    all.event("e0").await;
    // The state file knows that it was accepted.
    until(LIMIT, "nothing waits", async || link.metric("link_waiting_events").await == Some(0.0))
        .await;
    link.kill_9();
    for n in 1..=500 {
        publisher.publish(vec![number(n)]).await.expect("published");
    }
    link.restart();
    all.event("e500").await;
    let reports = all.gaps(2).await;
    let (ids, missed) = (all.ids(), reports[1].missed_events.expect("a count"));
    is_of(&reports[1], "a", Some(missed));
    assert_eq!(ids.len() as u64 + missed, 501, "{ids:?}");
    assert!(missed > 300, "{missed}");
    // The gap stands before what follows it.
    let at = |wanted: &str| ids.iter().position(|id| id == wanted);
    assert_eq!(at(&format!("e{}", missed + 1)), Some(1));
    assert_eq!(other.gaps(2).await[1].missed_events, Some(missed));
    let local = TestNode::connect(&b, "mx2").await;
    local.publish(vec![with_id("last", email_delivery("a1", "m"))]).await.expect("published");
    not_concerned.event("last").await;
    assert!(gaps(&not_concerned.received.lock()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_destination_rejects_is_a_gap_there_and_holds_up_nothing() {
    let limits = serde_json::json!({ "maxEventBytes": 1024 });
    let small = GatewayOptions::embedded().set("deployment", "b").set("limits", limits);
    let (a, b) = (deployment("a").await, Gateway::start(small).await);
    let reader = Recorder::of(&b, "reader").await;
    let link = Link::between(&a, &b, &[]);
    link.is_connected().await;
    let publisher = TestNode::connect(&a, "mx1").await;
    let large = event(Kind::BlockedIp(BlockedIp {
        address: "192.0.2.7".into(),
        reason: "x".repeat(1000),
        ..Default::default()
    }));
    let large = with_id("large", large);
    let small = |id: &str| with_id(id, mailbox_change("a1", 1));
    publisher.publish(vec![small("e1"), large, small("e2")]).await.expect("published");
    reader.event("e2").await;
    is_of(&reader.gaps(2).await[1], "a", Some(1));
    assert_eq!(reader.ids(), ["e1", "e2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_value_that_streams_begin_with_is_carried_once() {
    let (a, b) = (deployment("a").await, deployment("b").await);
    let reader = Recorder::of(&b, "reader").await;
    let mut link = Link::between(&a, &b, &[]);
    link.is_connected().await;
    let publisher = TestNode::connect(&a, "mx1").await;
    let status = QueueStatus { state: State::Paused.into() };
    let status = event(Kind::QueueStatus(status));
    publisher.publish(vec![with_id("paused", status)]).await.expect("published");
    reader.event("paused").await;
    for round in 0..2 {
        link.restart();
        link.is_connected().await;
        let id = format!("e{round}");
        publisher.publish(vec![with_id(&id, mailbox_change("a1", 1))]).await.expect("published");
        reader.event(&id).await;
    }
    assert_eq!(reader.ids(), ["paused", "e0", "e1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_for_certain_roles_are_carried_by_links_with_one_of_them() {
    let (a, b) = (deployment("a").await, deployment("b").await);
    let mta = client_with_role("reader", &b.url(), "mta");
    let (mta, other) =
        (Recorder::start(&mta, SubscribeOptions::new()).await, Recorder::of(&b, "other").await);
    let link = Link::between(&a, &b, &["--roles", "imap,mta"]);
    link.is_connected().await;
    let publisher = TestNode::connect(&a, "mx1").await;
    let to_role = |id: &str, role: &str| {
        let target = Some(Target { roles: vec![role.to_owned()], node_ids: vec![] });
        Event { target, ..with_id(id, mailbox_change("a1", 1)) }
    };
    let last = with_id("last", mailbox_change("a1", 2));
    let events = vec![to_role("to-mta", "mta"), to_role("to-none", "none"), last];
    publisher.publish(events).await.expect("published");
    for (reader, ids) in [(&mta, &["to-mta", "last"][..]), (&other, &["last"][..])] {
        reader.event("last").await;
        assert_eq!(reader.ids(), ids);
    }
}
