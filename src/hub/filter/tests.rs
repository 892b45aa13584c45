use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    config::{Allow, Deny, EventRules, Kinds},
    hub::event::wire::put_field,
    proto::v1::event::Kind,
};

fn matches(filter: &Filter, event: &v1::Event) -> bool {
    filter.matches(&EventView::peek(&event.encode_to_vec()).unwrap())
}

#[allow(clippy::needless_pass_by_value)] // made where it is passed
fn filter(wire: v1::Filter) -> Filter {
    Filter::new(&wire, "me", &["imap".to_owned()], false)
}

fn mailbox_change(account_id: &str) -> v1::Event {
    let change = v1::MailboxChange { account_id: account_id.into(), ..Default::default() };
    v1::Event { kind: Some(Kind::MailboxChange(change)), ..Default::default() }
}

fn custom(name: &str) -> v1::Event {
    let custom = v1::CustomEvent { r#type: name.into(), ..Default::default() };
    v1::Event { kind: Some(Kind::Custom(custom)), ..Default::default() }
}

fn refresh() -> v1::Event {
    let kind = Some(Kind::QueueRefresh(v1::QueueRefresh {}));
    v1::Event { source: "other".into(), kind, ..Default::default() }
}

#[test]
fn an_empty_filter_includes_everything_but_own_events() {
    let all = filter(v1::Filter::default());
    assert!(all.matches_everything());
    assert!(matches(&all, &mailbox_change("alice")));
    assert!(matches(&all, &custom("t")));
    assert!(matches(&all, &refresh()));
    assert!(!matches(&all, &v1::Event { source: "me".into(), ..refresh() }));
    let own = Filter::new(&v1::Filter::default(), "me", &[], true);
    assert!(matches(&own, &v1::Event { source: "me".into(), ..refresh() }));
}

#[test]
fn events_about_nodes_are_included_where_they_are_named() {
    let kind = Some(Kind::NodeLeft(v1::NodeLeft { node_id: "me".into(), ..Default::default() }));
    let left = v1::Event { kind, ..Default::default() };
    assert!(!matches(&filter(v1::Filter::default()), &left));
    let named = filter(v1::Filter { kinds: vec![22, 23], ..Default::default() });
    assert!(matches(&named, &left) && !matches(&named, &refresh()));
    let kinds = Kinds { all: true, ..Kinds::default() };
    let allow = Allow { kinds, ..Allow::default() };
    let every = EventRules { allow, deny: Deny::default() };
    assert!(matches(&named.clone().within(&Arc::new(Scope::new(&every))), &left));
    let scope = Arc::new(Scope::new(&every).without_nodes());
    assert!(!matches(&named.within(&scope), &left));
}

#[test]
fn kinds_of_newer_peers_are_kinds() {
    let newer = [0xd2, 0x02, 0x00]; // field 42, an empty message
    let view = EventView::peek(&newer).unwrap();
    assert!(filter(v1::Filter::default()).matches(&view));
    assert!(filter(v1::Filter { kinds: vec![42], ..Default::default() }).matches(&view));
    let others = filter(v1::Filter { kinds: vec![10, 43, 99], ..Default::default() });
    assert!(!others.matches(&view));
    assert!(!others.matches_everything());
}

#[test]
fn unknown_kinds_that_concern_an_account_are_filtered_by_it() {
    let alice = filter(v1::Filter { accounts: vec!["alice".into()], ..Default::default() });
    let newer = |kind: u32, account: &str| {
        let (mut message, mut event) = (vec![], vec![]);
        put_field(&mut message, 1, account.as_bytes());
        put_field(&mut event, kind, &message);
        event
    };
    let matches = |event: &[u8]| alice.matches(&EventView::peek(event).unwrap());
    for kind in [30, 42, 49] {
        assert!(matches(&newer(kind, "alice")) && !matches(&newer(kind, "bob")), "{kind}");
    }
    for kind in [24, 29, 50, 99] {
        assert!(matches(&newer(kind, "bob")), "{kind} concerns no account");
    }
}

#[test]
fn an_event_without_a_kind_is_never_delivered() {
    let all = filter(v1::Filter::default());
    assert!(!matches(&all, &v1::Event { source: "other".into(), ..Default::default() }));
    let none = filter(v1::Filter { kinds: vec![0, -1, 5, 100, 266], ..Default::default() });
    assert!(!matches(&none, &v1::Event::default()));
    assert!(!matches(&none, &mailbox_change("alice")), "266 is not 10");
}

#[test]
fn accounts_narrow_only_the_kinds_that_concern_one() {
    let alice = filter(v1::Filter { accounts: vec!["alice".into()], ..Default::default() });
    assert!(matches(&alice, &mailbox_change("alice")));
    assert!(!matches(&alice, &mailbox_change("bob")));
    assert!(!matches(&alice, &mailbox_change("")));
    assert!(matches(&alice, &refresh()));
    assert!(matches(&alice, &custom("bob")));
    assert!(!alice.matches_everything());
}

#[test]
fn custom_types_match_whole_or_by_prefix() {
    let types = |types: &[&str]| {
        let custom_types = types.iter().map(|&name| name.to_owned()).collect();
        filter(v1::Filter { custom_types, ..Default::default() })
    };
    let some = types(&["com.example.paid", "org.*"]);
    for (name, included) in [
        ("com.example.paid", true),
        ("com.example.paid.twice", false),
        ("com.example", false),
        ("org.", true),
        ("org.a.b", true),
        ("org", false),
    ] {
        assert_eq!(matches(&some, &custom(name)), included, "{name}");
    }
    assert!(matches(&some, &mailbox_change("alice")));
    assert!(!some.matches_everything());
    assert!(matches(&types(&["*"]), &custom("anything")));
}

#[test]
fn a_target_names_the_node_or_a_role() {
    let all = filter(v1::Filter::default());
    let to = |node_ids: &[&str], roles: &[&str]| {
        let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let target = v1::Target { node_ids: strings(node_ids), roles: strings(roles) };
        v1::Event { target: Some(target), ..refresh() }
    };
    assert!(matches(&all, &to(&["you", "me"], &[])));
    assert!(matches(&all, &to(&["you"], &["mta", "imap"])));
    assert!(!matches(&all, &to(&["you"], &["mta"])));
    assert!(!matches(&all, &to(&["imap"], &["me"])), "a node id is no role");
    assert!(!matches(&all, &to(&[], &[])), "no node is named");
}

/// The exclusions that the comments of `Filter`, `Target` and `SubscribeRequest` call for, from the
/// decoded event.
/// The kinds that a filter includes only if it names them.
const NAMED: [i32; 2] = [22, 23];

fn reference(
    wire: &v1::Filter,
    node_id: &str,
    roles: &[String],
    include_own: bool,
    event: &v1::Event,
    newer_kind: Option<i32>,
) -> Vec<Exclusion> {
    let (kind, account, custom_type) = match &event.kind {
        Some(Kind::MailboxChange(change)) => (10, Some(&change.account_id), None),
        Some(Kind::EmailDelivery(delivery)) => (11, Some(&delivery.account_id), None),
        Some(Kind::BlockedIp(_)) => (14, None, None),
        Some(Kind::Custom(custom)) => (20, None, Some(&custom.r#type)),
        _ => (newer_kind.unwrap_or(0), None, None),
    };
    let mut excluded = vec![];
    let is_included =
        if wire.kinds.is_empty() { !NAMED.contains(&kind) } else { wire.kinds.contains(&kind) };
    if kind == 0 || !is_included {
        excluded.push(Exclusion::Kind);
    }
    if !include_own && event.source == node_id {
        excluded.push(Exclusion::OwnEvent);
    }
    if let Some(account) = account
        && !wire.accounts.is_empty()
        && !wire.accounts.contains(account)
    {
        excluded.push(Exclusion::Account);
    }
    if let Some(name) = custom_type
        && !wire.custom_types.is_empty()
        && !wire.custom_types.iter().any(|pattern| match pattern.split_once('*') {
            Some((prefix, _)) => name.starts_with(prefix),
            None => pattern == name,
        })
    {
        excluded.push(Exclusion::CustomType);
    }
    if let Some(target) = &event.target
        && !target.node_ids.iter().any(|name| name == node_id)
        && !target.roles.iter().any(|role| roles.contains(role))
    {
        excluded.push(Exclusion::Target);
    }
    excluded
}

#[test]
fn the_report_of_a_link_is_for_all_who_want_one_of_its_kinds_whatever_else() {
    let report = |kinds: &[i32]| {
        let kind = v1::MissedEvents { missed_events: Some(3), kinds: kinds.to_vec() };
        let target = Some(v1::Target { node_ids: vec!["other".into()], roles: vec![] });
        v1::Event { source: "me".into(), target, kind: Some(kind.into()), ..Default::default() }
            .encode_to_vec()
    };
    let matches = |filter: &v1::Filter, kinds: &[i32]| {
        let filter = Filter::new(filter, "me", &[], false);
        let event = report(kinds);
        let view = EventView::peek(&event).unwrap();
        let excluded = filter.explain(&view);
        assert_eq!(filter.matches(&view), excluded.is_empty());
        excluded.is_empty()
    };
    let all = v1::Filter::default();
    let some = v1::Filter {
        kinds: vec![10, 14],
        accounts: vec!["a".into()],
        custom_types: vec!["t".into()],
    };
    assert!(matches(&all, &[]) && matches(&all, &[99]));
    assert!(matches(&some, &[]) && matches(&some, &[11, 14]));
    assert!(!matches(&some, &[11, 20]), "no kind of it can be missing");
    let only_reports = v1::Filter { kinds: vec![21], ..Default::default() };
    assert!(!matches(&only_reports, &[]), "they are gaps, and no events");
}

/// A few names, so that some are equal.
fn name() -> impl Strategy<Value = String> {
    "[ab]{1,2}"
}

fn list(name: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(name, 0..3)
}

fn some_kind() -> impl Strategy<Value = Option<Kind>> {
    prop_oneof![
        name().prop_map(|account_id| Some(Kind::MailboxChange(v1::MailboxChange {
            account_id,
            ..Default::default()
        }))),
        name().prop_map(|account_id| Some(Kind::EmailDelivery(v1::EmailDelivery {
            account_id,
            ..Default::default()
        }))),
        Just(Some(Kind::BlockedIp(v1::BlockedIp::default()))),
        name().prop_map(|name| Some(Kind::Custom(v1::CustomEvent {
            r#type: name,
            ..Default::default()
        }))),
        Just(None),
    ]
}

prop_compose! {
    fn some_event()(
        kind in some_kind(),
        source in name(),
        target in prop::option::of((list(name()), list(name()))),
    ) -> v1::Event {
        let target = target.map(|(node_ids, roles)| v1::Target { node_ids, roles });
        v1::Event { source, target, kind, ..Default::default() }
    }
}

prop_compose! {
    fn some_filter()(
        kinds in prop::collection::vec(
            prop::sample::select(vec![10, 11, 14, 20, 22, 23, 99]),
            0..4,
        ),
        accounts in list(name()),
        custom_types in list("[ab]{0,2}\\*|[ab]{1,2}"),
    ) -> v1::Filter {
        v1::Filter { kinds, accounts, custom_types }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_filter_does_what_the_comments_of_its_fields_say(
        wire in some_filter(),
        event in some_event(),
        newer_kind in prop::option::of(prop::sample::select(vec![22_i32, 23, 98, 99])),
        node_id in name(),
        roles in list(name()),
        include_own in any::<bool>(),
    ) {
        let mut bytes = event.encode_to_vec();
        let newer_kind = newer_kind.filter(|_| event.kind.is_none());
        if let Some(kind) = newer_kind {
            put_field(&mut bytes, kind.unsigned_abs(), b"newer");
        }
        let filter = Filter::new(&wire, &node_id, &roles, include_own);
        let view = EventView::peek(&bytes).unwrap();
        let included = filter.matches(&view);
        let excluded = reference(&wire, &node_id, &roles, include_own, &event, newer_kind);
        prop_assert_eq!(included, excluded.is_empty());
        prop_assert_eq!(filter.explain(&view), excluded);
        let watching = filter.clone().watching_all();
        prop_assert_eq!(included, watching.matches(&view), "watching delivers no more");
        prop_assert!(watching.accounts().is_none() && watching.custom_types().is_none());
        prop_assert!(watching.plain_kinds() & kind_bit(view.kind()) != 0);
        if filter.matches_everything() && event.target.is_none() && include_own {
            let newer = newer_kind.is_some_and(|kind| {
                !NAMED.contains(&kind) || wire.kinds.contains(&kind)
            });
            prop_assert_eq!(included, event.kind.is_some() || newer);
        }
    }
}
