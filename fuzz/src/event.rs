use std::time::UNIX_EPOCH;

use bytes::BytesMut;
use prost::Message;
use trunkline::{
    hub::event::{EventView, Malformed, TargetName, routing_key_hash, stamp},
    trace_context::{IncomingTrace, TraceContext},
};
use trunkline_proto::{
    kinds,
    v1::{self, event::Kind},
};
use uuid::Uuid;

/// An event, as a node publishes it: the peek reads what prost reads, and the stamp adds fields and
/// changes none.
pub fn event(bytes: &[u8]) {
    let peeked = EventView::peek(bytes);
    let decoded = v1::Event::decode(bytes);
    let view = match (&peeked, &decoded) {
        (Ok(view), Ok(decoded)) => {
            if has_known_kinds_only(bytes) {
                assert_same(view, decoded);
            }
            view
        }
        (Ok(view), Err(_)) => view,
        // prost skips groups where it does not know the field; the peek refuses them everywhere.
        (Err(Malformed::WireType(_)), _) | (Err(_), Err(_)) => return,
        // prost does not look into kinds that it does not know; the peek looks for their account.
        (Err(error), Ok(_)) => {
            assert!(!has_known_kinds_only(bytes), "prost decodes it, the peek does not: {error}");
            return;
        }
    };
    let hash = routing_key_hash(view);
    // The buffer holds other events already.
    let mut buffer = BytesMut::from(&b"another event"[..]);
    let _ = buffer.split();
    let mut stamped = |view: &EventView<'_>| {
        let carried =
            IncomingTrace::new(TraceContext { trace_id: [7; 16], span_id: [7; 8], sampled: true });
        stamp(&mut buffer, view, "node", UNIX_EPOCH, Some(&carried), None, || Uuid::from_u128(7))
    };
    let once = stamped(view);
    assert!(once.starts_with(bytes));
    let view = EventView::peek(&once).expect("a stamp removes nothing");
    assert_eq!((view.source(), view.has_event_id(), view.has_publish_time()), ("node", true, true));
    assert_eq!(routing_key_hash(&view), hash);
    assert_eq!(stamped(&view), once);
    if let Ok(decoded) = &decoded {
        let again = v1::Event::decode(&once[..]).expect("a stamp removes nothing");
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

fn assert_same(view: &EventView<'_>, event: &v1::Event) {
    let kind = event.kind.as_ref().map_or(0, Kind::number);
    assert_eq!(view.kind(), kind);
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

/// True if the event has no kind field that this version does not know: prost skips those and
/// keeps the kind before.
pub(super) fn has_known_kinds_only(mut event: &[u8]) -> bool {
    use prost::encoding::{DecodeContext, decode_key, skip_field};

    while !event.is_empty() {
        let Ok((number, wire_type)) = decode_key(&mut event) else { return false };
        if u8::try_from(number)
            .is_ok_and(|kind| kinds::is_number(kind) && kinds::of(kind).is_none())
        {
            return false;
        }
        if skip_field(wire_type, number, &mut event, DecodeContext::default()).is_err() {
            return false;
        }
    }
    true
}

/// The account of a kind that concerns one, empty or not.
pub(super) fn account(event: &v1::Event) -> Option<&str> {
    match event.kind.as_ref()? {
        Kind::MailboxChange(change) => Some(&change.account_id),
        Kind::EmailDelivery(delivery) => Some(&delivery.account_id),
        Kind::CalendarAlert(alert) => Some(&alert.account_id),
        Kind::PushSubscriptionChange(change) => Some(&change.account_id),
        _ => None,
    }
}

pub(super) fn custom_type(event: &v1::Event) -> Option<&str> {
    match event.kind.as_ref()? {
        Kind::Custom(custom) => Some(&custom.r#type),
        _ => None,
    }
}
