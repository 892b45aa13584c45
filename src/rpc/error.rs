//! What a node is told when something is wrong: one enum, and one place that turns it into a gRPC status (AIP-193).

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};

use crate::rpc::limit::Limit;
use crate::{bus::AppendError, config::format_duration};

/// `ErrorInfo.domain` of all errors.
pub const DOMAIN: &str = "trunkline";

/// How long a node is told to wait before it tries again what the bus did not take.
const RETRY: Duration = Duration::from_millis(500);

/// The same, for what may fit when somebody else has gone.
const LIMIT_RETRY: Duration = Duration::from_secs(1);

/// Bytes of a status message. What a status says travels in HTTP/2 headers, and clients take few of them: 8 KiB in some
/// languages, all together. One that is larger never arrives.
const MAX_MESSAGE: usize = 600;

/// Bytes of the violations in the details, and of one field or description.
const MAX_VIOLATIONS: usize = 3000;
const MAX_TEXT: usize = 200;

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
    /// These bytes are no resume token.
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
    /// The bus did not take it. Nothing was published.
    #[error("the bus is not available: {0}")]
    BusUnavailable(String),
    /// The bus may or may not have taken it.
    #[error(
        "it is not known whether the bus took the events (retry with the same request_id): {0}"
    )]
    OutcomeUnknown(String),
    /// There is too much of something.
    #[error("{} is reached: {allowed}", limit.key())]
    Limit {
        /// Which limit.
        limit: Limit,
        /// Its value.
        allowed: String,
        /// After how long it may fit.
        retry_after: Duration,
    },
    /// The stream fell behind what history keeps, and its node asked to be disconnected then.
    #[error("the subscriber is too slow: {} events are missing", .missed.map_or("some".into(), |n| n.to_string()))]
    SubscriberTooSlow {
        /// How many events it missed, where that is known.
        missed: Option<u64>,
    },
    /// Who it is, is not proven.
    #[error("{}", .0.text())]
    Unproven(Unproven),
    /// Who it is may not do this.
    #[error("not allowed: {}", describe(.violations))]
    NotAllowed {
        /// The rule that it broke.
        rule: &'static str,
        /// All that is not allowed.
        violations: Vec<Violation>,
    },
    /// The gateway is going away.
    #[error("the gateway is going away; connect again")]
    Draining {
        /// After how long.
        retry_after: Duration,
    },
}

/// Why it is not known who sends a request. Nothing here helps who guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// Neither token nor certificate.
    Missing,
    /// They prove nothing here.
    Wrong,
    /// They proved something when the stream was opened.
    Revoked,
}

impl Unproven {
    fn text(self) -> &'static str {
        match self {
            Unproven::Missing => "a token or a client certificate is needed",
            Unproven::Wrong => "the token or the client certificate is not valid here",
            Unproven::Revoked => "the token or the client certificate is not valid any more",
        }
    }
}

/// What [`Error::reason`] may say.
pub const REASONS: [&str; 12] = [
    "INVALID_REQUEST",
    "RESUME_TOKEN_MALFORMED",
    "PAYLOAD_TOO_LARGE",
    "BUS_UNAVAILABLE",
    "OUTCOME_UNKNOWN",
    "LIMIT_REACHED",
    "SUBSCRIBER_TOO_SLOW",
    "CREDENTIALS_MISSING",
    "CREDENTIALS_WRONG",
    "CREDENTIALS_REVOKED",
    "NOT_ALLOWED",
    "DRAINING",
];

impl Error {
    /// One wrong field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Error {
        Error::Invalid(vec![Violation { field: field.into(), description: description.into() }])
    }

    /// The bus is down.
    pub fn bus_unavailable(why: impl Into<String>) -> Error {
        Error::BusUnavailable(why.into())
    }

    /// A limit is reached, and nobody knows for how long.
    pub fn limit(limit: Limit, allowed: usize) -> Error {
        Error::limit_for(limit, allowed, LIMIT_RETRY)
    }

    /// A limit is reached; it fits after so long, if nobody else is faster.
    pub fn limit_for(limit: Limit, allowed: usize, retry_after: Duration) -> Error {
        Error::Limit { limit, allowed: allowed.to_string(), retry_after }
    }

    /// Something took longer than it may.
    pub fn late(limit: Limit, allowed: Duration) -> Error {
        let allowed = format_duration(allowed);
        Error::Limit { limit, allowed, retry_after: LIMIT_RETRY }
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
            Error::Unproven(_) => Code::Unauthenticated,
            Error::NotAllowed { .. } => Code::PermissionDenied,
        }
    }

    /// `ErrorInfo.reason`: one of [`REASONS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Invalid(_) => "INVALID_REQUEST",
            Error::TokenMalformed(_) => "RESUME_TOKEN_MALFORMED",
            Error::PayloadTooLarge { .. } => "PAYLOAD_TOO_LARGE",
            Error::BusUnavailable(_) => "BUS_UNAVAILABLE",
            Error::OutcomeUnknown(_) => "OUTCOME_UNKNOWN",
            Error::Limit { .. } => "LIMIT_REACHED",
            Error::SubscriberTooSlow { .. } => "SUBSCRIBER_TOO_SLOW",
            Error::Unproven(Unproven::Missing) => "CREDENTIALS_MISSING",
            Error::Unproven(Unproven::Wrong) => "CREDENTIALS_WRONG",
            Error::Unproven(Unproven::Revoked) => "CREDENTIALS_REVOKED",
            Error::NotAllowed { .. } => "NOT_ALLOWED",
            Error::Draining { .. } => "DRAINING",
        }
    }

    fn details(&self) -> ErrorDetails {
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        let mut note = |key: &str, value: String| metadata.insert(key.to_owned(), value);
        match self {
            Error::Invalid(violations) => {
                note("violations", violations.len().to_string());
                details.set_bad_request(field_violations(violations));
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
            Error::Limit { limit, allowed, retry_after } => {
                note("limit", limit.key().to_owned());
                note("allowed", allowed.clone());
                details.set_retry_info(Some(*retry_after));
                let violation = QuotaViolation::new(limit.key(), self.to_string());
                details.set_quota_failure(vec![violation]);
            }
            Error::SubscriberTooSlow { missed } => {
                if let Some(missed) = missed {
                    note("missed_events", missed.to_string());
                }
                details.set_retry_info(Some(RETRY));
            }
            Error::Unproven(_) => {}
            Error::NotAllowed { rule, violations } => {
                note("rule", (*rule).to_owned());
                note("violations", violations.len().to_string());
                details.set_bad_request(field_violations(violations));
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
        let message = shorten(error.to_string(), MAX_MESSAGE);
        Status::with_error_details(error.code(), message, error.details())
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

/// As many as fit, and then how many more there are.
fn field_violations(violations: &[Violation]) -> Vec<FieldViolation> {
    let mut room = MAX_VIOLATIONS;
    let mut told = Vec::new();
    for violation in violations {
        let field = shorten(violation.field.clone(), MAX_TEXT);
        let description = shorten(violation.description.clone(), MAX_TEXT);
        // Both with a tag and a length, in a message with a tag and a length.
        let Some(left) = room.checked_sub(field.len() + description.len() + 8) else { break };
        room = left;
        told.push(FieldViolation::new(field, description));
    }
    let untold = violations.len() - told.len();
    if untold > 0 {
        told.push(FieldViolation::new("request", format!("{untold} more violations")));
    }
    told
}

/// At most `most` bytes, with a sign of what was cut off.
fn shorten(mut text: String, most: usize) -> String {
    const CUT: &str = "...";
    if text.len() > most {
        let mut end = most - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_of(status: &Status) -> usize {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    #[test]
    fn an_error_fits_in_the_headers_that_clients_take() {
        let violation = |n: usize| Violation {
            field: format!("events[{n}].{}", "\u{e9}".repeat(n)),
            description: "\u{e9}".repeat(5 * n),
        };
        let status = Status::from(Error::Invalid((0..1000).map(violation).collect()));
        assert!(headers_of(&status) < 8000, "{}", headers_of(&status));
        let details = status.get_error_details();
        let told = &details.bad_request().unwrap().field_violations;
        assert!(told.len() > 5);
        assert_eq!(
            told.last().unwrap().description,
            format!("{} more violations", 1001 - told.len())
        );
        assert_eq!(details.error_info().unwrap().metadata["violations"], "1000");

        let status = Status::from(Error::bus_unavailable("x".repeat(100_000)));
        assert!(headers_of(&status) < 8000, "{}", headers_of(&status));
        assert!(status.message().ends_with("x..."));
    }
}
