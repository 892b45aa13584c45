//! Polls a gateway; reconnects to one that went away.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use trunkline_proto::v1::{Gateway, GetStatusRequest, GetStatusResponse, ListNodesRequest, Node};

use crate::cli::{Client, Failure, GatewayArgs};

/// Time limit of a connection and of a snapshot.
const LIMIT: Duration = Duration::from_secs(5);

/// Most nodes of a snapshot: nobody scrolls through more.
const MAX_NODES: usize = 5000;

/// The state of a gateway at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The status of the gateway.
    pub status: GetStatusResponse,
    /// All gateways that this one knows, itself included.
    pub gateways: Vec<Gateway>,
    /// The connected nodes of all gateways, or the first of them.
    pub nodes: Vec<Node>,
    /// True if there are more nodes than `nodes` lists.
    pub more: bool,
}

/// Polls in the background until it is dropped.
pub struct Poller {
    results: mpsc::Receiver<Result<Snapshot, Failure>>,
    _task: AbortOnDropHandle<()>,
}

impl Poller {
    /// Polls once per interval.
    pub fn start(gateway: GatewayArgs, interval: Duration) -> Poller {
        // Capacity 1: while a snapshot waits to be taken, no newer ones are made.
        let (to, results) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            loop {
                let Err(failure) = poll(&gateway, interval, &to).await else { return };
                if to.send(Err(failure)).await.is_err() {
                    return;
                }
                tokio::time::sleep(interval).await;
            }
        });
        Poller { results, _task: AbortOnDropHandle::new(task) }
    }

    /// The next snapshot, or the reason for which there is none.
    pub async fn next(&mut self) -> Result<Snapshot, Failure> {
        let ended = || Failure::Other("polling has ended".into());
        self.results.recv().await.unwrap_or_else(|| Err(ended()))
    }
}

/// Polls over one connection until it fails. Returns `Ok` once the receiver is dropped.
async fn poll(
    gateway: &GatewayArgs,
    interval: Duration,
    to: &mpsc::Sender<Result<Snapshot, Failure>>,
) -> Result<(), Failure> {
    let mut client = timeout(LIMIT, gateway.connect()).await.map_err(|_| late())??;
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let snapshot = timeout(LIMIT, snapshot(&mut client)).await.map_err(|_| late())??;
        if to.send(Ok(snapshot)).await.is_err() {
            return Ok(());
        }
    }
}

fn late() -> Failure {
    Failure::Other(format!("no answer within {} s", LIMIT.as_secs()))
}

/// Asks for the status and the nodes.
pub async fn snapshot(client: &mut Client) -> Result<Snapshot, Failure> {
    let status = client.get_status(GetStatusRequest {}).await?.into_inner();
    let mut snapshot = Snapshot { status, ..Default::default() };
    let mut page_token = String::new();
    loop {
        let request = ListNodesRequest { page_size: 1000, page_token, ..Default::default() };
        let page = client.list_nodes(request).await?.into_inner();
        if snapshot.nodes.is_empty() {
            snapshot.gateways = page.gateways;
        }
        snapshot.nodes.extend(page.nodes);
        page_token = page.next_page_token;
        snapshot.more = !page_token.is_empty();
        if !snapshot.more || snapshot.nodes.len() >= MAX_NODES {
            return Ok(snapshot);
        }
    }
}
