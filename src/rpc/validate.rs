//! Checks requests, and lists everything that is wrong with one at once.

mod events;
mod list_nodes;
mod path;
mod publish;
mod subscribe;
mod watch;

use std::{fmt::Display, ops::RangeInclusive};

use self::path::Path;
use crate::{
    errors::{Error, Violations},
    rpc::lists::MAX_NAMES,
};

pub use self::{
    list_nodes::list_nodes,
    publish::{
        EventIds, Origin, StampedEvent, ValidPublish, publish, publish_open, stream_event, wait,
    },
    subscribe::{ValidSubscribe, subscribe, token},
    watch::update,
};

/// Bytes of an id.
const MAX_ID: usize = 128;

/// The range of a `google.protobuf.Timestamp`: the years 1 to 9999. Clients fail on others.
const TIME_SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Collects violations. Every loop over what a client sent ends when the list is full.
#[derive(Default)]
struct Check {
    violations: Violations,
}

impl Check {
    #[cold]
    fn wrong(&mut self, field: impl Display, description: impl Into<String>) {
        self.violations.add(field, description);
    }

    fn is_full(&self) -> bool {
        self.violations.is_full()
    }

    fn done(self) -> Result<(), Error> {
        self.violations.found().map_or(Ok(()), |found| Err(Error::Invalid(found)))
    }

    fn node_id(&mut self, id: &str) {
        self.required("node_id", id);
        if id.chars().any(char::is_control) {
            self.wrong("node_id", "must not have control characters");
        }
    }

    fn id(&mut self, field: impl Display, id: &str) {
        self.at_most(field, id, MAX_ID);
    }

    fn required(&mut self, field: impl Display, id: &str) {
        if id.is_empty() {
            self.wrong(&field, "is required");
        }
        self.id(field, id);
    }

    fn at_most(&mut self, field: impl Display, text: &str, max: usize) {
        if text.len() > max {
            self.wrong(field, format!("has {} bytes; the limit is {max}", text.len()));
        }
    }

    fn count(&mut self, field: impl Display, count: usize, max: usize) {
        if count > max {
            self.wrong(field, format!("has {count}; the limit is {max}"));
        }
    }

    fn names(&mut self, field: Path<'_>, names: &[String]) {
        self.count(field, names.len(), MAX_NAMES);
        for (index, name) in names.iter().enumerate().take(MAX_NAMES) {
            if self.is_full() {
                return;
            }
            self.required(field.index(index), name);
        }
    }

    fn time(&mut self, field: impl Display, time: Option<&prost_types::Timestamp>) {
        let valid = |time: &prost_types::Timestamp| {
            TIME_SECONDS.contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos)
        };
        if !time.is_none_or(valid) {
            self.wrong(field, "is not a valid time: the years 1 to 9999, and 0 to 999,999,999 ns");
        }
    }

    /// A value of an enum in an event. Values of newer peers pass; a negative one is not a value.
    fn enum_value(&mut self, field: impl Display, value: i32) {
        if value < 0 {
            self.wrong(field, format!("{value} is not a value of this enum"));
        }
    }

    fn type_name(&mut self, field: impl Display, name: &str) {
        self.required(&field, name);
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if !name.bytes().all(allowed) {
            self.wrong(field, "may have letters, digits, '.', '_', '-' and '/' only");
        }
    }
}
