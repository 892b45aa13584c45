//! Two live processes with one node id.
//!
//! A process is identified by its incarnation or else by its address and port. It may have many
//! streams, on many gateways. A node that reconnects leaves a dead stream behind that looks alive:
//! on this gateway until the dead connection is closed, on another one until its last record
//! expires. So two processes count as live only when both were seen at the same time for the
//! *takeover* time, in which every dead connection is closed; and of another gateway's streams only
//! the time up to its last record counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Mutex, RwLock};

use super::{NodeEntry, Nodes, timestamp};
use crate::proto::v1::{Node, NodeProcess, Notice, NoticeReason, NoticeSeverity};

/// Processes of a node id that are compared, and streams in which they are searched.
const MAX_PROCESSES: usize = 32;
const MAX_STREAMS: usize = 1000;

/// Processes that a notification names.
const MAX_NAMED: usize = 8;

/// The node ids of several live processes.
pub struct Duplicates {
    takeover: Duration,
    /// Node ids with more than one stream, to be examined.
    suspects: Mutex<BTreeSet<String>>,
    /// Node ids that are duplicates; true if this gateway has logged it.
    found: RwLock<BTreeMap<String, bool>>,
}

/// A process, as its streams show it.
struct Process {
    /// One of its streams.
    stream: Stream,
    /// When the first of its streams was seen, and until when the last of them certainly existed.
    since: Instant,
    until: Instant,
    /// Its streams on this gateway.
    local: Vec<Arc<NodeEntry>>,
}

/// A stream, as far as it identifies its process.
struct Stream {
    node: Node,
    gateway_id: String,
}

impl Duplicates {
    pub fn new(takeover: Duration) -> Duplicates {
        Duplicates { takeover, suspects: Mutex::default(), found: RwLock::default() }
    }

    /// Marks a node id for examination.
    pub fn suspect(&self, node_id: &str) {
        self.suspects.lock().insert(node_id.to_owned());
    }

    /// True if several live processes use this id.
    pub fn is_one(&self, node_id: &str) -> bool {
        self.found.read().contains_key(node_id)
    }

    /// The number of such ids.
    pub fn count(&self) -> usize {
        self.found.read().len()
    }
}

impl Nodes {
    /// Examines all ids that may be duplicates; notifies the nodes and logs what has changed.
    pub fn find_duplicates(&self) {
        let now = Instant::now();
        let suspects: Vec<String> = self.duplicates.suspects.lock().iter().cloned().collect();
        for node_id in suspects {
            // Before the search: a stream that opens after it is marked again.
            self.duplicates.suspects.lock().remove(&node_id);
            let processes = self.processes(&node_id, now);
            if processes.len() > 1 {
                self.duplicates.suspect(&node_id);
            }
            self.report(&node_id, &processes);
        }
    }

    fn report(&self, node_id: &str, processes: &[Process]) {
        let takeover = self.duplicates.takeover;
        let mut any = false;
        for process in processes {
            let others: Vec<&Process> =
                processes.iter().filter(|other| process.lives_beside(other, takeover)).collect();
            any |= !others.is_empty();
            let hash = hash(&others);
            for entry in &process.local {
                if others.is_empty() {
                    entry.notifications.notify(0, ended);
                } else {
                    entry.notifications.notify(hash, || started(node_id, &others));
                }
            }
        }
        let concerned = processes.iter().any(|process| !process.local.is_empty());
        let mut found = self.duplicates.found.write();
        match found.get_mut(node_id) {
            None if any => {
                found.insert(node_id.to_owned(), concerned);
                drop(found);
                if concerned {
                    log_start(node_id, processes);
                }
            }
            Some(logged) if any && concerned && !*logged => {
                *logged = true;
                drop(found);
                log_start(node_id, processes);
            }
            Some(_) if !any => {
                let logged = found.remove(node_id);
                drop(found);
                if logged == Some(true) {
                    tracing::warn!(node = node_id, "the node id belongs to one process again");
                }
            }
            _ => {}
        }
    }

    /// The processes of a node id, on all gateways.
    fn processes(&self, node_id: &str, now: Instant) -> Vec<Process> {
        let mut processes: Vec<Process> = Vec::new();
        let local: Vec<Arc<NodeEntry>> =
            self.local.lock().with_id(node_id).take(MAX_STREAMS).cloned().collect();
        for entry in local {
            let stream = Stream {
                node: entry.node.clone(),
                gateway_id: self.gateway.about.gateway_id.clone(),
            };
            let since = entry.since;
            add(&mut processes, stream, since, now, Some(entry));
        }
        self.others.view(|view| {
            for (_, other) in view.with_id(node_id).take(MAX_STREAMS) {
                let Some(member) = view.members.get(&other.member) else { continue };
                let gateway_id = member.record.gateway_id.clone();
                let stream = Stream { node: other.node(), gateway_id };
                add(&mut processes, stream, other.since, member.renewed, None);
            }
        });
        processes
    }
}

impl Process {
    /// True if both are known to have existed at the same time for this long.
    fn lives_beside(&self, other: &Process, takeover: Duration) -> bool {
        !self.stream.is_of_process_of(&other.stream)
            && self.since.max(other.since) + takeover <= self.until.min(other.until)
    }

    fn describe(&self) -> NodeProcess {
        let node = &self.stream.node;
        NodeProcess {
            incarnation: node.incarnation.clone(),
            peer: node.peer.clone(),
            gateway_id: self.stream.gateway_id.clone(),
            subscription_id: node.subscription_id.clone(),
            connect_time: node.connect_time,
        }
    }

    /// For people: `"boot-7" at 10.0.0.7:40312 on gw-a`.
    fn name(&self) -> String {
        let Stream { node, gateway_id } = &self.stream;
        let incarnation = match node.incarnation.as_str() {
            "" => "no incarnation".to_owned(),
            incarnation => format!("{incarnation:?}"),
        };
        format!("{incarnation} at {} on {gateway_id}", node.peer)
    }
}

impl Stream {
    fn is_of_process_of(&self, other: &Stream) -> bool {
        let (a, b) = (&self.node, &other.node);
        if a.incarnation.is_empty() || b.incarnation.is_empty() {
            a.peer == b.peer
        } else {
            a.incarnation == b.incarnation
        }
    }
}

fn add(
    processes: &mut Vec<Process>,
    stream: Stream,
    since: Instant,
    until: Instant,
    local: Option<Arc<NodeEntry>>,
) {
    let known = processes.iter_mut().find(|process| process.stream.is_of_process_of(&stream));
    if let Some(process) = known {
        process.since = process.since.min(since);
        process.until = process.until.max(until);
        process.local.extend(local);
    } else if processes.len() < MAX_PROCESSES {
        processes.push(Process { stream, since, until, local: local.into_iter().collect() });
    }
}

/// A hash of the processes, whatever their order. Never zero.
fn hash(processes: &[&Process]) -> u64 {
    let mut sum = 0_u64;
    for process in processes {
        let node = &process.stream.node;
        let mut hasher = DefaultHasher::new();
        if node.incarnation.is_empty() { &node.peer } else { &node.incarnation }.hash(&mut hasher);
        sum = sum.wrapping_add(hasher.finish());
    }
    sum.max(1)
}

fn started(node_id: &str, others: &[&Process]) -> Notice {
    let names: Vec<String> = others.iter().take(MAX_NAMED).map(|process| process.name()).collect();
    Notice {
        severity: NoticeSeverity::Warning.into(),
        reason: NoticeReason::DuplicateNodeId.into(),
        text: format!(
            "another live process uses the node id {node_id:?}: {}. Each process needs a node id \
             of its own; a process states the same incarnation on all of its streams",
            names.join(", ")
        ),
        notice_time: Some(timestamp(SystemTime::now())),
        other_processes: others.iter().take(MAX_NAMED).map(|process| process.describe()).collect(),
    }
}

fn ended() -> Notice {
    Notice {
        severity: NoticeSeverity::Info.into(),
        reason: NoticeReason::DuplicateNodeIdEnded.into(),
        text: "no other process uses the node id any more".into(),
        notice_time: Some(timestamp(SystemTime::now())),
        other_processes: vec![],
    }
}

fn log_start(node_id: &str, processes: &[Process]) {
    let names: Vec<String> = processes.iter().take(MAX_NAMED).map(Process::name).collect();
    tracing::warn!(
        node = node_id,
        processes = names.join(", "),
        "two live processes use one node id"
    );
}
