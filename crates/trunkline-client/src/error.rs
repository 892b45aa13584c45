//! What can go wrong, as a node's author has to tell it apart.

use std::error::Error as _;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why something did not work.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    // Boxed: a status is large, and errors are rare.
    status: Option<Box<Status>>,
}

/// What sort of error it is: what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An address given to the builder is none. Correct the node's configuration.
    Address,
    /// The gateway refused the request: something in it is wrong, and [`Error::violations`] says what. Nothing was published.
    Invalid,
    /// The node is not who it says, or may not do this. Nothing was published.
    Denied,
    /// What answered is no gateway, or an older one that does not know the method.
    Unsupported,
    /// The stream fell too far behind and [`Overflow::Disconnect`](trunkline_proto::v1::Overflow) was asked for. Load
    /// everything again and subscribe without a token.
    TooSlow,
    /// No gateway took the events in time, and none can have published them.
    Unavailable,
    /// No gateway confirmed the events in time, but one may have published them: an answer was lost, or did not come.
    /// Publishing them again under the same request id is safe as long as gateways remember it (a minute unless set).
    OutcomeUnknown,
}

impl Error {
    pub(super) fn address(address: &str, why: &str) -> Error {
        let message = format!("{address:?} is no gateway's address: {why}");
        Error { kind: ErrorKind::Address, message, status: None }
    }

    pub(super) fn new(kind: ErrorKind, status: Status) -> Error {
        Error { kind, message: describe(&status), status: Some(Box::new(status)) }
    }

    /// What sort of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the gateway, or the connection to it, said last; none where nothing was asked of a gateway.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_deref()
    }

    /// Each field that is wrong, and what is wrong with it: `("events[3].mailbox_change.account_id", "is required")`.
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

/// The kind of a status that no repetition makes better; none if it may be tried again.
///
/// Everything else may: UNAVAILABLE is what a gateway says, and a connection that breaks shows as UNKNOWN, INTERNAL,
/// CANCELLED or UNAVAILABLE, as it comes.
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

/// Whether a status is the gateway's, and for this reason.
pub(super) fn is(status: &Status, reason: &str) -> bool {
    reason_of(status).is_some_and(|found| found == reason)
}

/// Whether a publication that ended with this certainly published nothing: the gateway says so, or there was no connection.
pub(super) fn nothing_published(status: &Status) -> bool {
    let told = ["BUS_UNAVAILABLE", "DRAINING", "LIMIT_REACHED"];
    if reason_of(status).is_some_and(|reason| told.contains(&reason.as_str())) {
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

fn reason_of(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == "trunkline").then_some(info.reason)
}

/// What a status says, with what caused it: the text of a lost connection is only "transport error" or "tcp connect error".
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

    fn told(code: Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "trunkline", HashMap::new());
        Status::with_error_details(code, "told", details)
    }

    #[test]
    fn what_may_be_tried_again_is_told_from_what_may_not() {
        for code in [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled] {
            assert_eq!(final_kind(&Status::new(code, "")), None, "{code:?}");
        }
        assert_eq!(final_kind(&told(Code::ResourceExhausted, "LIMIT_REACHED")), None);
        let slow = told(Code::ResourceExhausted, "SUBSCRIBER_TOO_SLOW");
        assert_eq!(final_kind(&slow), Some(ErrorKind::TooSlow));
        assert_eq!(final_kind(&Status::invalid_argument("")), Some(ErrorKind::Invalid));
        assert_eq!(final_kind(&Status::unauthenticated("")), Some(ErrorKind::Denied));
        assert_eq!(final_kind(&Status::unimplemented("")), Some(ErrorKind::Unsupported));
    }

    #[test]
    fn only_the_gateways_word_or_no_connection_means_that_nothing_was_published() {
        assert!(nothing_published(&told(Code::Unavailable, "BUS_UNAVAILABLE")));
        assert!(!nothing_published(&told(Code::Unavailable, "OUTCOME_UNKNOWN")));
        assert!(!nothing_published(&Status::unavailable("a proxy's")));
        let refused = tonic::ConnectError("connection refused".into());
        assert!(nothing_published(&Status::from_error(Box::new(refused))));
    }

    #[test]
    fn an_error_says_what_and_why() {
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
