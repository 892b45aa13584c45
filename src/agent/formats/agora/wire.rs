//! Events of the mail server as events of Trunkline, and the way back.

use trunkline_proto::v1::{
    CacheInvalidation, CalendarAlert, CertificateChange, EmailDelivery, MailboxChange,
    PushSubscriptionChange, QueueRefresh, QueueStatus, RegistryChange, cache_invalidation,
    certificate_change, event::Kind, mailbox_change::TypeState, queue_status, registry_change,
};

use super::{
    encode::Writer,
    event::{Entries, Entry, EntryIter, Event},
    names::{self, Cache, Types},
    recurrence,
};

/// The most entries that one cache invalidation has.
const MAX_ENTRIES: usize = 1000;

/// The events of Trunkline that say what one event of the mail server says: one as a rule; a long
/// list of cache entries is several, and an empty one none.
pub(super) struct Kinds<'a>(Left<'a>);

enum Left<'a> {
    One(Option<Kind>),
    Entries(EntryIter<'a>),
}

impl<'a> Kinds<'a> {
    pub(super) fn of(event: &Event<'a>) -> Kinds<'a> {
        Kinds(match *event {
            Event::CacheInvalidate(entries) => Left::Entries(entries.iter()),
            _ => Left::One(kind_of(event)),
        })
    }
}

impl Iterator for Kinds<'_> {
    type Item = Kind;

    fn next(&mut self) -> Option<Kind> {
        match &mut self.0 {
            Left::One(kind) => kind.take(),
            Left::Entries(entries) => {
                let entries: Vec<_> = entries.take(MAX_ENTRIES).map(wire_entry).collect();
                let some = !entries.is_empty();
                some.then(|| CacheInvalidation { entries, ..Default::default() }.into())
            }
        }
    }
}

fn kind_of(event: &Event<'_>) -> Option<Kind> {
    let registry = |object_type, id: Option<u64>, action: registry_change::Action| {
        RegistryChange {
            object_type: names::object_type(object_type),
            object_id: id.map(|id| id.to_string()).unwrap_or_default(),
            action: action.into(),
        }
        .into()
    };
    Some(match *event {
        Event::StateChange { account_id, change_id, types } => MailboxChange {
            account_id: account_id.to_string(),
            change_id,
            changed_types: names::changed_types(types),
            type_states: Vec::new(),
        }
        .into(),
        Event::CalendarAlert { account_id, event_id, recurrence_id, uid, alert_id } => {
            CalendarAlert {
                account_id: account_id.to_string(),
                event_id: event_id.to_string(),
                recurrence_id: recurrence::to_text(recurrence_id),
                uid: uid.to_owned(),
                alert_id: alert_id.to_owned(),
            }
            .into()
        }
        Event::EmailPush { account_id, email_id, change_id } => EmailDelivery {
            account_id: account_id.to_string(),
            email_id: email_id.to_string(),
            change_id,
        }
        .into(),
        Event::PushServerUpdate { account_id } => {
            PushSubscriptionChange { account_id: account_id.to_string() }.into()
        }
        // A certificate of the store. Which domains it has is not said.
        Event::RegistryInsert { object_type: names::CERTIFICATE, id } => {
            CertificateChange { certificate_id: id.to_string(), ..Default::default() }.into()
        }
        // Also of a banned address: only the row in the store is known, not the address.
        Event::RegistryInsert { object_type, id } => {
            registry(object_type, Some(id), registry_change::Action::Insert)
        }
        Event::RegistryDelete { object_type, id } => {
            registry(object_type, Some(id), registry_change::Action::Delete)
        }
        Event::RegistryReload { object_type } => {
            registry(object_type, None, registry_change::Action::Reload)
        }
        Event::CacheInvalidate(_) => return None,
        Event::CacheInvalidateAll => drop_all(cache_invalidation::Scope::All),
        Event::CacheInvalidateNegative => drop_all(cache_invalidation::Scope::AllNegative),
        Event::QueueStatus { is_running } => {
            let state =
                if is_running { queue_status::State::Running } else { queue_status::State::Paused };
            QueueStatus { state: state.into() }.into()
        }
        Event::QueueRefresh => QueueRefresh {}.into(),
    })
}

fn drop_all(scope: cache_invalidation::Scope) -> Kind {
    CacheInvalidation { entries: Vec::new(), scope: scope.into() }.into()
}

fn wire_entry(entry: Entry) -> cache_invalidation::Entry {
    let id = match entry.cache {
        Cache::EmailNegative => format!("{}/{}", entry.id, entry.hash),
        _ => entry.id.to_string(),
    };
    cache_invalidation::Entry { cache: names::cache_name(entry.cache).to_owned(), id }
}

/// Writes an event of Trunkline.
///
/// # Errors
///
/// The mail server has nothing for it. What it has nothing for in a part of an event is left out
/// without an error where nodes have nothing that it could concern.
#[allow(clippy::match_wildcard_for_single_variants)] // a new kind is nothing to it either
pub(super) fn put(writer: &mut Writer, kind: &Kind) -> Result<(), &'static str> {
    match kind {
        Kind::MailboxChange(change) => put_change(writer, change),
        Kind::EmailDelivery(delivery) => {
            let account_id = account(&delivery.account_id)?;
            let change_id = delivery.change_id;
            writer.put(&match names::decimal(&delivery.email_id) {
                Some(email_id) => Event::EmailPush { account_id, email_id, change_id },
                // Several deliveries that were merged, or the message of another server. What a
                // node does for a delivery, it does for these changes.
                None => Event::StateChange {
                    account_id,
                    change_id,
                    types: Types::EMAIL | Types::EMAIL_DELIVERY | Types::MAILBOX | Types::THREAD,
                },
            })
        }
        Kind::CalendarAlert(alert) => {
            const NO_EVENT: &str = "the id of a calendar event must be a number of 32 bits";
            const NO_RECURRENCE: &str = "the recurrence must be a date and time";
            writer.put(&Event::CalendarAlert {
                account_id: account(&alert.account_id)?,
                event_id: names::decimal(&alert.event_id).ok_or(NO_EVENT)?,
                recurrence_id: recurrence::from_text(&alert.recurrence_id).ok_or(NO_RECURRENCE)?,
                uid: &alert.uid,
                alert_id: &alert.alert_id,
            })
        }
        Kind::PushSubscriptionChange(change) => {
            writer.put(&Event::PushServerUpdate { account_id: account(&change.account_id)? })
        }
        // Nodes read the ban from the store, where who made it must have put it.
        Kind::BlockedIp(_) => writer.put(&Event::RegistryReload { object_type: names::BLOCKED_IP }),
        Kind::CertificateChange(change) => put_certificate(writer, change),
        Kind::RegistryChange(change) => put_registry(writer, change),
        Kind::CacheInvalidation(invalidation) => put_invalidation(writer, invalidation),
        Kind::QueueStatus(status) => writer.put(&Event::QueueStatus {
            is_running: match status.state() {
                queue_status::State::Running => true,
                queue_status::State::Paused => false,
                queue_status::State::Unspecified => {
                    return Err("the state of the queue is unknown");
                }
            },
        }),
        Kind::QueueRefresh(_) => writer.put(&Event::QueueRefresh),
        _ => Err("the mail server has no event for this kind"),
    }
}

/// One event for each state that types have.
fn put_change(writer: &mut Writer, change: &MailboxChange) -> Result<(), &'static str> {
    let account_id = account(&change.account_id)?;
    let mut put =
        |change_id, types| writer.put(&Event::StateChange { account_id, change_id, types });
    let all = names::types(&change.changed_types);
    let named = |state: &&TypeState| !state.changed_types.is_empty();
    let mut rest = all.0;
    for state in change.type_states.iter().filter(named) {
        // Not one of an unknown type: who has that has all, which is what is left.
        let known: Vec<i32> =
            state.changed_types.iter().copied().filter(|changed| is_known(*changed)).collect();
        let types = if known.is_empty() { 0 } else { names::types(&known).0 & rest };
        if types != 0 {
            put(state.change_id, Types(types))?;
        }
        rest &= !types;
    }
    if rest != 0 {
        let others = change.type_states.iter().find(|state| state.changed_types.is_empty());
        put(others.map_or(change.change_id, |state| state.change_id), Types(rest))?;
    }
    Ok(())
}

fn is_known(changed: i32) -> bool {
    names::TYPES.iter().any(|known| *known as i32 == changed)
}

fn put_certificate(writer: &mut Writer, change: &CertificateChange) -> Result<(), &'static str> {
    use certificate_change::Action;
    let object_type = names::CERTIFICATE;
    // A node reads all certificates again for either.
    writer.put(&match (change.action(), names::decimal(&change.certificate_id)) {
        (Action::AcmeChallenge, _) => return Err("challenges go through the store of the nodes"),
        (Action::Removed, _) | (_, None) => Event::RegistryReload { object_type },
        (_, Some(id)) => Event::RegistryInsert { object_type, id },
    })
}

fn put_registry(writer: &mut Writer, change: &RegistryChange) -> Result<(), &'static str> {
    use registry_change::Action;
    const UNKNOWN: &str = "the mail server has no such type of object";
    let object_type = names::object_type_number(&change.object_type).ok_or(UNKNOWN)?;
    writer.put(&match (change.action(), names::decimal(&change.object_id)) {
        (Action::Insert, Some(id)) => Event::RegistryInsert { object_type, id },
        (Action::Delete, Some(id)) => Event::RegistryDelete { object_type, id },
        _ => Event::RegistryReload { object_type },
    })
}

fn put_invalidation(
    writer: &mut Writer,
    invalidation: &CacheInvalidation,
) -> Result<(), &'static str> {
    use cache_invalidation::Scope;
    match invalidation.scope() {
        Scope::All => return writer.put(&Event::CacheInvalidateAll),
        Scope::AllNegative => return writer.put(&Event::CacheInvalidateNegative),
        Scope::Entries | Scope::Unspecified => {}
    }
    let mut entries = Vec::with_capacity(invalidation.entries.len());
    // Which of all caches, and of all negative ones, must be dropped for an entry without an id.
    let (mut all, mut negative) = (false, false);
    for entry in &invalidation.entries {
        // A cache that nodes do not have holds nothing that would be wrong.
        let Some(cache) = names::cache(&entry.cache) else { continue };
        match (parse_entry(cache, &entry.id), cache) {
            (Some(entry), _) => entries.push(entry),
            (None, Cache::EmailNegative | Cache::DomainNegative) => negative = true,
            (None, _) => all = true,
        }
    }
    if all {
        return writer.put(&Event::CacheInvalidateAll);
    }
    if entries.is_empty() && !negative {
        return Err("the mail server has none of these caches");
    }
    if negative {
        writer.put(&Event::CacheInvalidateNegative)?;
    }
    if entries.is_empty() {
        return Ok(());
    }
    writer.put(&Event::CacheInvalidate(Entries::new(&entries)))
}

/// `None`: no single entry.
fn parse_entry(cache: Cache, id: &str) -> Option<Entry> {
    let (id, hash) = match cache {
        Cache::EmailNegative => {
            let (id, hash) = id.split_once('/')?;
            (names::decimal(id)?, names::decimal(hash)?)
        }
        _ => (names::decimal(id)?, 0),
    };
    Some(Entry { cache, id, hash })
}

fn account(id: &str) -> Result<u32, &'static str> {
    names::decimal(id).ok_or("accounts of the mail server are numbers of 32 bits")
}
