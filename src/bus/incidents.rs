//! What happened to the shards of a bus lately, for people: recoveries, times without a verified
//! path, gaps, holes that were filled, subscriptions that were renewed.
//!
//! A ring of a fixed size, without clocks and locks. Who shows it asks for what changed since it
//! asked last: an incident that goes on changes until it has ended. What is of one sort and comes
//! again within [`SAME`] is one incident, so that a fault that repeats leaves room for others.

use std::collections::VecDeque;

use super::{Epoch, Gap, GapReason, Lost, ShardId};

/// Incidents that are kept, whatever happens: so many, and these for each shard.
const KEPT: usize = 128;
const KEPT_OF_SHARD: usize = 4;

/// The time within which the same again is the same incident, in milliseconds.
const SAME: u64 = 10_000;

/// Bytes of a text that are kept.
const MAX_TEXT: usize = 200;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Its number, from 1.
    pub number: u64,
    /// The number of its last change among the changes of all incidents, from 1.
    pub change: u64,
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// When it ended, or was seen last. None while it goes on.
    pub ended_ms: Option<u64>,
    /// Its shard; None for what is of no single shard.
    pub shard: Option<ShardId>,
    /// What happened.
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A new epoch began, and gateways appended again what the bus had lost.
    Recovery {
        /// The epoch that began.
        epoch: Epoch,
        /// Events that were appended again, by all gateways.
        restored: u64,
        /// Events that were reported as lost.
        lost: u64,
        /// True if more were lost, and nobody knows how many.
        more_lost: bool,
    },
    /// The path through the bus was not verified.
    Unverified {
        /// Why, as far as was known at its beginning.
        why: String,
    },
    /// Events are missing that history could not bring.
    Missing {
        /// The reason.
        reason: GapReason,
        /// The number of gaps.
        gaps: u64,
        /// Missing events, as far as their number is known.
        events: u64,
    },
    /// A hole was filled from history.
    Repaired {
        /// The number of events that history brought.
        events: u64,
        /// The number of times.
        times: u64,
    },
    /// The reader has a new subscription.
    Subscribed {
        /// The server.
        server: String,
        /// The number of times.
        times: u64,
    },
}

/// The incidents of a bus.
#[derive(Debug)]
pub struct Incidents {
    kept: VecDeque<Incident>,
    max: usize,
    /// Incidents so far, and changes of them.
    count: u64,
    changes: u64,
    shards: Vec<Shard>,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    /// The epoch that the shard's script named last, and whether it recovers.
    said: (Epoch, bool),
    /// The number of the last recovery, whether it goes on or not; 0: there was none.
    recovery: u64,
    /// The number of the time without a verified path that goes on; 0: there is none.
    unverified: u64,
    /// True once the path was verified.
    was_verified: bool,
}

impl Incident {
    /// Ends it; false if it had ended. Clocks are set back at times.
    fn end(&mut self, now_ms: u64) -> bool {
        let goes_on = self.ended_ms.is_none();
        self.ended_ms.get_or_insert(now_ms.max(self.began_ms));
        goes_on
    }
}

impl Incidents {
    /// Nothing has happened to any of so many shards.
    pub fn new(shards: u16) -> Incidents {
        let shards = usize::from(shards);
        Incidents {
            kept: VecDeque::new(),
            max: KEPT + KEPT_OF_SHARD * shards,
            count: 0,
            changes: 0,
            shards: vec![Shard::default(); shards],
        }
    }

    /// Those that have changed after a change of this number, in the order of their beginnings.
    pub fn after(&self, change: u64) -> Vec<Incident> {
        // Another process has counted further.
        let change = if change > self.changes { 0 } else { change };
        self.kept.iter().filter(|incident| incident.change > change).cloned().collect()
    }

    /// The shard's script says that its end is in this epoch, and whether the shard recovers.
    pub fn said(&mut self, now_ms: u64, shard: ShardId, epoch: Epoch, recovering: bool) {
        let Some(state) = self.shards.get_mut(shard.index()) else { return };
        if state.said == (epoch, recovering) {
            return;
        }
        state.said = (epoch, recovering);
        let number = state.recovery;
        if recovering {
            self.recovers(now_ms, shard, epoch);
        } else {
            self.change(number, |incident| {
                let Happening::Recovery { epoch: of, .. } = incident.what else { return false };
                of <= epoch && incident.end(now_ms)
            });
        }
    }

    /// The reader has come to a new epoch.
    pub fn began(&mut self, now_ms: u64, shard: ShardId, epoch: Epoch) {
        let Some(state) = self.shards.get(shard.index()) else { return };
        let (said, recovering) = state.said;
        self.recovers(now_ms, shard, epoch);
        if said >= epoch && !recovering {
            let number = self.shards[shard.index()].recovery;
            self.change(number, |incident| incident.end(now_ms));
        }
    }

    /// Events came that were appended again.
    pub fn restored(&mut self, shard: ShardId, events: u64) {
        let Some(state) = self.shards.get(shard.index()) else { return };
        self.change(state.recovery, |incident| {
            if let Happening::Recovery { restored, .. } = &mut incident.what {
                *restored += events;
            }
            true
        });
    }

    /// The reader has found a gap.
    pub fn gap(&mut self, now_ms: u64, shard: ShardId, gap: &Gap) {
        let missed = gap.missed().unwrap_or_else(|| gap.lost.iter().map(Lost::count).sum());
        let is_of_recovery =
            matches!(gap.reason, GapReason::EpochChanged | GapReason::UnknownEpoch);
        let recovery = self.shards.get(shard.index()).map_or(0, |state| state.recovery);
        let counted = is_of_recovery
            && self.change(recovery, |incident| match &mut incident.what {
                Happening::Recovery { epoch, lost, more_lost, .. }
                    if *epoch == gap.position.epoch =>
                {
                    *lost += missed;
                    *more_lost |= gap.more;
                    true
                }
                _ => false,
            });
        if !counted {
            let is_same = |what: &mut Happening| match what {
                Happening::Missing { reason, gaps, events } if *reason == gap.reason => {
                    *gaps += 1;
                    *events += missed;
                    true
                }
                _ => false,
            };
            let new = Happening::Missing { reason: gap.reason, gaps: 1, events: missed };
            self.again(now_ms, Some(shard), is_same, new);
        }
    }

    /// History has filled a hole with so many events.
    pub fn repaired(&mut self, now_ms: u64, shard: ShardId, more: u64) {
        let is_same = |what: &mut Happening| match what {
            Happening::Repaired { events, times } => {
                *events += more;
                *times += 1;
                true
            }
            _ => false,
        };
        let new = Happening::Repaired { events: more, times: 1 };
        self.again(now_ms, Some(shard), is_same, new);
    }

    /// All channels are subscribed on a new connection to a server.
    pub fn subscribed(&mut self, now_ms: u64, address: &str) {
        let address = bounded(address);
        let is_same = |what: &mut Happening| match what {
            Happening::Subscribed { server, times } if *server == address => {
                *times += 1;
                true
            }
            _ => false,
        };
        let new = Happening::Subscribed { server: address.clone(), times: 1 };
        self.again(now_ms, None, is_same, new);
    }

    /// The path of a shard is verified, or is not for this reason.
    pub fn path(&mut self, now_ms: u64, shard: ShardId, problem: Option<&str>) {
        let Some(state) = self.shards.get_mut(shard.index()) else { return };
        match problem {
            None => {
                state.was_verified = true;
                let number = std::mem::take(&mut state.unverified);
                self.change(number, |incident| incident.end(now_ms));
            }
            // At the start it is not verified yet.
            Some(why) if state.was_verified && state.unverified == 0 => {
                let what = Happening::Unverified { why: bounded(why) };
                let number = self.add(now_ms, None, Some(shard), what);
                self.shards[shard.index()].unverified = number;
            }
            Some(_) => {}
        }
    }

    /// A recovery goes on in this epoch; it begins unless that is known.
    fn recovers(&mut self, now_ms: u64, shard: ShardId, new: Epoch) {
        let number = self.shards[shard.index()].recovery;
        let known = self.change(number, |incident| match &mut incident.what {
            // It ended in one epoch, and another one has begun.
            Happening::Recovery { epoch, .. } if incident.ended_ms.is_some() && *epoch != new => {
                false
            }
            Happening::Recovery { epoch, .. } => {
                *epoch = new.max(*epoch);
                true
            }
            _ => false,
        });
        if !known {
            let what = Happening::Recovery { epoch: new, restored: 0, lost: 0, more_lost: false };
            self.shards[shard.index()].recovery = self.add(now_ms, None, Some(shard), what);
        }
    }

    /// Counts something again that happened lately, or adds it.
    fn again(
        &mut self,
        now_ms: u64,
        shard: Option<ShardId>,
        mut is_same: impl FnMut(&mut Happening) -> bool,
        new: Happening,
    ) {
        let changes = self.changes + 1;
        let lately = |incident: &&mut Incident| {
            let seen = incident.ended_ms.unwrap_or(incident.began_ms);
            now_ms.saturating_sub(seen) < SAME && incident.shard == shard
        };
        // The last ones are the likely ones, and all that can be meant.
        let mut last = self.kept.iter_mut().rev().take(KEPT).filter(lately);
        if let Some(same) =
            last.find_map(|incident| is_same(&mut incident.what).then_some(incident))
        {
            (same.ended_ms, same.change) = (Some(now_ms.max(same.began_ms)), changes);
            self.changes = changes;
        } else {
            self.add(now_ms, Some(now_ms), shard, new);
        }
    }

    /// Adds an incident; returns its number.
    fn add(
        &mut self,
        began_ms: u64,
        ended_ms: Option<u64>,
        shard: Option<ShardId>,
        what: Happening,
    ) -> u64 {
        self.count += 1;
        self.changes += 1;
        if self.kept.len() == self.max {
            self.kept.pop_front();
        }
        let (number, change) = (self.count, self.changes);
        self.kept.push_back(Incident { number, change, began_ms, ended_ms, shard, what });
        number
    }

    /// Changes an incident that is still kept. False if nothing has changed.
    fn change(&mut self, number: u64, change: impl FnOnce(&mut Incident) -> bool) -> bool {
        let Some(first) = self.kept.front().map(|incident| incident.number) else { return false };
        let index = number.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        let Some(incident) = index.and_then(|index| self.kept.get_mut(index)) else {
            return false;
        };
        let changed = change(incident);
        if changed {
            self.changes += 1;
            incident.change = self.changes;
        }
        changed
    }
}

/// A text, or its beginning.
fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::{Offset, Position};

    const SHARD: ShardId = ShardId(1);

    fn lost(reason: GapReason, epoch: u64, events: u64, more: bool) -> Gap {
        let lost = Lost { epoch: Epoch(1), first: Offset(1), last: Offset(events) };
        let position = Position { epoch: Epoch(epoch), offset: Offset(1) };
        Gap { reason, lost: vec![lost], more, position, from_ms: None, to_ms: 0 }
    }

    fn recovery(incidents: &Incidents) -> Vec<(u64, Option<u64>, u64, u64)> {
        let of = incidents.after(0).into_iter();
        of.filter_map(|incident| match incident.what {
            Happening::Recovery { restored, lost, .. } => {
                Some((incident.began_ms, incident.ended_ms, restored, lost))
            }
            _ => None,
        })
        .collect()
    }

    #[test]
    fn a_recovery_is_one_incident_whoever_sees_it_first() {
        // The writer learns of it first, and the reader is behind.
        let mut incidents = Incidents::new(2);
        incidents.said(10, SHARD, Epoch(4), false);
        incidents.said(20, SHARD, Epoch(5), true);
        incidents.began(25, SHARD, Epoch(5));
        incidents.restored(SHARD, 7);
        incidents.said(40, SHARD, Epoch(5), false);
        incidents.restored(SHARD, 2);
        incidents.gap(41, SHARD, &lost(GapReason::EpochChanged, 5, 3, false));
        assert_eq!(recovery(&incidents), [(20, Some(40), 9, 3)]);
        // The reader learns of it first: it goes on until the script says that it is over.
        incidents.began(100, SHARD, Epoch(6));
        incidents.said(101, SHARD, Epoch(6), true);
        assert_eq!(recovery(&incidents)[1], (100, None, 0, 0));
        incidents.said(130, SHARD, Epoch(6), false);
        // The writer knows already that it is over.
        incidents.said(200, SHARD, Epoch(7), false);
        incidents.began(201, SHARD, Epoch(7));
        assert_eq!(recovery(&incidents)[1..], [(100, Some(130), 0, 0), (201, Some(201), 0, 0)]);
        // A second loss while it recovers is the same recovery, in a later epoch.
        incidents.said(300, SHARD, Epoch(8), true);
        incidents.said(310, SHARD, Epoch(9), true);
        incidents.began(311, SHARD, Epoch(8));
        incidents.began(312, SHARD, Epoch(9));
        incidents.said(320, SHARD, Epoch(9), false);
        assert_eq!(recovery(&incidents)[3..], [(300, Some(320), 0, 0)]);
    }

    #[test]
    fn what_comes_again_soon_is_one_incident() {
        let mut incidents = Incidents::new(2);
        for nth in 0..5 {
            incidents.repaired(nth * 1000, SHARD, 3);
            incidents.gap(nth * 1000, SHARD, &lost(GapReason::Unreadable, 5, 2, false));
            incidents.subscribed(nth * 1000, "redis:6379");
        }
        incidents.repaired(0, ShardId(0), 1);
        incidents.subscribed(30_000, "redis:6379");
        let all: Vec<_> = incidents.after(0).into_iter().map(|incident| incident.what).collect();
        let server = || "redis:6379".to_owned();
        let reason = GapReason::Unreadable;
        assert_eq!(
            all,
            [
                Happening::Repaired { events: 15, times: 5 },
                Happening::Missing { reason, gaps: 5, events: 10 },
                Happening::Subscribed { server: server(), times: 5 },
                Happening::Repaired { events: 1, times: 1 },
                Happening::Subscribed { server: server(), times: 1 },
            ]
        );
    }

    #[test]
    fn a_path_is_unverified_from_when_it_broke_until_it_is_verified_again() {
        let mut incidents = Incidents::new(2);
        incidents.path(5, SHARD, Some("starting"));
        incidents.path(10, SHARD, None);
        incidents.path(20, SHARD, Some(&"é".repeat(500)));
        incidents.path(21, SHARD, Some("something else"));
        let change = incidents.after(0)[0].change;
        assert_eq!((incidents.after(0).len(), incidents.after(change).len()), (1, 0));
        incidents.path(30, SHARD, None);
        let seen = &incidents.after(change)[0];
        assert_eq!((seen.began_ms, seen.ended_ms, seen.number), (20, Some(30), 1));
        let Happening::Unverified { why } = &seen.what else { panic!("{seen:?}") };
        assert_eq!(why.len(), MAX_TEXT);
        // A page of an earlier process gets everything.
        assert_eq!(incidents.after(1000).len(), 1);
    }

    proptest! {
        #[test]
        fn the_ring_is_bounded_and_who_asks_for_changes_has_all_of_it(
            steps in prop::collection::vec((0u8..8, 0u16..3, 1u64..6, any::<bool>()), 1..900)
        ) {
            let mut incidents = Incidents::new(2);
            let (mut seen, mut last) = (std::collections::BTreeMap::new(), 0);
            for (now, (step, shard, value, flag)) in (0u64..).zip(steps) {
                let (now, shard) = (now * 4000, ShardId(shard));
                match step {
                    0 => incidents.said(now, shard, Epoch(value), flag),
                    1 => incidents.began(now, shard, Epoch(value)),
                    2 => incidents.restored(shard, value),
                    3 => incidents.gap(now, shard, &lost(GapReason::EpochChanged, value, 1, flag)),
                    4 => incidents.gap(now, shard, &lost(GapReason::Unreadable, value, 1, flag)),
                    5 => incidents.repaired(now, shard, value),
                    6 => incidents.subscribed(now, &value.to_string()),
                    _ => incidents.path(now, shard, flag.then_some("why")),
                }
                for incident in incidents.after(last) {
                    prop_assert!(incident.ended_ms.is_none_or(|ended| ended >= incident.began_ms));
                    last = last.max(incident.change);
                    seen.insert(incident.number, incident);
                }
            }
            let kept = incidents.after(0);
            prop_assert!(kept.len() <= KEPT + 2 * KEPT_OF_SHARD);
            for incident in kept {
                prop_assert_eq!(seen.get(&incident.number), Some(&incident));
            }
        }
    }
}
