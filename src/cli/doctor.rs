//! `trunkline doctor`.

mod certificates;
mod gateway;
mod pinned;
mod report;

use clap::Args;
use trunkline::{
    bus::{Finding, Progress, Registry},
    config::Config,
};

use self::report::Report;
use super::{Failure, Proof, serve::From};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline doctor --config trunkline.json          what is wrong with a deployment, and what to do
  trunkline doctor --config trunkline.json --json | jq '.findings[] | select(.level != \"ok\")'
  trunkline doctor --redis redis://admin:password@10.0.0.1:6379
                                                    with an administrator's rights it sees more
  trunkline doctor --config trunkline.json --token-file token
                                                    the gateway that runs here asks who this is

Looks at the configuration, certificates, Redis and the way through each shard, from where it is run. Changes nothing that
gateways use. Exit code 0 if there is no failure (there may be warnings), 1 if there is one.")]
pub(super) struct Doctor {
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    proof: Proof,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut report = Report::new(self.json);
        report.begins("configuration");
        match self.from.load() {
            Ok(config) => {
                report.found(Finding::ok("configuration", summary(&config)));
                examine(&config, &self.proof, &mut report).await?;
            }
            Err(Failure::Configuration(why)) => {
                let advice = "docs/configuration.md has every key; `trunkline check` says the same";
                report.found(Finding::failure("configuration", why, advice));
            }
            Err(other) => return Err(other),
        }
        report.end()
    }
}

async fn examine(config: &Config, proof: &Proof, report: &mut Report) -> Result<(), Failure> {
    certificates::examine_own(config.tls.as_ref(), report);
    certificates::examine(config.bus.tls(), report);
    match Registry::default().get(config.bus.type_name()) {
        Ok(bus) => {
            let mut progress = |progress| match progress {
                Progress::Begins(check) => report.begins(check),
                Progress::Found(finding) => report.found(finding),
            };
            bus.examine(config, &mut progress).await;
        }
        Err(error) => report.found(Finding::failure("reach", error.to_string(), "")),
    }
    gateway::examine(config, proof, report).await
}

/// The main settings, in a line.
fn summary(config: &Config) -> String {
    format!("listens on {}, prefix {:?}, {}", config.listen, config.prefix, config.bus)
}
