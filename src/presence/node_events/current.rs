//! The list of nodes with which a stream begins.
//!
//! It is read page by page, as the stream is pulled, from what is known at that time. That leaves
//! nothing out: what joins behind the place where the stream begins comes as an event. And nothing
//! is in it that is gone and has no event to come: streams that left are known by their events, all
//! of them up to where the stream begins, and a record keeps a stream until it has left.

use std::{
    ops::Bound,
    time::{Duration, Instant},
};

use prost::Message;

use super::{StreamId, is_sound, joined};
use crate::{
    presence::{Key, Nodes},
    proto::v1,
};

/// Nodes of a page, and bytes after which it ends.
const PAGE_NODES: usize = 256;
const PAGE_BYTES: usize = 128 * 1024;

/// How long a stream waits for what the list needs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where a list goes on: behind the last node of the page before.
#[derive(Clone, Debug, Default)]
pub struct CurrentPosition(Option<Key>);

impl Nodes {
    /// Ready when all nodes are known that joined or left before this call. `others`: there can be
    /// other gateways.
    ///
    /// # Errors
    ///
    /// They cannot be known now, and why.
    pub async fn current_known(&self, others: bool) -> Result<(), String> {
        let Some(events) = &self.events else { return Ok(()) };
        let known = async {
            if others {
                self.delivery.exchanged().await;
            }
            events.followed().await;
        };
        if tokio::time::timeout(TIMEOUT, known).await.is_err() {
            return Err("the nodes of all gateways could not be read in time".into());
        }
        match events.departed.lock().uncertain_for(Instant::now()) {
            Some(left) if others => {
                let left = left.as_secs() + 1;
                Err(format!("events about nodes are missing: all are known again in {left} s"))
            }
            _ => Ok(()),
        }
    }

    /// The next page of the list, which begins at `position` and moves it; none after the last one.
    pub fn current_page(&self, position: &mut CurrentPosition) -> Option<Vec<v1::NodeJoined>> {
        let events = self.events.as_ref()?;
        let from = position.0.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let range = (from.as_ref(), Bound::Unbounded);
        let mut found: Vec<(Key, v1::Node, String)> = {
            let local = self.local.lock();
            let is_current =
                |number| local.changes.as_ref().is_some_and(|changes| changes.is_current(number));
            let own = local.entries.range::<Key, _>(range);
            let own = own.filter(|(_, entry)| is_current(entry.number)).take(PAGE_NODES);
            let id = &self.gateway.about.gateway_id;
            own.map(|(key, entry)| (key.clone(), entry.node.clone(), id.clone())).collect()
        };
        found.extend(self.others.view(|view| {
            let departed = events.departed.lock();
            let others = view.nodes.range::<Key, _>(range).filter_map(|(key, other)| {
                let record = &view.members.get(&other.member)?.record;
                let is_there = record.node_events && !departed.have(StreamId::of(&key.1));
                is_there.then(|| ((**key).clone(), other.node(), record.gateway_id.clone()))
            });
            let sound = others.filter(|(_, node, _)| is_sound(node));
            sound.take(PAGE_NODES).collect::<Vec<_>>()
        }));
        found.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let (mut page, mut bytes) = (Vec::new(), 0);
        for (key, node, gateway_id) in found {
            if page.len() == PAGE_NODES || bytes >= PAGE_BYTES {
                break;
            }
            let joined = v1::NodeJoined { current: true, ..joined(&node, &gateway_id) };
            bytes += joined.encoded_len();
            page.push(joined);
            position.0 = Some(key);
        }
        (!page.is_empty()).then_some(page)
    }
}
