//! The gRPC status of an error: its code, and details that programs can read.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};

use super::{Error, MAX_VIOLATIONS, RETRY, Violation};

/// `ErrorInfo.domain` of all errors.
const DOMAIN: &str = "trunkline";

/// Bytes of a status message, which is twice in a status: as text, in which most signs are escaped
/// with three characters each, and in the details.
///
/// A status travels in HTTP/2 headers. Load balancers keep 4 KiB for all headers of a response:
/// nginx answers 502 to more, which clients take for UNAVAILABLE.
const MAX_MESSAGE: usize = 400;

/// Bytes of the details before they are encoded in base64, which makes 2 KiB of them.
const MAX_DETAILS: usize = 1536;

/// Bytes of the details besides the message and the violations, at most.
const OTHER_DETAILS: usize = 240;

/// Bytes of one field or description.
const MAX_TEXT: usize = 160;

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let message = shorten(error.to_string(), MAX_MESSAGE);
        let details = details(&error, MAX_DETAILS - OTHER_DETAILS - message.len());
        Status::with_error_details(code(&error), message, details)
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::Invalid(_) | Error::TokenMalformed(_) | Error::PayloadTooLarge { .. } => {
            Code::InvalidArgument
        }
        Error::BusUnavailable(_)
        | Error::OutcomeUnknown(_)
        | Error::PartlyAccepted { .. }
        | Error::Draining { .. } => Code::Unavailable,
        Error::Limit { .. } | Error::SubscriberTooSlow { .. } => Code::ResourceExhausted,
        Error::Unauthenticated(_) => Code::Unauthenticated,
        Error::NotAllowed { .. } => Code::PermissionDenied,
        Error::DeadlineExceeded { .. } => Code::DeadlineExceeded,
        Error::NotEnabled { .. } => Code::FailedPrecondition,
        Error::TakenOver => Code::Aborted,
    }
}

/// The details of an error, with this number of bytes for its violations.
fn details(error: &Error, room: usize) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    let mut metadata = HashMap::new();
    let mut record = |key: &str, value: String| metadata.insert(key.to_owned(), value);
    match error {
        Error::Invalid(violations) => {
            record("violations", violations.len().to_string());
            details.set_bad_request(field_violations(violations, room));
        }
        Error::TokenMalformed(why) => {
            details.add_bad_request_violation("resume_token", shorten(why.clone(), MAX_TEXT));
        }
        Error::PayloadTooLarge { what, limit, actual } => {
            record("limit", limit.to_string());
            record("actual", actual.to_string());
            details.add_bad_request_violation(what, error.to_string());
        }
        Error::BusUnavailable(_) | Error::OutcomeUnknown(_) => {
            details.set_retry_info(Some(RETRY));
        }
        Error::PartlyAccepted { accepted, cause } => {
            record("events", accepted.events().to_string());
            record("accepted", accepted.count().to_string());
            if let Some(bitmap) = accepted.bitmap() {
                record("accepted_events", bitmap);
            }
            record("cause", cause.reason().to_owned());
            let retry_after = match **cause {
                Error::Draining { retry_after } => retry_after,
                _ => RETRY,
            };
            details.set_retry_info(Some(retry_after));
        }
        Error::Limit { limit, allowed, retry_after } => {
            record("limit", limit.key().to_owned());
            record("allowed", allowed.clone());
            details.set_retry_info(Some(*retry_after));
            let violation = QuotaViolation::new(limit.key(), error.to_string());
            details.set_quota_failure(vec![violation]);
        }
        Error::SubscriberTooSlow { missed } => {
            if let Some(missed) = missed {
                record("missed_events", missed.to_string());
            }
            details.set_retry_info(Some(RETRY));
        }
        Error::Unauthenticated(_) | Error::DeadlineExceeded { .. } | Error::TakenOver => {}
        Error::NotEnabled { key, .. } => {
            record("key", (*key).to_owned());
        }
        Error::NotAllowed { rule, violations } => {
            record("rule", (*rule).to_owned());
            record("violations", violations.len().to_string());
            details.set_bad_request(field_violations(violations, room));
        }
        Error::Draining { retry_after } => {
            details.set_retry_info(Some(*retry_after));
        }
    }
    details.set_error_info(error.reason(), DOMAIN, metadata);
    details
}

/// As many violations as fit, and then the number of those that do not.
fn field_violations(violations: &[Violation], room: usize) -> Vec<FieldViolation> {
    const MORE: usize = 48;
    let mut budget = room - MORE;
    let mut reported = Vec::new();
    for violation in violations {
        let field = shorten(violation.field.clone(), MAX_TEXT);
        let description = shorten(violation.description.clone(), MAX_TEXT);
        // Both with a tag and a length, in a message with a tag and a length.
        let Some(left) = budget.checked_sub(field.len() + description.len() + 8) else { break };
        budget = left;
        reported.push(FieldViolation::new(field, description));
    }
    let more = violations.len() - reported.len();
    if more > 0 {
        let open = if violations.len() >= MAX_VIOLATIONS { "at least " } else { "" };
        reported.push(FieldViolation::new("request", format!("{open}{more} more violations")));
    }
    reported
}

/// The text in at most `max` bytes, with a sign where it was cut.
fn shorten(mut text: String, max: usize) -> String {
    const CUT: &str = "...";
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max - CUT.len()));
        text.push_str(CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::errors::{AcceptedEvents, CredentialError, Limit, Violations};

    /// Bytes of all headers of a status, as HTTP/2 counts them.
    fn headers_of(status: &Status) -> usize {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    /// Asserts that load balancers pass a status on.
    fn assert_fits(status: &Status) {
        assert!(status.details().len() <= MAX_DETAILS, "{}", status.details().len());
        assert!(headers_of(status) < 3900, "{}", headers_of(status));
    }

    fn long() -> String {
        "\u{e9} {\"".repeat(50_000)
    }

    #[test]
    fn every_error_fits_in_the_headers_that_load_balancers_pass_on() {
        let violations = vec![Violation::new(long(), long()); 1000];
        let accepted = AcceptedEvents((0..3072).map(|index| index % 2 == 0).collect());
        let partly = |cause| Error::PartlyAccepted { accepted: accepted.clone(), cause };
        let cause = Box::new(Error::OutcomeUnknown(long()));
        for error in [
            Error::Invalid(violations.clone()),
            Error::Invalid(vec![Violation::new("a", "b"); 1000]),
            Error::TokenMalformed(long()),
            Error::PayloadTooLarge { what: "events[9999]".into(), limit: 1 << 40, actual: 1 << 50 },
            Error::BusUnavailable(long()),
            Error::OutcomeUnknown(long()),
            partly(Box::new(Error::BusUnavailable(long()))),
            partly(Box::new(Error::Draining { retry_after: Duration::from_secs(1 << 40) })),
            partly(cause),
            Error::late(Limit::PendingBytesPerIdentity, Duration::from_secs(1 << 40)),
            Error::SubscriberTooSlow { missed: Some(u64::MAX) },
            Error::Unauthenticated(CredentialError::Revoked),
            Error::NotAllowed { rule: "operations", violations },
            Error::Draining { retry_after: Duration::MAX },
        ] {
            assert_fits(&Status::from(error));
        }
    }

    #[test]
    fn an_error_names_as_many_violations_as_fit_and_counts_the_others() {
        let reported = |count: usize| {
            let mut violations = Violations::default();
            let field = |n| format!("events[{n}].push_subscription_change.account_id");
            (0..count).for_each(|n| violations.add(field(n), "is required"));
            let status = Status::from(Error::Invalid(violations.found().unwrap()));
            assert_fits(&status);
            let details = status.get_error_details();
            let all = details.error_info().unwrap().metadata["violations"].clone();
            let mut named = details.bad_request().unwrap().field_violations.clone();
            let last = named.pop().unwrap().description;
            (all, named.len(), last)
        };
        assert_eq!(reported(3), ("3".into(), 2, "is required".into()));
        let (all, named, last) = reported(1000);
        assert_eq!(all, "20");
        assert!((8..20).contains(&named), "{named}");
        assert_eq!(last, format!("at least {} more violations", 20 - named));
    }

    #[test]
    fn a_request_that_was_accepted_in_part_says_which_part() {
        let cause = Box::new(Error::BusUnavailable("x".repeat(100_000)));
        let accepted = AcceptedEvents((0..1000).map(|index| index % 2 == 0).collect());
        let status = Status::from(Error::PartlyAccepted { accepted, cause });
        let metadata = status.get_details_error_info().unwrap().metadata;
        let said = ["events", "accepted", "cause"].map(|key| metadata[key].as_str());
        assert_eq!(said, ["1000", "500", "BUS_UNAVAILABLE"]);
        assert_eq!(metadata["accepted_events"], "a".repeat(250));
        let status = Status::from(Error::BusUnavailable("x".repeat(100_000)));
        assert!(status.message().ends_with("x..."));
    }
}
