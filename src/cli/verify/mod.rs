//! `trunkline verify`: a fault drill on a running deployment, with events of its own.

mod drill;
mod judge;

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use trunkline::{
    bus::{Fault, Finding, Registry},
    config::Config,
};
use trunkline_proto::v1::ListNodesRequest;

use self::{
    drill::{Connect, Cuts, Drill, Publishing},
    judge::Verdict,
};
use super::{
    Failure, GatewayArgs,
    bench::{milliseconds, quantiles},
    duration::parse_duration,
    report::Report,
    serve::ConfigArgs,
};

/// The time limit until the gateways have forgotten the nodes of the drill.
const LEAVE: Duration = Duration::from_secs(10);

const STEADY: &str = "steady";
const CONNECTIONS: &str = "connections";
const REDIS: &str = "redis";
const FAILOVER: &str = "failover";
const REPEATS: &str = "repeats";
const LEFT: &str = "left behind";

#[derive(Args)]
#[allow(clippy::struct_excessive_bools)] // flags
#[command(after_help = "\
Publishes custom events of types of its own, trunkline.verify.<id>.<n>, receives them on streams of
its own at all gateways that --gateway names, and judges: each acknowledged event arrives once on
each stream, in order, or a gap says that it does not. In turn, without a fault (steady); while its
own streams are cut off and go on at the next gateway, and answers to its requests are lost
(connections); and, if allowed, while the gateways' connections to Redis are closed (redis), and
while a master hands over to a replica (failover). A fault that is not allowed is `not checked`.

Other nodes whose filter does not exclude the types receive the events too; mail servers ignore
them. If other nodes are connected, --yes is required. Nothing else is left behind: the events
stay in the history of the bus until it expires.

The faults at Redis need rights that gateways do not have: +client|id +client|list +client|kill,
and +cluster|failover or the right to SENTINEL FAILOVER. Exit code 0 if every promise was kept, 1 if
one was broken.

Examples:
  trunkline verify --gateway gateway-1,gateway-2
                          two gateways, without a fault at Redis
  trunkline verify --gateway gateway-1,gateway-2 --config admin.json --gateway-user trunkline \\
      --disconnect-redis --failover
                          with faults at the Redis of admin.json, whose user may cause them
  trunkline verify --for 1m --rate 1000 --json | jq .phases")]
pub(super) struct Verify {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    config: ConfigArgs,
    /// Streams that receive everything, spread over the gateways
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    streams: u32,
    /// Events per second, of all publishers together
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Duration of each part of the drill, 1s to 1h
    #[arg(
        long = "for",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_duration
    )]
    length: Duration,
    /// Close the connections of all gateways to Redis, as CLIENT KILL does
    #[arg(long)]
    disconnect_redis: bool,
    /// Have a master of Redis hand over to a replica: by the sentinels, or in a cluster
    #[arg(long)]
    failover: bool,
    /// The user as which gateways log in to Redis [default: that of the configuration]
    #[arg(long, value_name = "USER")]
    gateway_user: Option<String>,
    /// Run even if other nodes are connected
    #[arg(long)]
    yes: bool,
    /// Print JSON, errors too
    #[arg(long)]
    pub(super) json: bool,
}

impl Verify {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        if !(Duration::from_secs(1)..=Duration::from_hours(1)).contains(&self.length) {
            return Err(Failure::Usage("--for must be from 1s to 1h".into()));
        }
        // Before anything is published: what follows would be in vain.
        let at_redis = self.disconnect_redis || self.failover;
        let config = if at_redis { Some(self.config.load()?) } else { None };
        let credentials = self.gateway.credentials()?;
        let connect = Connect {
            urls: self.gateway.urls(&credentials)?,
            credentials,
            id: uuid::Uuid::new_v4().simple().to_string()[..8].to_owned(),
        };
        self.gateway.refuse_to_disturb(&format!("{}*", connect.types()), self.yes).await?;
        let nodes: Vec<String> = connect.subscribers(self.streams as usize).collect();
        let mut drill = Drill::start(connect, self.streams as usize, self.rate).await?;
        let mut report = Report::new(self.json);
        let mut phases = vec![];
        let stop = tokio::select! {
            done = self.drill(&mut drill, config.as_ref(), &mut report, &mut phases) => {
                done?;
                false
            }
            _ = tokio::signal::ctrl_c() => true,
        };
        if stop {
            report.expect(&[STEADY, CONNECTIONS, REDIS, FAILOVER], "stopped by Ctrl-C");
        }
        report.found(match drill.repeated() {
            0 => Finding::ok(REPEATS, "nothing of an earlier part came again"),
            repeated => {
                let seen = format!("{repeated} arrivals of events that had arrived before");
                Finding::failure(REPEATS, seen, PROMISE)
            }
        });
        drill.close().await;
        report.begins(LEFT);
        let left = self.left(&nodes).await;
        report.found(left.unwrap_or_else(|error| {
            Finding::not_checked(LEFT, error.to_string(), "see `trunkline nodes`")
        }));
        report.figures("phases", phases.into());
        report.finish()
    }

    async fn drill(
        &self,
        drill: &mut Drill,
        config: Option<&Config>,
        report: &mut Report,
        phases: &mut Vec<Value>,
    ) -> Result<(), Failure> {
        report.begins(STEADY);
        let nothing = async |_: &Cuts| {};
        let (verdict, ()) = drill.phase(Publishing::Plainly, self.length, nothing).await?;
        let mut assessed = |check, fault: &str, verdict: &Verdict, report: &mut Report| {
            report.found(assess(check, fault, self.streams, verdict));
            phases.push(figures(check, fault, verdict));
        };
        assessed(STEADY, "no fault", &verdict, report);

        report.begins(CONNECTIONS);
        let cut = async |cuts: &Cuts| cuts.each(self.length / 2).await;
        let (verdict, cut) = drill.phase(Publishing::LosingAnswers, self.length, cut).await?;
        let fault = format!("{cut} streams cut off, and a quarter of the answers lost");
        assessed(CONNECTIONS, &fault, &verdict, report);

        for (check, flag, allowed, fault) in [
            (
                REDIS,
                "--disconnect-redis",
                self.disconnect_redis,
                Fault::Disconnect { user: self.gateway_user.clone() },
            ),
            (FAILOVER, "--failover", self.failover, Fault::Failover),
        ] {
            let Some(config) = config.filter(|_| allowed) else {
                let seen = format!("{flag} was not given");
                let advice = format!("where it may be done, run verify with {flag}");
                report.found(Finding::not_checked(check, seen, advice));
                continue;
            };
            report.begins(check);
            let cause = async |_: &Cuts| {
                let bus = Registry::default();
                let bus = bus.get(config.bus.type_name()).map_err(|error| error.to_string())?;
                bus.cause(config, &fault).await
            };
            let (verdict, done) = drill.phase(Publishing::Plainly, self.length, cause).await?;
            match done {
                Ok(done) => assessed(check, &done, &verdict, report),
                Err(why) => {
                    assessed(check, "the fault was not caused", &verdict, report);
                    let advice = "see `trunkline verify --help` for what each fault needs";
                    report.found(Finding::not_checked(check, why, advice));
                }
            }
        }
        Ok(())
    }

    /// Whether gateways still list nodes of the drill.
    async fn left(&self, nodes: &[String]) -> Result<Finding, Failure> {
        let mut client = self.gateway.connect().await?;
        let begun = tokio::time::Instant::now();
        loop {
            let mut left = vec![];
            for node_id in nodes {
                let node_id = node_id.clone();
                let request = ListNodesRequest { node_id, ..ListNodesRequest::default() };
                let listed = client.list_nodes(request).await?.into_inner().nodes;
                left.extend(listed.into_iter().map(|node| node.node_id));
            }
            if left.is_empty() {
                let seen = "no node of the drill; its events stay in history until it expires";
                return Ok(Finding::ok(LEFT, seen));
            }
            if begun.elapsed() >= LEAVE {
                let seen = format!("listed {LEAVE:?} after their end: {}", left.join(", "));
                return Ok(Finding::warning(LEFT, seen, "see `trunkline nodes`"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// What a broken promise asks for.
const PROMISE: &str = "a promise was broken: keep the logs of the gateways and of Redis of this \
    time, and report it with this output";

/// The finding on a part of the drill.
fn assess(check: &'static str, fault: &str, streams: u32, verdict: &Verdict) -> Finding {
    let counts = &verdict.counts;
    let mut lines = vec![format!(
        "{fault}: {} events acknowledged, {} arrivals on {streams} streams",
        counts.acknowledged, counts.delivered
    )];
    for (histogram, name) in [(&verdict.latency, "arrival"), (&verdict.answers, "answer")] {
        if !histogram.is_empty() {
            let at = |quantile| milliseconds(histogram.value_at_quantile(quantile));
            let (half, most) = (at(0.5), at(0.99));
            lines.push(format!("{name} after {half:.1} ms (p50), {most:.1} ms (p99)"));
        }
    }
    let silence = milliseconds(verdict.longest_silence) / 1000.0;
    lines.push(format!("longest time in which a stream received nothing: {silence:.2} s"));
    let broken = [
        (counts.lost, "arrivals lost, with no gap"),
        (counts.twice, "arrivals of events that had arrived before"),
        (counts.out_of_order, "arrivals behind a later event of their type"),
        (counts.strange, "arrivals of events that nobody published"),
    ];
    let broken = broken.iter().filter(|(count, _)| *count > 0);
    let broken: Vec<_> = broken.map(|(count, what)| format!("{count} {what}")).collect();
    if !broken.is_empty() {
        lines.extend(broken);
        return Finding::failure(check, lines.join("\n"), PROMISE);
    }
    if counts.acknowledged == 0 {
        lines.push("nothing was acknowledged".into());
        let advice = "see `trunkline doctor`, and `trunkline status` of each gateway";
        return Finding::failure(check, lines.join("\n"), advice);
    }
    if counts.not_acknowledged > 0 {
        lines.push(format!("{} events not acknowledged in time", counts.not_acknowledged));
    }
    if counts.gaps > 0 {
        lines.push(format!("{} arrivals missing, in {} gaps", counts.in_gaps, counts.gaps));
        let advice = "nothing was lost silently; docs/reliability.md says when a gap is to be \
                      expected, and the gateways' logs why there was one";
        return Finding::warning(check, lines.join("\n"), advice);
    }
    if counts.not_acknowledged > 0 {
        let advice = "no gateway could publish for that long: see their logs of this time";
        return Finding::warning(check, lines.join("\n"), advice);
    }
    Finding::ok(check, lines.join("\n"))
}

fn figures(check: &str, fault: &str, verdict: &Verdict) -> Value {
    let counts = &verdict.counts;
    json!({
        "part": check,
        "fault": fault,
        "acknowledgedEvents": counts.acknowledged,
        "notAcknowledgedEvents": counts.not_acknowledged,
        "deliveries": counts.delivered,
        "lostDeliveries": counts.lost,
        "repeatedDeliveries": counts.twice,
        "outOfOrderDeliveries": counts.out_of_order,
        "strangeDeliveries": counts.strange,
        "gaps": counts.gaps,
        "deliveriesInGaps": counts.in_gaps,
        "longestSilenceMs": milliseconds(verdict.longest_silence),
        "latencyMs": quantiles(&verdict.latency),
        "answerMs": quantiles(&verdict.answers),
    })
}
