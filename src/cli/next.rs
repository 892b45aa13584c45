//! What to type next after an error.

use std::ffi::OsString;

use tonic::{Code, Status};
use tonic_types::StatusExt;
use trunkline::config::nearest;
use trunkline_proto::kinds;

use super::Failure;

/// What is said of an address without TLS where something listens that does not answer.
pub(super) const NOT_GRPC: &str = "it does not answer gRPC without TLS";

/// What is said of one with TLS where the connection is closed after that.
pub(super) const CLOSED_AFTER_TLS: &str = "it closed the connection after the TLS handshake";

/// Words of an error of a connection, and what to type next.
const CONNECTIONS: [(&str, &str); 11] = [
    (
        "Connection refused",
        "`trunkline serve` starts a gateway on this machine; --gateway or TRUNKLINE_GATEWAY names \
         another one",
    ),
    ("dns error", "--gateway or TRUNKLINE_GATEWAY with a name or an address that exists"),
    (
        NOT_GRPC,
        "--gateway https://HOST:PORT if it expects TLS; or the port of `listen`, 7420 unless \
         configured, and not the admin port",
    ),
    (
        CLOSED_AFTER_TLS,
        "--tls-cert FILE and --tls-key FILE with a client certificate that it accepts, if it \
         requires one",
    ),
    ("InvalidContentType", "--gateway http://HOST:PORT: what listens there has no TLS"),
    ("UnknownIssuer", "--tls-ca FILE with the authority that signed the gateway's certificate"),
    ("NotValidForName", "--gateway https://NAME:PORT with a name that is in its certificate"),
    ("certificate expired", "renew the gateway's certificate; a gateway reads it again on SIGHUP"),
    (
        "no answer within",
        "`trunkline doctor --config FILE` on its machine; a firewall may be in between",
    ),
    ("tcp connect error", "--gateway or TRUNKLINE_GATEWAY with an address that can be reached"),
    ("deadline has elapsed", "--gateway or TRUNKLINE_GATEWAY with an address that can be reached"),
];

/// Reasons of a gateway, words of its message ("" for any), and what to type next.
const REASONS: [(&str, &str, &str); 14] = [
    (
        "CREDENTIALS_MISSING",
        "",
        "--token-file FILE or TRUNKLINE_TOKEN, or --tls-cert FILE and --tls-key FILE",
    ),
    (
        "CREDENTIALS_WRONG",
        "",
        "--token-file FILE or TRUNKLINE_TOKEN with a token that is in `auth.identities` of the \
         gateway",
    ),
    (
        "CREDENTIALS_REVOKED",
        "",
        "--token-file FILE or TRUNKLINE_TOKEN with a token that is valid now",
    ),
    (
        "NOT_ALLOWED",
        "node id",
        "--node-id ID with an id that `auth.identities[].nodeIds` of the gateway has for this \
         identity",
    ),
    (
        "NOT_ALLOWED",
        "permission for",
        "add it to `auth.identities[].operations` of the gateway, or use another token: \
         --token-file FILE",
    ),
    (
        "NOT_ALLOWED",
        "published",
        "add it to `auth.identities[].publish` of the gateway, or use another token: --token-file \
         FILE",
    ),
    (
        "NOT_ALLOWED",
        "",
        "change `auth.identities` of the gateway, or use another token: --token-file FILE",
    ),
    (
        "NOT_ENABLED",
        "nodeEvents",
        "set nodeEvents to true on all gateways; without it: trunkline nodes --watch",
    ),
    (
        "PAYLOAD_TOO_LARGE",
        "events[",
        "raise limits.maxEventBytes of the gateways, or publish where the content is and not the \
         content",
    ),
    (
        "PAYLOAD_TOO_LARGE",
        "request",
        "raise limits.maxRequestBytes of the gateways, or publish less",
    ),
    ("RESUME_TOKEN_MALFORMED", "", "print a token anew: trunkline subscribe --all"),
    (
        "LIMIT_REACHED",
        "",
        "try again in a moment; where that does not help, raise the limit in the gateway's \
         configuration",
    ),
    (
        "BUS_UNAVAILABLE",
        "",
        "trunkline status shows its connections to Redis, and `trunkline doctor --config FILE` \
         tries them",
    ),
    ("DRAINING", "", "--gateway A,B with another gateway beside it"),
];

/// The next step, if there is one that fits.
pub(super) fn step(failure: &Failure) -> Option<String> {
    match failure {
        Failure::Unavailable { why, .. } => of_connection(why).map(str::to_owned),
        Failure::Gateway(status) => of_status(status).map(str::to_owned),
        _ => None,
    }
}

fn of_connection(why: &str) -> Option<&'static str> {
    CONNECTIONS.iter().find(|(words, _)| why.contains(words)).map(|(_, next)| *next)
}

fn of_status(status: &Status) -> Option<&'static str> {
    if let Some(info) = status.get_details_error_info() {
        let (reason, message) = (&*info.reason, status.message());
        let fits = |(of, words, _): &&(&str, &str, &str)| *of == reason && message.contains(words);
        return REASONS.iter().find(fits).map(|(_, _, next)| *next);
    }
    match status.code() {
        Code::Unimplemented => Some(
            "--gateway with the gRPC port of a gateway; if it is one, its version may be older \
             than that of this command: trunkline --version",
        ),
        _ => of_connection(status.message()),
    }
}

/// The kind that is meant, where a word stands for one on a command line that is wrong.
pub(super) fn kind_meant(arguments: &[OsString]) -> Option<String> {
    let mut rest = arguments.iter().skip_while(|argument| *argument != "publish").skip(1);
    let word = rest.next()?.to_str().filter(|word| !word.starts_with('-'))?;
    let names: Vec<_> = kinds::TABLE
        .iter()
        .filter(|row| !kinds::is_made_by_gateways(row.number.into()))
        .map(kinds::Row::cli_name)
        .collect();
    if names.iter().any(|name| name == word) {
        return None;
    }
    let near = nearest(word, names.iter().map(String::as_str))?;
    Some(format!("next: there is no kind {word}; did you mean {near}?"))
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn every_step_can_be_reached() {
        for (words, next) in CONNECTIONS {
            let failure =
                Failure::Unavailable { address: "a".into(), why: format!("x: {words}: y") };
            assert_eq!(step(&failure).as_deref(), Some(next), "{words}");
        }
        for (reason, words, next) in REASONS {
            let details = ErrorDetails::with_error_info(reason, "trunkline", []);
            let message = format!("a {words} b");
            let status = Status::with_error_details(Code::InvalidArgument, message, details);
            assert_eq!(step(&Failure::Gateway(status)).as_deref(), Some(next), "{reason} {words}");
        }
        assert_eq!(step(&Failure::Other("Connection refused".into())), None);
        assert_eq!(step(&Failure::Gateway(Status::invalid_argument("events: x"))), None);
    }

    #[test]
    fn a_kind_is_guessed_where_it_stands() {
        let meant = |text: &str| {
            let arguments: Vec<_> = text.split_whitespace().map(OsString::from).collect();
            kind_meant(&arguments)
        };
        let guess = "next: there is no kind custm; did you mean custom?";
        assert_eq!(meant("publish custm com.x").as_deref(), Some(guess));
        for none in
            ["publish custom --x", "publish - --x", "publish", "status custm", "publish xyz"]
        {
            assert_eq!(meant(none), None, "{none}");
        }
    }
}
