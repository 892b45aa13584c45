//! The peek at an event, against prost's reading of the same bytes.

use std::time::UNIX_EPOCH;

use bytes::BytesMut;
use prost::Message;
use uuid::Uuid;

use crate::{
    hub::event::{
        EventView, Malformed, TargetName, routing_key_hash, stamp,
        wire::{Fields, Span},
    },
    proto::v1::{self, event::Kind},
    trace_context::{IncomingTrace, TraceContext},
};

/// What a node publishes: the peek finds what prost finds, and the stamp adds to it and changes nothing.
pub fn event(bytes: &[u8]) {
    let peeked = EventView::peek(bytes);
    let decoded = v1::Event::decode(bytes);
    let view = match (&peeked, &decoded) {
        (Ok(view), Ok(decoded)) => {
            if known_kinds(bytes) {
                agrees(view, decoded);
            }
            view
        }
        (Ok(view), Err(_)) => view,
        // prost skips groups where it does not know the field; the peek refuses them everywhere.
        (Err(Malformed::WireType(_)), _) | (Err(_), Err(_)) => return,
        (Err(error), Ok(_)) => panic!("prost reads it, the peek does not: {error}"),
    };
    let hash = routing_key_hash(view);
    // What stood there before belongs to other events.
    let mut room = BytesMut::from(&b"another event"[..]);
    let _ = room.split();
    let mut stamped = |view: &EventView<'_>| {
        let carried =
            IncomingTrace::new(TraceContext { trace_id: [7; 16], span_id: [7; 8], sampled: true });
        stamp(&mut room, view, "node", UNIX_EPOCH, Some(&carried), || Uuid::from_u128(7))
    };
    let once = stamped(view);
    assert!(once.starts_with(bytes));
    let view = EventView::peek(&once).expect("a stamp takes nothing away");
    assert_eq!((view.source(), view.has_event_id(), view.has_publish_time()), ("node", true, true));
    assert_eq!(routing_key_hash(&view), hash);
    assert_eq!(stamped(&view), once);
    if let Ok(decoded) = &decoded {
        let again = v1::Event::decode(&once[..]).expect("a stamp takes nothing away");
        assert_eq!(again.source, "node");
        assert!(!again.event_id.is_empty() && again.publish_time.is_some());
        assert_eq!((&again.kind, &again.target), (&decoded.kind, &decoded.target));
        assert!(decoded.event_id.is_empty() || again.event_id == decoded.event_id);
        let own = TraceContext::parse(decoded.traceparent.as_bytes());
        assert_eq!(view.trace(), own.or(TraceContext::parse(again.traceparent.as_bytes())));
        assert!(view.meta().has_trace());
        assert!(own.is_none() || again.tracestate == decoded.tracestate);
        assert!(own.is_some() || again.tracestate.is_empty());
    }
}

fn agrees(view: &EventView<'_>, event: &v1::Event) {
    let kind = event.kind.as_ref().map_or(0, number);
    assert_eq!(i32::from(view.kind()), kind);
    assert_eq!(view.source(), event.source);
    assert_eq!(view.account().unwrap_or_default(), account(event).unwrap_or_default());
    assert_eq!(view.custom_type(), custom_type(event));
    assert_eq!(view.event_id(), event.event_id);
    let context = TraceContext::parse(event.traceparent.as_bytes());
    assert_eq!(view.trace(), context);
    let sampled = context.is_some_and(|context| context.sampled);
    assert_eq!((view.meta().has_trace(), view.meta().is_sampled()), (context.is_some(), sampled));
    assert_eq!(view.has_event_id(), !event.event_id.is_empty());
    assert_eq!(view.has_publish_time(), event.publish_time.is_some());
    assert_eq!(view.has_target(), event.target.is_some());
    let target = event.target.clone().unwrap_or_default();
    let (mut node_ids, mut roles) = (Vec::new(), Vec::new());
    for name in view.target_names() {
        match name {
            TargetName::NodeId(name) => node_ids.push(name),
            TargetName::Role(name) => roles.push(name),
        }
    }
    assert!(node_ids.into_iter().eq(target.node_ids.iter().map(String::as_bytes)));
    assert!(roles.into_iter().eq(target.roles.iter().map(String::as_bytes)));
}

/// Whether the event holds no kind that this version does not know: prost passes over those, and says the kind before.
pub(super) fn known_kinds(event: &[u8]) -> bool {
    let end = u32::try_from(event.len()).unwrap_or_default();
    let Ok(mut fields) = Fields::new(event, Span { start: 0, end }) else { return false };
    while let Ok(Some(field)) = fields.next() {
        if (21..=99).contains(&field.number) {
            return false;
        }
    }
    true
}

/// The comments of `Filter`, `Target` and `SubscribeRequest`, word by word, on the decoded event. `who` is the node, its
/// roles, and whether it wants its own events.
pub(super) fn included(
    filter: &v1::Filter,
    who: (&str, &[String], bool),
    event: &v1::Event,
) -> bool {
    let (node_id, roles, own) = who;
    let Some(kind) = event.kind.as_ref().map(number) else { return false };
    let named = |names: &[String], name: &str| names.iter().any(|other| other == name);
    if !filter.kinds.is_empty() && !filter.kinds.contains(&kind) {
        return false;
    }
    if let Some(account) = account(event)
        && !filter.accounts.is_empty()
        && !named(&filter.accounts, account)
    {
        return false;
    }
    let fits = |name: &str, pattern: &str| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    };
    if let Some(name) = custom_type(event)
        && !filter.custom_types.is_empty()
        && !filter.custom_types.iter().any(|pattern| fits(name, pattern))
    {
        return false;
    }
    if let Some(target) = &event.target
        && !named(&target.node_ids, node_id)
        && !roles.iter().any(|role| named(&target.roles, role))
    {
        return false;
    }
    own || event.source != node_id
}

fn number(kind: &Kind) -> i32 {
    match kind {
        Kind::MailboxChange(_) => 10,
        Kind::EmailDelivery(_) => 11,
        Kind::CalendarAlert(_) => 12,
        Kind::PushSubscriptionChange(_) => 13,
        Kind::BlockedIp(_) => 14,
        Kind::CertificateChange(_) => 15,
        Kind::RegistryChange(_) => 16,
        Kind::CacheInvalidation(_) => 17,
        Kind::QueueStatus(_) => 18,
        Kind::QueueRefresh(_) => 19,
        Kind::Custom(_) => 20,
    }
}

/// The account of a kind that concerns one, named or not.
fn account(event: &v1::Event) -> Option<&str> {
    match event.kind.as_ref()? {
        Kind::MailboxChange(change) => Some(&change.account_id),
        Kind::EmailDelivery(delivery) => Some(&delivery.account_id),
        Kind::CalendarAlert(alert) => Some(&alert.account_id),
        Kind::PushSubscriptionChange(change) => Some(&change.account_id),
        _ => None,
    }
}

fn custom_type(event: &v1::Event) -> Option<&str> {
    match event.kind.as_ref()? {
        Kind::Custom(custom) => Some(&custom.r#type),
        _ => None,
    }
}
