//! A sink that records deliveries and checks the rules about their order.

use std::collections::HashMap;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use prost::encoding::{WireType, decode_key, decode_varint};
use trunkline::bus::{Delivery, Frame, Gap, Position, ShardId, Sink};

/// All deliveries of one sink.
#[derive(Default)]
pub struct Recorder(Mutex<Recording>);

#[derive(Default)]
struct Recording {
    shards: HashMap<ShardId, ShardRecording>,
    violations: Vec<String>,
}

/// The deliveries of one shard.
#[derive(Clone, Default)]
pub struct ShardRecording {
    /// The last position delivered. None before the start.
    pub at: Option<Position>,
    /// Every event that was delivered for the first time, with its position.
    pub events: Vec<(Position, Bytes)>,
    /// Every event that was delivered as restored, with its new position.
    pub restored: Vec<(Position, Bytes)>,
    /// The gaps.
    pub gaps: Vec<Gap>,
    /// The number of epochs that began without a gap.
    pub epochs: usize,
}

impl Sink for Recorder {
    fn deliver(&self, shard: ShardId, delivery: Delivery) {
        let mut recording = self.0.lock();
        let found = recording.shards.entry(shard).or_default().take(&delivery);
        if let Err(violation) = found {
            recording.violations.push(format!("shard {shard}: {violation}: {delivery:?}"));
        }
    }
}

impl Recorder {
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
        ShardRecording { at: Some(position), ..ShardRecording::default() }
    }

    /// Takes the next delivery; the error names the rule that it breaks.
    pub fn take(&mut self, delivery: &Delivery) -> Result<(), String> {
        let Some(at) = self.at else {
            let Delivery::Start(position) = delivery else {
                return Err("the first delivery is no start".into());
            };
            self.at = Some(*position);
            return Ok(());
        };
        match delivery {
            Delivery::Start(_) => return Err("a second start".into()),
            Delivery::Frame(frame) => {
                let events = events_of(frame)?;
                self.follow(at, frame)?;
                self.events.extend(events);
            }
            Delivery::Restored(frame) => {
                let events = events_of(frame)?;
                self.follow(at, frame)?;
                if !self.had(frame, &events) {
                    return Err("a frame is restored that was never delivered".into());
                }
                self.restored.extend(events);
            }
            Delivery::Epoch(position) => {
                if position.epoch <= at.epoch {
                    return Err(format!("an epoch that is not higher than that of {at}"));
                }
                self.at = Some(*position);
                self.epochs += 1;
            }
            Delivery::Gap(gap) => {
                if gap.from != at || gap.to <= at {
                    return Err(format!("a gap that does not begin at {at}"));
                }
                let count = (gap.to.epoch == at.epoch).then(|| gap.to.offset.0 - at.offset.0);
                if count.is_some_and(|count| gap.missed != Some(count)) {
                    return Err(format!("a gap within an epoch without the count {count:?}"));
                }
                self.at = Some(gap.to);
                self.gaps.push(gap.clone());
            }
        }
        Ok(())
    }

    fn follow(&mut self, at: Position, frame: &Frame) -> Result<(), String> {
        if frame.epoch != at.epoch || frame.first != at.offset.plus(1) {
            return Err(format!("a frame that does not follow {at}"));
        }
        self.at = Some(frame.last());
        Ok(())
    }

    /// True if the events of a restored frame were delivered at its origin.
    fn had(&self, frame: &Frame, events: &[(Position, Bytes)]) -> bool {
        let Some(origin) = frame.origin else { return false };
        let first = origin.offset.0 + 1 - frame.count;
        events.iter().zip(first..).all(|((_, event), offset)| {
            let at = Position::new(origin.epoch.0, offset);
            self.events.iter().any(|(position, before)| *position == at && before == event)
        })
    }

    /// The position and number of deliveries of an event.
    pub fn positions_of(&self, event: &Bytes) -> Vec<Position> {
        let found = self.events.iter().filter(|(_, delivered)| delivered == event);
        found.map(|(position, _)| *position).collect()
    }

    /// True if a position lies in a gap.
    pub fn is_missing(&self, position: Position) -> bool {
        self.gaps.iter().any(|gap| gap.from < position && position <= gap.to)
    }
}

/// The events of a frame with their positions.
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
        let position =
            Position { epoch: frame.epoch, offset: frame.first.plus(events.len() as u64) };
        events.push((position, body.split_to(length)));
    }
    if events.len() as u64 != frame.count || events.is_empty() {
        return Err(format!("a frame of {} events that says {}", events.len(), frame.count));
    }
    Ok(events)
}
