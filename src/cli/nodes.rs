//! `trunkline nodes`.

use clap::Args;
use trunkline::proto::v1::ListNodesRequest;

use super::{Failure, Gateway, json};

#[derive(Args)]
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
        loop {
            let request = ListNodesRequest { page_size: 1000, page_token };
            let page = client.list_nodes(request).await?.into_inner();
            for node in page.nodes {
                if self.json {
                    println!("{}", json::to_json("Node", &node).map_err(Failure::Other)?);
                } else {
                    println!(
                        "{}  {}  roles [{}]  {} delivered, {} behind",
                        node.node_id,
                        node.peer,
                        node.roles.join(", "),
                        node.delivered_events,
                        node.behind_events
                    );
                }
            }
            if page.next_page_token.is_empty() {
                return Ok(());
            }
            page_token = page.next_page_token;
        }
    }
}
