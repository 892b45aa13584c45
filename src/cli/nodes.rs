//! `trunkline nodes`.

use std::io::Write;

use clap::Args;
use trunkline::proto::v1::ListNodesRequest;

use super::{Failure, Gateway, json};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline nodes
  trunkline nodes --json | jq -r 'select(.behindEvents) | .nodeId'      who is behind")]
pub(super) struct Nodes {
    #[command(flatten)]
    gateway: Gateway,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Nodes {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut client = self.gateway.connect().await?;
        let mut page_token = String::new();
        let mut out = std::io::stdout().lock();
        loop {
            let request = ListNodesRequest { page_size: 1000, page_token, ..Default::default() };
            let page = client.list_nodes(request).await?.into_inner();
            for node in page.nodes {
                if self.json {
                    let json = json::to_json("Node", &node).map_err(Failure::Other)?;
                    writeln!(out, "{json}")?;
                } else {
                    writeln!(
                        out,
                        "{}  {}  roles [{}]  {} delivered, {} behind",
                        node.node_id,
                        node.peer,
                        node.roles.join(", "),
                        node.delivered_events,
                        node.behind_events
                    )?;
                }
            }
            if page.next_page_token.is_empty() {
                return Ok(());
            }
            page_token = page.next_page_token;
        }
    }
}
