//! Holds the promises against what was seen in a seed.

use std::collections::{BTreeMap, BTreeSet};

use trunkline::bus::{Delivery, Position, redis::envelope::events_of};

use super::world::World;

type At = (u64, u64);

/// What one walk through a gateway's deliveries has.
#[derive(Default)]
struct Walk {
    had: BTreeSet<At>,
    got: BTreeMap<u64, At>,
    gaps: Vec<At>,
    more: bool,
}

pub fn judge(world: &World) -> Result<(), String> {
    let mut meaning: BTreeMap<At, u64> = BTreeMap::new();
    // A position means one thing, on every gateway.
    for (index, gateway) in world.gateways.iter().enumerate() {
        for delivery in &gateway.log {
            let Delivery::Frame(frame) = delivery else { continue };
            for (event, nth) in events_of(&frame.events).zip(0..) {
                let event = number(event);
                let place = (frame.epoch.0, frame.first.0 + nth);
                let name = frame.name_of(nth);
                for at in [place, (name.epoch.0, name.offset.0)] {
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
                if *meaning.entry(at).or_insert(*event) != *event {
                    return Err(format!(
                        "Position: request {request} was answered {at:?}, which is event {}",
                        meaning[&at]
                    ));
                }
            }
        }
    }
    let walks: Vec<Walk> = (0..world.gateways.len())
        .map(|index| walk(world, index))
        .collect::<Result<_, _>>()?;
    for (index, walk) in walks.iter().enumerate() {
        if world.gateways[index].log.is_empty() {
            return Err(format!("gateway {index} never started"));
        }
        if walk.more {
            continue;
        }
        // Every acknowledged event was delivered, or told as lost, or came before the start.
        for (request, state) in world.requests.iter().enumerate() {
            if state.answered.is_none_or(|at| Some(at) < world.gateways[index].started) {
                continue;
            }
            for (event, nth) in state.events.iter().zip(0..) {
                let named = state.answers.iter().any(|(epoch, first)| {
                    walk.had.contains(&(*epoch, first + nth))
                });
                // What nobody holds and nobody has heard of, since those who did are gone, is lost
                // without a trace.
                let traced = state.answers.iter().any(|(epoch, first)| {
                    let name = Position::new(*epoch, first + nth);
                    let mut gateways = world.gateways.iter();
                    gateways.any(|gateway| gateway.memory.has_heard_of(name))
                });
                if !walk.got.contains_key(event) && !named && traced {
                    return Err(format!(
                        "NoSilentLoss: event {event} of request {request}, acknowledged at {:?}, \
                         never reached gateway {index}",
                        state.answers
                    ));
                }
            }
        }
        // Without anybody absent nothing is lost, and nothing is told as lost.
        if !world.absences && !world.gateways.iter().any(|gateway| gateway.absent) {
            for gap in &walk.gaps {
                return Err(format!("NoFalseGap: gateway {index} tells {gap:?} as lost"));
            }
        }
    }
    Ok(())
}

fn walk(world: &World, index: usize) -> Result<Walk, String> {
    let mut walk = Walk::default();
    for delivery in &world.gateways[index].log {
        match delivery {
            Delivery::Start(start) => {
                for end in start.ends.iter().chain([&start.position]) {
                    walk.had.extend((1..=end.offset.0).map(|offset| (end.epoch.0, offset)));
                }
            }
            Delivery::Epoch(_) => {}
            Delivery::Gap(gap) => {
                walk.more |= gap.more;
                for lost in &gap.lost {
                    for offset in lost.first.0..=lost.last.0 {
                        let at = (lost.epoch.0, offset);
                        if walk.had.insert(at) {
                            walk.gaps.push(at);
                        }
                    }
                }
            }
            Delivery::Frame(frame) => {
                for (event, nth) in events_of(&frame.events).zip(0..) {
                    let event = number(event);
                    let name = frame.name_of(nth);
                    let provenance = frame.provenance.as_deref();
                    let aliases = provenance.map_or(&[][..], |provenance| &provenance.aliases);
                    let names: Vec<At> = aliases
                        .iter()
                        .filter(|(at, _)| *at == nth)
                        .map(|(_, alias)| *alias)
                        .chain([name])
                        .map(|name| (name.epoch.0, name.offset.0))
                        .collect();
                    let had = names.iter().any(|name| walk.had.contains(name));
                    if !had && let Some(before) = walk.got.insert(event, names[names.len() - 1]) {
                        return Err(format!(
                            "Unique: gateway {index} delivers event {event} as {:?}, and had it \
                             as {before:?}",
                            names
                        ));
                    }
                    walk.had.extend(names);
                }
            }
        }
    }
    Ok(walk)
}

fn number(event: &[u8]) -> u64 {
    let text = std::str::from_utf8(event).expect("text");
    text.strip_prefix("event ").and_then(|text| text.parse().ok()).expect("an event's number")
}
