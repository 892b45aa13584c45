//! `trunkline gaps`.

mod news;
mod reasons;

use std::{collections::BTreeSet, io::Write, time::Duration};

use clap::Args;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use trunkline::json;
use trunkline_proto::v1::{GetStatusRequest, GetStatusResponse, ListNodesRequest};

use self::news::{Group, News, grouped};
use super::{
    Client, Failure, GatewayArgs,
    duration::{parse_interval, second, two_units},
    failure::all_of,
    json_text,
    remarks::Remarks,
    table::Table,
    until_ended::until_ended,
    visible,
};

/// Time limit of a connection and of an answer.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Args)]
#[command(after_help = reasons::help())]
pub(super) struct Gaps {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Only gaps of the node with this id
    #[arg(long)]
    node_id: Option<String>,
    /// Go on, with new gaps
    #[arg(long)]
    watch: bool,
    /// Time between two looks of --watch
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_interval)]
    interval: Duration,
    /// Print one JSON object per line, for each shard of a gap; errors too
    #[arg(long)]
    pub(super) json: bool,
    /// Print each object over several lines, indented
    #[arg(long, requires = "json")]
    pretty: bool,
}

/// One of the gateways.
struct Asked<'a> {
    args: &'a GatewayArgs,
    address: &'a str,
    client: Option<Client>,
    news: News,
    remarks: Remarks,
}

impl Gaps {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        if self.watch { until_ended(self.follow()).await } else { self.once().await }
    }

    async fn once(&self) -> Result<(), Failure> {
        let mut gateways = self.asked();
        let answers = join_all(gateways.iter_mut().map(Asked::status)).await;
        let (mut statuses, mut failures) = (vec![], vec![]);
        for answer in answers {
            match answer {
                Ok(status) => statuses.push(status),
                Err(failure) => failures.push(failure),
            }
        }
        if !statuses.is_empty() {
            self.print_list(&statuses)?;
        }
        for status in statuses.iter().filter(|status| lists_none(status)) {
            let (id, version) = (&status.gateway_id, &status.version);
            let text = format!("{id} has version {version}, which counts gaps and lists none");
            gateways[0].remarks.say("older", &json!({ "gateway": id }), &text)?;
        }
        if let Some(client) = gateways.iter_mut().find_map(|gateway| gateway.client.as_mut()) {
            let others = others(client, &statuses).await;
            if !others.is_empty() {
                let text = format!(
                    "there are other gateways, with gaps of their own: {}; name them in --gateway",
                    others.join(", ")
                );
                gateways[0].remarks.say("notAsked", &json!(others), &text)?;
            }
        }
        all_of(failures).map_or(Ok(()), Err)
    }

    /// The gaps that there are, then new ones.
    async fn follow(&self) -> Result<(), Failure> {
        let mut gateways = self.asked();
        let (mut first, mut explained) = (true, BTreeSet::new());
        loop {
            let answers = join_all(gateways.iter_mut().map(Asked::status)).await;
            if first && answers.iter().all(Result::is_err) {
                // A wrong address fails at once; a gateway that goes away later is waited for.
                let failures = answers.into_iter().filter_map(Result::err).collect();
                return all_of(failures).map_or(Ok(()), Err);
            }
            let mut fresh = vec![];
            for (gateway, answer) in gateways.iter_mut().zip(answers) {
                match answer {
                    Ok(mut status) => {
                        gateway.remarks.answers(Some(gateway.address))?;
                        let new = gateway.news.take(&status);
                        if new.unlisted > 0 && !first {
                            let (count, id) = (new.unlisted, &status.gateway_id);
                            let text = format!("{count} more gaps of {id} are not listed");
                            let object = json!({ "gateway": id, "gaps": count });
                            gateway.remarks.say("unlisted", &object, &text)?;
                        }
                        status.recent_gaps = new.gaps;
                        fresh.push(status);
                    }
                    Err(failure) if failure.is_unavailable() => {
                        gateway.remarks.lost(Some(gateway.address), &failure.reason())?;
                    }
                    Err(failure) => return Err(failure),
                }
            }
            if first {
                self.print_list(&fresh)?;
            } else {
                self.print_new(&fresh, &mut explained)?;
            }
            first = false;
            sleep(self.interval).await;
        }
    }

    fn asked(&self) -> Vec<Asked<'_>> {
        let asked = |address| Asked {
            args: &self.gateway,
            address,
            client: None,
            news: News::default(),
            remarks: Remarks::new(self.json),
        };
        self.gateway.addresses().iter().map(|address| asked(address)).collect()
    }

    /// The gaps of some gateways, the oldest first.
    fn groups(&self, statuses: &[GetStatusResponse]) -> Vec<Group> {
        let mut groups: Vec<_> = statuses.iter().flat_map(grouped).collect();
        groups.retain(|group| self.node_id.as_ref().is_none_or(|id| *id == group.node_id));
        groups.sort_by_key(|group| (group.time.seconds, group.time.nanos));
        groups
    }

    fn print_list(&self, statuses: &[GetStatusResponse]) -> Result<(), Failure> {
        if self.json {
            return self.print_json(statuses);
        }
        let groups = self.groups(statuses);
        let mut out = std::io::stdout().lock();
        if groups.is_empty() {
            let ages = statuses.iter().filter_map(|status| status.uptime);
            let age = ages.filter_map(|age| Duration::try_from(age).ok()).min();
            let since = age.map(|age| format!(" in the last {}", two_units(age)));
            return Ok(writeln!(out, "no gaps{}", since.unwrap_or_default())?);
        }
        let mut table = Table::new(["TIME", "GATEWAY", "NODE", "REASON", "SHARDS", "MISSED"]);
        for group in &groups {
            table.add([
                second(group.time),
                group.gateway_id.clone(),
                group.node_id.clone(),
                reasons::name(group.reason),
                group.shards(),
                group.missed(),
            ]);
        }
        write!(out, "{table}")?;
        let reasons: BTreeSet<_> = groups.iter().map(|group| group.reason).collect();
        for reason in reasons {
            writeln!(out, "\n{}: {}", reasons::name(reason), reasons::advice(reason))?;
        }
        Ok(out.flush()?)
    }

    /// `explained`: the reasons that were explained already.
    fn print_new(
        &self,
        statuses: &[GetStatusResponse],
        explained: &mut BTreeSet<i32>,
    ) -> Result<(), Failure> {
        if self.json {
            return self.print_json(statuses);
        }
        let mut out = std::io::stdout().lock();
        for group in self.groups(statuses) {
            let node = if group.node_id.is_empty() { "a node" } else { &group.node_id };
            let text = format!(
                "{node} at {}: {}, shards {}, {} events missed",
                group.gateway_id,
                reasons::name(group.reason),
                group.shards(),
                group.missed()
            );
            writeln!(out, "{} gap {}", second(group.time), visible(&text))?;
            if explained.insert(group.reason) {
                writeln!(out, "    {}", reasons::advice(group.reason))?;
            }
        }
        Ok(out.flush()?)
    }

    fn print_json(&self, statuses: &[GetStatusResponse]) -> Result<(), Failure> {
        let mut gaps: Vec<_> = statuses
            .iter()
            .flat_map(|status| status.recent_gaps.iter().map(|gap| (&status.gateway_id, gap)))
            .filter(|(_, gap)| self.node_id.as_ref().is_none_or(|id| *id == gap.node_id))
            .collect();
        gaps.sort_by_key(|(_, gap)| {
            let time = gap.send_time.unwrap_or_default();
            (time.seconds, time.nanos, gap.number)
        });
        let mut out = std::io::stdout().lock();
        for (gateway_id, gap) in gaps {
            let mut json = json::to_json("SentGap", gap).map_err(Failure::Other)?;
            json["gatewayId"] = Value::from(gateway_id.as_str());
            writeln!(out, "{}", json_text(&json, self.pretty))?;
        }
        Ok(out.flush()?)
    }
}

impl Asked<'_> {
    async fn status(&mut self) -> Result<GetStatusResponse, Failure> {
        let asked = async {
            let client = match &mut self.client {
                Some(client) => client,
                none => none.insert(self.args.connect_to(self.address).await?),
            };
            Ok(client.get_status(GetStatusRequest {}).await?.into_inner())
        };
        let late = || Failure::Other(format!("no answer within {} s", LIMIT.as_secs()));
        let answer = timeout(LIMIT, asked).await.unwrap_or_else(|_| Err(late()));
        answer.map_err(|failure| {
            self.client = None;
            let is_final = match &failure {
                Failure::Gateway(_) => !failure.is_unavailable(),
                failure => matches!(failure, Failure::Usage(_)),
            };
            if is_final {
                return failure;
            }
            Failure::Unavailable { address: self.address.into(), why: failure.reason() }
        })
    }
}

/// A gateway of an earlier version has sent gaps, and lists none.
fn lists_none(status: &GetStatusResponse) -> bool {
    status.stream_gaps > 0 && status.recent_gaps.is_empty()
}

/// The gateways that were not asked, by id and address. None for a caller that may not list them.
async fn others(client: &mut Client, asked: &[GetStatusResponse]) -> Vec<String> {
    let request = ListNodesRequest { page_size: 1, ..ListNodesRequest::default() };
    let Ok(Ok(page)) = timeout(LIMIT, client.list_nodes(request)).await else { return vec![] };
    let gateways = page.into_inner().gateways.into_iter();
    gateways
        .filter(|gateway| asked.iter().all(|status| status.gateway_id != gateway.gateway_id))
        .map(|gateway| match &*gateway.address {
            "" => gateway.gateway_id,
            address => format!("{} ({address})", gateway.gateway_id),
        })
        .collect()
}
