//! Errors as nodes receive them: one enum, and one module (`status`) that turns it into a gRPC
//! status after AIP-193.
//!
//! Every room that refuses a request returns these; they know no room above the bus.

mod accepted;
mod limit;
mod requester;
mod status;
mod violations;

use std::time::Duration;

use crate::{bus::AppendError, config::format_duration};

pub use self::{
    accepted::AcceptedEvents,
    limit::{Limit, LimitCounters},
    requester::Requester,
    violations::{MAX_VIOLATIONS, Violation, Violations},
};

/// The delay before a retry that a node is asked for when the bus is down.
const RETRY: Duration = Duration::from_millis(500);

/// The same where a limit is reached for an unknown time.
const LIMIT_RETRY: Duration = Duration::from_secs(1);

/// Every reason for which a request is refused or a stream is ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Fields are wrong: all of them, or the first [`MAX_VIOLATIONS`].
    #[error("{}", describe(.0))]
    Invalid(Vec<Violation>),
    /// The bytes are not a resume token.
    #[error("resume_token: {0}")]
    TokenMalformed(String),
    /// An event or a request is too large.
    #[error("{what} has {actual} bytes; the limit is {limit}")]
    PayloadTooLarge {
        /// `events[3]`, or `request`.
        what: String,
        /// Bytes allowed.
        limit: usize,
        /// Bytes found.
        actual: usize,
    },
    /// The bus did not accept the events. Nothing was published.
    #[error("the bus is not available: {0}")]
    BusUnavailable(String),
    /// The bus may or may not have accepted the events.
    #[error(
        "it is not known whether the bus accepted the events \
         (retry with the same request_id): {0}"
    )]
    OutcomeUnknown(String),
    /// The bus accepted some events of the request. None of the others was accepted, unless `cause`
    /// is that their outcome is unknown.
    #[error(
        "the bus accepted {accepted}; publish the others again, or all of them with the same \
         request_id: {cause}"
    )]
    PartlyAccepted {
        /// The events that were accepted.
        accepted: AcceptedEvents,
        /// The reason why the others were not.
        cause: Box<Error>,
    },
    /// A limit is reached.
    #[error("{} is reached: {allowed}", limit.key())]
    Limit {
        /// The limit.
        limit: Limit,
        /// Its value.
        allowed: String,
        /// The delay after which a retry may succeed.
        retry_after: Duration,
    },
    /// The stream fell behind what history keeps, and its node asked to be disconnected then.
    #[error("the subscriber is too slow: {} events are missing", count_of(*.missed))]
    SubscriberTooSlow {
        /// Number of missed events, where it is known.
        missed: Option<u64>,
    },
    /// The caller's identity is not verified.
    #[error("{0}")]
    Unauthenticated(CredentialError),
    /// The caller's identity lacks a permission.
    #[error("not allowed: {}", describe(.violations))]
    NotAllowed {
        /// The rule that refuses it, as metrics name it.
        rule: &'static str,
        /// Everything that is not allowed, or the first [`MAX_VIOLATIONS`].
        violations: Vec<Violation>,
    },
    /// The request was not answered within its `grpc-timeout`.
    #[error(
        "the request was not answered within its grpc-timeout{}",
        if *.may_be_done { ": it is not known whether its events were accepted (retry with the \
        same request_id)" } else { "" }
    )]
    DeadlineExceeded {
        /// True if it changes something, which may have been done.
        may_be_done: bool,
    },
    /// What is asked for is not enabled at this gateway.
    #[error("{what} is not enabled at this gateway: its configuration must set {key}")]
    NotEnabled {
        /// The field that asks for it.
        what: &'static str,
        /// The key of the configuration.
        key: &'static str,
    },
    /// The publisher has opened another stream.
    #[error("the publisher has opened another stream, which takes over from this one")]
    TakenOver,
    /// The gateway is draining, or the stream goes on at another one for another reason.
    #[error("the stream has to go on at another gateway; connect again")]
    Draining {
        /// The delay before the node connects again.
        retry_after: Duration,
    },
}

/// The reason why the caller's identity is not verified. Nothing here helps somebody who guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The request has neither a token nor a client certificate.
    #[error("a token or a client certificate is needed")]
    Missing,
    /// The credential is not one of this gateway's.
    #[error("the token or the client certificate is not valid here")]
    Wrong,
    /// The credential was valid when the stream was opened.
    #[error("the token or the client certificate is not valid any more")]
    Revoked,
}

/// All values of [`Error::reason`].
pub const REASONS: [&str; 16] = [
    "INVALID_REQUEST",
    "RESUME_TOKEN_MALFORMED",
    "PAYLOAD_TOO_LARGE",
    "BUS_UNAVAILABLE",
    "OUTCOME_UNKNOWN",
    "PARTLY_ACCEPTED",
    "LIMIT_REACHED",
    "SUBSCRIBER_TOO_SLOW",
    "CREDENTIALS_MISSING",
    "CREDENTIALS_WRONG",
    "CREDENTIALS_REVOKED",
    "NOT_ALLOWED",
    "DEADLINE_EXCEEDED",
    "NOT_ENABLED",
    "TAKEN_OVER",
    "DRAINING",
];

impl Error {
    /// One wrong field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Error {
        Error::Invalid(vec![Violation::new(field, description)])
    }

    /// A limit is reached, for an unknown time.
    pub fn limit(limit: Limit, allowed: usize) -> Error {
        Error::limit_for(limit, allowed, LIMIT_RETRY)
    }

    /// A limit is reached; a retry succeeds after `retry_after` unless somebody else is faster.
    pub fn limit_for(limit: Limit, allowed: usize, retry_after: Duration) -> Error {
        Error::Limit { limit, allowed: allowed.to_string(), retry_after }
    }

    /// A time limit is exceeded.
    pub fn late(limit: Limit, allowed: Duration) -> Error {
        let allowed = format_duration(allowed);
        Error::Limit { limit, allowed, retry_after: LIMIT_RETRY }
    }

    /// The rule that refuses the request, as metrics name it, the key of the limit that is reached,
    /// or the field that is wrong. None where it is nothing that the caller did.
    pub fn rule(&self) -> Option<String> {
        match self {
            Error::Invalid(violations) => violations.first().map(|first| first.field.clone()),
            Error::TokenMalformed(_) => Some("resume_token".into()),
            Error::PayloadTooLarge { what, .. } => Some(match &**what {
                "request" => "limits.maxRequestBytes".into(),
                what if what.starts_with("events[") => "limits.maxEventBytes".into(),
                _ => "proto-max-bulk-len of Redis".into(),
            }),
            Error::PartlyAccepted { cause, .. } => cause.rule(),
            Error::Limit { limit, .. } => Some(limit.key().into()),
            Error::SubscriberTooSlow { .. } => Some("overflow".into()),
            Error::Unauthenticated(_) => Some("rule credentials".into()),
            Error::NotAllowed { rule, .. } => Some(format!("rule {rule}")),
            Error::DeadlineExceeded { .. } => Some("grpc-timeout".into()),
            Error::NotEnabled { key, .. } => Some((*key).into()),
            Error::TakenOver => Some("producer".into()),
            Error::BusUnavailable(_) | Error::OutcomeUnknown(_) | Error::Draining { .. } => None,
        }
    }

    /// `ErrorInfo.reason`: one of [`REASONS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Invalid(_) => "INVALID_REQUEST",
            Error::TokenMalformed(_) => "RESUME_TOKEN_MALFORMED",
            Error::PayloadTooLarge { .. } => "PAYLOAD_TOO_LARGE",
            Error::BusUnavailable(_) => "BUS_UNAVAILABLE",
            Error::OutcomeUnknown(_) | Error::DeadlineExceeded { may_be_done: true } => {
                "OUTCOME_UNKNOWN"
            }
            Error::PartlyAccepted { cause, .. } => match **cause {
                Error::OutcomeUnknown(_) => "OUTCOME_UNKNOWN",
                _ => "PARTLY_ACCEPTED",
            },
            Error::Limit { .. } => "LIMIT_REACHED",
            Error::SubscriberTooSlow { .. } => "SUBSCRIBER_TOO_SLOW",
            Error::Unauthenticated(CredentialError::Missing) => "CREDENTIALS_MISSING",
            Error::Unauthenticated(CredentialError::Wrong) => "CREDENTIALS_WRONG",
            Error::Unauthenticated(CredentialError::Revoked) => "CREDENTIALS_REVOKED",
            Error::NotAllowed { .. } => "NOT_ALLOWED",
            Error::DeadlineExceeded { may_be_done: false } => "DEADLINE_EXCEEDED",
            Error::NotEnabled { .. } => "NOT_ENABLED",
            Error::TakenOver => "TAKEN_OVER",
            Error::Draining { .. } => "DRAINING",
        }
    }
}

impl Error {
    /// The delay after which a retry may succeed, where a limit is reached.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Limit { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

impl From<AppendError> for Error {
    fn from(error: AppendError) -> Error {
        match error {
            AppendError::Unavailable(why) => Error::BusUnavailable(why),
            AppendError::OutcomeUnknown(why) => Error::OutcomeUnknown(why),
            AppendError::TooLarge { limit, actual } => {
                Error::PayloadTooLarge { what: "event".into(), limit, actual }
            }
            AppendError::TakenOver => Error::TakenOver,
            AppendError::Closed => Error::Draining { retry_after: RETRY },
        }
    }
}

fn describe(violations: &[Violation]) -> String {
    let list: Vec<_> =
        violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    list.join("; ")
}

fn count_of(missed: Option<u64>) -> String {
    missed.map_or_else(|| "some".into(), |count| count.to_string())
}
