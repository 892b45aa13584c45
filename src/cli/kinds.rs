//! The kinds of events as subcommands: `trunkline publish blocked-ip 192.0.2.7`.

// Doc comments become help texts, where backticks would only be noise.
#![allow(clippy::doc_markdown)]

use std::time::{Duration, SystemTime};

use clap::{Subcommand, ValueEnum};
use trunkline::config::nearest;
use trunkline_proto::{
    kinds,
    v1::{
        self, ChangedType, EventKind, blocked_ip, cache_invalidation, certificate_change,
        event::Kind, queue_status, registry_change,
    },
};

use super::{Failure, duration::parse_duration, payload::PayloadArgs};

const CUSTOM_EXAMPLES: &str = "\
Subscribers get the content as the message that its form stands for, as `subscribe` prints it. An
event with all that it has takes at most limits.maxEventBytes of the gateway, 64 KiB unless
configured.

Examples:
  trunkline publish custom com.example.paid --label invoice=42
  trunkline publish custom com.example.note --payload 'the backup is done'
  trunkline publish custom com.example.paid --payload '{\"invoice\": 42, \"amount\": \"9.90\"}'
  trunkline publish custom com.example.report --payload-file report.json
  date | trunkline publish custom com.example.tick --payload-file -
  trunkline publish custom com.example.x --payload-file x.bin --payload-type example.v1.Paid";

/// An event, as the command line describes it.
#[derive(Subcommand)]
pub(super) enum EventArgs {
    /// Something changed in an account: wakes IMAP IDLE and JMAP push
    MailboxChange {
        /// The account
        #[arg(long)]
        account: String,
        /// State of the changed types after the change
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        change_id: u64,
        /// What changed: email, mailbox, thread, calendar-event, ...; may be given several times
        #[arg(long, value_parser = parse_type, value_delimiter = ',')]
        types: Vec<i32>,
    },
    /// A message was delivered to an account
    EmailDelivery {
        /// The account
        #[arg(long)]
        account: String,
        /// The message
        #[arg(long, default_value = "", hide_default_value = true)]
        email: String,
        /// State of the account after the delivery
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        change_id: u64,
    },
    /// A calendar alert is due
    CalendarAlert {
        /// The account
        #[arg(long)]
        account: String,
        /// The calendar event
        #[arg(long, default_value = "", hide_default_value = true)]
        event: String,
        /// RECURRENCE-ID of the recurrence
        #[arg(long, default_value = "", hide_default_value = true)]
        recurrence: String,
        /// UID of the calendar event
        #[arg(long, default_value = "", hide_default_value = true)]
        uid: String,
        /// Id of the alert
        #[arg(long, default_value = "", hide_default_value = true)]
        alert: String,
    },
    /// The push subscriptions of an account must be reloaded
    PushSubscriptionChange {
        /// The account
        #[arg(long)]
        account: String,
    },
    /// An address or network was banned, or the ban was lifted
    BlockedIp {
        /// 192.0.2.7, or 2001:db8::/32
        address: String,
        /// The ban was lifted
        #[arg(long)]
        removed: bool,
        /// The ban expires after this time: 10m, 24h
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        expires_in: Option<Duration>,
        /// The reason, for people
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// A certificate was obtained, renewed or removed
    CertificateChange {
        /// Id of the certificate in its store
        certificate: String,
        /// A domain name of the certificate; may be given several times
        #[arg(long)]
        domain: Vec<String>,
        /// What happened
        #[arg(long, value_enum, default_value_t = CertificateAction::Renewed)]
        action: CertificateAction,
    },
    /// A setting, or another object of the registry, changed
    RegistryChange {
        /// The type of the object: listener, role, directory
        object_type: String,
        /// Id of the object [default: all of the type]
        #[arg(default_value = "", hide_default_value = true)]
        object_id: String,
        /// What happened
        #[arg(long, value_enum, default_value_t = RegistryAction::Reload)]
        action: RegistryAction,
    },
    /// Entries of caches are no longer valid
    CacheInvalidation {
        /// CACHE:ID, or CACHE for all of its entries
        #[arg(required_unless_present_any = ["all", "all_negative"])]
        entries: Vec<String>,
        /// Everything in every cache
        #[arg(long, conflicts_with = "entries")]
        all: bool,
        /// All negative entries: remembered failed lookups
        #[arg(long, conflicts_with_all = ["entries", "all"])]
        all_negative: bool,
    },
    /// The MTA queue was paused or resumed
    QueueStatus {
        /// New state of the queue
        state: QueueState,
    },
    /// The MTA queue must be reread
    QueueRefresh,
    /// An event of any other application
    #[command(after_help = CUSTOM_EXAMPLES)]
    Custom {
        /// The event's dotted type: com.example.invoice_paid
        r#type: String,
        /// A label of the event; may be given several times
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
        #[command(flatten)]
        payload: PayloadArgs,
    },
    /// Events of another deployment are lost: nodes that they may concern get a gap
    MissedEvents {
        /// How many [default: unknown]
        #[arg(long)]
        count: Option<u64>,
        /// Kinds that may be missing: blocked-ip, mailbox-change, ... [default: all]
        #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = parse_kind)]
        kinds: Vec<EventKind>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum QueueState {
    Running,
    Paused,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum CertificateAction {
    Issued,
    Renewed,
    Removed,
    AcmeChallenge,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum RegistryAction {
    Insert,
    Delete,
    Reload,
}

fn parse_type(text: &str) -> Result<i32, String> {
    let name = format!("CHANGED_TYPE_{}", text.replace('-', "_").to_uppercase());
    ChangedType::from_str_name(&name).map(i32::from).ok_or_else(|| {
        "unknown type; try email, email-delivery, mailbox, thread, calendar-event, contact-card"
            .into()
    })
}

/// A kind that events are sent of.
pub(super) fn parse_kind(text: &str) -> Result<EventKind, String> {
    let row = kinds::named(text).filter(|row| row.is_between_nodes());
    row.map(|row| row.kind).ok_or_else(|| {
        let rows = kinds::TABLE.iter().filter(|row| row.is_between_nodes());
        unknown_kind(text, rows.map(kinds::Row::cli_name))
    })
}

/// What is wrong with the name of a kind: the one that is meant most likely, and all of them.
pub(super) fn unknown_kind(text: &str, names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    let near = nearest(text, names.iter().map(String::as_str));
    let near = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
    format!("no such kind. {near}The kinds are {}", names.join(", "))
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl EventArgs {
    /// True if a part of it is standard input.
    pub(super) fn reads_standard_input(&self) -> bool {
        matches!(self, EventArgs::Custom { payload, .. } if payload.is_standard_input())
    }

    /// The kind field of the protobuf message. Reads what a flag names.
    pub(super) fn into_kind(self) -> Result<Kind, Failure> {
        Ok(match self {
            EventArgs::MailboxChange { account, change_id, types } => {
                Kind::MailboxChange(v1::MailboxChange {
                    account_id: account,
                    change_id,
                    changed_types: types,
                    ..Default::default()
                })
            }
            EventArgs::EmailDelivery { account, email, change_id } => {
                Kind::EmailDelivery(v1::EmailDelivery {
                    account_id: account,
                    email_id: email,
                    change_id,
                })
            }
            EventArgs::CalendarAlert { account, event, recurrence, uid, alert } => {
                Kind::CalendarAlert(v1::CalendarAlert {
                    account_id: account,
                    event_id: event,
                    recurrence_id: recurrence,
                    uid,
                    alert_id: alert,
                })
            }
            EventArgs::PushSubscriptionChange { account } => {
                Kind::PushSubscriptionChange(v1::PushSubscriptionChange { account_id: account })
            }
            EventArgs::BlockedIp { address, removed, expires_in, reason } => {
                use blocked_ip::Action;
                let action = if removed { Action::Removed } else { Action::Added };
                Kind::BlockedIp(v1::BlockedIp {
                    address,
                    action: action.into(),
                    expires_at: expires_in.map(|after| (SystemTime::now() + after).into()),
                    reason,
                })
            }
            EventArgs::CertificateChange { certificate, domain, action } => {
                Kind::CertificateChange(v1::CertificateChange {
                    certificate_id: certificate,
                    domain_names: domain,
                    action: action.to_proto().into(),
                })
            }
            EventArgs::RegistryChange { object_type, object_id, action } => {
                Kind::RegistryChange(v1::RegistryChange {
                    object_type,
                    object_id,
                    action: action.to_proto().into(),
                })
            }
            EventArgs::CacheInvalidation { entries, all, all_negative } => {
                use cache_invalidation::{Entry, Scope};
                let entry = |text: &String| {
                    let (cache, id) = text.split_once(':').unwrap_or((text, ""));
                    Entry { cache: cache.into(), id: id.into() }
                };
                let scope = match (all, all_negative) {
                    (true, _) => Scope::All,
                    (_, true) => Scope::AllNegative,
                    _ => Scope::Entries,
                };
                Kind::CacheInvalidation(v1::CacheInvalidation {
                    entries: entries.iter().map(entry).collect(),
                    scope: scope.into(),
                })
            }
            EventArgs::QueueStatus { state } => {
                use queue_status::State;
                let state = match state {
                    QueueState::Running => State::Running,
                    QueueState::Paused => State::Paused,
                };
                Kind::QueueStatus(v1::QueueStatus { state: state.into() })
            }
            EventArgs::QueueRefresh => Kind::QueueRefresh(v1::QueueRefresh {}),
            EventArgs::Custom { r#type, label, payload } => Kind::Custom(v1::CustomEvent {
                r#type,
                labels: label.into_iter().collect(),
                payload: payload.read()?,
            }),
            EventArgs::MissedEvents { count, kinds } => Kind::MissedEvents(v1::MissedEvents {
                missed_events: count,
                kinds: kinds.into_iter().map(i32::from).collect(),
            }),
        })
    }
}

impl CertificateAction {
    fn to_proto(self) -> certificate_change::Action {
        match self {
            CertificateAction::Issued => certificate_change::Action::Issued,
            CertificateAction::Renewed => certificate_change::Action::Renewed,
            CertificateAction::Removed => certificate_change::Action::Removed,
            CertificateAction::AcmeChallenge => certificate_change::Action::AcmeChallenge,
        }
    }
}

impl RegistryAction {
    fn to_proto(self) -> registry_change::Action {
        match self {
            RegistryAction::Insert => registry_change::Action::Insert,
            RegistryAction::Delete => registry_change::Action::Delete,
            RegistryAction::Reload => registry_change::Action::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_table_has_a_command_with_its_name() {
        let commands = EventArgs::augment_subcommands(clap::Command::new("publish"));
        let names = commands.get_subcommands().map(|command| command.get_name().to_owned());
        let published = kinds::TABLE.iter();
        let published = published.filter(|row| !kinds::is_made_by_gateways(row.number.into()));
        assert!(names.eq(published.map(kinds::Row::cli_name)));
    }
}
