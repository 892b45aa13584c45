//! `trunkline doctor`.

mod agent;
mod certificates;
mod gateway;
mod pinned;

use clap::Args;
use trunkline::{
    bus::{Finding, Progress, Registry},
    config::Config,
};

use self::agent::AgentArgs;
use super::{CredentialArgs, Failure, GatewayArgs, report::Report, serve::ConfigArgs};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline doctor --config trunkline.json
                                      what is wrong with a deployment, and what to do
  trunkline doctor --config trunkline.json --json | jq '.findings[] | select(.level != \"ok\")'
  trunkline doctor --redis redis://admin:password@10.0.0.1:6379
                                      an administrator's rights show more
  trunkline doctor --config trunkline.json --token-file token
                                      the gateway on this machine requires credentials
  trunkline doctor --agent 127.0.0.1:6380 --gateway https://gateway-1
                                      the agent of a mail server, from the mail server's host

Checks the configuration, the certificates, Redis, and a round trip through each shard, from the
machine on which it runs. Changes nothing that gateways use. What it does not see is a line
`not checked`, with the reason, and never `ok`. Exit code 0 if there is no failure (there may be
warnings, and checks that were not made), 1 if there is one.")]
pub(super) struct Doctor {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Print JSON, errors too
    #[arg(long)]
    pub(super) json: bool,
}

impl Doctor {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut report = Report::new(self.json);
        if let Some(address) = &self.agent.agent {
            agent::examine(address, &self.agent, &self.gateway, &mut report).await?;
            return report.finish();
        }
        report.begins("configuration");
        match self.config.load() {
            Ok(config) => {
                report.found(Finding::ok("configuration", summary(&config)));
                examine(&config, &self.gateway.credentials, &mut report).await?;
            }
            Err(Failure::Configuration(why)) => {
                let advice =
                    "docs/configuration.md lists every key; `trunkline check` reports the same";
                report.found(Finding::failure("configuration", why, advice));
                report.expect(&["reach", gateway::CHECK], "the configuration cannot be used");
            }
            Err(other) => return Err(other),
        }
        report.finish()
    }
}

async fn examine(
    config: &Config,
    credentials: &CredentialArgs,
    report: &mut Report,
) -> Result<(), Failure> {
    certificates::examine_gateway(config.tls.as_ref(), report);
    certificates::examine_redis(&config.bus, report);
    let mut shards = config.shards;
    match Registry::default().get(config.bus.type_name()) {
        Ok(bus) => {
            let mut on_progress = |progress| match progress {
                Progress::Begins(check) => report.begins(check),
                Progress::Found(finding) => report.found(finding),
                Progress::Shards(recorded) => shards = Some(recorded),
            };
            bus.examine(config, &mut on_progress).await;
            report.expect(bus.checks(), "not reached");
        }
        Err(error) => report.found(Finding::failure("reach", error.to_string(), "")),
    }
    gateway::examine(config, shards, credentials, report).await
}

/// The effective configuration in a line.
fn summary(config: &Config) -> String {
    format!("listens on {}, prefix {:?}, {}", config.listen, config.prefix, config.bus)
}
