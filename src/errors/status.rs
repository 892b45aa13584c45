//! The gRPC status of an error: its code, and details that programs can read.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};

use super::{Error, RETRY, Violation};

/// `ErrorInfo.domain` of all errors.
const DOMAIN: &str = "trunkline";

/// Bytes of a status message. A status travels in HTTP/2 headers, of which clients accept few:
/// 8 KiB in some languages, all together. A larger one never arrives.
const MAX_MESSAGE: usize = 600;

/// Bytes of the violations in the details, and of one field or description.
const MAX_VIOLATIONS: usize = 3000;
const MAX_TEXT: usize = 200;

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let message = shorten(error.to_string(), MAX_MESSAGE);
        Status::with_error_details(code(&error), message, details(&error))
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
    }
}

fn details(error: &Error) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    let mut metadata = HashMap::new();
    let mut record = |key: &str, value: String| metadata.insert(key.to_owned(), value);
    match error {
        Error::Invalid(violations) => {
            record("violations", violations.len().to_string());
            details.set_bad_request(field_violations(violations));
        }
        Error::TokenMalformed(why) => {
            details.add_bad_request_violation("resume_token", why);
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
        Error::Unauthenticated(_) => {}
        Error::NotAllowed { rule, violations } => {
            record("rule", (*rule).to_owned());
            record("violations", violations.len().to_string());
            details.set_bad_request(field_violations(violations));
        }
        Error::Draining { retry_after } => {
            details.set_retry_info(Some(*retry_after));
        }
    }
    details.set_error_info(error.reason(), DOMAIN, metadata);
    details
}

/// As many violations as fit, and then the number of those that do not.
fn field_violations(violations: &[Violation]) -> Vec<FieldViolation> {
    let mut budget = MAX_VIOLATIONS;
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
        reported.push(FieldViolation::new("request", format!("{more} more violations")));
    }
    reported
}

/// The text in at most `max` bytes, with a sign where it was cut.
fn shorten(mut text: String, max: usize) -> String {
    const CUT: &str = "...";
    if text.len() > max {
        let mut end = max - CUT.len();
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
    use crate::errors::AcceptedEvents;

    fn headers_of(status: &Status) -> usize {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    #[test]
    fn an_error_fits_in_the_headers_that_clients_accept() {
        let violation = |n: usize| {
            Violation::new(format!("events[{n}].{}", "\u{e9}".repeat(n)), "\u{e9}".repeat(5 * n))
        };
        let status = Status::from(Error::Invalid((0..1000).map(violation).collect()));
        assert!(headers_of(&status) < 8000, "{}", headers_of(&status));
        let details = status.get_error_details();
        let reported = &details.bad_request().unwrap().field_violations;
        assert!(reported.len() > 5);
        assert_eq!(
            reported.last().unwrap().description,
            format!("{} more violations", 1001 - reported.len())
        );
        assert_eq!(details.error_info().unwrap().metadata["violations"], "1000");

        let cause = Box::new(Error::BusUnavailable("x".repeat(100_000)));
        let accepted = AcceptedEvents((0..1000).map(|index| index % 2 == 0).collect());
        let status = Status::from(Error::PartlyAccepted { accepted, cause });
        assert!(status.details().len() < 1500, "{}", status.details().len());
        let metadata = status.get_details_error_info().unwrap().metadata;
        let said = ["events", "accepted", "cause"].map(|key| metadata[key].as_str());
        assert_eq!(said, ["1000", "500", "BUS_UNAVAILABLE"]);
        assert_eq!(metadata["accepted_events"], "a".repeat(250));

        let status = Status::from(Error::BusUnavailable("x".repeat(100_000)));
        assert!(headers_of(&status) < 8000, "{}", headers_of(&status));
        assert!(status.message().ends_with("x..."));
    }
}
