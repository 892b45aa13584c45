//! Publishes this gateway's state to the other gateways, and reads theirs.
//!
//! One call of the store every few seconds, whatever the number of nodes and gateways: it writes
//! what changed here and reads what changed elsewhere. Changes are published at once, but not more
//! often than twice a second. The stats of the streams change all the time, so those of other
//! gateways are read at a pace of their own: a few gateways a second, or all as long as somebody
//! looks at a list.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::{
    Nodes,
    others::STALE_AFTER,
    shards::{Draft, STATS_SHARD},
};
use crate::{
    bus::{AppendError, LastChange, MemberId, MemberUpdate, Members, SharedBus, unix_ms},
    proto::bus_v1::{MemberRecord, MemberStats},
};

/// The interval at which a gateway renews its record and reads those of the others.
const INTERVAL: Duration = Duration::from_secs(2);

/// The same after a change.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// A gateway that has not renewed its record for this time is removed, with its nodes.
pub const TTL: Duration = Duration::from_secs(10);

/// The interval at which the stats of the nodes are published, if they changed, and those of the
/// others read.
const STATS_INTERVAL: Duration = Duration::from_secs(5);

/// The number of gateways whose stats are read in a second while nobody looks at a list.
const STATS_PACE: u128 = 4;

/// The time after somebody asked for a list in which all stats are read at their interval.
const LOOKED: Duration = Duration::from_secs(30);

/// The number of calls under way that read the stats of others.
const STATS_CALLS: usize = 4;

/// Bytes of member shards that one call writes.
const MAX_CALL_BYTES: usize = 512 * 1024;

/// Member shards that one call reads.
const MAX_CALL_SHARDS: usize = 32;

/// Bytes of what the agents among its nodes report of themselves.
const MAX_AGENT_BYTES: usize = 1 << 20;

/// The time after which all records are read in place of those that changed, as they are while
/// others write anew what the store has lost: what is lost without a trace is found so.
const READ_ALL: Duration = Duration::from_mins(5);

/// The time limit of a gateway's last record.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state between two exchanges.
struct Membership {
    nodes: Arc<Nodes>,
    bus: SharedBus,
    id: MemberId,
    /// The number of the last exchange, and of the last one that was taken.
    number: u64,
    taken: Option<u64>,
    /// The last change of all records that is known here.
    known: Option<LastChange>,
    /// When all records were last read, and when the store was last seen to have lost this one's.
    read_all: Option<Instant>,
    lost: Option<Instant>,
    stats: OwnStats,
    /// When stats of others were last read, which gives the number that may be read now.
    paced: Instant,
    /// True if the last exchange failed: the first failure in a row is logged.
    failing: bool,
}

/// The stats of the own nodes, as they were last made.
#[derive(Default)]
struct OwnStats {
    made: Option<Instant>,
    stats: MemberStats,
    bytes: Bytes,
    /// The revision that the others can read; zero if they can read none.
    published: u64,
}

/// Runs until `stop`; then publishes that this gateway has left.
pub async fn run(nodes: Arc<Nodes>, bus: SharedBus, stop: CancellationToken) {
    let mut drain = nodes.gateway.drain();
    let mut membership = Membership {
        nodes: nodes.clone(),
        bus,
        id: nodes.delivery.member,
        number: 0,
        taken: None,
        known: None,
        read_all: None,
        lost: None,
        stats: OwnStats::default(),
        paced: Instant::now(),
        failing: false,
    };
    loop {
        let round = Instant::now();
        let number = nodes.delivery.exchange_begins();
        tokio::select! {
            made = membership.round() => {
                if made {
                    nodes.delivery.exchange_made(number);
                    nodes.moves.exchanged(round);
                }
            }
            () = stop.cancelled() => break,
        }
        nodes.find_duplicates();
        nodes.find_duplicate_programs(Instant::now());
        tokio::select! {
            () = tokio::time::sleep_until((round + INTERVAL).into()) => {}
            () = nodes.changed.notified() => {}
            () = nodes.delivery.exchange_asked.notified() => continue,
            _ = drain.changed() => {}
            () = stop.cancelled() => break,
        }
        tokio::select! {
            () = tokio::time::sleep_until((round + MIN_INTERVAL).into()) => {}
            () = nodes.delivery.exchange_asked.notified() => {}
            () = stop.cancelled() => break,
        }
    }
    // Gateways that miss it find out when the time to live is over.
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, membership.leave()).await;
}

impl Membership {
    /// One exchange; true if it succeeded. Does nothing on a bus that only one gateway can have.
    async fn round(&mut self) -> bool {
        let bus = self.bus.clone();
        let Some(members) = bus.members() else {
            // Nobody reads records.
            Nodes::exchange_begins(&mut self.nodes.local.lock());
            self.nodes.exchange_ended(true);
            return true;
        };
        let result = self.exchange(members).await;
        match &result {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("gateways exchange their nodes again");
            }
            Err(why) if !self.failing => {
                self.failing = true;
                tracing::warn!(%why, "gateways cannot exchange their nodes");
            }
            _ => {}
        }
        result.is_ok()
    }

    async fn exchange(&mut self, members: &dyn Members) -> Result<(), AppendError> {
        let nodes = self.nodes.clone();
        self.stats.refresh(&nodes);
        loop {
            let draft = {
                let mut local = nodes.local.lock();
                Nodes::exchange_begins(&mut local);
                local.shards.draft(MAX_CALL_BYTES)
            };
            let update = self.update(&draft);
            let stats_revision = self.stats.stats.revision;
            let exchange = match members.exchange(update).await {
                Ok(exchange) => exchange,
                Err(error) => {
                    nodes.exchange_ended(false);
                    return Err(error);
                }
            };
            let taken = exchange.taken;
            self.known.clone_from(&exchange.known);
            if exchange.all {
                self.read_all = Some(Instant::now());
            }
            if !taken {
                self.lost = Some(Instant::now());
            }
            if taken {
                self.taken = Some(self.number);
                self.stats.published = stats_revision;
                nodes.local.lock().shards.published(&draft);
            } else {
                if self.taken.is_some()
                    && let Some(events) = &nodes.events
                {
                    events.may_be_lost();
                }
                self.taken = None;
                self.stats.published = 0;
                nodes.local.lock().shards.lost();
            }
            let mut applied = nodes.others.apply(self.id, TTL, exchange, Instant::now());
            nodes.take_lost(&mut applied);
            let outdated = applied.outdated;
            if !taken || !draft.has_more {
                nodes.exchange_ended(taken);
            }
            if taken && !draft.has_more {
                self.read(members, &outdated).await?;
                return self.read_stats(members).await;
            }
        }
    }

    /// The update that writes a draft, with the record that goes with it.
    fn update(&mut self, draft: &Draft) -> MemberUpdate {
        let mut shards = draft.changes.clone();
        let revision = self.stats.stats.revision;
        if revision != self.stats.published {
            shards.push((STATS_SHARD, Some(self.stats.bytes.clone())));
        }
        let unlisted = self.nodes.local.lock().shards.unlisted();
        let record = MemberRecord {
            streams: u32::try_from(self.nodes.count()).unwrap_or(u32::MAX),
            unlisted_streams: u32::try_from(unlisted).unwrap_or(u32::MAX),
            shards: draft.readable.iter().map(|(number, _)| *number).collect(),
            revisions: draft.readable.iter().map(|(_, revision)| *revision).collect(),
            ..self.record()
        };
        self.number += 1;
        MemberUpdate {
            member: self.id,
            ttl: TTL,
            number: self.number,
            follows: self.taken,
            has_shards: self.taken.is_some(),
            record: record.encode_to_vec().into(),
            shards,
            known: self.known.clone().filter(|_| !self.wants_all()),
            silent_after: STALE_AFTER,
        }
    }

    /// True if this exchange is to read all records.
    fn wants_all(&self) -> bool {
        // In this time the others have written theirs again; who has not is gone.
        let lost = self.lost.is_some_and(|lost| lost.elapsed() < TTL + 2 * INTERVAL);
        lost || self.read_all.is_none_or(|read| read.elapsed() >= READ_ALL)
    }

    /// The record of this gateway, without its nodes.
    fn record(&self) -> MemberRecord {
        let about = &self.nodes.gateway.about;
        let since = about.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        MemberRecord {
            gateway_id: about.gateway_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            address: about.address.clone(),
            start_time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            state: self.nodes.gateway.state().into(),
            node_events: self.nodes.have_events(),
            ..Default::default()
        }
    }

    /// Reads member shards of the others.
    async fn read(
        &self,
        members: &dyn Members,
        outdated: &[(MemberId, u32)],
    ) -> Result<(), AppendError> {
        for of_member in outdated.chunk_by(|(a, _), (b, _)| a == b) {
            for some in of_member.chunks(MAX_CALL_SHARDS) {
                let numbers = some.iter().map(|(_, number)| *number).collect();
                let shards = members.member_shards(some[0].0, numbers).await?;
                for (shard, bytes) in some.iter().zip(shards) {
                    self.nodes.apply_shard(*shard, bytes);
                }
            }
        }
        Ok(())
    }

    /// Reads the stats of others that are due.
    async fn read_stats(&mut self, members: &dyn Members) -> Result<(), AppendError> {
        let now = Instant::now();
        let may_read = now.duration_since(self.paced).as_millis() * STATS_PACE / 1000;
        let looked = self.nodes.were_looked_at(LOOKED);
        let max = if looked { usize::MAX } else { usize::try_from(may_read).unwrap_or(usize::MAX) };
        if max == 0 {
            return Ok(());
        }
        self.paced = now;
        let due = self.nodes.others.stats_due(STATS_INTERVAL, max, now);
        let nodes = &self.nodes;
        let readings = due.into_iter().map(async |member| {
            let read = members.member_shards(member, vec![STATS_SHARD]).await?;
            nodes.apply_shard((member, STATS_SHARD), read.into_iter().next().flatten());
            Ok(())
        });
        stream::iter(readings).buffer_unordered(STATS_CALLS).try_collect().await
    }

    /// Publishes the last record: this gateway has no nodes any more.
    async fn leave(&mut self) {
        let Some(members) = self.bus.members() else { return };
        self.number += 1;
        let record = MemberRecord { left: true, ..self.record() };
        let update = MemberUpdate {
            member: self.id,
            ttl: TTL,
            number: self.number,
            follows: None,
            has_shards: false,
            record: record.encode_to_vec().into(),
            shards: vec![],
            known: self.known.clone(),
            silent_after: STALE_AFTER,
        };
        if let Err(error) = members.exchange(update).await {
            tracing::debug!(%error, "the last member record was not written");
        }
    }
}

impl OwnStats {
    /// Makes them again if it is time, with a new revision if they changed.
    fn refresh(&mut self, nodes: &Nodes) {
        if self.made.is_some_and(|made| made.elapsed() < STATS_INTERVAL) {
            return;
        }
        self.made = Some(Instant::now());
        let mut entries = nodes.all();
        entries.sort_by_key(|entry| entry.number);
        let now_ms = unix_ms();
        let mut stats = MemberStats { revision: self.stats.revision, ..Default::default() };
        let (mut last, mut agent_bytes) = (0, 0);
        for entry in entries {
            let of_stream = entry.stats(now_ms);
            stats.numbers.push(entry.number - last);
            last = entry.number;
            stats.delivered_events.push(of_stream.delivered);
            stats.behind_events.push(of_stream.behind);
            stats.lag_ms.push(of_stream.lag_ms);
            if let Some(watch) = of_stream.watch {
                let mut agent = entry.agent();
                agent_bytes += agent.len();
                if agent_bytes > MAX_AGENT_BYTES {
                    agent.clear();
                }
                stats.watches.push(watch.to_record(entry.number, agent));
            }
        }
        if stats != self.stats || stats.revision == 0 {
            stats.revision += 1;
            self.bytes = stats.encode_to_vec().into();
            self.stats = stats;
        }
    }
}

impl Nodes {
    fn apply_shard(&self, shard: (MemberId, u32), bytes: Option<Bytes>) {
        let mut new = Vec::new();
        self.others.apply_shard(shard, bytes, Instant::now(), |node_id| {
            new.push(node_id.to_owned());
        });
        // After they are known: one of two that connect at the same time sees the other.
        for node_id in new {
            let here = self.local.lock().with_id(&node_id).next().is_some();
            if here || self.others.view(|view| view.with_id(&node_id).nth(1).is_some()) {
                self.duplicates.suspect(&node_id);
            }
        }
    }
}
