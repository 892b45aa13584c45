//! The command line.

mod agent;
mod agents;
mod arguments;
mod bench;
mod check;
mod completions;
mod config;
mod connection;
mod doctor;
mod duration;
mod explain;
mod failure;
mod gaps;
mod init;
mod interest;
mod kinds;
mod link;
mod log;
mod man;
mod next;
mod nodes;
mod payload;
mod publish;
mod remarks;
mod report;
mod serve;
mod signals;
mod status;
mod subscribe;
mod table;
mod top;
mod until_ended;
mod values;
mod verify;
mod visible;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use self::{
    connection::{Client, CredentialArgs, GatewayArgs, NodeArgs},
    failure::{Failure, Form, describe},
    visible::{json_text, visible, visible_json},
};

const EXAMPLES: &str = "\
Examples:
  trunkline                                          serve on 127.0.0.1:7420 with the embedded bus
  trunkline serve --redis redis://127.0.0.1:6379     serve, with other gateways, over Redis
  trunkline init                                     write a configuration: asks, or takes flags
  trunkline check --config trunkline.json            report all errors of a configuration
  trunkline doctor --config trunkline.json           check a deployment, Redis included
  trunkline subscribe | jq .mailboxChange            watch events, one JSON object per line
  trunkline publish mailbox-change --account a1 --change-id 7 --types email
  trunkline subscribe --max-events 10 | trunkline publish -
  trunkline --gateway gateway-1 status               flags stand before or after the command
  trunkline bench --rate 1000 --subscribers 100      the latency of a gateway at a steady rate
  trunkline verify --gateway gateway-1,gateway-2     faults, and whether the promises were kept

Exit codes:
  0   success
  1   any other failure
  2   the command line is wrong
  3   the gateway refused the request, or the input is wrong
  69  the gateway or its bus is not available
  78  the configuration is wrong";

/// Keeps the servers of a cluster in step: a gRPC gateway over Redis pub/sub.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a gateway (the default command)
    Serve(serve::Serve),
    /// Connects a mail server that does not know Trunkline, in place of its Redis
    Agent(agent::Agent),
    /// Carries events from one deployment to another
    Link(link::Link),
    /// Writes a configuration: asks, or takes flags
    Init(init::Init),
    /// Reports all errors of a configuration, or prints the effective one, without secrets
    Check(check::Check),
    /// Prints the JSON Schema of the configuration, or the effective configuration
    Config(config::Config),
    /// Checks a deployment from this machine, and reports what is wrong and what to do
    Doctor(doctor::Doctor),
    /// Publishes events
    Publish(publish::Publish),
    /// Prints events as they arrive, as JSON
    Subscribe(subscribe::Subscribe),
    /// Explains whether a node receives an event, and if not, why not
    Explain(explain::Explain),
    /// Prints the state of a gateway
    Status(status::Status),
    /// Lists the connected nodes, and with --watch those that join and leave
    Nodes(nodes::Nodes),
    /// Lists the gaps that nodes were sent: events that they missed, why, and what to do
    Gaps(gaps::Gaps),
    /// Shows a gateway and its nodes, live
    Top(top::Top),
    /// Measures the throughput and the latency of a gateway under load
    Bench(bench::Bench),
    /// Causes faults on a running deployment, and checks that no event is lost or comes twice
    Verify(verify::Verify),
    /// Prints the completions of a shell for this command line
    Completions(completions::Completions),
    /// Writes the manual pages of this command line
    Man(man::Man),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let as_json = arguments::ask_for_json(&given);
    let ordered = arguments::in_order(&Cli::command(), given);
    let ordered = match agent::with_file(&Cli::command(), ordered) {
        Ok(ordered) => ordered,
        Err(failure) => {
            log::print_error(&failure, Form::Text);
            return failure.exit_code().into();
        }
    };
    let cli = match Cli::try_parse_from([vec!["trunkline".into()], ordered.clone()].concat()) {
        Ok(cli) => cli,
        // The help too is an error for clap.
        Err(error) if as_json && error.use_stderr() => {
            let failure = Failure::Usage(error.to_string().trim_end().to_owned());
            log::print_error(&failure, Form::Json);
            return failure.exit_code().into();
        }
        Err(error) => {
            let near = if error.use_stderr() { next::kind_meant(&ordered) } else { None };
            if let Some(near) = near {
                let _ = error.print();
                log::print_error(&Failure::Usage(near), Form::Text);
                return ExitCode::from(2);
            }
            error.exit()
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log::print_error(&Failure::Other(error.to_string()), Form::Text);
            return ExitCode::FAILURE;
        }
    };
    let form = cli.command.form();
    let result = runtime.block_on(run(cli.command));
    // Without this, a task that waits for standard input would keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::BrokenPipe) {
                log::print_error(&failure, form);
            }
            failure.exit_code().into()
        }
    }
}

impl Command {
    /// The form of the error of the command: that which its output has.
    fn form(&self) -> Form {
        let as_json = match self {
            Command::Serve(serve) => return serve.form(),
            Command::Agent(agent) => return agent.form(),
            Command::Link(link) => return link.form(),
            Command::Doctor(doctor) => doctor.json,
            Command::Subscribe(subscribe) => subscribe.json,
            Command::Explain(explain) => explain.json,
            Command::Status(status) => status.json,
            Command::Nodes(nodes) => nodes.json,
            Command::Gaps(gaps) => gaps.json,
            Command::Top(top) => top.json,
            Command::Bench(bench) => bench.json,
            Command::Verify(verify) => verify.json,
            Command::Init(_)
            | Command::Check(_)
            | Command::Config(_)
            | Command::Publish(_)
            | Command::Completions(_)
            | Command::Man(_) => false,
        };
        if as_json { Form::Json } else { Form::Text }
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(serve) => serve.run().await,
        Command::Agent(agent) => agent.run().await,
        Command::Link(link) => link.run().await,
        Command::Init(init) => init.run(),
        Command::Check(check) => check.run(),
        Command::Config(config) => config.run(),
        Command::Doctor(doctor) => doctor.run().await,
        Command::Publish(publish) => publish.run().await,
        Command::Subscribe(subscribe) => subscribe.run().await,
        Command::Explain(explain) => explain.run(),
        Command::Status(status) => status.run().await,
        Command::Nodes(nodes) => nodes.run().await,
        Command::Gaps(gaps) => gaps.run().await,
        Command::Top(top) => top.run().await,
        Command::Bench(bench) => bench.run().await,
        Command::Verify(verify) => verify.run().await,
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        let failures = [
            Failure::Other(String::new()),
            Failure::Usage(String::new()),
            Failure::Input(String::new()),
            Failure::Configuration(String::new()),
            Failure::Unavailable { address: String::new(), why: String::new() },
            Failure::Gateway(Status::invalid_argument("")),
            Failure::Gateway(Status::unavailable("")),
        ];
        for failure in failures {
            let line = format!("\n  {} ", failure.exit_code());
            assert!(EXAMPLES.contains(line.trim_end()), "{failure:?} {line}");
        }
    }
}
