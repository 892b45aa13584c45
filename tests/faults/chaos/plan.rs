//! What fails, and when: drawn from a seed.
//!
//! A leg is one deployment: its servers start, and serve through several rounds. In each round one
//! gateway is spared, since events that nobody alive has are gone by right; the other two, Redis
//! and all connections fail, several at a time. A round uses some of the faults only (swarm
//! testing): a mix of everything hides what needs the same fault often.

use std::{fmt, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// The gateways of a deployment.
pub const GATEWAYS: usize = 3;

/// Combinations of faults in one round, and faults in one combination.
const COMBINATIONS: usize = 3;
const MAX_FAULTS: usize = 4;

/// The faults of a combination begin within this time, in milliseconds.
const SPREAD: u64 = 1_500;

/// The Redis of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One server with snapshots, each gateway behind a proxy.
    Standalone,
    /// Three masters with a replica each.
    Cluster,
    /// A master and a replica that three sentinels watch.
    Sentinel,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Standalone, Kind::Cluster, Kind::Sentinel];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Standalone => "standalone",
            Kind::Cluster => "cluster",
            Kind::Sentinel => "sentinel",
        }
    }
}

/// Something that fails, and heals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Redis dies, and comes back as it was this long before.
    PutBack(Duration),
    /// Redis dies, and comes back with its last snapshot: of the last [`Fault::PutBack`], or of the
    /// beginning of the round.
    OldSnapshot,
    /// Redis dies, and comes back without data.
    Wiped,
    /// FLUSHALL.
    Flush,
    /// Redis, or one master, is frozen.
    FreezeRedis(Duration),
    /// A master dies after its replica received nothing for this long; the replica takes over.
    Failover(usize, Duration),
    /// A replica takes over in agreement with its master.
    Handover(usize),
    /// Two of three sentinels die, and are started again after this time: meanwhile nobody can
    /// fail over.
    KillSentinels(Duration),
    /// All connections to Redis are closed, by the servers.
    CutAll,
    /// The connections of one gateway to Redis are closed.
    Cut(usize),
    /// Nothing passes between one gateway and Redis; its connections stay open.
    Partition(usize, Duration),
    /// A gateway dies, and is started again after this time.
    Kill(usize, Duration),
    /// A gateway is frozen.
    Freeze(usize, Duration),
    /// A gateway drains, and is started again.
    Restart(usize),
}

/// A fault, and when it begins after the combination began.
pub type Timed = (Duration, Fault);

/// One round: combinations of faults, one after the other.
pub type Round = Vec<Vec<Timed>>;

/// The rounds of a leg, endless.
pub struct Plan {
    kind: Kind,
    random: StdRng,
}

impl Plan {
    pub fn new(kind: Kind, seed: u64) -> Plan {
        Plan { kind, random: StdRng::seed_from_u64(seed) }
    }

    /// The next round.
    pub fn round(&mut self) -> Round {
        let spared = self.random.random_range(0..GATEWAYS);
        let all = faults(self.kind).len();
        let mut drawn: Vec<usize> = (0..all).filter(|_| self.random.random_bool(0.5)).collect();
        // One alone is no combination.
        while drawn.len() < 2 {
            drawn.push(self.random.random_range(0..all));
        }
        (0..COMBINATIONS).map(|_| self.combination(&drawn, spared)).collect()
    }

    fn combination(&mut self, drawn: &[usize], spared: usize) -> Vec<Timed> {
        let faults = faults(self.kind);
        let count = self.random.random_range(1..=MAX_FAULTS);
        let mut timed: Vec<Timed> = (0..count)
            .map(|_| {
                let at = Duration::from_millis(self.random.random_range(0..SPREAD));
                let which = drawn.choose(&mut self.random).copied().unwrap_or_default();
                (at, faults[which](&mut self.random, spared))
            })
            .collect();
        // What a gateway wrote is nowhere else if it dies while no other can receive.
        if timed.iter().any(|(_, fault)| fault.loses_data())
            && timed.iter().any(|(_, fault)| matches!(fault, Fault::Kill(..)))
        {
            timed.retain(|(_, fault)| *fault != Fault::CutAll);
        }
        timed.sort_by_key(|(at, _)| *at);
        timed
    }
}

type Draw = fn(&mut StdRng, usize) -> Fault;

fn faults(kind: Kind) -> Vec<Draw> {
    let both: [Draw; 4] = [
        |random, spared| Fault::Kill(gateway(random, spared), time(random, 0..3_000)),
        |random, spared| Fault::Freeze(gateway(random, spared), time(random, 100..5_000)),
        |random, spared| Fault::Restart(gateway(random, spared)),
        |_, _| Fault::CutAll,
    ];
    let own: &[Draw] = match kind {
        Kind::Standalone => &[
            |random, _| Fault::PutBack(time(random, 50..1_000)),
            |_, _| Fault::OldSnapshot,
            |_, _| Fault::Wiped,
            |_, _| Fault::Flush,
            |random, _| Fault::FreezeRedis(time(random, 100..3_000)),
            |random, spared| Fault::Cut(gateway(random, spared)),
            |random, spared| Fault::Partition(gateway(random, spared), time(random, 100..5_000)),
        ],
        Kind::Cluster => &[
            |random, _| Fault::Failover(random.random_range(0..3), time(random, 0..600)),
            |random, _| Fault::Failover(random.random_range(0..3), Duration::ZERO),
            |random, _| Fault::Handover(random.random_range(0..3)),
            // Beyond the node timeout of 2 s, a replica takes over.
            |random, _| Fault::FreezeRedis(time(random, 100..4_000)),
        ],
        Kind::Sentinel => &[
            |random, _| Fault::Failover(0, time(random, 0..600)),
            |_, _| Fault::Failover(0, Duration::ZERO),
            |_, _| Fault::Handover(0),
            // Beyond the second after which it counts as down, the replica takes over.
            |random, _| Fault::FreezeRedis(time(random, 100..4_000)),
            |random, _| Fault::KillSentinels(time(random, 0..5_000)),
        ],
    };
    both.into_iter().chain(own.iter().copied()).collect()
}

/// A gateway that is not spared.
fn gateway(random: &mut StdRng, spared: usize) -> usize {
    (spared + random.random_range(1..GATEWAYS)) % GATEWAYS
}

fn time(random: &mut StdRng, milliseconds: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(milliseconds))
}

impl Fault {
    /// True if Redis has less data afterwards.
    pub fn loses_data(&self) -> bool {
        matches!(
            self,
            Fault::PutBack(_)
                | Fault::OldSnapshot
                | Fault::Wiped
                | Fault::Flush
                | Fault::Failover(..)
        )
    }

    /// The gateway that it hits.
    pub fn gateway(&self) -> Option<usize> {
        match self {
            Fault::Cut(gateway)
            | Fault::Partition(gateway, _)
            | Fault::Kill(gateway, _)
            | Fault::Freeze(gateway, _)
            | Fault::Restart(gateway) => Some(*gateway),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::PutBack(age) => write!(f, "Redis put back by {age:?}"),
            Fault::OldSnapshot => write!(f, "Redis killed, back with its last snapshot"),
            Fault::Wiped => write!(f, "Redis killed, back empty"),
            Fault::Flush => write!(f, "FLUSHALL"),
            Fault::FreezeRedis(time) => write!(f, "Redis frozen for {time:?}"),
            Fault::Failover(nth, lag) => write!(f, "master {nth} killed, replica {lag:?} behind"),
            Fault::Handover(nth) => write!(f, "failover of master {nth} by command"),
            Fault::KillSentinels(time) => write!(f, "two sentinels killed, back after {time:?}"),
            Fault::CutAll => write!(f, "CLIENT KILL of all connections"),
            Fault::Cut(nth) => write!(f, "connections of gateway {nth} cut"),
            Fault::Partition(nth, time) => write!(f, "gateway {nth} cut off for {time:?}"),
            Fault::Kill(nth, time) => write!(f, "gateway {nth} killed, back after {time:?}"),
            Fault::Freeze(nth, time) => write!(f, "gateway {nth} frozen for {time:?}"),
            Fault::Restart(nth) => write!(f, "gateway {nth} restarted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn rounds(kind: Kind, seed: u64, count: usize) -> Vec<Round> {
        let mut plan = Plan::new(kind, seed);
        (0..count).map(|_| plan.round()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        for kind in Kind::ALL {
            assert_eq!(rounds(kind, 7, 20), rounds(kind, 7, 20));
            assert_ne!(rounds(kind, 7, 20), rounds(kind, 8, 20));
        }
    }

    #[test]
    fn every_fault_is_drawn_and_every_round_spares_one_gateway() {
        for (kind, different) in Kind::ALL.into_iter().zip([11, 7, 8]) {
            let mut seen = HashSet::new();
            for round in rounds(kind, 1, 200) {
                let faults: Vec<_> = round.iter().flatten().map(|(_, fault)| *fault).collect();
                let hit: HashSet<_> = faults.iter().filter_map(Fault::gateway).collect();
                assert!(hit.len() < GATEWAYS, "{round:?}");
                seen.extend(faults.iter().map(std::mem::discriminant));
            }
            assert_eq!(seen.len(), different, "{kind:?}");
        }
    }
}
