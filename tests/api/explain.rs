//! A stream that explains itself: why each event reaches a node or does not.

use trunkline_proto::v1::{Event, EventKind, Exclusion, Filter, SubscribeRequest, Target, Verdict};

use crate::{
    deployment::Deployment,
    on_both_buses,
    support::{
        Collector, LIMIT,
        events::{custom, mailbox_change, numbered, queue_refresh, with_id},
    },
};

on_both_buses!(
    every_reason_is_explained,
    explaining_does_not_change_what_is_delivered,
    counts_are_complete_where_verdicts_are_limited,
    max_events_counts_delivered_events,
    only_streams_that_ask_get_explanations,
);

fn to(roles: &[&str], event: Event) -> Event {
    let roles = roles.iter().map(|&role| role.to_owned()).collect();
    Event { target: Some(Target { node_ids: vec![], roles }), ..event }
}

/// Everything of kinds 10 and 20, of account `a` and types `com.*`.
fn request(node_id: &str) -> SubscribeRequest {
    let kinds = vec![EventKind::MailboxChange.into(), EventKind::Custom.into()];
    let filter = Filter { kinds, accounts: vec!["a".into()], custom_types: vec!["com.*".into()] };
    SubscribeRequest {
        node_id: node_id.into(),
        roles: vec!["imap".into()],
        filter: Some(filter),
        explain: true,
        ..Default::default()
    }
}

/// The verdicts, once there are so many.
async fn verdicts(collector: &Collector, count: usize) -> Vec<Verdict> {
    let what = format!("{count} verdicts");
    collector
        .wait(LIMIT, &what, |recording| {
            let explanations = recording.explanations().into_iter();
            let all: Vec<Verdict> = explanations.flat_map(|e| e.verdicts.clone()).collect();
            (all.len() >= count).then_some(all)
        })
        .await
}

async fn every_reason_is_explained(deployment: Deployment) {
    let node = deployment.remote("n1").await;
    let collector = node.subscribe(request("n1")).await;
    let other = deployment.node("other").await;
    let positions = other
        .publish(vec![
            with_id("mine", mailbox_change("a", 1)),
            with_id("kind", queue_refresh()),
            with_id("account", mailbox_change("b", 1)),
            with_id("type", custom("org.x")),
            with_id("target", to(&["mta"], custom("com.x"))),
            with_id("three", to(&["mta"], mailbox_change("b", 2))),
        ])
        .await
        .unwrap();
    // Its own, published on the other gateway, is its own.
    deployment
        .node("n1")
        .await
        .publish(vec![with_id("own", mailbox_change("a", 2))])
        .await
        .unwrap();
    let verdicts = verdicts(&collector, 7).await;
    let error_details: Vec<_> = verdicts
        .iter()
        .map(|verdict| (verdict.event_id.as_str(), verdict.exclusions().collect::<Vec<_>>()))
        .collect();
    assert_eq!(
        error_details,
        [
            ("mine", vec![]),
            ("kind", vec![Exclusion::Kind]),
            ("account", vec![Exclusion::Account]),
            ("type", vec![Exclusion::CustomType]),
            ("target", vec![Exclusion::Target]),
            ("three", vec![Exclusion::Account, Exclusion::Target]),
            ("own", vec![Exclusion::OwnEvent]),
        ]
    );
    for verdict in &verdicts {
        assert_eq!(verdict.delivered, verdict.exclusions.is_empty());
    }
    for (verdict, position) in verdicts.iter().zip(&positions) {
        assert_eq!(verdict.position.as_ref(), Some(position));
        assert_eq!(verdict.source, "other");
    }
    assert_eq!((verdicts[2].account_id.as_str(), verdicts[2].kind), ("b", 10));
    assert_eq!((verdicts[3].custom_type.as_str(), verdicts[3].kind), ("org.x", 20));
    assert_eq!(collector.event_ids(), ["mine"]);
}

async fn explaining_does_not_change_what_is_delivered(deployment: Deployment) {
    let node = deployment.remote("n1").await;
    let explains = node.subscribe(request("n1")).await;
    let plain = node.subscribe(SubscribeRequest { explain: false, ..request("n1") }).await;
    let other = deployment.node("other").await;
    for batch in numbered("e", 3_000, 3).chunks(50) {
        let mine = |event: Event| match event.kind {
            Some(trunkline_proto::v1::event::Kind::MailboxChange(ref change))
                if change.account_id == "account-0" =>
            {
                Event { kind: mailbox_change("a", change.change_id).kind, ..event }
            }
            _ => event,
        };
        other.publish(batch.iter().cloned().map(mine).collect()).await.unwrap();
    }
    other.publish(vec![with_id("last", mailbox_change("a", 9))]).await.unwrap();
    let expected = plain.event("last", LIMIT).await.event_ids;
    assert_eq!(expected.len(), 1_001);
    assert_eq!(explains.event("last", LIMIT).await.event_ids, expected);
    // A stream that resumes with the last token, here of an explanation, misses and repeats
    // nothing.
    let token = explains
        .wait(LIMIT, "an explanation after the last event", |recording| {
            let last = recording.explanations().last().map(|e| e.resume_token.clone());
            last.filter(|token| recording.last_token() == Some(&token[..]))
        })
        .await;
    other.publish(vec![with_id("later", mailbox_change("a", 10))]).await.unwrap();
    let resumes = SubscribeRequest { resume_token: token, ..request("n1") };
    let resumed = deployment.node("n1").await.subscribe(resumes).await;
    assert_eq!(resumed.event("later", LIMIT).await.event_ids, ["later"]);
}

async fn counts_are_complete_where_verdicts_are_limited(deployment: Deployment) {
    let node = deployment.remote("n1").await;
    let collector = node.subscribe(request("n1")).await;
    let other = deployment.node("other").await;
    for batch in numbered("e", 5_000, 7).chunks(500) {
        other.publish(batch.to_vec()).await.unwrap();
    }
    let mine = (0..10).map(|n| with_id(format!("mine-{n}"), mailbox_change("a", n))).collect();
    other.publish(mine).await.unwrap();
    let (verdicts, delivered, withheld, omitted) = collector
        .wait(LIMIT, "5010 explained events", |recording| {
            let mut sums = (0, 0, 0, 0);
            for explanation in recording.explanations() {
                assert!(explanation.verdicts.len() <= 200);
                sums.0 += explanation.verdicts.len() as u64;
                sums.1 += explanation.delivered_events;
                sums.2 += explanation.withheld_events;
                sums.3 += explanation.omitted_verdicts;
            }
            (sums.1 + sums.2 >= 5_010).then_some(sums)
        })
        .await;
    assert_eq!((delivered, withheld), (10, 5_000));
    assert_eq!(verdicts + omitted, 5_010);
    assert!(omitted > 0 && verdicts >= 200, "{verdicts} verdicts");
    assert_eq!(collector.event_ids().len(), 10);
}

async fn max_events_counts_delivered_events(deployment: Deployment) {
    let node = deployment.remote("n1").await;
    let request = SubscribeRequest { max_events: 2, ..request("n1") };
    let collector = node.subscribe(request).await;
    let other = deployment.node("other").await;
    let mut events = vec![];
    for n in 0..4 {
        events.push(with_id(format!("left-{n}"), queue_refresh()));
        events.push(with_id(format!("mine-{n}"), mailbox_change("a", n)));
    }
    other.publish(events).await.unwrap();
    collector.end(LIMIT).await.unwrap();
    let recording = collector.recording();
    assert_eq!(recording.event_ids, ["mine-0", "mine-1"]);
    let explanations = recording.explanations();
    let delivered: u64 = explanations.iter().map(|e| e.delivered_events).sum();
    let withheld: u64 = explanations.iter().map(|e| e.withheld_events).sum();
    assert_eq!((delivered, withheld), (2, 2), "what came before the end is explained");
}

async fn only_streams_that_ask_get_explanations(deployment: Deployment) {
    let node = deployment.remote("n1").await;
    let collector = node.subscribe(SubscribeRequest { explain: false, ..request("n1") }).await;
    let other = deployment.node("other").await;
    other.publish(vec![queue_refresh(), with_id("mine", mailbox_change("a", 1))]).await.unwrap();
    assert!(collector.event("mine", LIMIT).await.explanations().is_empty());
}
