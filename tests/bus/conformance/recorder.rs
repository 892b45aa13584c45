//! A sink that records deliveries and checks the rules about their order.

use std::collections::HashMap;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use prost::encoding::{WireType, decode_key, decode_varint};
use trunkline::bus::{
    Delivery, Epoch, Frame, Gap, GapReason, Lost, Offset, Position, PublisherId, ShardId, Sink,
    StreamNumber,
};

/// All deliveries of one sink.
#[derive(Default)]
pub struct Recorder(Mutex<Recording>);

#[derive(Default)]
struct Recording {
    shards: HashMap<ShardId, ShardRecording>,
    streams: HashMap<PublisherId, Vec<StreamNumber>>,
    violations: Vec<String>,
}

/// The deliveries of one shard.
#[derive(Clone, Default)]
pub struct ShardRecording {
    /// The last position delivered. None before the start.
    pub at: Option<Position>,
    /// Every event that was delivered for the first time, with its name.
    pub events: Vec<(Position, Bytes)>,
    /// The same by their names.
    names: HashMap<Position, Bytes>,
    /// The number of events that were delivered again, as copies.
    pub repeated: usize,
    /// The gaps.
    pub gaps: Vec<Gap>,
    /// The last position of each epoch.
    ends: HashMap<Epoch, Offset>,
}

impl Sink for Recorder {
    fn deliver(&self, shard: ShardId, delivery: Delivery) {
        let mut recording = self.0.lock();
        let found = recording.shards.entry(shard).or_default().take(&delivery);
        if let Err(violation) = found {
            recording.violations.push(format!("shard {shard}: {violation}: {delivery:?}"));
        }
    }

    fn publishes(&self, publisher: PublisherId, stream: StreamNumber) {
        self.0.lock().streams.entry(publisher).or_default().push(stream);
    }
}

impl Recorder {
    /// The streams of a publisher whose events were received.
    pub fn streams(&self, publisher: &PublisherId) -> Vec<StreamNumber> {
        self.0.lock().streams.get(publisher).cloned().unwrap_or_default()
    }

    /// A copy of what was delivered to a shard.
    pub fn shard(&self, shard: ShardId) -> ShardRecording {
        self.0.lock().shards.get(&shard).cloned().unwrap_or_default()
    }

    /// Panics if a delivery broke a rule.
    pub fn assert_rules_kept(&self) {
        let recording = self.0.lock();
        assert!(recording.violations.is_empty(), "{:#?}", recording.violations);
    }
}

impl ShardRecording {
    /// A recording that continues after `position`.
    pub fn after(position: Position) -> ShardRecording {
        let ends = HashMap::from([(position.epoch, position.offset)]);
        ShardRecording { at: Some(position), ends, ..ShardRecording::default() }
    }

    /// Takes the next delivery; the error names the rule that it breaks.
    pub fn take(&mut self, delivery: &Delivery) -> Result<(), String> {
        let Some(at) = self.at else {
            let Delivery::Start(start) = delivery else {
                return Err("the first delivery is no start".into());
            };
            self.go_to(start.position);
            return Ok(());
        };
        match delivery {
            Delivery::Start(_) => return Err("a second start".into()),
            Delivery::Frame(frame) => self.take_frame(frame)?,
            Delivery::Epoch(start) => {
                if start.position.epoch <= at.epoch || start.position.offset != Offset(0) {
                    return Err(format!("an epoch that does not begin after {at}"));
                }
                self.go_to(start.position);
            }
            Delivery::Gap(gap) => {
                if gap.position <= at {
                    return Err(format!("a gap that does not go on from {at}"));
                }
                if gap.lost.is_empty() && !gap.more {
                    return Err("a gap of nothing".into());
                }
                if gap.lost.iter().any(|lost| lost.first > lost.last) {
                    return Err("a gap with an empty run".into());
                }
                // The bus may lose what it has delivered before.
                let had = self.names.keys().find(|name| gap.names(**name));
                if let Some(had) = had.filter(|_| gap.reason != GapReason::EpochChanged) {
                    return Err(format!("{had} is told as missing, and was delivered"));
                }
                self.go_to(gap.position);
                self.gaps.push(gap.clone());
            }
        }
        Ok(())
    }

    fn take_frame(&mut self, frame: &Frame) -> Result<(), String> {
        let events = events_of(frame)?;
        let end = self.ends.get(&frame.epoch).copied();
        if end.is_none_or(|end| frame.first != end.plus(1)) {
            return Err(format!("a frame that does not follow {end:?}"));
        }
        self.go_to(frame.last());
        for (name, event) in events {
            match self.names.get(&name) {
                None => {
                    self.names.insert(name, event.clone());
                    self.events.push((name, event));
                }
                Some(before) if *before == event && frame.is_copy() => self.repeated += 1,
                Some(_) => return Err(format!("{name} stands for two events")),
            }
        }
        Ok(())
    }

    fn go_to(&mut self, position: Position) {
        self.at = Some(position);
        self.ends.insert(position.epoch, position.offset);
    }

    /// The name of an event each time that it was delivered under another.
    pub fn positions_of(&self, event: &Bytes) -> Vec<Position> {
        let found = self.events.iter().filter(|(_, delivered)| delivered == event);
        found.map(|(position, _)| *position).collect()
    }

    /// True if the event with this name lies in a gap.
    pub fn is_missing(&self, name: Position) -> bool {
        self.gaps.iter().any(|gap| gap.names(name))
    }
}

trait Names {
    /// True if it says that the event with this name is missing.
    fn names(&self, name: Position) -> bool;
}

impl Names for Gap {
    fn names(&self, name: Position) -> bool {
        let among = |lost: &Lost| {
            lost.epoch == name.epoch && (lost.first..=lost.last).contains(&name.offset)
        };
        self.lost.iter().any(among)
    }
}

/// The events of a frame with their names.
pub fn events_of(frame: &Frame) -> Result<Vec<(Position, Bytes)>, String> {
    let mut body = frame.events.clone();
    let mut events = Vec::new();
    while body.has_remaining() {
        let key = decode_key(&mut body).map_err(|error| error.to_string())?;
        if key != (1, WireType::LengthDelimited) {
            return Err(format!("a field {key:?} among the events"));
        }
        let length = decode_varint(&mut body).map_err(|error| error.to_string())?;
        let length = usize::try_from(length).map_err(|error| error.to_string())?;
        events.push((frame.name_of(events.len() as u64), body.split_to(length)));
    }
    if events.len() as u64 != frame.count || events.is_empty() {
        return Err(format!("a frame of {} events that says {}", events.len(), frame.count));
    }
    Ok(events)
}
