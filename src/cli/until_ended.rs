//! The usual ways to end a command that follows something: Ctrl-C, a supervisor, a closed pipe.

use std::{io, os::fd::AsFd};

use tokio::{
    io::Interest,
    net::unix::pipe::Sender,
    signal::unix::{SignalKind, signal},
};

use super::Failure;

/// Runs a command until it fails, or until it is ended from outside, which is a success.
pub(super) async fn until_ended(
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = command => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = stdout_closed() => Ok(()),
    }
}

/// Waits until the reader of standard output has closed it; forever where that cannot be observed,
/// as with a file.
///
/// A failed write would show it too, but only at the next event: `subscribe | head -1` would wait
/// for a second one.
async fn stdout_closed() {
    // Unchecked leaves the pipe in blocking mode, which `print` needs; nothing is written here.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(stdout) = stdout.and_then(Sender::from_owned_fd_unchecked)
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
