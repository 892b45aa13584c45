//! Errors, by what a node can do about them.

use std::error::Error as _;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The error of a client.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    // Boxed: a status is large, and errors are rare.
    status: Option<Box<Status>>,
    accepted: Vec<usize>,
}

/// The kind of an error, which tells what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An address given to the builder is not valid. Correct the node's configuration.
    Address,
    /// The gateway refused the request because something in it is wrong: see [`Error::violations`].
    /// Nothing was published.
    Invalid,
    /// The node's credentials are missing or wrong, or do not allow the request. Nothing was
    /// published.
    Denied,
    /// The server is not a gateway, or an older one that does not know the method.
    Unsupported,
    /// The stream fell too far behind and [`Overflow::Disconnect`](trunkline_proto::v1::Overflow)
    /// was asked for. Reload everything, and subscribe without a token.
    TooSlow,
    /// The buffer of a [`Publisher`](crate::Publisher) is full: the event was not taken.
    Full,
    /// Another process publishes under the id of this [`Publisher`](crate::Publisher): a copy of
    /// it, as a forked process or a restored image of a virtual machine is. Only the one that
    /// opened its stream last goes on. What was not acknowledged here may be published or not.
    TakenOver,
    /// No gateway accepted the events in time, and none can have published them.
    Unavailable,
    /// No gateway confirmed the events in time, but one may have published them: its response was
    /// lost or late. Publishing them again with the same request id is safe as long as gateways
    /// remember it (a minute unless configured).
    OutcomeUnknown,
}

impl Error {
    pub(super) fn address(address: &str, why: &str) -> Error {
        let message = format!("{address:?} is no gateway's address: {why}");
        Error { kind: ErrorKind::Address, message, status: None, accepted: vec![] }
    }

    pub(super) fn new(kind: ErrorKind, status: Status) -> Error {
        Error { kind, message: describe(&status), status: Some(Box::new(status)), accepted: vec![] }
    }

    /// With the indexes of events that were published although others were not.
    pub(super) fn with_accepted(self, accepted: impl IntoIterator<Item = usize>) -> Error {
        Error { accepted: accepted.into_iter().collect(), ..self }
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The last status of the gateway, or of the connection to it; none if no request was sent.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_deref()
    }

    /// The indexes of the events that were certainly published although the request failed, in
    /// ascending order. With [`ErrorKind::OutcomeUnknown`], others may have been published too.
    pub fn accepted_events(&self) -> &[usize] {
        &self.accepted
    }

    /// The fields that are wrong, each with a description: `("events[3].mailbox_change.account_id",
    /// "is required")`.
    pub fn violations(&self) -> Vec<(String, String)> {
        let details = self.status().and_then(StatusExt::get_details_bad_request);
        let violations = details.map(|details| details.field_violations).unwrap_or_default();
        violations.into_iter().map(|v| (v.field, v.description)).collect()
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.kind {
            ErrorKind::Address => "",
            ErrorKind::Invalid => "refused: ",
            ErrorKind::Denied => "not allowed: ",
            ErrorKind::Unsupported => "not supported: ",
            ErrorKind::TooSlow => "disconnected: ",
            ErrorKind::Full => "not taken: ",
            ErrorKind::TakenOver => "taken over: ",
            ErrorKind::Unavailable => "not published in time: ",
            ErrorKind::OutcomeUnknown => "not known whether published: ",
        };
        write!(f, "{what}{}", self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.status().map(|status| status as &(dyn std::error::Error + 'static))
    }
}

/// The kind of a status that is final; none if the request may be retried.
///
/// All other codes may be retried: a gateway answers UNAVAILABLE, and a broken connection appears
/// as UNKNOWN, INTERNAL, CANCELLED or UNAVAILABLE.
pub(super) fn final_kind(status: &Status) -> Option<ErrorKind> {
    match status.code() {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists => Some(ErrorKind::Invalid),
        Code::PermissionDenied | Code::Unauthenticated => Some(ErrorKind::Denied),
        Code::Unimplemented => Some(ErrorKind::Unsupported),
        Code::ResourceExhausted if is(status, "SUBSCRIBER_TOO_SLOW") => Some(ErrorKind::TooSlow),
        _ => None,
    }
}

/// The error of a status that a message of a stream carries.
pub(super) fn status_of(status: trunkline_proto::rpc::Status) -> Error {
    use prost::Message;

    let details = status.encode_to_vec().into();
    let status = Status::with_details(status.code.into(), status.message, details);
    Error::new(final_kind(&status).unwrap_or(ErrorKind::Invalid), status)
}

/// True if a status comes from a gateway and has this reason.
pub(super) fn is(status: &Status, reason: &str) -> bool {
    reason_of(status).is_some_and(|found| found == reason)
}

/// True if a publish request with this status certainly published nothing: the gateway says so, or
/// there was no connection.
pub(super) fn nothing_published(status: &Status) -> bool {
    let reasons = ["BUS_UNAVAILABLE", "DRAINING", "LIMIT_REACHED"];
    if reason_of(status).is_some_and(|reason| reasons.contains(&reason.as_str())) {
        return true;
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The indexes of the events that the bus accepted, as a gateway reports that others were not.
pub(super) fn accepted_events(status: &Status) -> Vec<usize> {
    let info = status.get_details_error_info().filter(|info| info.domain == "trunkline");
    let bitmap = info.and_then(|mut info| info.metadata.remove("accepted_events"));
    let digits = bitmap.iter().flat_map(|bitmap| bitmap.chars().map(|digit| digit.to_digit(16)));
    digits
        .enumerate()
        .flat_map(|(nth, digit)| {
            let digit = digit.unwrap_or_default();
            (0..4).filter(move |bit| digit & 8 >> bit != 0).map(move |bit| 4 * nth + bit)
        })
        .collect()
}

/// The reason that a gateway gave.
pub(super) fn reason_of(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == "trunkline").then_some(info.reason)
}

/// The message of a status with its causes: that of a lost connection is only "transport error" or
/// "tcp connect error".
pub(super) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        cause = error.source();
    }
    if text.is_empty() { status.code().description().to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "trunkline", HashMap::new());
        Status::with_error_details(code, "text", details)
    }

    #[test]
    fn final_statuses_differ_from_those_that_may_be_retried() {
        for code in [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled] {
            assert_eq!(final_kind(&Status::new(code, "")), None, "{code:?}");
        }
        assert_eq!(final_kind(&status(Code::ResourceExhausted, "LIMIT_REACHED")), None);
        let slow = status(Code::ResourceExhausted, "SUBSCRIBER_TOO_SLOW");
        assert_eq!(final_kind(&slow), Some(ErrorKind::TooSlow));
        assert_eq!(final_kind(&Status::invalid_argument("")), Some(ErrorKind::Invalid));
        assert_eq!(final_kind(&Status::unauthenticated("")), Some(ErrorKind::Denied));
        assert_eq!(final_kind(&Status::unimplemented("")), Some(ErrorKind::Unsupported));
    }

    #[test]
    fn nothing_was_published_only_if_the_gateway_says_so_or_there_was_no_connection() {
        assert!(nothing_published(&status(Code::Unavailable, "BUS_UNAVAILABLE")));
        assert!(!nothing_published(&status(Code::Unavailable, "OUTCOME_UNKNOWN")));
        assert!(!nothing_published(&Status::unavailable("a proxy's")));
        let refused = tonic::ConnectError("connection refused".into());
        assert!(nothing_published(&Status::from_error(Box::new(refused))));
    }

    #[test]
    fn accepted_events_are_those_of_the_bitmap() {
        let of = |bitmap: &str| {
            let metadata = HashMap::from([("accepted_events".to_owned(), bitmap.to_owned())]);
            let details = ErrorDetails::with_error_info("PARTLY_ACCEPTED", "trunkline", metadata);
            accepted_events(&Status::with_error_details(Code::Unavailable, "text", details))
        };
        assert_eq!(of("c4"), [0, 1, 5]);
        assert_eq!(of("0x1"), [11], "a digit that is none marks no event");
        assert!(of("").is_empty());
        let partly = status(Code::Unavailable, "PARTLY_ACCEPTED");
        assert!(accepted_events(&partly).is_empty() && !nothing_published(&partly));
        assert_eq!(final_kind(&partly), None);
    }

    #[test]
    fn an_error_tells_what_failed_and_why() {
        let error =
            Error::new(ErrorKind::Invalid, Status::invalid_argument("node_id: is required"));
        assert_eq!(error.to_string(), "refused: node_id: is required");
        assert_eq!(error.status().map(Status::code), Some(Code::InvalidArgument));
        let address = Error::address("ftp://x", "the scheme must be http");
        assert_eq!(
            address.to_string(),
            "\"ftp://x\" is no gateway's address: the scheme must be http"
        );
    }
}
