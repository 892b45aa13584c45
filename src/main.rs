#![forbid(unsafe_code)]
//! The `trunkline` command: the gateway, and a command line client for people and scripts.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
