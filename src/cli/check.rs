//! `trunkline check`.

use std::io::Write;

use clap::Args;

use super::{Failure, serve::ConfigArgs};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline check --config trunkline.json   prints the effective configuration (exit code 0), or all
                                            errors (exit code 78)
  trunkline check                           checks the defaults and the environment")]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Check {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let config = self.config.load()?;
        Ok(writeln!(std::io::stdout(), "{:#}", config.effective())?)
    }
}
