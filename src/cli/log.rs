//! The log of a gateway: its format, its level, and its way to standard error.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::Args;
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload};
use trunkline::{
    config::{Config, LogFormat, Sources},
    log::LogQueue,
};

use super::{Failure, Form, next};

/// The time that the last lines are given when the process ends.
const FLUSH: Duration = Duration::from_secs(1);

/// How a process logs that has no configuration of a gateway.
#[derive(Args)]
pub(super) struct LogArgs {
    /// Format of the log: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Level of the log: error, warn, info, debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl LogArgs {
    /// The form of its failures.
    pub(super) fn form(&self) -> Form {
        if self.log_format.as_deref() == Some("json") { Form::Log } else { Form::Text }
    }

    /// Logs while the process runs.
    pub(super) async fn around(
        &self,
        process: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let mut sources = Sources::default();
        for (key, value) in [("logFormat", &self.log_format), ("logLevel", &self.log_level)] {
            if let Some(value) = value {
                sources.set(key, value);
            }
        }
        let config = Config::load(&sources);
        let config = config.map_err(|error| Failure::Configuration(error.to_string()))?;
        let log = Log::start(&config)?;
        let result = process.await;
        log.flush();
        result
    }
}

/// The log of this process.
#[derive(Clone)]
pub(super) struct Log {
    queue: LogQueue,
    level: reload::Handle<EnvFilter, Registry>,
    format: LogFormat,
}

impl Log {
    /// Starts to log. Panics are lines of it too.
    pub(super) fn start(config: &Config) -> Result<Log, Failure> {
        let queue = LogQueue::to_standard_error()?;
        let (filter, level) = reload::Layer::new(filter(config));
        let lines = queue.clone();
        let layer = fmt::layer()
            // It would print what it cannot write, and panic there.
            .log_internal_errors(false)
            .with_writer(move || lines.clone());
        let registry = tracing_subscriber::registry().with(filter);
        let colours = std::io::stderr().is_terminal() && !without_colours();
        let set = match config.log_format {
            LogFormat::Json => {
                let layer = layer.json().flatten_event(true);
                let layer = layer.with_current_span(false).with_span_list(false);
                tracing::subscriber::set_global_default(registry.with(layer))
            }
            LogFormat::Text => {
                let layer = layer.with_ansi(colours);
                tracing::subscriber::set_global_default(registry.with(layer))
            }
        };
        set.map_err(|error| Failure::Other(error.to_string()))?;
        std::panic::set_hook(Box::new(|panic| {
            let location = panic.location().map(ToString::to_string).unwrap_or_default();
            let message = panic.payload_as_str().unwrap_or("no message");
            tracing::error!(location, message, "a task has panicked: please report this");
        }));
        Ok(Log { queue, level, format: config.log_format })
    }

    /// Takes the level of another configuration.
    pub(super) fn set_level(&self, config: &Config) {
        // It fails only if the log has ended.
        let _ = self.level.reload(filter(config));
    }

    /// Prints text for people: between the lines, or as one where all lines are JSON.
    pub(super) fn print(&self, text: impl Display) {
        match self.format {
            LogFormat::Text => self.queue.add(format!("{text}\n").as_bytes()),
            LogFormat::Json => tracing::info!(commands = %text, "commands to try"),
        }
    }

    /// Gives the last lines a moment to be written.
    pub(super) fn flush(&self) {
        self.queue.flush(FLUSH);
    }
}

fn filter(config: &Config) -> EnvFilter {
    EnvFilter::try_from_env("RUST_LOG")
        .or_else(|_| EnvFilter::try_new(&config.log_level))
        .unwrap_or_else(|_| EnvFilter::new("info"))
}

/// True if the environment asks for output without colours (`NO_COLOR`, see no-color.org).
pub(super) fn without_colours() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Prints an error to standard error, unless that takes none.
pub(super) fn print_error(failure: &Failure, form: Form) {
    let text = failure.shown(form, next::step(failure).as_deref());
    let (done, written) = mpsc::channel();
    thread::spawn(move || {
        let _ = std::io::stderr().write_all(text.as_bytes());
        let _ = done.send(());
    });
    let _ = written.recv_timeout(FLUSH);
}
