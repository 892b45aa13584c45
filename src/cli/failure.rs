//! Errors of commands, and the exit code of each.

use std::{error::Error as _, fmt::Write as _, time::SystemTime};

use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{visible, visible_json};

/// The exit code where no gateway was reached, or it does not serve.
const UNAVAILABLE: u8 = 69;

/// The form in which an error is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Lines of text.
    Text,
    /// An object with the member `error`.
    Json,
    /// A line of the log as JSON.
    Log,
}

/// The error of a command.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Any other error.
    #[error("{0}")]
    Other(String),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The input is wrong.
    #[error("{0}")]
    Input(String),
    /// The configuration is wrong.
    #[error("{0}")]
    Configuration(String),
    /// The gateway is not reachable, or does not serve.
    #[error("{address}: {why}")]
    Unavailable { address: String, why: String },
    /// The gateway answered with an error.
    #[error("{:?}: {}", .0.code(), .0.message())]
    Gateway(#[from] Status),
    /// The reader of standard output has closed it, which is not an error of the command.
    #[error("standard output is closed")]
    BrokenPipe,
}

impl Failure {
    /// The error in this form, for a terminal. `next`: what to type next, if that is known.
    pub(super) fn shown(&self, form: Form, next: Option<&str>) -> String {
        let text = self.to_string();
        let json = match form {
            Form::Text => {
                let next = next.map(|next| format!("next: {next}"));
                let lines = text.lines().chain(next.as_deref());
                return lines.fold(String::new(), |mut shown, line| {
                    let _ = writeln!(shown, "trunkline: {}", visible(line));
                    shown
                });
            }
            Form::Json => {
                let mut error = json!({
                    "kind": self.kind(),
                    "message": text,
                    "exitCode": self.exit_code(),
                });
                if let Failure::Gateway(status) = self {
                    error["code"] = format!("{:?}", status.code()).into();
                }
                if let Some(next) = next {
                    error["next"] = next.into();
                }
                json!({ "error": error })
            }
            Form::Log => json!({
                "timestamp": prost_types::Timestamp::from(SystemTime::now()).to_string(),
                "level": "ERROR",
                "target": "trunkline",
                "message": text,
            }),
        };
        format!("{}\n", visible_json(&Value::to_string(&json)))
    }

    /// True if another attempt may succeed: no gateway was reached, or it does not serve.
    pub(super) fn is_unavailable(&self) -> bool {
        self.exit_code() == UNAVAILABLE
    }

    /// The reason, without the address.
    pub(super) fn reason(&self) -> String {
        match self {
            Failure::Unavailable { why, .. } => why.clone(),
            other => other.to_string(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Failure::Other(_) | Failure::BrokenPipe => "other",
            Failure::Usage(_) => "usage",
            Failure::Input(_) => "input",
            Failure::Configuration(_) => "configuration",
            Failure::Unavailable { .. } => "unavailable",
            Failure::Gateway(_) => "gateway",
        }
    }

    /// The exit code, as the help lists it.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Failure::Other(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Input(_) => 3,
            Failure::Configuration(_) => 78,
            Failure::Unavailable { .. } => UNAVAILABLE,
            Failure::Gateway(status) => match status.code() {
                Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => 3,
                Code::Unavailable => UNAVAILABLE,
                // tonic made this status because the connection broke; the gateway did not send it.
                _ if status.source().is_some() => UNAVAILABLE,
                _ => 1,
            },
            Failure::BrokenPipe => 0,
        }
    }
}

/// One failure for all of them, none if there are none: the first one, and if gateways were not
/// reached and nothing else is wrong, the others with it.
pub(super) fn all_of(failures: Vec<Failure>) -> Option<Failure> {
    let alike = failures.iter().all(Failure::is_unavailable);
    failures.into_iter().reduce(|all, other| match all {
        Failure::Unavailable { address, why } if alike => {
            Failure::Unavailable { address, why: format!("{why}; {other}") }
        }
        first => first,
    })
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::BrokenPipe;
        }
        Failure::Other(error.to_string())
    }
}

/// An error with its causes: tonic's own text is only "transport error".
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}
