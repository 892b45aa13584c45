//! `trunkline completions`.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline completions bash > /usr/share/bash-completion/completions/trunkline
  trunkline completions zsh > /usr/share/zsh/site-functions/_trunkline
  trunkline completions fish > ~/.config/fish/completions/trunkline.fish")]
pub(super) struct Completions {
    /// The shell that completes commands and flags
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "trunkline", &mut script);
        Ok(io::stdout().write_all(&script)?)
    }
}
