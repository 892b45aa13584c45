//! The list of all nodes and gateways, made when a request asks for it.

use std::{
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;

use super::{
    BEHIND_LAG, Key, NodeEntry, Nodes, StreamStats, WatchStats, duration,
    others::{Member, Other, View},
    timestamp,
};
use crate::{
    bus::unix_ms,
    proto::v1::{self, GatewayState, NodeState},
};

/// Separates node id and subscription id in a page token: no id has control characters.
const SEPARATOR: char = '\n';

/// A gateway that has not renewed its record for this time is silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(6);

/// Bytes of nodes on a page, whatever its size: clients read messages of 4 MiB unless they are
/// configured otherwise.
const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// The last millisecond of the year 9999, after which protobuf has no times.
const MAX_TIME_MS: u64 = 253_402_300_799_999;

/// Selects nodes.
#[derive(Debug, Default)]
pub struct Query {
    /// The gateway of the nodes; none: any.
    pub gateway_id: Option<String>,
    /// The id of the nodes; none: any.
    pub node_id: Option<String>,
    /// True: only nodes that are agents.
    pub agents: bool,
    /// The begin of the page.
    pub start: PageStart,
    /// The number of nodes on the page.
    pub size: usize,
}

/// The begin of a page.
#[derive(Debug, Default)]
pub struct PageStart {
    /// The last node of the page before; none for the first page.
    after: Option<Key>,
}

/// A stream of any gateway.
pub struct ListedNode<'a> {
    /// The fields that do not change.
    pub node: &'a v1::Node,
    /// Its gateway.
    pub gateway_id: &'a str,
    /// True if it is this gateway's: its stats are current, those of others as last published.
    pub own: bool,
    /// Its state.
    pub state: NodeState,
    /// The number of events that were sent on it.
    pub delivered: u64,
    /// Of a `Watch` stream.
    pub watch: Option<WatchStats>,
    /// The number of events that it has not read yet.
    pub behind: u64,
    /// True if another live process uses its node id.
    pub duplicate: bool,
    /// What it reports of itself, if it is an agent.
    pub agent: Option<v1::AgentReport>,
}

/// A node on a page.
enum Found {
    Own(Arc<NodeEntry>),
    Other(Other),
}

impl Nodes {
    /// The nodes of all gateways that match the query, in the order of their ids, and the gateways.
    pub fn list(&self, query: &Query) -> v1::ListNodesResponse {
        self.look();
        let (nodes, next_page_token) = self.page(query, self.gateway.state());
        v1::ListNodesResponse { nodes, next_page_token, gateways: self.gateways() }
    }

    /// All gateways, in the order of their ids.
    pub fn gateways(&self) -> Vec<v1::Gateway> {
        let mut gateways = self
            .others
            .view(|view| view.members.values().map(describe_gateway).collect::<Vec<_>>());
        let (streams, unlisted) = {
            let local = self.local.lock();
            (local.entries.len(), local.shards.unlisted())
        };
        gateways.push(v1::Gateway {
            gateway_id: self.gateway.about.gateway_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            address: self.gateway.about.address.clone(),
            start_time: Some(timestamp(self.gateway.about.started)),
            state: self.gateway.state().into(),
            streams: u32::try_from(streams).unwrap_or(u32::MAX),
            age: Some(duration(Duration::ZERO)),
            unlisted_streams: u32::try_from(unlisted).unwrap_or(u32::MAX),
        });
        gateways.sort_by(|a, b| a.gateway_id.cmp(&b.gateway_id));
        gateways
    }

    /// Reads the streams of all gateways, this one's first, but at most `max`. Returns the number
    /// of all.
    pub fn each(&self, max: usize, mut see: impl FnMut(&ListedNode<'_>)) -> usize {
        self.look();
        let own = self.gateway.state();
        let mut show = |node: &v1::Node,
                        gateway_id: &str,
                        own,
                        agent: &[u8],
                        (state, stats): (_, StreamStats)| {
            let StreamStats { delivered, behind, watch, .. } = stats;
            see(&ListedNode {
                node,
                gateway_id,
                own,
                state,
                delivered,
                watch,
                behind,
                duplicate: self.duplicates.is_one(&node.node_id),
                agent: self.agents.report(agent),
            });
        };
        let entries = self.all();
        let now_ms = unix_ms();
        for entry in entries.iter().take(max) {
            show(
                &entry.node,
                &self.gateway.about.gateway_id,
                true,
                &entry.agent(),
                state_of_own(entry, own, now_ms),
            );
        }
        // They are decoded after the lock is released.
        let left = max.saturating_sub(entries.len());
        let (others, count) = self.others.view(|view| {
            let known = view.nodes.values().take(left).filter_map(|other| {
                let member = view.members.get(&other.member)?;
                let gateway_id = member.record.gateway_id.clone();
                let agent = member.agents.get(&other.number).cloned().unwrap_or_default();
                Some((other.clone(), gateway_id, agent, state_of_other(other, member)))
            });
            (known.collect::<Vec<_>>(), view.nodes.len())
        });
        for (other, gateway_id, agent, state) in others {
            show(&other.node(), &gateway_id, false, &agent, state);
        }
        entries.len() + count
    }

    /// A page, and the token of the next one; empty if there is none.
    fn page(&self, query: &Query, own: GatewayState) -> (Vec<v1::Node>, String) {
        let wanted = query.size + 1;
        let from = query.start.bound(query.node_id.as_deref());
        let id = query.node_id.as_deref();
        let of_id = |key: &Key| id.is_none_or(|id| key.0 == id);
        let of_gateway = |gateway: &str| query.gateway_id.as_ref().is_none_or(|id| id == gateway);

        let mut found: Vec<(Key, Found)> = self.others.view(|view| {
            let range = view.nodes.range::<Key, _>((from.as_ref(), Bound::Unbounded));
            range
                .take_while(|(key, _)| of_id(key))
                .filter(|(_, other)| {
                    view.members.get(&other.member).is_some_and(|member| {
                        of_gateway(&member.record.gateway_id)
                            && (!query.agents || member.agents.contains_key(&other.number))
                    })
                })
                .take(wanted)
                .map(|(key, other)| ((**key).clone(), Found::Other(other.clone())))
                .collect()
        });
        if of_gateway(&self.gateway.about.gateway_id) {
            let local = self.local.lock();
            let range = local.entries.range::<Key, _>((from.as_ref(), Bound::Unbounded));
            let own = range
                .take_while(|(key, _)| of_id(key))
                .filter(|(_, entry)| !query.agents || !entry.agent().is_empty())
                .take(wanted);
            found.extend(own.map(|(key, entry)| (key.clone(), Found::Own(entry.clone()))));
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        let now_ms = unix_ms();
        self.others.view(|view| {
            let (mut nodes, mut bytes, mut last) = (Vec::new(), 0, None);
            for (key, found) in &found {
                let node = match found {
                    Found::Own(entry) => self.describe_own(entry, own, now_ms),
                    Found::Other(other) => self.describe_other(other, view),
                };
                bytes += node.encoded_len();
                if let Some(last) = last
                    && (nodes.len() == query.size || bytes > MAX_PAGE_BYTES)
                {
                    return (nodes, PageStart::encode_after(last));
                }
                nodes.push(node);
                last = Some(key);
            }
            (nodes, String::new())
        })
    }

    fn describe_own(&self, entry: &NodeEntry, own: GatewayState, now_ms: u64) -> v1::Node {
        let (state, stats) = state_of_own(entry, own, now_ms);
        v1::Node {
            gateway_id: self.gateway.about.gateway_id.clone(),
            gateway_version: env!("CARGO_PKG_VERSION").into(),
            gateway_address: self.gateway.about.address.clone(),
            agent: self.agents.report(&entry.agent()),
            ..self.described(entry.node.clone(), state, stats)
        }
    }

    fn describe_other(&self, other: &Other, view: &View) -> v1::Node {
        let Some(member) = view.members.get(&other.member) else {
            // It was removed meanwhile: what was found is still worth listing.
            return self.described(other.node(), NodeState::Silent, StreamStats::default());
        };
        let (state, stats) = state_of_other(other, member);
        v1::Node {
            gateway_id: member.record.gateway_id.clone(),
            gateway_version: member.record.version.clone(),
            gateway_address: member.record.address.clone(),
            agent: member.agents.get(&other.number).and_then(|agent| self.agents.report(agent)),
            ..self.described(other.node(), state, stats)
        }
    }

    fn described(&self, node: v1::Node, state: NodeState, stats: StreamStats) -> v1::Node {
        let mut node = v1::Node {
            delivered_events: stats.delivered,
            behind_events: stats.behind,
            lag: Some(duration(Duration::from_millis(stats.lag_ms))),
            state: state.into(),
            duplicate: self.duplicates.is_one(&node.node_id),
            ..node
        };
        if let Some(watch) = stats.watch {
            watch.describe(&mut node);
        }
        node
    }
}

impl PageStart {
    /// Reads a page token; None: it is not one of this method. The empty one means the first page.
    pub fn decode(token: &str) -> Option<PageStart> {
        if token.is_empty() {
            return Some(PageStart::default());
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let (node, subscription) = text.split_once(SEPARATOR)?;
        Some(PageStart { after: Some((node.to_owned(), subscription.to_owned())) })
    }

    /// The token of the page that begins after this node: opaque to clients, and safe in a URL
    /// (AIP-158).
    fn encode_after((node, subscription): &Key) -> String {
        URL_SAFE_NO_PAD.encode(format!("{node}{SEPARATOR}{subscription}"))
    }

    /// The first key of the page, for the nodes of one id or all.
    fn bound(&self, node_id: Option<&str>) -> Bound<Key> {
        match (&self.after, node_id) {
            // A token of a list of other nodes has no meaning for this one.
            (Some(after), id) if id.is_none_or(|id| after.0 == id) => {
                Bound::Excluded(after.clone())
            }
            (_, Some(id)) => Bound::Included((id.to_owned(), String::new())),
            (_, None) => Bound::Unbounded,
        }
    }
}

fn state_of_own(entry: &NodeEntry, own: GatewayState, now_ms: u64) -> (NodeState, StreamStats) {
    let stats = entry.stats(now_ms);
    let draining = own == GatewayState::Draining;
    (if draining { NodeState::Draining } else { by_lag(stats) }, stats)
}

fn state_of_other(other: &Other, member: &Member) -> (NodeState, StreamStats) {
    let stats = member.stats.get(&other.number).copied().unwrap_or_default();
    let state = if member.renewed.elapsed() >= SILENT_AFTER {
        NodeState::Silent
    } else if member.record.state() == GatewayState::Draining {
        NodeState::Draining
    } else {
        by_lag(stats)
    };
    (state, stats)
}

fn by_lag(stats: StreamStats) -> NodeState {
    let behind = Duration::from_millis(stats.lag_ms) >= BEHIND_LAG;
    if behind { NodeState::Behind } else { NodeState::Current }
}

fn describe_gateway(member: &Member) -> v1::Gateway {
    let age = Instant::now().saturating_duration_since(member.renewed);
    let record = &member.record;
    let state = if age >= SILENT_AFTER { GatewayState::Silent } else { record.state() };
    v1::Gateway {
        gateway_id: record.gateway_id.clone(),
        version: record.version.clone(),
        address: record.address.clone(),
        start_time: Some(timestamp(
            SystemTime::UNIX_EPOCH + Duration::from_millis(record.start_time_ms.min(MAX_TIME_MS)),
        )),
        state: state.into(),
        streams: record.streams,
        age: Some(duration(age)),
        unlisted_streams: record.unlisted_streams,
    }
}
