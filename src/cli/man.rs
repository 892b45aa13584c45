//! `trunkline man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, Failure};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline man /usr/share/man/man1
  trunkline man . && man ./trunkline.1")]
pub(super) struct Man {
    /// The folder for the pages, one for each command. It is made, and pages that it has are replaced
    folder: PathBuf,
}

impl Man {
    pub(super) fn run(&self) -> Result<(), Failure> {
        // The help of a command is not a page of its own.
        let command = Cli::command().disable_help_subcommand(true);
        std::fs::create_dir_all(&self.folder)
            .and_then(|()| clap_mangen::generate_to(command, &self.folder))
            .map_err(|error| Failure::Input(format!("{}: {error}", self.folder.display())))
    }
}
