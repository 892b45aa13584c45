#![forbid(unsafe_code)]
//! The `trunkline` command: the gateway, and what a person or a script says to one.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
