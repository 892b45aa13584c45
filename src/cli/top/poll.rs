//! Asks a gateway again and again; a gateway that went away is tried until it is back.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use trunkline_proto::v1::{GetStatusRequest, GetStatusResponse, ListNodesRequest, Node};

use crate::cli::{Client, Failure, Gateway};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Nodes that are asked for at most: nobody scrolls through more.
const MAX_NODES: usize = 5000;

/// What one look brought.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The gateway.
    pub status: GetStatusResponse,
    /// The nodes that hold a stream, or the first of them.
    pub nodes: Vec<Node>,
    /// Whether there are more.
    pub more: bool,
}

/// Looks in the background, until it is dropped.
pub struct Poller {
    looks: mpsc::Receiver<Result<Snapshot, Failure>>,
    _task: AbortOnDropHandle<()>,
}

impl Poller {
    /// Looks once an interval.
    pub fn start(gateway: Gateway, interval: Duration) -> Poller {
        // One place: who does not take a look gets no newer one either.
        let (to, looks) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            loop {
                let Err(failure) = follow(&gateway, interval, &to).await else { return };
                if to.send(Err(failure)).await.is_err() {
                    return;
                }
                tokio::time::sleep(interval).await;
            }
        });
        Poller { looks, _task: AbortOnDropHandle::new(task) }
    }

    /// The next look.
    pub async fn next(&mut self) -> Result<Snapshot, Failure> {
        let gone = || Failure::Other("nobody asks the gateway any more".into());
        self.looks.recv().await.unwrap_or_else(|| Err(gone()))
    }
}

/// Looks over one connection until it breaks. Ends well when nobody wants to know.
async fn follow(
    gateway: &Gateway,
    interval: Duration,
    to: &mpsc::Sender<Result<Snapshot, Failure>>,
) -> Result<(), Failure> {
    let mut client = timeout(LIMIT, gateway.connect()).await.map_err(|_| late())??;
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let looked = timeout(LIMIT, look(&mut client)).await.map_err(|_| late())??;
        if to.send(Ok(looked)).await.is_err() {
            return Ok(());
        }
    }
}

fn late() -> Failure {
    Failure::Other(format!("no answer within {} s", LIMIT.as_secs()))
}

/// One look.
pub async fn look(client: &mut Client) -> Result<Snapshot, Failure> {
    let status = client.get_status(GetStatusRequest {}).await?.into_inner();
    let mut snapshot = Snapshot { status, ..Default::default() };
    let mut page_token = String::new();
    loop {
        // Those of this gateway, as all else that is shown.
        let gateway_id = snapshot.status.gateway_id.clone();
        let request =
            ListNodesRequest { page_size: 1000, page_token, gateway_id, ..Default::default() };
        let page = client.list_nodes(request).await?.into_inner();
        snapshot.nodes.extend(page.nodes);
        page_token = page.next_page_token;
        snapshot.more = !page_token.is_empty();
        if !snapshot.more || snapshot.nodes.len() >= MAX_NODES {
            return Ok(snapshot);
        }
    }
}
