//! The subscriptions of the reader: one connection to each server that owns shards.

use std::{collections::HashMap, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{Done, Reader};
use crate::bus::{
    ShardId,
    redis::subscription::{Link, Subscription},
};

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
    /// one while it is connected, else any master.
    fn classic_server(&self) -> Option<String> {
        let current = self.subscriptions.values().find(|running| running.link.since().is_some());
        current
            .map(|running| running.address.clone())
            .or_else(|| self.parts.topology.any().first().map(|server| server.address.clone()))
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
