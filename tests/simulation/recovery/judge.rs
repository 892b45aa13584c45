//! Holds the promises against what was seen in a seed.

use std::collections::{BTreeMap, BTreeSet};

use trunkline::{
    bus::{Delivery, Epoch, GapReason, Offset, Position, redis::envelope::events_of},
    hub::cursor::Missing,
};

use super::{
    event,
    line::{At, at},
    node::{Got, Node},
    world::World,
};

/// The number of events that the client libraries remember.
const CLIENT_IDS: usize = 1024;

/// The age from which epochs are forgotten, less what clocks jump.
const FORGET_MS: u128 = (3600 - 60) * 1000;

pub fn judge(world: &mut World) -> Result<(), String> {
    if let Some(why) = world.events.broken.first() {
        return Err(why.clone());
    }
    if let Some(event) = world.events.overtaken.difference(&world.events.given_up).next() {
        return Err(format!("Sequence: event {event} comes behind a later frame of its writer"));
    }
    positions(world)?;
    last_values(world)?;
    world.learn_floor();
    let mut all = Vec::new();
    let mut repeats = 0;
    for (index, node) in world.nodes.iter().enumerate() {
        let seen = Seen::of(world, index, node)?;
        repeats += seen.repeats;
        seen.owed(world, index, node)?;
        all.push(seen);
    }
    for (a, one) in all.iter().enumerate() {
        for (b, other) in all.iter().enumerate().skip(a + 1) {
            same_order(world, (a, one), (b, other))?;
        }
    }
    let lost = world.events.declared.iter().filter(|name| world.events.truth.contains_key(name));
    let (mut reported, mut held) = (0, 0);
    for (epoch, offset) in lost {
        let name = Position { epoch: Epoch(*epoch), offset: Offset(*offset) };
        reported += 1;
        held += u64::from(world.gateways.iter().any(|gateway| gateway.memory.holds(name)));
    }
    for (what, count) in [("events reported as lost", reported), ("and held by one late", held)] {
        *world.happened.entry(what).or_default() += count;
    }
    if repeats > 0 {
        *world.happened.entry("repeats that the client passes over (X2)").or_default() += repeats;
    }
    Ok(())
}

/// The last value of each key is the newest event that it ever had on this line.
fn last_values(world: &mut World) -> Result<(), String> {
    let kept = world.last_values();
    for (key, name) in &*world.masters[world.live_masters()[0]].line.retained {
        if kept.get(key) != Some(name) {
            return Err(format!("LastValue: of key {key} is {:?}, not {name:?}", kept.get(key)));
        }
    }
    Ok(())
}

/// A position means one thing, on every gateway.
fn positions(world: &World) -> Result<(), String> {
    let mut meaning: BTreeMap<At, u64> = world.events.truth.clone();
    for (index, gateway) in world.gateways.iter().enumerate() {
        for delivery in &gateway.log {
            let Delivery::Frame(frame) = delivery else { continue };
            for (event, nth) in events_of(&frame.events).map(event::number).zip(0..) {
                let place = (frame.epoch.0, frame.first.0 + nth);
                for at in [place, at(frame.name_of(nth))] {
                    if *meaning.entry(at).or_insert(event) != event {
                        return Err(format!(
                            "Position: {at:?} is event {} and event {event} on gateway {index}",
                            meaning[&at]
                        ));
                    }
                }
            }
        }
    }
    for (request, state) in world.requests.iter().enumerate() {
        for (epoch, first) in &state.answers {
            for (event, nth) in state.events.iter().zip(0..) {
                let at = (*epoch, first + nth);
                if meaning.get(&at) != Some(event) {
                    return Err(format!(
                        "Acknowledged: request {request} was answered {at:?}, which is event {:?}",
                        meaning.get(&at)
                    ));
                }
            }
        }
    }
    Ok(())
}

/// What a node was handed, over all its streams.
struct Seen {
    /// The place of each event in the order.
    order: BTreeMap<u64, usize>,
    /// Events of which a name was told as a gap.
    told: BTreeSet<u64>,
    /// The steps of gaps of unknown size.
    unknown: Vec<u64>,
    repeats: u64,
}

impl Seen {
    fn of(world: &World, index: usize, node: &Node) -> Result<Seen, String> {
        let events = &world.events;
        let mut seen =
            Seen { order: BTreeMap::new(), told: BTreeSet::new(), unknown: vec![], repeats: 0 };
        let mut last: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        let mut count = 0;
        for got in &node.got {
            match got {
                Got::Event(event, stream) => {
                    count += 1;
                    if let Some((before, at)) = last.insert(*event, (*stream, count)) {
                        let held = !node.unheld.contains(&(*event, before));
                        if !may_repeat(world, *event, before == *stream && held) {
                            return Err(format!(
                                "Unique: node {index} gets event {event} twice; its names are \
                                 {:?}",
                                events.names[event]
                            ));
                        }
                        if count - at > CLIENT_IDS && !events.expired.contains(event) {
                            return Err(format!("Unique: node {index}, event {event}: too late"));
                        }
                        seen.repeats += 1;
                    } else {
                        seen.order.insert(*event, count);
                    }
                }
                Got::Gap(missing, step) => seen.gap(world, index, missing, *step)?,
            }
        }
        for got in &node.got {
            let Got::Gap(missing, _) = got else { continue };
            for name in names(missing) {
                let Some(event) = events.truth.get(&name) else { continue };
                let in_doubt = events.doubts.get(&name).is_some_and(|doubts| !doubts.is_empty());
                // Nor does a token say that a node had what came so long ago.
                let excused = in_doubt || events.double.contains(event);
                let excused = excused || events.is_old(*event);
                if seen.order.contains_key(event) && !excused {
                    return Err(format!(
                        "NoFalseGap: node {index} gets event {event}, and is told {name:?} as a gap"
                    ));
                }
            }
        }
        Ok(seen)
    }

    fn gap(
        &mut self,
        world: &World,
        index: usize,
        missing: &Missing,
        step: u64,
    ) -> Result<(), String> {
        let events = &world.events;
        if missing.missed.is_none() {
            let unknown = missing.reason == GapReason::UnknownEpoch;
            if !unknown && !world.forgets {
                return Err(format!("Resumable: node {index} is told {missing:?}"));
            }
            self.unknown.push(step);
        }
        for name in names(missing) {
            // Where nobody knows the names any more, the places of copies are told.
            self.told.extend(events.copies.get(&name));
            let Some(event) = events.truth.get(&name) else { continue };
            self.told.insert(*event);
            let in_doubt = events.doubts.get(&name).is_some_and(|doubts| !doubts.is_empty());
            let declared = events.declared.contains(&name);
            // History that was evicted ends before what is missing.
            let evicted = world.happened.contains_key("evictions");
            let nobody_told = !declared && !in_doubt && !evicted;
            if missing.reason == GapReason::EpochChanged && nobody_told {
                return Err(format!(
                    "NoFalseGap: node {index} is told event {event} as lost as {name:?}, which \
                     nobody told"
                ));
            }
        }
        let expired = missing.reason == GapReason::HistoryExpired && world.trims();
        if !world.absences && !world.drops && !expired {
            return Err(format!("NoFalseGap: node {index} is told {missing:?}; nothing was lost"));
        }
        Ok(())
    }

    /// Everything that the node is owed came, or was told.
    fn owed(&self, world: &World, index: usize, node: &Node) -> Result<(), String> {
        let Some(not_owed) = &node.not_owed else {
            return Err(format!("Live: node {index} never had a stream"));
        };
        let events = &world.events;
        let line = &world.masters[world.live_masters()[0]].line;
        let acknowledged: BTreeSet<u64> = world
            .requests
            .iter()
            .filter(|request| request.answered.is_some())
            .flat_map(|request| request.events.iter().copied())
            .collect();
        for (event, first) in &events.first {
            let came = self.order.contains_key(event) || self.told.contains(event);
            let unknown = self.unknown.iter().any(|step| step >= first);
            if came || unknown || not_owed.contains(event) {
                continue;
            }
            // What nobody holds, and of which nobody told the line, is lost without a trace (X1).
            let names = &events.names[event];
            // Nor is what was lost with an epoch that is forgotten by its age, and is that old.
            // Earlier versions do not know again what they have forgotten.
            let is_old = events.recorded[event] + FORGET_MS < world.elapsed.as_millis();
            let is_old = is_old || world.forgets && world.is_mixed();
            if is_old && names.iter().all(|(epoch, _)| *epoch <= world.floor) {
                continue;
            }
            let traced = names
                .iter()
                .any(|(epoch, offset)| line.told.get(epoch).is_some_and(|last| last >= offset));
            if line.present.contains(event) || traced && acknowledged.contains(event) {
                return Err(format!(
                    "NoSilentLoss: node {index} never gets event {event}, nor a gap; its names \
                     are {names:?}; it stands in the line: {}",
                    line.present.contains(event)
                ));
            }
        }
        Ok(())
    }
}

/// True if an event may be handed on twice (X2): it was accepted twice, since none of the gateways
/// that took part had it, and the node's present gateway cannot know that. It knows if it is the
/// `same` one, and held the event.
fn may_repeat(world: &World, event: u64, same: bool) -> bool {
    let events = &world.events;
    if events.expired.contains(&event) || events.is_old(event) && !same {
        return true;
    }
    let told = events.names[&event].iter().any(|name| events.declared.contains(name));
    let twice = events.double.contains(&event) && (!events.bad_double.contains(&event) || told);
    let names = &events.names[&event];
    // A client's retry has no doubt; a writer's own names what it may be.
    let retried = events.stamps[&event].len() > 1;
    let covered = names.iter().any(|name| {
        let mut doubts = events.doubts[name].iter();
        doubts.any(|doubt| names.iter().any(|other| other.0 == doubt.0 && other.1 > doubt.1))
    });
    twice && (retried || !covered || world.absences) && (!same || world.drops)
}

fn same_order(
    world: &World,
    (a, one): (usize, &Seen),
    (b, other): (usize, &Seen),
) -> Result<(), String> {
    let events = &world.events;
    // What came before a gap of unknown size may come as a copy after all, out of its order.
    let in_order = |event: &u64| {
        let gaps = one.unknown.iter().chain(&other.unknown);
        events.first.get(event).is_none_or(|first| gaps.clone().all(|step| step < first))
    };
    let mut common: Vec<(usize, usize, u64)> = one
        .order
        .iter()
        .filter(|(event, _)| in_order(event))
        .filter(|(event, _)| !events.late.contains(event) && !events.double.contains(event))
        .filter(|(event, _)| {
            // What came before a stream may come as a copy, out of its order.
            let owes = |node: usize| {
                world.nodes[node].not_owed.as_ref().is_none_or(|not_owed| !not_owed.contains(event))
            };
            owes(a) && owes(b)
        })
        .filter_map(|(event, at)| Some((*at, *other.order.get(event)?, *event)))
        .collect();
    common.sort_unstable();
    for pair in common.windows(2) {
        if pair[0].1 > pair[1].1 {
            return Err(format!(
                "Ordered: nodes {a} and {b} get events {} and {} in different orders",
                pair[0].2, pair[1].2
            ));
        }
    }
    Ok(())
}

/// The names that a gap of known size tells as missing.
fn names(missing: &Missing) -> impl Iterator<Item = At> {
    let (from, to) = (missing.from, missing.to);
    let known = missing.missed.is_some();
    (from.offset.0 + 1..=to.offset.0).filter(move |_| known).map(move |offset| (to.epoch.0, offset))
}
