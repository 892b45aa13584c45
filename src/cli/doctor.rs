//! `trunkline doctor`.

mod certificates;
mod gateway;
mod pinned;
mod report;

use clap::Args;
use trunkline::{
    bus::redis::{
        Settings,
        doctor::{self, Finding, Progress},
    },
    config::{BusConfig, Config, RedisUrl, Tls},
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
    certificates::examine(tls_of_redis(&config.bus), report);
    match Settings::from_config(config) {
        Ok(Some(settings)) => {
            let largest = config.limits.max_request_bytes as u64;
            let mut tell = |progress| match progress {
                Progress::Begins(check) => report.begins(check),
                Progress::Found(finding) => report.found(finding),
            };
            Box::pin(doctor::examine(&settings, largest, &mut tell)).await;
        }
        Ok(None) => report.found(Finding::ok("reach", "the bus is embedded: there is no Redis")),
        Err(error) => {
            let advice = "see that the files of coordinator.tls are what they are named for";
            report.found(Finding::failure("reach", error.to_string(), advice));
        }
    }
    gateway::examine(config, proof, report).await
}

/// What is in force, in a line.
fn summary(config: &Config) -> String {
    let bus = match &config.bus {
        BusConfig::Embedded => "the embedded bus".to_owned(),
        BusConfig::Redis(redis) => format!("Redis at {}", redis.url),
        BusConfig::RedisCluster(cluster) => {
            let urls: Vec<_> = cluster.urls.iter().map(RedisUrl::to_string).collect();
            format!("a Redis Cluster at {}", urls.join(", "))
        }
    };
    format!("listens on {}, prefix {:?}, {bus}", config.listen, config.prefix)
}

fn tls_of_redis(bus: &BusConfig) -> Option<&Tls> {
    match bus {
        BusConfig::Embedded => None,
        BusConfig::Redis(redis) => Some(&redis.tls),
        BusConfig::RedisCluster(cluster) => Some(&cluster.tls),
    }
}
