use prost::Message;
use trunkline::hub::{event::EventView, filter::Filter};
use trunkline_proto::{
    kinds::{MISSED_EVENTS, NUMBERS, is_made_by_gateways},
    v1::{self, event::Kind},
};

use super::event::{account, custom_type, has_known_kinds_only};

/// A request to subscribe (its length in the first byte) and an event: the filter decides as the
/// decoded messages demand.
pub fn filter(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first() else { return };
    let Some((request, event)) = rest.split_at_checked(usize::from(*length)) else { return };
    let Ok(request) = v1::SubscribeRequest::decode(request) else { return };
    let wire = request.filter.clone().unwrap_or_default();
    let filter = Filter::new(&wire, &request.node_id, &request.roles, request.include_own_events);
    let Ok(view) = EventView::peek(event) else { return };
    let included = filter.matches(&view);
    if let Ok(decoded) = v1::Event::decode(event)
        && has_known_kinds_only(event)
    {
        assert_eq!(included, is_included(&request, &wire, &decoded));
    }
}

/// The comments of `Filter`, `Target` and `SubscribeRequest`, word by word, on the decoded event.
fn is_included(request: &v1::SubscribeRequest, filter: &v1::Filter, event: &v1::Event) -> bool {
    let Some(kind) = event.kind.as_ref().map(Kind::number) else { return false };
    if let Some(Kind::MissedEvents(report)) = &event.kind {
        // It stands for events of its kinds, whatever else.
        let is_one_of = |kinds: &[i32], kind| includes(kinds, kind);
        return NUMBERS.map(i32::from).any(|kind| {
            kind != i32::from(MISSED_EVENTS)
                && is_one_of(&filter.kinds, kind)
                && is_one_of(&report.kinds, kind)
        });
    }
    let contains = |names: &[String], name: &str| names.iter().any(|other| other == name);
    if !includes(&filter.kinds, kind.into()) {
        return false;
    }
    if let Some(account) = account(event)
        && !filter.accounts.is_empty()
        && !contains(&filter.accounts, account)
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
        && !contains(&target.node_ids, &request.node_id)
        && !request.roles.iter().any(|role| contains(&target.roles, role))
    {
        return false;
    }
    request.include_own_events || event.source != request.node_id
}

/// True if a list of kinds includes one; an empty list has all that need no name.
fn includes(kinds: &[i32], kind: i32) -> bool {
    let needs_name = is_made_by_gateways(kind);
    kinds.contains(&kind) || kinds.is_empty() && !needs_name
}
