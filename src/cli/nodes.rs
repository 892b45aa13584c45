//! `trunkline nodes`.

mod changes;
mod watch;

use std::{io::Write, time::Duration};

use clap::Args;
use serde_json::Value;
use trunkline::json;
use trunkline_proto::v1::{self, GatewayState, ListNodesRequest, NodeState};

use super::{
    Client, Failure, GatewayArgs,
    duration::{parse_interval, since, two_units},
    json_text,
    table::Table,
    until_ended::until_ended,
};

#[derive(Args)]
#[command(after_help = "\
With --watch the list comes first, then a line for each node that joins or leaves, until Ctrl-C;
with --json, objects as `subscribe` prints them: nodeJoined, nodeLeft, and currentNodes after the
list. It follows the events about nodes that gateways publish with `nodeEvents: true`. Where they do
not, or with --agents, it lists the nodes at each --interval, says so on standard error, and knows
no reasons for which nodes left. When its gateway goes away, it goes on with the next one in
--gateway.

Examples:
  trunkline nodes                        the nodes of all gateways
  trunkline nodes --of gw-a --gateways   one gateway's nodes, and the gateways
  trunkline nodes --agents --json | jq .agent             what agents report of themselves
  trunkline nodes --watch --gateway gw-a,gw-b            nodes as they join and leave
  trunkline nodes --watch --json | jq -r '.nodeLeft.nodeId // empty'
  trunkline nodes --json | jq -r 'select(.behindEvents) | .nodeId'   nodes that are behind
  trunkline nodes --json | jq -r 'select(.duplicate) | .nodeId'      ids that two processes use")]
#[allow(clippy::struct_excessive_bools)] // flags
pub(super) struct Nodes {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Only the nodes of the gateway with this id
    #[arg(long, value_name = "GATEWAY_ID")]
    of: Option<String>,
    /// Only the streams of the node with this id
    #[arg(long)]
    node_id: Option<String>,
    /// Only agents, which serve programs that do not know Trunkline
    #[arg(long)]
    agents: bool,
    /// Print the gateways too
    #[arg(long)]
    gateways: bool,
    /// Go on, with the nodes that join and leave
    #[arg(long, conflicts_with = "gateways")]
    watch: bool,
    /// Time between two lists of --watch, where it cannot follow events
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_interval)]
    interval: Duration,
    /// Print one JSON object per line, errors too
    #[arg(long)]
    pub(super) json: bool,
    /// Print each object over several lines, indented
    #[arg(long, requires = "json")]
    pretty: bool,
}

impl Nodes {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        if self.watch {
            return until_ended(watch::watch(self)).await;
        }
        let mut client = self.gateway.connect().await?;
        let (nodes, gateways) = self.list(&mut client).await?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let mut print = |json: Result<Value, String>| {
                let json = json.map_err(Failure::Other)?;
                Ok::<_, Failure>(writeln!(out, "{}", json_text(&json, self.pretty))?)
            };
            for gateway in gateways.iter().filter(|_| self.gateways) {
                print(json::to_json("Gateway", gateway))?;
            }
            for node in &nodes {
                print(json::to_json("Node", node))?;
            }
            return Ok(());
        }
        if self.gateways {
            write!(out, "{}", gateway_table(&gateways))?;
            writeln!(out)?;
        }
        write!(out, "{}", node_table(&nodes))?;
        Ok(())
    }

    /// The nodes that the flags ask for, and all gateways.
    async fn list(
        &self,
        client: &mut Client,
    ) -> Result<(Vec<v1::Node>, Vec<v1::Gateway>), Failure> {
        let (mut nodes, mut page_token, mut gateways) = (Vec::new(), String::new(), None);
        loop {
            let request = ListNodesRequest {
                page_size: 1000,
                page_token,
                gateway_id: self.of.clone().unwrap_or_default(),
                node_id: self.node_id.clone().unwrap_or_default(),
                agents: self.agents,
            };
            let page = client.list_nodes(request).await?.into_inner();
            gateways.get_or_insert(page.gateways);
            nodes.extend(page.nodes);
            if page.next_page_token.is_empty() {
                return Ok((nodes, gateways.unwrap_or_default()));
            }
            page_token = page.next_page_token;
        }
    }
}

fn gateway_table(gateways: &[v1::Gateway]) -> Table {
    let mut table =
        Table::new(["GATEWAY", "STATE", "STREAMS", "VERSION", "ADDRESS", "UP FOR", "KNOWN"]);
    for gateway in gateways {
        let age = gateway.age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
        table.add([
            gateway.gateway_id.clone(),
            name(gateway.state().as_str_name(), "GATEWAY_STATE_"),
            gateway.streams.to_string(),
            gateway.version.clone(),
            gateway.address.clone(),
            since(gateway.start_time),
            if age.is_zero() { "now".into() } else { format!("{} ago", two_units(age)) },
        ]);
        if gateway.state() == GatewayState::Unspecified {
            // A state that a newer version added is shown by its number.
            table.set_last(1, gateway.state.to_string());
        }
    }
    table
}

fn node_table(nodes: &[v1::Node]) -> Table {
    let mut table = Table::new([
        "NODE", "STATE", "ROLES", "VERSION", "GATEWAY", "PEER", "UP FOR", "SENT", "BEHIND", "LAG",
    ]);
    for node in nodes {
        let lag = node.lag.and_then(|lag| Duration::try_from(lag).ok()).unwrap_or_default();
        let mut state = name(node.state().as_str_name(), "NODE_STATE_");
        if node.state() == NodeState::Unspecified {
            state = node.state.to_string();
        }
        if node.duplicate {
            state.push_str(", DUPLICATE");
        }
        table.add([
            node.node_id.clone(),
            state,
            node.roles.join(","),
            node.client_version.clone(),
            node.gateway_id.clone(),
            node.peer.clone(),
            since(node.connect_time),
            node.delivered_events.to_string(),
            node.behind_events.to_string(),
            if lag.is_zero() { "-".into() } else { two_units(lag) },
        ]);
    }
    table
}

/// The name of a state: `serving` for `GATEWAY_STATE_SERVING`; in capitals, as `NOT SERVING`, where
/// an operator should act.
pub(super) fn name(full: &str, prefix: &str) -> String {
    let name = full.trim_start_matches(prefix).replace('_', " ");
    match name.as_str() {
        "SERVING" | "CURRENT" | "DRAINING" => name.to_lowercase(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_need_attention_are_in_capitals() {
        assert_eq!(name("GATEWAY_STATE_SERVING", "GATEWAY_STATE_"), "serving");
        assert_eq!(name("GATEWAY_STATE_NOT_SERVING", "GATEWAY_STATE_"), "NOT SERVING");
        assert_eq!(name("NODE_STATE_SILENT", "NODE_STATE_"), "SILENT");
    }
}
