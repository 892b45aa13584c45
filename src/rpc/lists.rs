//! Limits of the lists in a request, checked before it is decoded: an element of one byte in a
//! request takes 24 to 32 in memory, and a request has room for millions.

use trunkline_proto::kinds::NUMBERS;

use crate::{
    config::Limits,
    errors::{Error, Violations},
    hub::event::wire::{Field, Fields, Malformed, Span},
    proto::v1,
};

/// Node ids or roles of a target, and roles of a node.
pub const MAX_NAMES: usize = 64;

/// Kinds in a filter: as many as there can be.
pub const MAX_KINDS: usize = (*NUMBERS.end() - *NUMBERS.start() + 1) as usize;

/// Custom types in a filter.
pub const MAX_PATTERNS: usize = 256;

// Field numbers of `trunkline.v1`.
const PUBLISH_EVENTS: u32 = 3;
const STREAM_EVENTS: u32 = 2;
const SUBSCRIBE_ROLES: u32 = 3;
const SUBSCRIBE_FILTER: u32 = 4;
const FILTER_KINDS: u32 = 1;
const FILTER_ACCOUNTS: u32 = 2;
const FILTER_CUSTOM_TYPES: u32 = 3;
const OPEN_SUBSCRIBE: u32 = 1;
const UPDATE_ADD: u32 = 2;
const UPDATE_REMOVE: u32 = 3;

/// A request whose lists are checked before it is decoded.
pub trait Lists {
    /// Checks the lists of an encoded request, if it has any. Everything else is left to
    /// validation.
    fn check_lists(_bytes: &[u8], _limits: &Limits) -> Result<(), Error> {
        Ok(())
    }
}

/// Checks the lists of a `PublishRequest`.
pub fn check_publish(bytes: &[u8], limits: &Limits) -> Result<(), Error> {
    check_events(bytes, PUBLISH_EVENTS, limits)
}

/// Checks the lists of a `PublishEvents`.
pub fn check_stream_events(bytes: &[u8], limits: &Limits) -> Result<(), Error> {
    check_events(bytes, STREAM_EVENTS, limits)
}

fn check_events(bytes: &[u8], number: u32, limits: &Limits) -> Result<(), Error> {
    let mut events = 0;
    each_field(bytes, whole(bytes)?, |field| {
        events += usize::from(field.number == number);
        Ok(())
    })?;
    let max = limits.max_events_per_request;
    if events > max {
        return Err(Error::field("events", format!("has {events}, must have 1 to {max}")));
    }
    Ok(())
}

impl Lists for v1::SubscribeRequest {
    fn check_lists(bytes: &[u8], limits: &Limits) -> Result<(), Error> {
        check_subscribe(bytes, whole(bytes)?, limits)
    }
}

/// Checks the lists of a `SubscribeRequest`.
fn check_subscribe(bytes: &[u8], request: Span, limits: &Limits) -> Result<(), Error> {
    let (mut roles, mut filter) = (0, FilterLists::default());
    each_field(bytes, request, |field| {
        match field.number {
            SUBSCRIBE_ROLES => roles += 1,
            // Several filters are merged into one.
            SUBSCRIBE_FILTER => filter.count(bytes, content(field)?)?,
            _ => {}
        }
        Ok(())
    })?;
    let mut violations = Violations::default();
    too_many(&mut violations, "roles", roles, MAX_NAMES);
    filter.check("filter", limits, &mut violations);
    violations.found().map_or(Ok(()), |found| Err(Error::Invalid(found)))
}

/// Checks the lists of a `WatchOpen`.
pub fn check_watch_open(bytes: &[u8], limits: &Limits) -> Result<(), Error> {
    each_field(bytes, whole(bytes)?, |field| match field.number {
        OPEN_SUBSCRIBE => check_subscribe(bytes, content(field)?, limits),
        _ => Ok(()),
    })
}

/// Checks the lists of an `InterestUpdate`.
pub fn check_update(bytes: &[u8], limits: &Limits) -> Result<(), Error> {
    let (mut add, mut remove) = (FilterLists::default(), FilterLists::default());
    each_field(bytes, whole(bytes)?, |field| {
        match field.number {
            UPDATE_ADD => add.count(bytes, content(field)?)?,
            UPDATE_REMOVE => remove.count(bytes, content(field)?)?,
            _ => {}
        }
        Ok(())
    })?;
    let mut violations = Violations::default();
    add.check("add", limits, &mut violations);
    remove.check("remove", limits, &mut violations);
    violations.found().map_or(Ok(()), |found| Err(Error::Invalid(found)))
}

/// The lengths of the lists of a `Filter`.
#[derive(Default)]
struct FilterLists {
    kinds: usize,
    accounts: usize,
    custom_types: usize,
}

impl FilterLists {
    fn count(&mut self, bytes: &[u8], filter: Span) -> Result<(), Error> {
        each_field(bytes, filter, |field| {
            match field.number {
                FILTER_KINDS => self.kinds += numbers(bytes, field),
                FILTER_ACCOUNTS => self.accounts += 1,
                FILTER_CUSTOM_TYPES => self.custom_types += 1,
                _ => {}
            }
            Ok(())
        })
    }

    fn check(&self, field: &str, limits: &Limits, violations: &mut Violations) {
        let max_accounts = limits.max_accounts_per_filter;
        too_many(violations, &format!("{field}.kinds"), self.kinds, MAX_KINDS);
        too_many(violations, &format!("{field}.accounts"), self.accounts, max_accounts);
        too_many(violations, &format!("{field}.custom_types"), self.custom_types, MAX_PATTERNS);
    }
}

fn too_many(violations: &mut Violations, field: &str, count: usize, max: usize) {
    if count > max {
        violations.add(field, format!("has {count}; the limit is {max}"));
    }
}

impl Lists for v1::ListNodesRequest {}

impl Lists for v1::GetStatusRequest {}

/// The bytes of a message as a span.
fn whole(bytes: &[u8]) -> Result<Span, Error> {
    let end = u32::try_from(bytes.len()).map_err(|_| malformed(Malformed::TooLarge))?;
    Ok(Span { start: 0, end })
}

fn content(field: &Field) -> Result<Span, Error> {
    field.content().map_err(malformed)
}

fn each_field(
    bytes: &[u8],
    message: Span,
    mut see: impl FnMut(&Field) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut fields = Fields::new(bytes, message).map_err(malformed)?;
    while let Some(field) = fields.next().map_err(malformed)? {
        see(&field)?;
    }
    Ok(())
}

/// The count of numbers in one field of a list of numbers: one by itself, or any number packed.
fn numbers(bytes: &[u8], field: &Field) -> usize {
    field.content().map_or(1, |packed| {
        // The last byte of a number has no continuation bit.
        packed.of(bytes).iter().filter(|byte| **byte < 0x80).count()
    })
}

fn malformed(why: Malformed) -> Error {
    Error::field("request", format!("is malformed: {why}"))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{hub::event::wire::put_field, rpc::request::PublishRequest};

    fn refused<L: Lists>(bytes: &[u8]) -> String {
        L::check_lists(bytes, &Limits::default()).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn lists_are_counted_as_they_are_decoded() {
        let filter = v1::Filter {
            kinds: (10..100).collect(),
            accounts: vec![String::new(); 10_000],
            custom_types: vec!["a".into(); 256],
        };
        let most = v1::SubscribeRequest {
            roles: vec!["r".into(); 64],
            filter: Some(filter),
            node_id: "n".into(),
            ..Default::default()
        };
        let bytes = most.encode_to_vec();
        assert_eq!(refused::<v1::SubscribeRequest>(&bytes), "");
        // One more of each, in a second filter, and the kind in both encodings.
        for kinds in [&[1 << 3, 10][..], &[1 << 3 | 2, 1, 10]] {
            let filter = [kinds, &[2 << 3 | 2, 0], &[3 << 3 | 2, 0]].concat();
            let mut more = bytes.clone();
            put_field(&mut more, SUBSCRIBE_FILTER, &filter);
            put_field(&mut more, SUBSCRIBE_ROLES, b"");
            let decoded = v1::SubscribeRequest::decode(&more[..]).unwrap();
            let lists = decoded.filter.unwrap();
            assert_eq!((lists.kinds.len(), decoded.roles.len()), (91, 65));
            assert_eq!(
                refused::<v1::SubscribeRequest>(&more),
                "roles: has 65; the limit is 64; filter.kinds: has 91; the limit is 90; \
                 filter.accounts: has 10001; the limit is 10000; filter.custom_types: has 257; \
                 the limit is 256"
            );
        }
        let events = |count| PublishRequest {
            events: vec![bytes::Bytes::new(); count],
            ..Default::default()
        };
        assert_eq!(refused::<PublishRequest>(&events(1000).encode_to_vec()), "");
        let refusal = refused::<PublishRequest>(&events(2_000_000).encode_to_vec());
        assert_eq!(refusal, "events: has 2000000, must have 1 to 1000");
    }

    #[test]
    fn what_cannot_be_walked_is_refused() {
        // A group, behind which lists would not be counted.
        let group = [15 << 3 | 3, 15 << 3 | 4];
        for bytes in [&group[..], &[0xff; 20], &[3 << 3 | 2, 7]] {
            assert!(refused::<PublishRequest>(bytes).starts_with("request: is malformed"));
            assert!(refused::<v1::SubscribeRequest>(bytes).starts_with("request: is malformed"));
        }
        let filter = [4 << 3 | 2, 2, 15 << 3 | 3, 15 << 3 | 4];
        assert!(refused::<v1::SubscribeRequest>(&filter).starts_with("request: is malformed"));
    }
}
