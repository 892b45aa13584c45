//! The list of all nodes and gateways, made when it is asked for.

use std::{
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;

use super::{BEHIND, Figure, Key, NodeEntry, Nodes, duration, timestamp};
use crate::presence::others::{Member, Other, View};
use crate::{
    bus::{Health, unix_ms},
    proto::v1::{self, GatewayState, NodeState},
    rpc::service::Shared,
};

/// Parts node id and subscription id in a page token: no id has control characters.
const BETWEEN: char = '\n';

/// A gateway that has not renewed what it said for so long is silent.
pub const SILENT: Duration = Duration::from_secs(6);

/// Bytes of nodes that a page has at most, whatever its size: clients read messages of 4 MiB unless they are told otherwise.
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// The last millisecond of the year 9999, after which protobuf has no times.
const LAST_MS: u64 = 253_402_300_799_999;

/// Which nodes are asked for.
#[derive(Debug, Default)]
pub struct Query {
    /// Of this gateway. Default: of all.
    pub gateway_id: Option<String>,
    /// Of this id. Default: of all.
    pub node_id: Option<String>,
    /// Where the page begins.
    pub start: PageStart,
    /// How many nodes it has at most.
    pub size: usize,
}

/// Where a page begins.
#[derive(Debug, Default)]
pub struct PageStart {
    /// The last node of the page before; none for the first page.
    after: Option<Key>,
}

/// A stream of any gateway, as one looks over all of them.
pub struct Seen<'a> {
    /// What does not change.
    pub node: &'a v1::Node,
    /// Whose stream it is.
    pub gateway_id: &'a str,
    /// Whether it is this gateway's: then the figures are of now, else as its gateway told them last.
    pub own: bool,
    /// How it does.
    pub state: NodeState,
    /// How many events it was sent.
    pub delivered: u64,
    /// How many it has still to be offered.
    pub behind: u64,
    /// Whether another live process has its node id.
    pub duplicate: bool,
}

/// A node that was found, still to be described.
enum Found {
    Own(Arc<NodeEntry>),
    Other(Other),
}

impl Shared {
    /// The nodes of all gateways that the query asks for, in the order of their ids, and the gateways.
    pub fn list_nodes(&self, query: &Query) -> v1::ListNodesResponse {
        let state = self.gateway_state();
        let (nodes, next_page_token) = self.nodes.page(query, state);
        v1::ListNodesResponse { nodes, next_page_token, gateways: self.nodes.gateways(state) }
    }

    /// Looks at the streams of all gateways, this one's first, but at no more than `most`. Returns how many there are.
    pub fn each_node(&self, most: usize, see: impl FnMut(&Seen<'_>)) -> usize {
        self.nodes.each(self.gateway_state(), most, see)
    }

    /// All gateways, by their ids.
    pub fn gateways(&self) -> Vec<v1::Gateway> {
        self.nodes.gateways(self.gateway_state())
    }

    /// How this gateway does.
    pub(super) fn gateway_state(&self) -> GatewayState {
        if self.drain.borrow().is_some() {
            return GatewayState::Draining;
        }
        match self.hub.get() {
            Some(hub) if *hub.bus().health().borrow() == Health::Ready => GatewayState::Serving,
            _ => GatewayState::NotServing,
        }
    }
}

impl Nodes {
    fn gateways(&self, own: GatewayState) -> Vec<v1::Gateway> {
        let mut gateways = self
            .others
            .view(|view| view.members.values().map(describe_gateway).collect::<Vec<_>>());
        let (streams, unlisted) = {
            let local = self.local.lock();
            (local.entries.len(), local.pages.unlisted())
        };
        gateways.push(v1::Gateway {
            gateway_id: self.about.gateway_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            address: self.about.address.clone(),
            start_time: Some(timestamp(self.about.started)),
            state: own.into(),
            streams: u32::try_from(streams).unwrap_or(u32::MAX),
            age: Some(duration(Duration::ZERO)),
            unlisted_streams: u32::try_from(unlisted).unwrap_or(u32::MAX),
        });
        gateways.sort_by(|a, b| a.gateway_id.cmp(&b.gateway_id));
        gateways
    }

    fn each(&self, own: GatewayState, most: usize, mut see: impl FnMut(&Seen<'_>)) -> usize {
        let mut show = |node: &v1::Node, gateway_id: &str, own, (state, figure): (_, Figure)| {
            let duplicate = self.duplicates.is_one(&node.node_id);
            let Figure { delivered, behind, .. } = figure;
            see(&Seen { node, gateway_id, own, state, delivered, behind, duplicate });
        };
        let entries = self.all();
        let now_ms = unix_ms();
        for entry in entries.iter().take(most) {
            show(&entry.node, &self.about.gateway_id, true, state_of_own(entry, own, now_ms));
        }
        // They are read after the lock is given back.
        let room = most.saturating_sub(entries.len());
        let (others, count) = self.others.view(|view| {
            let known = view.nodes.values().take(room).filter_map(|other| {
                let member = view.members.get(&other.member)?;
                let gateway_id = member.head.gateway_id.clone();
                Some((other.clone(), gateway_id, state_of_other(other, member)))
            });
            (known.collect::<Vec<_>>(), view.nodes.len())
        });
        for (other, gateway_id, state) in others {
            show(&other.node(), &gateway_id, false, state);
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
                    view.members
                        .get(&other.member)
                        .is_some_and(|member| of_gateway(&member.head.gateway_id))
                })
                .take(wanted)
                .map(|(key, other)| ((**key).clone(), Found::Other(other.clone())))
                .collect()
        });
        if of_gateway(&self.about.gateway_id) {
            let local = self.local.lock();
            let range = local.entries.range::<Key, _>((from.as_ref(), Bound::Unbounded));
            let own = range.take_while(|(key, _)| of_id(key)).take(wanted);
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
                    && (nodes.len() == query.size || bytes > PAGE_BYTES)
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
        let (state, figure) = state_of_own(entry, own, now_ms);
        v1::Node {
            gateway_id: self.about.gateway_id.clone(),
            gateway_version: env!("CARGO_PKG_VERSION").into(),
            gateway_address: self.about.address.clone(),
            ..self.described(entry.node.clone(), state, figure)
        }
    }

    fn describe_other(&self, other: &Other, view: &View) -> v1::Node {
        let Some(member) = view.members.get(&other.member) else {
            // It left between two looks: what was found is still worth telling.
            return self.described(other.node(), NodeState::Silent, Figure::default());
        };
        let (state, figure) = state_of_other(other, member);
        v1::Node {
            gateway_id: member.head.gateway_id.clone(),
            gateway_version: member.head.version.clone(),
            gateway_address: member.head.address.clone(),
            ..self.described(other.node(), state, figure)
        }
    }

    fn described(&self, node: v1::Node, state: NodeState, figure: Figure) -> v1::Node {
        v1::Node {
            delivered_events: figure.delivered,
            behind_events: figure.behind,
            lag: Some(duration(Duration::from_millis(figure.lag_ms))),
            state: state.into(),
            duplicate: self.duplicates.is_one(&node.node_id),
            ..node
        }
    }
}

impl PageStart {
    /// Reads a page token; None: it is none of ours. The empty one stands for the first page.
    pub fn decode(token: &str) -> Option<PageStart> {
        if token.is_empty() {
            return Some(PageStart::default());
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let (node, subscription) = text.split_once(BETWEEN)?;
        Some(PageStart { after: Some((node.to_owned(), subscription.to_owned())) })
    }

    /// The token of the page that begins after this node: opaque to clients, and safe in a URL (AIP-158).
    fn encode_after((node, subscription): &Key) -> String {
        URL_SAFE_NO_PAD.encode(format!("{node}{BETWEEN}{subscription}"))
    }

    /// Where to look from, for the nodes of one id or all.
    fn bound(&self, node_id: Option<&str>) -> Bound<Key> {
        match (&self.after, node_id) {
            // A token of a page of other nodes means nothing before or after this one's.
            (Some(after), id) if id.is_none_or(|id| after.0 == id) => {
                Bound::Excluded(after.clone())
            }
            (_, Some(id)) => Bound::Included((id.to_owned(), String::new())),
            (_, None) => Bound::Unbounded,
        }
    }
}

fn state_of_own(entry: &NodeEntry, own: GatewayState, now_ms: u64) -> (NodeState, Figure) {
    let figure = entry.figure(now_ms);
    let draining = own == GatewayState::Draining;
    (if draining { NodeState::Draining } else { by_lag(figure) }, figure)
}

fn state_of_other(other: &Other, member: &Member) -> (NodeState, Figure) {
    let figure = member.figures.get(&other.number).copied().unwrap_or_default();
    let state = if member.heard.elapsed() >= SILENT {
        NodeState::Silent
    } else if member.head.state() == GatewayState::Draining {
        NodeState::Draining
    } else {
        by_lag(figure)
    };
    (state, figure)
}

fn by_lag(figure: Figure) -> NodeState {
    let behind = Duration::from_millis(figure.lag_ms) >= BEHIND;
    if behind { NodeState::Behind } else { NodeState::Current }
}

fn describe_gateway(member: &Member) -> v1::Gateway {
    let age = Instant::now().saturating_duration_since(member.heard);
    let head = &member.head;
    let state = if age >= SILENT { GatewayState::Silent } else { head.state() };
    v1::Gateway {
        gateway_id: head.gateway_id.clone(),
        version: head.version.clone(),
        address: head.address.clone(),
        start_time: Some(timestamp(
            SystemTime::UNIX_EPOCH + Duration::from_millis(head.start_time_ms.min(LAST_MS)),
        )),
        state: state.into(),
        streams: head.streams,
        age: Some(duration(age)),
        unlisted_streams: head.unlisted_streams,
    }
}
