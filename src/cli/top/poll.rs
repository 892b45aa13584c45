//! Polls gateways; reconnects to those that went away.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use trunkline_proto::v1::{
    Gateway, GatewayState, GetStatusRequest, GetStatusResponse, ListNodesRequest, Node,
};

use crate::cli::{Client, Failure, GatewayArgs, failure::all_of};

/// Time limit of a connection and of a snapshot.
const LIMIT: Duration = Duration::from_secs(5);

/// Most nodes of a snapshot: nobody scrolls through more.
const MAX_NODES: usize = 5000;

/// The state of the gateways at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The status of the first gateway that answered.
    pub status: GetStatusResponse,
    /// Those of the others that were asked and answered.
    pub others: Vec<GetStatusResponse>,
    /// The addresses that gave no answer, where another one did, and why.
    pub unanswered: Vec<(String, String)>,
    /// All gateways that the first one knows, itself included, and those that answered besides: of
    /// another deployment, or so new that the first one has not learned of them.
    pub gateways: Vec<Gateway>,
    /// The connected nodes of all gateways, or the first of them.
    pub nodes: Vec<Node>,
    /// True if there are more nodes than `nodes` lists.
    pub more: bool,
}

impl Snapshot {
    /// The status of every gateway that answered.
    pub fn statuses(&self) -> impl Iterator<Item = &GetStatusResponse> {
        std::iter::once(&self.status).chain(&self.others)
    }

    /// Adds the gateways that answered and that the first one does not list.
    pub fn add_unlisted(&mut self) {
        let listed: HashSet<&str> =
            self.gateways.iter().map(|gateway| &*gateway.gateway_id).collect();
        let unlisted = self.others.iter().filter(|one| !listed.contains(&*one.gateway_id));
        let unlisted: Vec<Gateway> = unlisted.map(as_gateway).collect();
        self.gateways.extend(unlisted);
    }
}

/// What a gateway says of itself, as a list of gateways has it.
fn as_gateway(status: &GetStatusResponse) -> Gateway {
    let state = if status.serving { GatewayState::Serving } else { GatewayState::NotServing };
    Gateway {
        gateway_id: status.gateway_id.clone(),
        version: status.version.clone(),
        start_time: status.start_time,
        state: state.into(),
        streams: status.streams,
        ..Gateway::default()
    }
}

/// The gateways that are asked, and connections to them.
pub struct Gateways {
    args: GatewayArgs,
    clients: Vec<Option<Client>>,
}

impl Gateways {
    /// Those that are named in the arguments; no connection is opened yet.
    pub fn new(args: GatewayArgs) -> Gateways {
        let clients = args.addresses().iter().map(|_| None).collect();
        Gateways { args, clients }
    }

    /// Asks all for their status, and the first one that answers for the nodes.
    ///
    /// # Errors
    ///
    /// None has answered.
    pub async fn snapshot(&mut self) -> Result<Snapshot, Failure> {
        let (args, addresses) = (&self.args, self.args.addresses());
        let asked = self.clients.iter_mut().zip(addresses);
        let answers = join_all(asked.map(|(client, address)| status(args, address, client))).await;
        let (mut snapshot, mut failures) = (None::<Snapshot>, Vec::new());
        for ((answer, client), address) in answers.into_iter().zip(&mut self.clients).zip(addresses)
        {
            match (answer, &mut snapshot, client) {
                (Ok(status), Some(snapshot), _) => snapshot.others.push(status),
                (Ok(status), None, Some(client)) => {
                    let mut first = Snapshot { status, ..Default::default() };
                    match in_time(nodes(client, &mut first)).await {
                        Ok(()) => snapshot = Some(first),
                        Err(failure) => failures.push((address, failure)),
                    }
                }
                (Ok(_), None, None) => {}
                (Err(failure), ..) => failures.push((address, failure)),
            }
        }
        let Some(mut snapshot) = snapshot else {
            let failures = failures.into_iter().map(|(_, failure)| failure).collect();
            return Err(all_of(failures).unwrap_or_else(late));
        };
        let reason = |(address, why): (&String, Failure)| (address.clone(), why.reason());
        snapshot.unanswered = failures.into_iter().map(reason).collect();
        // An address may be that of a gateway that was named before.
        let mut seen = vec![snapshot.status.gateway_id.clone()];
        snapshot.others.retain(|status| {
            let new = !seen.contains(&status.gateway_id);
            seen.push(status.gateway_id.clone());
            new
        });
        snapshot.add_unlisted();
        Ok(snapshot)
    }
}

/// Asks a gateway for its status. After a failure its connection is opened anew.
async fn status(
    args: &GatewayArgs,
    address: &str,
    slot: &mut Option<Client>,
) -> Result<GetStatusResponse, Failure> {
    let mut client = match slot.take() {
        Some(client) => client,
        None => in_time(args.connect_to(address)).await?,
    };
    let asked = async { Ok(client.get_status(GetStatusRequest {}).await?.into_inner()) };
    let status = in_time(asked).await?;
    *slot = Some(client);
    Ok(status)
}

async fn in_time<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(LIMIT, call).await.map_err(|_| late())?
}

/// Polls in the background until it is dropped.
pub struct Poller {
    results: mpsc::Receiver<Result<Snapshot, Failure>>,
    _task: AbortOnDropHandle<()>,
}

impl Poller {
    /// Polls once per interval.
    pub fn start(gateways: GatewayArgs, interval: Duration) -> Poller {
        // Capacity 1: while a snapshot waits to be taken, no newer ones are made.
        let (to, results) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut gateways = Gateways::new(gateways);
            let mut tick = tokio::time::interval(interval);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                if to.send(gateways.snapshot().await).await.is_err() {
                    return;
                }
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

fn late() -> Failure {
    Failure::Other(format!("no answer within {} s", LIMIT.as_secs()))
}

/// Asks for the nodes and gateways.
async fn nodes(client: &mut Client, snapshot: &mut Snapshot) -> Result<(), Failure> {
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
            return Ok(());
        }
    }
}
