//! The signals of a gateway: SIGTERM and SIGINT drain it, a second one ends it at once, SIGHUP
//! reads its configuration again.

use std::process;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{self, error::TrySendError},
};
use tokio_util::sync::CancellationToken;
use trunkline::config::Config;

use super::{Failure, log::Log};

/// The signals that this process waits for.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From here on these signals do not end the process by themselves.
    pub(super) fn new() -> Result<Signals, Failure> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Follows the signals until the process ends. Cancels `stop` at the first one that ends it,
    /// and reads the configuration again by `load`.
    pub(super) async fn follow(
        mut self,
        load: impl Fn() -> Result<Config, Failure>,
        log: Log,
        reload: mpsc::Sender<Config>,
        stop: CancellationToken,
    ) {
        loop {
            let (name, number) = tokio::select! {
                _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
                _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
                _ = self.hang_up.recv() => {
                    read_again(load(), &log, &reload);
                    continue;
                }
            };
            if stop.is_cancelled() {
                tracing::warn!(signal = name, "a second signal: ending at once");
                log.flush();
                // What a shell reports for a process that a signal ended.
                process::exit(128 + number);
            }
            tracing::info!(signal = name, "stopping; a second signal ends at once");
            stop.cancel();
        }
    }
}

/// Gives a configuration that was read again to the log and to the gateway.
fn read_again(read: Result<Config, Failure>, log: &Log, reload: &mpsc::Sender<Config>) {
    match read {
        Ok(config) => {
            log.set_level(&config);
            if let Err(TrySendError::Full(_)) = reload.try_send(config) {
                tracing::warn!("the configuration is being read already: send SIGHUP again");
            }
        }
        Err(error) => tracing::error!(
            why = error.to_string(),
            "the configuration cannot be used; the previous one stays in force"
        ),
    }
}
