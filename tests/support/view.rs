//! A Redis Cluster as one of its nodes sees it: CLUSTER NODES, parsed.

use std::ops::RangeInclusive;

/// The number of hash slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// The hash slot of a key or sharded channel.
pub fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    crc16::State::<crc16::XMODEM>::calculate(hashed.as_bytes()) % SLOTS
}

/// The cluster as one node sees it.
#[derive(Clone, Debug)]
pub struct View {
    /// All known nodes.
    pub nodes: Vec<NodeView>,
}

/// A node as another one sees it.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its id in the cluster: 40 hexadecimal digits.
    pub id: String,
    /// Its port.
    pub port: u16,
    /// Its flags: `master`, `slave`, `fail?`, `fail`, `handshake`, `noaddr`.
    pub flags: Vec<String>,
    /// The id of its master, if it is a replica.
    pub master: Option<String>,
    /// True if the link to it is up.
    pub connected: bool,
    /// The slots that it owns.
    pub slots: Vec<RangeInclusive<u16>>,
}

impl View {
    /// Parses the answer of CLUSTER NODES.
    ///
    /// # Panics
    ///
    /// If the answer is malformed.
    pub fn parse(text: &str) -> View {
        let read =
            |line: &str| NodeView::parse(line).unwrap_or_else(|| panic!("CLUSTER NODES: {line}"));
        View { nodes: text.lines().filter(|line| !line.trim().is_empty()).map(read).collect() }
    }

    /// The node that owns a slot.
    pub fn owner(&self, slot: u16) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.slots.iter().any(|range| range.contains(&slot)))
    }

    /// The node on a port.
    pub fn on_port(&self, port: u16) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.port == port)
    }

    /// The part that all nodes must agree on: members, roles and slots.
    pub fn agreement(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .nodes
            .iter()
            .map(|node| {
                format!("{} {:?} {:?} {:?}", node.port, node.failing(), node.master, node.slots)
            })
            .collect();
        lines.sort();
        lines
    }
}

impl NodeView {
    /// True if it is a master.
    pub fn is_master(&self) -> bool {
        self.flags.iter().any(|flag| flag == "master")
    }

    /// True if it is marked as down, or its handshake is not complete.
    pub fn failing(&self) -> bool {
        self.flags
            .iter()
            .any(|flag| matches!(flag.as_str(), "fail" | "fail?" | "handshake" | "noaddr"))
    }

    fn parse(line: &str) -> Option<NodeView> {
        // id ip:port@bus[,hostname] flags master ping pong epoch link slot...
        let mut words = line.split_whitespace();
        let id = words.next()?.to_owned();
        let port = words.next()?.split('@').next()?.rsplit_once(':')?.1.parse().ok()?;
        let flags = words.next()?.split(',').map(str::to_owned).collect();
        let master = words.next().filter(|master| *master != "-").map(str::to_owned);
        let connected = words.nth(3)? == "connected";
        // A slot that is being migrated is listed in brackets besides its owner's range.
        let slots =
            words.filter(|word| !word.starts_with('[')).map(range).collect::<Option<_>>()?;
        Some(NodeView { id, port, flags, master, connected, slots })
    }
}

fn range(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    Some(first.parse().ok()?..=last.parse().ok()?)
}
