//! `trunkline config`.

use std::io::Write;

use clap::{Args, Subcommand};
use trunkline::config;

use super::{Failure, check::Check};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline config schema > trunkline.schema.json
  trunkline config show --config trunkline.json

An editor completes and checks a file that begins with
  { \"$schema\": \"./trunkline.schema.json\", ...")]
pub(super) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the JSON Schema of the configuration file, for editors
    Schema,
    /// Prints the effective configuration, without secrets (the same as `trunkline check`)
    Show(Check),
}

impl Config {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match &self.command {
            Command::Schema => Ok(writeln!(std::io::stdout(), "{:#}", config::schema())?),
            Command::Show(show) => show.run(),
        }
    }
}
