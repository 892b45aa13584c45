//! Invalid `Publish` requests: every violation is reported at once, and no event is published.

use std::collections::HashMap;

use prost_types::Timestamp;
use tonic::{Code, Status};
use trunkline_proto::v1::{
    BlockedIp, CacheInvalidation, CalendarAlert, CertificateChange, CustomEvent, EmailDelivery,
    Event, MailboxChange, PublishRequest, QueueStatus, RegistryChange, Target,
    cache_invalidation::{Entry, Scope},
    event::Kind,
    mailbox_change::TypeState,
    queue_status::State,
};

use crate::{
    deployment::Deployment,
    error_details::{error_details, wrong_fields},
    support::{
        LIMIT,
        events::{self, event, with_id},
    },
};

/// Longer than any id may be.
fn long() -> String {
    "i".repeat(129)
}

async fn refused(deployment: &Deployment, request: PublishRequest) -> Status {
    let client = deployment.gateway.client().await;
    client.clone().publish(request).await.expect_err("a refusal")
}

fn from_n1(events: Vec<Event>) -> PublishRequest {
    PublishRequest { node_id: "n1".into(), events, ..Default::default() }
}

#[tokio::test]
async fn every_violation_of_a_request_is_reported_at_once() {
    let deployment = Deployment::embedded().await;
    let empty = refused(&deployment, PublishRequest::default()).await;
    assert_eq!(wrong_fields(&empty), ["node_id", "events"]);

    let request = PublishRequest {
        node_id: long(),
        request_id: "not-a-uuid".into(),
        events: vec![events::queue_refresh(), Event::default(), events::mailbox_change("", 1)],
        ..Default::default()
    };
    let status = refused(&deployment, request).await;
    assert_eq!(
        wrong_fields(&status),
        ["node_id", "request_id", "events[1].kind", "events[2].mailbox_change.account_id"]
    );
    let error_details = error_details(&status, Code::InvalidArgument, "INVALID_REQUEST");
    assert!(
        error_details.violations[0].1.contains("129 bytes; the limit is 128"),
        "{error_details:?}"
    );
}

#[tokio::test]
async fn a_request_id_must_be_a_uuid_other_than_nil() {
    let deployment = Deployment::embedded().await;
    for request_id in ["7", "00000000-0000-0000-0000-000000000000"] {
        let request = PublishRequest {
            request_id: request_id.into(),
            ..from_n1(vec![events::queue_refresh()])
        };
        assert_eq!(
            wrong_fields(&refused(&deployment, request).await),
            ["request_id"],
            "{request_id}"
        );
    }
}

#[tokio::test]
async fn a_node_id_must_not_have_control_characters() {
    let deployment = Deployment::embedded().await;
    let request =
        PublishRequest { node_id: "a\nb".into(), ..from_n1(vec![events::queue_refresh()]) };
    assert_eq!(wrong_fields(&refused(&deployment, request).await), ["node_id"]);
}

#[tokio::test]
async fn a_request_may_have_at_most_a_thousand_events() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n1").await;
    let most = vec![events::queue_refresh(); 1000];
    assert_eq!(node.publish(most).await.unwrap().len(), 1000);
    let more = refused(&deployment, from_n1(vec![events::queue_refresh(); 1001])).await;
    assert_eq!(wrong_fields(&more), ["events"]);
    assert!(more.message().contains("has 1001, must have 1 to 1000"), "{more:?}");
}

#[tokio::test]
async fn every_field_of_every_kind_is_checked() {
    let deployment = Deployment::embedded().await;
    let bad_time = Some(Timestamp { seconds: i64::MAX, nanos: -1 });
    let target = Target { node_ids: vec![String::new()], roles: vec!["r".into(); 65] };
    let entry = |cache: &str, id: String| Entry { cache: cache.into(), id };
    let labels = |key: String, value: String| HashMap::from([(key, value)]);
    let refresh = events::queue_refresh;
    let cases: Vec<(Event, &[&str])> = vec![
        (with_id(long(), refresh()), &["event_id"]),
        (Event { publish_time: bad_time, ..refresh() }, &["publish_time"]),
        (Event { target: Some(target), ..refresh() }, &["target.node_ids[0]", "target.roles"]),
        (
            event(Kind::MailboxChange(MailboxChange {
                account_id: long(),
                changed_types: vec![1, -1],
                type_states: vec![
                    TypeState { changed_types: vec![-1], ..Default::default() },
                    TypeState { changed_types: vec![1; 65], ..Default::default() },
                ],
                ..Default::default()
            })),
            &[
                "mailbox_change.account_id",
                "mailbox_change.changed_types[1]",
                "mailbox_change.type_states[0].changed_types[0]",
                "mailbox_change.type_states[1].changed_types",
            ],
        ),
        (
            event(Kind::MailboxChange(MailboxChange {
                account_id: "a".into(),
                type_states: vec![TypeState::default(); 65],
                ..Default::default()
            })),
            &["mailbox_change.type_states"],
        ),
        (
            event(Kind::EmailDelivery(EmailDelivery { email_id: long(), ..Default::default() })),
            &["email_delivery.account_id", "email_delivery.email_id"],
        ),
        (
            event(Kind::CalendarAlert(CalendarAlert {
                account_id: "a".into(),
                event_id: long(),
                recurrence_id: long(),
                uid: "u".repeat(1025),
                alert_id: long(),
            })),
            &[
                "calendar_alert.event_id",
                "calendar_alert.recurrence_id",
                "calendar_alert.uid",
                "calendar_alert.alert_id",
            ],
        ),
        (events::push_subscription_change(""), &["push_subscription_change.account_id"]),
        (
            event(Kind::BlockedIp(BlockedIp {
                address: "192.0.2.7/33".into(),
                action: -1,
                expires_at: bad_time,
                reason: "r".repeat(1025),
            })),
            &[
                "blocked_ip.address",
                "blocked_ip.action",
                "blocked_ip.expires_at",
                "blocked_ip.reason",
            ],
        ),
        (
            event(Kind::CertificateChange(CertificateChange {
                certificate_id: String::new(),
                domain_names: vec!["ok.example".into(), "d".repeat(254)],
                action: -1,
            })),
            &[
                "certificate_change.certificate_id",
                "certificate_change.domain_names[1]",
                "certificate_change.action",
            ],
        ),
        (
            event(Kind::RegistryChange(RegistryChange {
                object_type: String::new(),
                object_id: long(),
                action: -1,
            })),
            &["registry_change.object_type", "registry_change.object_id", "registry_change.action"],
        ),
        (
            event(Kind::CacheInvalidation(CacheInvalidation::default())),
            &["cache_invalidation.entries"],
        ),
        (
            event(Kind::CacheInvalidation(CacheInvalidation {
                entries: vec![entry("c", String::new())],
                scope: Scope::All.into(),
            })),
            &["cache_invalidation.entries"],
        ),
        (
            event(Kind::CacheInvalidation(CacheInvalidation {
                entries: vec![entry("c", String::new()), entry("", long())],
                scope: Scope::Entries.into(),
            })),
            &["cache_invalidation.entries[1].cache", "cache_invalidation.entries[1].id"],
        ),
        (
            event(Kind::QueueStatus(QueueStatus { state: State::Unspecified.into() })),
            &["queue_status.state"],
        ),
        (
            event(Kind::Custom(CustomEvent {
                r#type: "no spaces".into(),
                labels: labels(String::new(), "v".into()),
                payload: None,
            })),
            &["custom.type", "custom.labels"],
        ),
        (
            event(Kind::Custom(CustomEvent {
                r#type: "t".into(),
                labels: labels("k".into(), "v".repeat(1025)),
                payload: None,
            })),
            &["custom.labels[\"k\"]"],
        ),
    ];
    for (event, fields) in cases {
        let status = refused(&deployment, from_n1(vec![refresh(), event.clone()])).await;
        let expected: Vec<_> = fields.iter().map(|field| format!("events[1].{field}")).collect();
        assert_eq!(wrong_fields(&status), expected, "{event:?}");
    }
}

#[tokio::test]
async fn all_forms_of_addresses_and_values_are_accepted() {
    let deployment = Deployment::embedded().await;
    let node = deployment.node("n1").await;
    for address in ["192.0.2.7", "192.0.2.0/24", "::1", "2001:db8::/32"] {
        node.publish(vec![events::blocked_ip(address)]).await.expect(address);
    }
    // A value that only newer peers know.
    let newer =
        MailboxChange { account_id: "a".into(), changed_types: vec![99], ..Default::default() };
    node.publish(vec![event(Kind::MailboxChange(newer))]).await.unwrap();
}

#[tokio::test]
async fn a_refused_request_publishes_no_event() {
    let deployment = Deployment::embedded().await;
    let (publisher, subscriber) = (deployment.node("n1").await, deployment.node("n2").await);
    let collector = subscriber.subscribe(subscriber.request()).await;
    let (good, bad) = (with_id("good", events::queue_refresh()), Event::default());
    publisher.publish(vec![good, bad]).await.unwrap_err();
    publisher.publish(vec![with_id("next", events::queue_refresh())]).await.unwrap();
    collector.event("next", LIMIT).await;
    assert_eq!(collector.event_ids(), ["next"]);
}

#[tokio::test]
async fn twenty_violations_are_looked_for_and_as_many_named_as_fit_into_two_kib() {
    let deployment = Deployment::embedded().await;
    let status = refused(&deployment, from_n1(vec![events::mailbox_change("", 1); 1000])).await;
    assert!(status.details().len() <= 1536, "{}", status.details().len());
    let error_details = error_details(&status, Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(error_details.metadata["violations"], "20");
    let (last, named) = error_details.violations.split_last().unwrap();
    assert!(named.len() > 8, "{}", named.len());
    assert_eq!(named[0].0, "events[0].mailbox_change.account_id");
    assert_eq!(last.1, format!("at least {} more violations", 20 - named.len()));
}
