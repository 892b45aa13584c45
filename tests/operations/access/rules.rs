//! Authorisation: what the rules and limits of an identity allow.

use serde_json::json;
use tonic::Code;
use trunkline_proto::v1::{
    Event, EventKind, Exclusion, Filter, GetStatusRequest, ListNodesRequest, PublishRequest, Start,
    SubscribeRequest, Target, WaitFor, event::Kind, subscribe_response::Response,
};

use super::{
    MX_TOKEN, SUPPORT_TOKEN, WEB_TOKEN, connect, custom_type, files::Files, not_allowed, publish,
    refused, request, subscribe, until_type,
};
use crate::support::{LIMIT, events, wait::until};

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_has_only_its_own_node_ids_events_and_operations() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    // A node id of another identity.
    let fields = not_allowed(publish(&web, "mx-1", vec![events::custom("org.web.a")]).await);
    assert_eq!(fields, ["node_id"]);
    let fields = not_allowed(subscribe(&web, request("mx-1", Filter::default())).await);
    assert_eq!(fields, ["node_id"]);
    // Events that it may not publish: the error names all of them, and none is published.
    let some = vec![
        events::mailbox_change("a", 1),
        events::custom("org.web.a"),
        events::queue_refresh(),
        events::custom("org.other"),
    ];
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    let mut everything =
        subscribe(&mx, request("mx-1", Filter::default())).await.expect("a stream");
    let fields = not_allowed(publish(&web, "web", some).await);
    assert_eq!(fields, ["events[0]", "events[2]", "events[3]"]);
    publish(&web, "web", vec![events::custom("org.web.last")]).await.expect("published");
    assert!(until_type(&mut everything, "org.web.last").await.is_empty());
    // Methods that require an operation.
    assert_eq!(not_allowed(web.clone().get_status(GetStatusRequest {}).await), ["method"]);
    assert_eq!(not_allowed(web.clone().list_nodes(ListNodesRequest::default()).await), ["method"]);
    mx.clone().list_nodes(ListNodesRequest::default()).await.expect("a list");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_authorised_before_it_is_validated() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let support = connect(&gateway, &files.token(SUPPORT_TOKEN)).await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let invalid = || Event { event_id: "x".repeat(1000), ..events::queue_refresh() };
    // An identity that may publish nothing learns nothing about its events, malformed or not.
    for events in [vec![invalid()], vec![Event::default()], vec![]] {
        assert_eq!(not_allowed(publish(&support, "n1", events).await), ["events"]);
    }
    // A node id of another identity; an event that this identity may not publish, beside one that
    // it may, both invalid.
    assert_eq!(not_allowed(publish(&web, "mx-1", vec![invalid()]).await), ["node_id"]);
    let custom = Event { event_id: "x".repeat(1000), ..events::custom("org.web.a") };
    let fields = not_allowed(publish(&web, "web", vec![custom.clone(), invalid()]).await);
    assert_eq!(fields, ["events[1]"]);
    // What is left to validation: an event that may be published, and one without a kind.
    for (event, field) in [(custom, "events[0].event_id"), (Event::default(), "events[0].kind")] {
        let published = publish(&web, "web", vec![event]).await;
        assert_eq!(refused(published, Code::InvalidArgument, "INVALID_REQUEST"), [field]);
    }
    // Streams alike.
    let filter = Filter { kinds: vec![EventKind::RegistryChange.into()], ..Default::default() };
    let wrong = SubscribeRequest { overflow: 77, ..request("web", filter) };
    assert_eq!(not_allowed(subscribe(&web, wrong).await), ["filter.kinds[0]"]);
    let wrong = SubscribeRequest { overflow: 77, ..request("mx-1", Filter::default()) };
    assert_eq!(not_allowed(subscribe(&web, wrong).await), ["node_id"]);
    let filter = Filter { kinds: vec![7], ..Default::default() };
    let subscribed = subscribe(&web, request("web", filter)).await;
    assert_eq!(refused(subscribed, Code::InvalidArgument, "INVALID_REQUEST"), ["filter.kinds[0]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_an_identity_may_not_receive_are_never_delivered() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    // A filter that names them is refused.
    let filter = Filter {
        kinds: vec![EventKind::MailboxChange.into(), EventKind::RegistryChange.into(), 42],
        accounts: vec!["a".into(), "vip1".into()],
        custom_types: ["org.*", "com.a", "org.secret", "net.*"].map(str::to_owned).to_vec(),
    };
    assert_eq!(
        not_allowed(subscribe(&web, request("web", filter)).await),
        [
            "filter.kinds[1]",
            "filter.kinds[2]",
            "filter.accounts[1]",
            "filter.custom_types[1]",
            "filter.custom_types[2]",
            "filter.custom_types[3]",
        ]
    );
    // A filter that does not name them leaves them out: live, and from history, which has all of
    // them; among them are a kind with a last value and one that its rules do not know.
    let mut live = subscribe(&web, request("web", Filter::default())).await.expect("a stream");
    let batch = vec![
        events::mailbox_change("vip1", 1),
        events::mailbox_change("a", 2),
        events::queue_status(),
        events::email_delivery("a", "e"),
        events::custom("org.secret"),
        events::custom("org.fine"),
        events::custom("com.example"),
        events::queue_refresh(),
        events::custom("org.last"),
    ];
    publish(&mx, "mx-1", batch).await.expect("published");
    let mut oldest = request("web", Filter::default());
    oldest.start = Start::Oldest.into();
    let mut from_history = subscribe(&web, oldest).await.expect("a stream");
    for stream in [&mut live, &mut from_history] {
        let seen = until_type(stream, "org.last").await;
        let kinds: Vec<_> = seen.iter().map(|event| event.kind.clone().expect("a kind")).collect();
        assert!(
            matches!(
                &kinds[..],
                [Kind::MailboxChange(change), Kind::Custom(custom), Kind::QueueRefresh(_)]
                if change.account_id == "a" && custom.r#type == "org.fine"),
            "{kinds:?}"
        );
    }
    // A pattern that matches more than is allowed is narrowed.
    let filter = Filter { custom_types: vec!["*".into()], ..Filter::default() };
    let mut wide = subscribe(&web, request("web", filter)).await.expect("a stream");
    let batch = ["com.a", "org.secret", "org.a", "org.last"].map(events::custom).to_vec();
    publish(&mx, "mx-1", batch).await.expect("published");
    assert_eq!(until_type(&mut wide, "org.last").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_only_roles_of_its_identity() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    let with = |node_id: &str, roles: &[&str]| SubscribeRequest {
        roles: roles.iter().map(|&role| role.to_owned()).collect(),
        ..request(node_id, Filter::default())
    };
    let asked = ["web", "mta", "imap-1", "{identity}", "*"];
    let fields = not_allowed(subscribe(&web, with("web", &asked)).await);
    assert_eq!(fields, ["roles[1]", "roles[2]", "roles[3]", "roles[4]"]);
    let mut web_stream = subscribe(&web, with("web", &["web"])).await.expect("a stream");
    let mut mx_stream = subscribe(&mx, with("mx-1", &["mta", "imap-1"])).await.expect("a stream");
    // An event for one role reaches nodes of that role only.
    let to = |roles: &[&str], name: &str| {
        let roles = roles.iter().map(|&role| role.to_owned()).collect();
        Event { target: Some(Target { node_ids: vec![], roles }), ..events::custom(name) }
    };
    let batch = vec![
        to(&["mta"], "org.for.mta"),
        to(&["web"], "org.for.web"),
        to(&["imap-1"], "org.for.imap"),
        events::custom("org.last"),
    ];
    publish(&mx, "mx-2", batch).await.expect("published");
    for (stream, own) in [(&mut web_stream, &["web"][..]), (&mut mx_stream, &["mta", "imap"])] {
        let seen = until_type(stream, "org.last").await;
        let types: Vec<_> = seen.iter().map(custom_type).collect();
        assert_eq!(types, own.iter().map(|role| format!("org.for.{role}")).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explanations_require_the_explain_operation() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let explaining = |node_id: &str, filter| SubscribeRequest {
        explain: true,
        max_events: 2,
        ..request(node_id, filter)
    };
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    for (node, node_id) in [(&web, "web"), (&mx, "mx-1")] {
        let refused = subscribe(node, explaining(node_id, Filter::default())).await;
        assert_eq!(not_allowed(refused), ["explain"]);
    }
    // With the operation, the stream explains what the rules leave out and what the filter leaves
    // out, each as such, and delivers no more.
    let support = connect(&gateway, &files.token(SUPPORT_TOKEN)).await;
    let filter = Filter { custom_types: vec!["org.*".into()], ..Filter::default() };
    let mut stream = subscribe(&support, explaining("web", filter)).await.expect("a stream");
    let batch = vec![
        events::mailbox_change("a", 1),
        events::custom("org.secret"),
        events::custom("com.other"),
        events::custom("org.fine"),
        events::queue_refresh(),
    ];
    publish(&mx, "mx-2", batch).await.expect("published");
    let (mut delivered, mut verdicts) = (vec![], vec![]);
    while let Some(message) =
        tokio::time::timeout(LIMIT, stream.message()).await.expect("in time").expect("a message")
    {
        match message.response {
            Some(Response::Events(batch)) => delivered.extend(batch.events),
            Some(Response::Explanation(explanation)) => verdicts.extend(explanation.verdicts),
            _ => {}
        }
    }
    assert_eq!(delivered.len(), 2, "{delivered:?}");
    assert_eq!(custom_type(&delivered[0]), "org.fine");
    let why: Vec<Vec<Exclusion>> =
        verdicts.iter().map(|verdict| verdict.exclusions().collect()).collect();
    let (rule, own_type) = (vec![Exclusion::Rule], vec![Exclusion::CustomType]);
    assert_eq!(why, [rule.clone(), rule, own_type, vec![], vec![]], "{verdicts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_hold_for_a_resumed_stream() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    // The resume token of a node that may receive everything.
    let mut everything =
        subscribe(&mx, request("mx-1", Filter::default())).await.expect("a stream");
    publish(&mx, "mx-2", vec![events::queue_refresh()]).await.expect("published");
    let resume_token = loop {
        let message = tokio::time::timeout(LIMIT, everything.message()).await.expect("in time");
        if let Some(Response::Events(batch)) = message.expect("a message").expect("one").response {
            break batch.resume_token;
        }
    };
    let batch = ["org.secret", "com.example", "org.fine", "org.last"].map(events::custom);
    publish(&mx, "mx-2", batch.to_vec()).await.expect("published");
    publish(&mx, "mx-2", vec![events::mailbox_change("vip1", 1)]).await.expect("published");
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let request = SubscribeRequest { resume_token, ..request("web", Filter::default()) };
    let mut stream = subscribe(&web, request).await.expect("a stream");
    let seen = until_type(&mut stream, "org.last").await;
    assert_eq!(seen.iter().map(custom_type).collect::<Vec<_>>(), ["org.fine"]);
    publish(&mx, "mx-2", vec![events::custom("org.end")]).await.expect("published");
    assert!(until_type(&mut stream, "org.end").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_count_by_identity_over_all_its_connections() {
    let files = Files::new().await;
    let limits = json!({ "maxStreamsPerIdentity": 2, "eventsPerSecond": 1, "eventBurst": 20 });
    let gateway = files.start(files.options("optional").set("limits", limits)).await;
    let mut open = vec![];
    for _ in 0..2 {
        // Each on its own connection.
        let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
        open.push(subscribe(&web, request("web", Filter::default())).await.expect("a stream"));
    }
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let third = subscribe(&web, request("web", Filter::default())).await;
    refused(third, Code::ResourceExhausted, "LIMIT_REACHED");
    let batch = |count| vec![events::custom("org.web.a"); count];
    publish(&web, "web", batch(20)).await.expect("a burst");
    let beyond = publish(&web, "web", batch(10)).await;
    refused(beyond, Code::ResourceExhausted, "LIMIT_REACHED");
    // Another identity at the same address has its own quota, here for two node ids on one
    // connection.
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    for node_id in ["mx-1", "mx-2"] {
        let stream = subscribe(&mx, request(node_id, Filter::default())).await;
        open.push(stream.expect("a stream of its own quota"));
    }
    publish(&mx, "mx-1", batch(20)).await.expect("a burst of its own");
    // A stream that ends frees the quota of its own identity.
    open.truncate(1);
    until(LIMIT, "a free stream permit", async || {
        subscribe(&web, request("web", Filter::default())).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_that_of_its_identity_and_node_alone() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mut stream = subscribe(&mx, request("mx-9", Filter::default())).await.expect("a stream");
    let id = "0190b6c5-7d3e-7c3a-9d3f-1b2a3c4d5e6f";
    let mut positions = vec![];
    // The same requests once more are retries.
    for _ in 0..2 {
        for (node, node_id, name) in [
            (&mx, "mx-1", "org.web.mx"),
            (&mx, "mx-2", "org.web.other"),
            (&web, "web", "org.web.web"),
        ] {
            let request = PublishRequest {
                node_id: node_id.into(),
                request_id: id.into(),
                events: vec![events::custom(name)],
                ..Default::default()
            };
            let published = node.clone().publish(request).await.expect("published");
            positions.push(published.into_inner().positions);
        }
    }
    assert_eq!(positions[..3], positions[3..]);
    assert!(positions[0] != positions[1] && positions[1] != positions[2]);
    publish(&mx, "mx-1", vec![events::custom("org.end")]).await.expect("published");
    let seen = until_type(&mut stream, "org.end").await;
    let mut types: Vec<_> = seen.iter().map(custom_type).collect();
    types.sort();
    assert_eq!(types, ["org.web.mx", "org.web.other", "org.web.web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_waited_for_are_named_to_who_may_list_nodes() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    // A Subscribe cannot acknowledge.
    let _stream = subscribe(&mx, request("mx-9", Filter::default())).await.expect("a stream");
    for (node, node_id, named) in [(&mx, "mx-1", vec!["mx-9".to_owned()]), (&web, "web", vec![])] {
        let request = PublishRequest {
            node_id: node_id.into(),
            events: vec![events::custom("org.web.a")],
            wait_for: WaitFor::Acknowledged.into(),
            wait_timeout: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
            ..Default::default()
        };
        let published = node.clone().publish(request).await.expect("published").into_inner();
        let report = published.delivery.expect("a report");
        assert_eq!((report.complete, report.concerned_nodes, report.done_nodes), (false, 1, 0));
        assert_eq!(report.pending_node_ids, named);
    }
}
