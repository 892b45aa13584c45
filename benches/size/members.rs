//! The membership of simulated gateways, and a real one that reads what they write.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trunkline::{
    bus::{LastChange, MemberId, MemberUpdate, SharedBus},
    proto::bus_v1::{MemberRecord, MemberShard, NodeRecord},
};
use trunkline_proto::v1::{Filter, GatewayState, ListNodesRequest, Node};

use super::support::{Gateway, GatewayOptions, RedisServer, wait::until};

/// As a gateway does it.
const INTERVAL: Duration = Duration::from_secs(2);
const TTL: Duration = Duration::from_secs(10);
const SILENT_AFTER: Duration = Duration::from_secs(4);
const SHARD_NODES: u32 = 4;

/// The memberships of all simulated gateways.
pub struct Members {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    /// By gateway: the number of changes that its nodes are to make.
    wanted: Vec<Arc<AtomicU64>>,
}

/// One membership.
struct Member {
    bus: SharedBus,
    id: MemberId,
    number: u64,
    taken: Option<u64>,
    known: Option<LastChange>,
    nodes: u32,
    /// The revisions of its member shards.
    own: Vec<u64>,
    /// Those of the others, by member and number.
    others: HashMap<(MemberId, u32), u64>,
    wanted: Arc<AtomicU64>,
    made: u64,
}

impl Members {
    /// Starts a membership of so many nodes for each gateway; returns when each has written its
    /// first record.
    pub async fn start(buses: impl Iterator<Item = SharedBus>, nodes: u32) -> Members {
        let stop = CancellationToken::new();
        let (mut tasks, mut wanted) = (JoinSet::new(), Vec::new());
        for bus in buses {
            let changes = Arc::new(AtomicU64::new(0));
            wanted.push(changes.clone());
            let shards = nodes.div_ceil(SHARD_NODES) as usize;
            let mut member = Member {
                bus,
                id: MemberId(rand::random()),
                number: 0,
                taken: None,
                known: None,
                nodes,
                own: vec![1; shards],
                others: HashMap::new(),
                wanted: changes,
                made: 0,
            };
            // One after the other: each reads all before it, and goes on with changes.
            member.round().await;
            let stop = stop.clone();
            tasks.spawn(async move {
                stop.run_until_cancelled(member.run()).await;
            });
        }
        Members { tasks, stop, wanted }
    }

    /// Lets so many nodes come and go in each second.
    pub async fn change(&self, each_second: u32, time: Duration) {
        let until = Instant::now() + time;
        let mut tick = tokio::time::interval(Duration::from_secs(1) / each_second.max(1));
        for gateway in self.wanted.iter().cycle() {
            tick.tick().await;
            if Instant::now() >= until {
                return;
            }
            gateway.fetch_add(u64::from(each_second > 0), Ordering::Relaxed);
        }
    }

    /// Ends them all.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Member {
    async fn run(mut self) {
        // Not all at one time.
        tokio::time::sleep(INTERVAL.mul_f64(rand::random())).await;
        let mut tick = tokio::time::interval(INTERVAL / 4);
        let mut rounds = 0_u32;
        loop {
            tick.tick().await;
            rounds += 1;
            let changes = self.wanted.load(Ordering::Relaxed) != self.made;
            if changes || rounds.is_multiple_of(4) {
                self.round().await;
            }
        }
    }

    /// One exchange, and what is to be read after it.
    async fn round(&mut self) {
        let mut shards = Vec::new();
        if self.taken.is_none() {
            let all = 1..=u32::try_from(self.own.len()).expect("few shards");
            shards.extend(all.map(|number| (number, Some(self.shard(number)))));
        }
        let wanted = self.wanted.load(Ordering::Relaxed);
        while self.made < wanted && !self.own.is_empty() {
            self.made += 1;
            let index = usize::try_from(self.made).expect("few changes") % self.own.len();
            self.own[index] += 1;
            let number = u32::try_from(index + 1).expect("few shards");
            shards.push((number, Some(self.shard(number))));
        }
        let record = MemberRecord {
            gateway_id: format!("gateway-{:016x}", self.id.0),
            version: env!("CARGO_PKG_VERSION").into(),
            address: "10.20.30.40:7420".into(),
            start_time_ms: 1_800_000_000_000,
            state: GatewayState::Serving.into(),
            streams: self.nodes,
            shards: (1..).take(self.own.len()).collect(),
            revisions: self.own.clone(),
            ..Default::default()
        };
        self.number += 1;
        let update = MemberUpdate {
            member: self.id,
            ttl: TTL,
            number: self.number,
            follows: self.taken,
            has_shards: self.taken.is_some() && !self.own.is_empty(),
            record: record.encode_to_vec().into(),
            shards,
            known: self.known.take(),
            silent_after: SILENT_AFTER,
        };
        let members = self.bus.members().expect("a bus of several gateways");
        let Ok(exchange) = members.exchange(update).await else { return };
        self.taken = exchange.taken.then_some(self.number);
        self.known = exchange.known;
        for found in exchange.members {
            if found.member == self.id {
                continue;
            }
            let record = MemberRecord::decode(found.record).expect("a record");
            let mut changed = Vec::new();
            for (number, revision) in record.shards.iter().zip(record.revisions) {
                let before = self.others.insert((found.member, *number), revision);
                // What is there at first is not read: a thousand gateways that start at once in one
                // process would read nothing else for minutes.
                if before.is_some_and(|before| before < revision) {
                    changed.push(*number);
                }
            }
            if !changed.is_empty() {
                let _ = members.member_shards(found.member, changed).await;
            }
        }
    }

    fn shard(&self, number: u32) -> Bytes {
        let first = (number - 1) * SHARD_NODES;
        let numbers = first..(first + SHARD_NODES).min(self.nodes);
        let revision = self.own[number as usize - 1];
        let nodes = numbers.map(|number| {
            let node = Node {
                node_id: format!("mail-{:08x}-{number}", self.id.0 >> 32),
                incarnation: format!("{:016x}", self.id.0 ^ u64::from(number)),
                roles: vec!["imap".into()],
                client_version: "imapd 2.4.1".into(),
                subscription_id: format!(
                    "0199c0de-0000-7000-8000-{:08x}{number:04x}",
                    self.id.0 >> 32
                ),
                connect_time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 7 }),
                peer: "10.20.30.41:53124".into(),
                filter: Some(Filter { accounts: vec!["account-17".into()], ..Default::default() }),
                filter_accounts: 1,
                ..Default::default()
            };
            let number = u64::from(number) + 1;
            NodeRecord { number, node: node.encode_to_vec().into(), returns: 0 }
        });
        MemberShard { revision, nodes: nodes.collect() }.encode_to_vec().into()
    }
}

/// The time until a real gateway that starts lists all nodes, and the MB that they take there: of
/// its resident memory, beyond that of a gateway of another deployment.
pub async fn listed_at_a_new_gateway(
    redis: &RedisServer,
    prefix: &str,
    nodes: u64,
) -> (Duration, u64) {
    let options = |prefix: &str| GatewayOptions::redis(&redis.url(), prefix).set("shards", 16);
    let other = Gateway::start(options("another-deployment")).await;
    let begun = Instant::now();
    let gateway = Gateway::start(options(prefix)).await;
    let mut client = gateway.client().await;
    let mut known = 0;
    until(Duration::from_mins(5), "all nodes", async || {
        let request = ListNodesRequest { page_size: 1, ..Default::default() };
        let list = client.list_nodes(request).await.expect("a list").into_inner();
        known = list.gateways.iter().map(|gateway| u64::from(gateway.streams)).sum::<u64>();
        known >= nodes && listed(&gateway).await >= nodes
    })
    .await;
    let took = begun.elapsed();
    let beyond = gateway.rss_bytes().saturating_sub(other.rss_bytes());
    (took, beyond / 1_000_000)
}

/// The number of nodes that a gateway lists, page by page.
async fn listed(gateway: &Gateway) -> u64 {
    let mut client = gateway.client().await;
    let (mut token, mut count) = (String::new(), 0);
    loop {
        let request = ListNodesRequest { page_size: 1000, page_token: token, ..Default::default() };
        let page = client.list_nodes(request).await.expect("a page").into_inner();
        count += page.nodes.len() as u64;
        token = page.next_page_token;
        if token.is_empty() {
            return count;
        }
    }
}
