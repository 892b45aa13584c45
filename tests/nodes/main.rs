//! The nodes of several gateways, as operators see them.

// Tests and their helpers state expectations by unwrapping.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod agents;
mod cost;
mod duplicates;
mod membership;
mod moves;
mod presence;
mod waits;

use serde_json::json;
use support::{Gateway, GatewayOptions, RedisOptions, RedisServer};
use trunkline_proto::v1::{ListNodesRequest, ListNodesResponse, Node};

/// A gateway of this id. Connections that died are found soon, and so are duplicates: after 7 s.
fn named(options: GatewayOptions, id: &str) -> GatewayOptions {
    options.set("gatewayId", id).set("keepalive", json!({"interval": "1s", "timeout": "1s"}))
}

/// A Redis of the test's own: its commands are counted, and all that it has is taken from it.
async fn redis() -> RedisServer {
    RedisServer::start(RedisOptions::default()).await
}

/// Two gateways on one Redis.
async fn two(redis: &RedisServer) -> (Gateway, Gateway) {
    tokio::join!(one_more(redis, "gw-a"), one_more(redis, "gw-b"))
}

async fn one_more(redis: &RedisServer, id: &str) -> Gateway {
    Gateway::start(named(GatewayOptions::redis(&redis.url(), "nodes"), id)).await
}

/// One page.
async fn page(gateway: &Gateway, request: ListNodesRequest) -> ListNodesResponse {
    gateway.client().await.list_nodes(request).await.unwrap().into_inner()
}

/// All nodes, as a gateway lists them.
async fn nodes(gateway: &Gateway) -> Vec<Node> {
    page(gateway, ListNodesRequest { page_size: 1000, ..Default::default() }).await.nodes
}

/// Their ids.
async fn node_ids(gateway: &Gateway) -> Vec<String> {
    nodes(gateway).await.into_iter().map(|node| node.node_id).collect()
}

/// The ids of the gateways that a gateway lists.
async fn gateway_ids(gateway: &Gateway) -> Vec<String> {
    let page = page(gateway, ListNodesRequest::default()).await;
    page.gateways.into_iter().map(|gateway| gateway.gateway_id).collect()
}
