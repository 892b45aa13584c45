//! `trunkline nodes`.

use std::{
    fmt::Write as _,
    io::Write,
    time::{Duration, SystemTime},
};

use clap::Args;
use trunkline::json;
use trunkline_proto::v1::{self, GatewayState, ListNodesRequest, NodeState};

use super::{Failure, GatewayArgs, duration::two_units, visible, visible_json};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline nodes                        the nodes of all gateways
  trunkline nodes --of gw-a --gateways   one gateway's nodes, and the gateways
  trunkline nodes --agents --json | jq .agent             what agents report of themselves
  trunkline nodes --json | jq -r 'select(.behindEvents) | .nodeId'   nodes that are behind
  trunkline nodes --json | jq -r 'select(.duplicate) | .nodeId'      ids that two processes use")]
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
    /// Print one JSON object per line, errors too
    #[arg(long)]
    pub(super) json: bool,
}

/// Rows of cells; each column is as wide as its widest cell.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Nodes {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut client = self.gateway.connect().await?;
        let (mut nodes, mut page_token, mut gateways) = (Vec::new(), String::new(), None);
        let mut out = std::io::stdout().lock();
        loop {
            let request = ListNodesRequest {
                page_size: 1000,
                page_token,
                gateway_id: self.of.clone().unwrap_or_default(),
                node_id: self.node_id.clone().unwrap_or_default(),
                agents: self.agents,
            };
            let page = client.list_nodes(request).await?.into_inner();
            if gateways.is_none() && self.json && self.gateways {
                for gateway in &page.gateways {
                    let json = json::to_json("Gateway", gateway).map_err(Failure::Other)?;
                    writeln!(out, "{}", visible_json(&json.to_string()))?;
                }
            }
            gateways.get_or_insert(page.gateways);
            if self.json {
                for node in &page.nodes {
                    let json = json::to_json("Node", node).map_err(Failure::Other)?;
                    writeln!(out, "{}", visible_json(&json.to_string()))?;
                }
            } else {
                nodes.extend(page.nodes);
            }
            if page.next_page_token.is_empty() {
                break;
            }
            page_token = page.next_page_token;
        }
        if self.json {
            return Ok(());
        }
        if self.gateways {
            write!(out, "{}", gateway_table(&gateways.unwrap_or_default()))?;
            writeln!(out)?;
        }
        write!(out, "{}", node_table(&nodes))?;
        Ok(())
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

fn since(time: Option<prost_types::Timestamp>) -> String {
    let time = time.and_then(|time| SystemTime::try_from(time).ok());
    // Zero if this machine's clock is behind the gateway's.
    time.map_or_else(String::new, |time| two_units(time.elapsed().unwrap_or_default()))
}

impl Table {
    fn new<const N: usize>(head: [&str; N]) -> Table {
        Table { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    /// Adds a row. Cells may hold anything that a node chose.
    fn add<const N: usize>(&mut self, cells: [String; N]) {
        let shown = |cell: String| match cell.as_str() {
            "" => "-".to_owned(),
            text => visible(text).into_owned(),
        };
        self.rows.push(cells.map(shown).to_vec());
    }

    fn set_last(&mut self, column: usize, cell: String) {
        if let Some(row) = self.rows.last_mut() {
            row[column] = cell;
        }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..columns).filter_map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_hidden_characters_are_escaped() {
        let mut table = Table::new(["NODE", "ROLES"]);
        table.add(["mx-longer".into(), String::new()]);
        table.add(["m\u{1b}[31m\u{e9}".into(), "imap".into()]);
        let expected = "NODE          ROLES\nmx-longer     -\nm\\u{1b}[31m\u{e9}  imap\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn states_that_need_attention_are_in_capitals() {
        assert_eq!(name("GATEWAY_STATE_SERVING", "GATEWAY_STATE_"), "serving");
        assert_eq!(name("GATEWAY_STATE_NOT_SERVING", "GATEWAY_STATE_"), "NOT SERVING");
        assert_eq!(name("NODE_STATE_SILENT", "NODE_STATE_"), "SILENT");
    }
}
