//! Errors of commands, and the exit code of each.

use std::error::Error as _;

use tonic::{Code, Status};

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
    /// The exit code, as the help lists it.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Failure::Other(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Input(_) => 3,
            Failure::Configuration(_) => 78,
            Failure::Unavailable { .. } => 69,
            Failure::Gateway(status) => match status.code() {
                Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => 3,
                Code::Unavailable => 69,
                // tonic made this status because the connection broke; the gateway did not send it.
                _ if status.source().is_some() => 69,
                _ => 1,
            },
            Failure::BrokenPipe => 0,
        }
    }
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
