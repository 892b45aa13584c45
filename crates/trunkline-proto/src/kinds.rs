//! The table of kinds: one row for each kind of event, from which everything else about kinds
//! derives.
//!
//! To add a kind, write its message, its arm of `Event.kind` and its value of `EventKind` in
//! `proto/trunkline/v1/event.proto`, and one row of [`TABLE`] here.
//!
//! ```
//! use trunkline_proto::{kinds, v1::{EventKind, MailboxChange, event::Kind}};
//!
//! let row = kinds::named("mailbox-change").expect("a kind");
//! assert_eq!((row.kind, row.number, row.name), (EventKind::MailboxChange, 10, "mailbox_change"));
//! assert!(kinds::concerns_account(row.number));
//! assert_eq!(Kind::from(MailboxChange::default()).row(), row);
//!
//! // A kind of a newer version: its number says whether it concerns an account.
//! assert_eq!(kinds::label(42), "kind 42");
//! assert!(kinds::concerns_account(42) && !kinds::concerns_account(50));
//! ```

mod merge;

use std::ops::RangeInclusive;

pub use self::merge::Merge;
use self::merge::{join_cache_invalidations, join_email_deliveries, join_mailbox_changes, replace};
use crate::v1::{self, Event, EventKind, event::Kind};

/// The numbers that a kind may have: its field number in `Event`.
pub const NUMBERS: RangeInclusive<u8> = 10..=99;

/// The numbers reserved for kinds that concern an account, besides the first four, 10 to 13.
/// `account_id` is field 1 of such a kind, so a gateway that does not know the kind routes it,
/// filters it and applies account rules to it by account.
pub const ACCOUNT_NUMBERS: RangeInclusive<u8> = 30..=49;

/// The number of custom events, the one kind with [`Subject::CustomType`].
pub const CUSTOM: u8 = EventKind::Custom as u8;

/// The number of the reports of links, which streams get as gaps.
pub const MISSED_EVENTS: u8 = EventKind::MissedEvents as u8;

/// The number of the events of gateways that a node has a stream.
pub const NODE_JOINED: u8 = EventKind::NodeJoined as u8;

/// The number of the events of gateways that a stream of a node has ended.
pub const NODE_LEFT: u8 = EventKind::NodeLeft as u8;

/// True for the kinds that gateways make themselves: no node may publish them, and a stream gets
/// them only if its filter names them.
#[inline]
pub const fn is_made_by_gateways(number: i32) -> bool {
    number == NODE_JOINED as i32 || number == NODE_LEFT as i32
}

/// What an event of a kind is about. It decides the routing key and what filters and their index
/// look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An account, `account_id`, field 1. Routed by account; filtered and indexed by account.
    Account,
    /// A type, `type`, field 1. Routed by kind and type; filtered and indexed by type.
    CustomType,
    /// Nothing that is looked at. Routed by kind; filtered and indexed by kind alone.
    None,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The kind's value of `EventKind`.
    pub kind: EventKind,
    /// The field number in `Event`, which is also the value of `kind`.
    pub number: u8,
    /// The name of the arm of `Event.kind`: `mailbox_change`. Metrics, rules and violations use it.
    pub name: &'static str,
    /// What an event of the kind is about.
    pub subject: Subject,
    /// True if the last event is kept, so that a new or resuming stream gets it first.
    pub keeps_last: bool,
    /// True if events of the kind may be merged for a stream that fell behind; see [`merge`].
    pub merges: bool,
}

/// Declares the table, and what the compiler can derive from it alone. The columns are: arm and
/// message, number, name, subject, whether the last value is kept, and the merge rule, if any.
macro_rules! kinds {
    ($($arm:ident($message:ident) = $number:literal, $name:literal, $subject:ident,
       keep_last: $keeps_last:literal, merge: $merge:expr;)*) => {
        /// All kinds that this version knows, in the order of their numbers.
        pub const TABLE: &[Row] = &[$(Row {
            kind: EventKind::$arm,
            number: $number,
            name: $name,
            subject: Subject::$subject,
            keeps_last: $keeps_last,
            merges: {
                const RULE: Option<fn(&v1::$message, &mut v1::$message) -> Merge> = $merge;
                RULE.is_some()
            },
        }),*];

        $(const _: () = assert!(EventKind::$arm as i32 == $number, "the number in EventKind");)*

        impl Kind {
            /// The field number of the kind in `Event`.
            pub const fn number(&self) -> u8 {
                match self {
                    $(Kind::$arm(_) => $number,)*
                }
            }
        }

        /// Merges an earlier event into a later one by the rule of their kind. The caller pairs
        /// events of one kind, one account and one target.
        pub fn merge(earlier: &Kind, later: &mut Kind) -> Merge {
            match (earlier, later) {
                $((Kind::$arm(earlier), Kind::$arm(later)) => {
                    const RULE: Option<fn(&v1::$message, &mut v1::$message) -> Merge> = $merge;
                    RULE.map_or(Merge::Apart, |rule| rule(earlier, later))
                })*
                _ => Merge::Apart,
            }
        }

        $(
            impl From<v1::$message> for Kind {
                fn from(message: v1::$message) -> Kind {
                    Kind::$arm(message)
                }
            }

            impl From<v1::$message> for Event {
                fn from(message: v1::$message) -> Event {
                    Kind::from(message).into()
                }
            }
        )*
    };
}

kinds! {
    MailboxChange(MailboxChange) = 10, "mailbox_change", Account,
        keep_last: false, merge: Some(join_mailbox_changes);
    EmailDelivery(EmailDelivery) = 11, "email_delivery", Account,
        keep_last: false, merge: Some(join_email_deliveries);
    CalendarAlert(CalendarAlert) = 12, "calendar_alert", Account,
        keep_last: false, merge: None;
    PushSubscriptionChange(PushSubscriptionChange) = 13, "push_subscription_change", Account,
        keep_last: false, merge: None;
    BlockedIp(BlockedIp) = 14, "blocked_ip", None,
        keep_last: false, merge: None;
    CertificateChange(CertificateChange) = 15, "certificate_change", None,
        keep_last: false, merge: None;
    RegistryChange(RegistryChange) = 16, "registry_change", None,
        keep_last: false, merge: None;
    CacheInvalidation(CacheInvalidation) = 17, "cache_invalidation", None,
        keep_last: false, merge: Some(join_cache_invalidations);
    QueueStatus(QueueStatus) = 18, "queue_status", None,
        keep_last: true, merge: None;
    QueueRefresh(QueueRefresh) = 19, "queue_refresh", None,
        keep_last: false, merge: Some(replace);
    Custom(CustomEvent) = 20, "custom", CustomType,
        keep_last: false, merge: None;
    MissedEvents(MissedEvents) = 21, "missed_events", None,
        keep_last: false, merge: None;
    NodeJoined(NodeJoined) = 22, "node_joined", None,
        keep_last: false, merge: None;
    NodeLeft(NodeLeft) = 23, "node_left", None,
        keep_last: false, merge: None;
}

/// The rows by number.
static ROWS: [Option<&Row>; 128] = {
    let mut rows: [Option<&Row>; 128] = [None; 128];
    let mut index = 0;
    while index < TABLE.len() {
        let row = &TABLE[index];
        assert!(index == 0 || TABLE[index - 1].number < row.number, "rows are in order");
        assert!(is_number(row.number), "numbers of kinds are 10 to 99");
        assert!(
            matches!(row.subject, Subject::Account) == is_for_accounts(row.number),
            "kinds that concern an account have numbers from 30 to 49, and no other kind has"
        );
        assert!(
            matches!(row.subject, Subject::CustomType) == (row.number == CUSTOM),
            "filters match the types of one kind"
        );
        rows[row.number as usize] = Some(row);
        index += 1;
    }
    rows
};

/// The subjects by number, so that [`subject`], which is called for every event, is one load.
static SUBJECTS: [Option<Subject>; 128] = {
    let mut subjects = [None; 128];
    let mut number = 0u8;
    while number < 128 {
        subjects[number as usize] = match ROWS[number as usize] {
            Some(row) => Some(row.subject),
            None if is_for_accounts(number) => Some(Subject::Account),
            None => None,
        };
        number += 1;
    }
    subjects
};

const fn is_for_accounts(number: u8) -> bool {
    matches!(number, 10..=13)
        || *ACCOUNT_NUMBERS.start() <= number && number <= *ACCOUNT_NUMBERS.end()
}

/// True if a kind, known or not, may have this number.
pub const fn is_number(number: u8) -> bool {
    *NUMBERS.start() <= number && number <= *NUMBERS.end()
}

/// What an event of the kind is about. `None` for an unknown kind that concerns no account.
#[inline]
pub const fn subject(number: u8) -> Option<Subject> {
    if number < 128 { SUBJECTS[number as usize] } else { None }
}

/// True if events of the kind concern one account. Also true for the unknown kinds of
/// [`ACCOUNT_NUMBERS`].
#[inline]
pub const fn concerns_account(number: u8) -> bool {
    matches!(subject(number), Some(Subject::Account))
}

/// The row of a kind, by its number; `None` for a kind that this version does not know.
#[inline]
pub const fn of(number: u8) -> Option<&'static Row> {
    if number < 128 { ROWS[number as usize] } else { None }
}

/// The row of a kind, by its name as metrics (`mailbox_change`) or the command line
/// (`mailbox-change`) write it.
pub fn named(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name || row.cli_name() == name)
}

/// The name of a kind, by its number: `mailbox_change`. `None` for a kind that this version does
/// not know.
pub fn name(number: i32) -> Option<&'static str> {
    u8::try_from(number).ok().and_then(of).map(|row| row.name)
}

/// The name of a kind, or `kind 42` for one that this version does not know.
pub fn label(number: i32) -> String {
    name(number).map_or_else(|| format!("kind {number}"), str::to_owned)
}

impl Row {
    /// The name on the command line: `mailbox-change`.
    pub fn cli_name(&self) -> String {
        self.name.replace('_', "-")
    }

    /// True for the kinds that nodes publish and get as events: not for those that gateways make,
    /// and not for reports, which streams get as gaps.
    pub fn is_between_nodes(&self) -> bool {
        self.number != MISSED_EVENTS && !is_made_by_gateways(self.number.into())
    }
}

impl Kind {
    /// The row of the kind.
    pub fn row(&self) -> &'static Row {
        // Both are made from the same rows.
        of(self.number()).unwrap_or(&TABLE[0])
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// The arms of `Event.kind` as `event.proto` declares them: name, number, and the fields of the
    /// message.
    fn declared() -> Vec<(String, i32, Vec<String>)> {
        let files = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap().file;
        let messages: Vec<_> = files.into_iter().flat_map(|file| file.message_type).collect();
        let of_type = |name: &str| messages.iter().find(|message| message.name() == name);
        let event = of_type("Event").unwrap();
        let arms = event.field.iter().filter(|field| field.oneof_index.is_some());
        arms.map(|arm| {
            let message = of_type(arm.type_name().rsplit('.').next().unwrap()).unwrap();
            let fields = message.field.iter();
            let first = fields.filter(|field| field.number() == 1).map(|f| f.name().to_owned());
            (arm.name().to_owned(), arm.number(), first.collect())
        })
        .collect()
    }

    #[test]
    fn the_table_has_the_arms_of_the_event_and_their_subjects_are_field_one() {
        let declared = declared();
        assert_eq!(declared.len(), TABLE.len());
        for (row, (name, number, first)) in TABLE.iter().zip(declared) {
            assert_eq!((row.name, i32::from(row.number)), (&*name, number));
            let expected = match row.subject {
                Subject::Account => Some("account_id"),
                Subject::CustomType => Some("type"),
                Subject::None => None,
            };
            let first = first.first().map(String::as_str);
            assert!(expected.is_none_or(|expected| first == Some(expected)), "{name}: {first:?}");
            assert_ne!((row.subject, first), (Subject::None, Some("account_id")), "{name}");
        }
    }

    #[test]
    fn names_and_numbers_lead_to_the_same_row() {
        for row in TABLE {
            let value = format!("EVENT_KIND_{}", row.name.to_uppercase());
            assert_eq!(row.kind.as_str_name(), value);
            assert_eq!(of(row.number), Some(row));
            assert_eq!(named(row.name), Some(row));
            assert_eq!(named(&row.cli_name()), Some(row));
            assert_eq!(name(row.number.into()), Some(row.name));
        }
        for number in [-1, 0, 9, 24, 99, 128, 266] {
            assert_eq!((name(number), label(number)), (None, format!("kind {number}")));
        }
        assert_eq!((named("mailbox"), named("")), (None, None));
    }

    #[test]
    fn the_first_four_and_the_reserved_numbers_concern_an_account_and_no_other_does() {
        for number in 0..=u8::MAX {
            let reserved = matches!(number, 10..=13 | 30..=49);
            assert_eq!(concerns_account(number), reserved, "{number}");
        }
    }
}
