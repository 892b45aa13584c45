//! What a node is told when something is wrong: one enum, and one place that turns it into a gRPC status (AIP-193).

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};

use crate::bus::AppendError;

/// `ErrorInfo.domain` of all errors.
pub const DOMAIN: &str = "trunkline";

/// How long a node is told to wait before it tries again what the bus did not take.
const RETRY: Duration = Duration::from_millis(500);

/// A field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field: `events[3].mailbox_change.account_id`.
    pub field: String,
    /// What is wrong, with the limit.
    pub description: String,
}

/// Everything that can be wrong with a request.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Fields are wrong: all of them.
    #[error("{}", describe(.0))]
    Invalid(Vec<Violation>),
    /// The resume token is none of this deployment's.
    #[error("resume_token: {0}")]
    TokenMalformed(String),
    /// An event or a request is too large.
    #[error("{what} has {actual} bytes; the limit is {limit}")]
    PayloadTooLarge {
        /// `events[3]`, or `the request`.
        what: String,
        /// Bytes allowed.
        limit: usize,
        /// Bytes found.
        actual: usize,
    },
    /// The bus did not take it. Nothing was published.
    #[error("the bus is not available: {0}")]
    BusUnavailable(String),
    /// The bus may or may not have taken it.
    #[error(
        "it is not known whether the bus took the events (retry with the same request_id): {0}"
    )]
    OutcomeUnknown(String),
    /// There is too much of something.
    #[error("{limit} is reached: {allowed}")]
    Limit {
        /// Key of the limit in the configuration.
        limit: &'static str,
        /// Its value.
        allowed: usize,
    },
    /// The stream fell behind what history keeps, and its node asked to be disconnected then.
    #[error("the subscriber is too slow: {} events are missing", .missed.map_or("some".into(), |n| n.to_string()))]
    SubscriberTooSlow {
        /// How many events it missed, where that is known.
        missed: Option<u64>,
    },
    /// The gateway is going away.
    #[error("the gateway is going away; connect again")]
    Draining {
        /// After how long.
        retry_after: Duration,
    },
}

impl Error {
    /// One wrong field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Error {
        Error::Invalid(vec![Violation { field: field.into(), description: description.into() }])
    }

    /// The bus is down.
    pub fn bus_unavailable(why: impl Into<String>) -> Error {
        Error::BusUnavailable(why.into())
    }

    /// A limit is reached.
    pub fn limit(limit: &'static str, allowed: usize) -> Error {
        Error::Limit { limit, allowed }
    }

    /// The stream is too slow.
    pub fn too_slow(missed: Option<u64>) -> Error {
        Error::SubscriberTooSlow { missed }
    }

    /// The gateway is going away.
    pub fn draining(retry_after: Duration) -> Error {
        Error::Draining { retry_after }
    }

    fn code(&self) -> Code {
        match self {
            Error::Invalid(_) | Error::TokenMalformed(_) | Error::PayloadTooLarge { .. } => {
                Code::InvalidArgument
            }
            Error::BusUnavailable(_) | Error::OutcomeUnknown(_) | Error::Draining { .. } => {
                Code::Unavailable
            }
            Error::Limit { .. } | Error::SubscriberTooSlow { .. } => Code::ResourceExhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::Invalid(_) => "INVALID_REQUEST",
            Error::TokenMalformed(_) => "RESUME_TOKEN_MALFORMED",
            Error::PayloadTooLarge { .. } => "PAYLOAD_TOO_LARGE",
            Error::BusUnavailable(_) => "BUS_UNAVAILABLE",
            Error::OutcomeUnknown(_) => "OUTCOME_UNKNOWN",
            Error::Limit { .. } => "LIMIT_REACHED",
            Error::SubscriberTooSlow { .. } => "SUBSCRIBER_TOO_SLOW",
            Error::Draining { .. } => "DRAINING",
        }
    }

    fn details(&self) -> ErrorDetails {
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        let mut note = |key: &str, value: String| metadata.insert(key.to_owned(), value);
        match self {
            Error::Invalid(violations) => {
                let violation = |v: &Violation| FieldViolation::new(&v.field, &v.description);
                details.set_bad_request(violations.iter().map(violation).collect::<Vec<_>>());
            }
            Error::TokenMalformed(why) => {
                details.add_bad_request_violation("resume_token", why);
            }
            Error::PayloadTooLarge { what, limit, actual } => {
                note("limit", limit.to_string());
                note("actual", actual.to_string());
                details.add_bad_request_violation(what, self.to_string());
            }
            Error::BusUnavailable(_) | Error::OutcomeUnknown(_) => {
                details.set_retry_info(Some(RETRY));
            }
            Error::Limit { limit, allowed } => {
                note("limit", (*limit).to_owned());
                note("allowed", allowed.to_string());
                details.set_retry_info(Some(Duration::from_secs(1)));
                details.set_quota_failure(vec![QuotaViolation::new(*limit, self.to_string())]);
            }
            Error::SubscriberTooSlow { missed } => {
                if let Some(missed) = missed {
                    note("missed_events", missed.to_string());
                }
                details.set_retry_info(Some(RETRY));
            }
            Error::Draining { retry_after } => {
                details.set_retry_info(Some(*retry_after));
            }
        }
        details.set_error_info(self.reason(), DOMAIN, metadata);
        details
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Status::with_error_details(error.code(), error.to_string(), error.details())
    }
}

impl From<AppendError> for Error {
    fn from(error: AppendError) -> Error {
        match error {
            AppendError::Unavailable(why) => Error::BusUnavailable(why),
            AppendError::OutcomeUnknown(why) => Error::OutcomeUnknown(why),
            AppendError::Closed => Error::Draining { retry_after: RETRY },
        }
    }
}

fn describe(violations: &[Violation]) -> String {
    let list: Vec<_> =
        violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    list.join("; ")
}
