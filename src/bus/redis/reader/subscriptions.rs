//! The subscriptions of the reader: one connection to each server that owns shards.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Done, Reader};
use crate::bus::{
    ShardId,
    redis::subscription::{Link, Subscription},
};

/// The time for which a server whose subscription was deaf is the last choice.
const DEAF_PAUSE: Duration = Duration::from_mins(1);

/// A subscription that runs.
pub(super) struct Subscribed {
    pub address: String,
    pub shards: Vec<ShardId>,
    pub link: Arc<Link>,
    pub stop: CancellationToken,
}

impl Reader {
    /// Opens the subscriptions that the topology asks for, and closes all others.
    pub(super) fn plan(&mut self) {
        let mut wanted: HashMap<String, Vec<ShardId>> = HashMap::new();
        let classic = self.parts.settings.cluster && !self.parts.settings.sharded;
        for shard in 0..self.shards.len() {
            let shard = ShardId::at_index(shard);
            let owner = self.parts.topology.master(shard).map(|server| server.address.clone());
            if let Some(address) = owner.filter(|_| !classic) {
                wanted.entry(address).or_default().push(shard);
            }
        }
        self.deaf.retain(|_, since| since.elapsed() < DEAF_PAUSE);
        if classic && let Some(address) = self.classic_server() {
            wanted.insert(
                address,
                ShardId::all(u16::try_from(self.shards.len()).unwrap_or(0)).collect(),
            );
        }
        self.subscriptions.retain(|_, running| {
            let keep = wanted.get(&running.address) == Some(&running.shards);
            if keep {
                wanted.remove(&running.address);
            } else {
                running.stop.cancel();
            }
            keep
        });
        for (address, shards) in wanted {
            self.subscribe(&address, shards);
        }
        let links = self.subscriptions.values().map(|running| running.link.clone()).collect();
        *self.parts.links.lock() = links;
    }

    /// The server for classic channels, whose messages reach every node of a cluster: the current
    /// one while it is connected and not deaf, else any master. If all were deaf, the one of which
    /// that is longest ago.
    fn classic_server(&self) -> Option<String> {
        let current = self.subscriptions.values().find(|running| {
            running.link.since().is_some() && !self.deaf.contains_key(&running.address)
        });
        if let Some(running) = current {
            return Some(running.address.clone());
        }
        let mut servers: Vec<_> =
            self.parts.topology.any().iter().map(|server| server.address.clone()).collect();
        servers.sort_by_key(|address| self.deaf.get(address).copied());
        servers.into_iter().next()
    }

    fn subscribe(&mut self, address: &str, shards: Vec<ShardId>) {
        let Some(server) = self.parts.topology.server(address) else { return };
        let channel =
            |shard: &ShardId| self.parts.names[shard.index()].channel.clone().into_bytes();
        let channels = shards.iter().map(|shard| (channel(shard), *shard)).collect();
        let link = Arc::new(Link::new(address.to_owned()));
        let stop = self.parts.stop.child_token();
        self.next_subscription += 1;
        let subscription = Subscription {
            id: self.next_subscription,
            server,
            channels,
            sharded: self.parts.settings.sharded,
            protocol: self.parts.settings.protocol,
            events: self.subscription_events.clone(),
            link: link.clone(),
            stop: stop.clone(),
        };
        self.tasks.spawn(async move {
            subscription.run().await;
            Done::Subscription
        });
        let running = Subscribed { address: address.to_owned(), shards, link, stop };
        self.subscriptions.insert(self.next_subscription, running);
    }
}
