//! `trunkline check`.

use std::io::Write;

use clap::Args;

use super::{Failure, serve::ConfigArgs};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline check --config trunkline.json   exit code 0 and the effective configuration, or 78 and
                                            all errors
  trunkline check                           the defaults and the environment")]
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
