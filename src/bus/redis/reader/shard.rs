//! The reading of one shard: a state machine without I/O.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::bus::{
    Delivery, Epoch, EpochStart, Position, PublisherId, StreamNumber,
    redis::{
        envelope::{Body, Envelope, WriterId},
        history::Reading,
        liveness::Received,
        order::{Order, Step},
        recovery::Memory,
    },
};

/// Envelopes, and bytes of them, that may wait for a shard while it is repaired. Envelopes beyond
/// that are dropped, and read from history.
const MAX_PENDING: usize = 4096;
const MAX_PENDING_BYTES: usize = 8 * 1024 * 1024;

/// The wait before history is read again that has nothing new yet: the shard recovers.
const PAUSE: Duration = Duration::from_millis(20);

/// The number of writers whose last probe is remembered.
const MAX_WRITERS: usize = 1024;

/// The reading of one shard.
///
/// An envelope that does not follow the last one is not delivered: the shard waits while the hole
/// is filled from history, and only what history no longer has becomes a gap.
#[derive(Debug)]
pub struct ShardReader {
    /// The gateway's writers.
    own: WriterId,
    /// True if everything on the channel has authentication tags.
    tagged: bool,
    order: Order,
    started: bool,
    /// The epoch of the first delivery.
    first: Option<Epoch>,
    /// Envelopes received during a repair. None while no repair is under way.
    pending: Option<Pending>,
    /// The last authenticated probe of each writer: an earlier one is a replay.
    probes: HashMap<WriterId, u64>,
}

/// What an envelope or a reading of history showed.
#[derive(Debug, Default)]
pub struct Found {
    /// What is to be delivered, in this order.
    pub deliveries: Vec<Delivery>,
    /// History is to be read, after [`ShardReader::read_from`], when this time is over.
    pub read_history: Option<Duration>,
    /// Streams of publishers whose events were received.
    pub streams: Vec<(PublisherId, StreamNumber)>,
    /// What arrived on the channel.
    pub received: Option<Received>,
    /// Something may have to be appended again.
    pub recover: bool,
    /// Items whose authentication tag does not verify.
    pub forged: u64,
}

impl Found {
    fn publishes(&mut self, envelope: &Envelope) {
        if let Body::Frame(stamped) = &envelope.body {
            self.streams.extend(stamped.streams());
        }
    }
}

/// Envelopes received during a repair.
#[derive(Debug, Default)]
struct Pending {
    envelopes: VecDeque<Envelope>,
    bytes: usize,
    /// True if an envelope was dropped: history is to be read once more.
    overflowed: bool,
}

impl Pending {
    fn add(&mut self, envelope: Envelope) {
        let bytes = envelope.size();
        if self.envelopes.len() >= MAX_PENDING || self.bytes + bytes > MAX_PENDING_BYTES {
            self.overflowed = true;
            return;
        }
        self.bytes += bytes;
        self.envelopes.push_back(envelope);
    }
}

impl ShardReader {
    /// Nothing was read yet.
    pub fn new(own: WriterId, tagged: bool) -> ShardReader {
        ShardReader {
            own,
            tagged,
            order: Order::default(),
            started: false,
            first: None,
            pending: None,
            probes: HashMap::new(),
        }
    }

    /// True after the first delivery.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// The last position delivered.
    pub fn position(&self) -> Position {
        self.order.position()
    }

    /// The position after which history is to be read.
    pub fn read_from(&self) -> Position {
        self.order.read_from()
    }

    /// Begins a repair: messages may have been missed. False if one is under way, or nothing was
    /// delivered yet.
    pub fn repair(&mut self) -> bool {
        let begins = self.started && self.pending.is_none();
        if begins {
            self.pending = Some(Pending::default());
        }
        begins
    }

    /// Begins a repair with a reading that is made at once.
    fn read_at_once(&mut self) -> Option<Duration> {
        self.repair().then_some(Duration::ZERO)
    }

    /// Takes an envelope from the channel.
    pub fn arrived(&mut self, mut envelope: Envelope, memory: &mut Memory, now: Instant) -> Found {
        let received = Received::of(&envelope, self.tagged);
        let mut found = Found { received, ..Found::default() };
        if self.tagged && !self.is_genuine(&envelope, &mut found) {
            return found;
        }
        memory.learn(&mut envelope, now);
        found.publishes(&envelope);
        found.recover = matches!(envelope.body, Body::EpochStart { .. });
        if self.started {
            self.offer(envelope, &mut found);
        } else if let Body::Probe { writer, view, .. } = &envelope.body
            // One of another gateway that has a tag may be a replay.
            && (*writer == self.own || !self.tagged)
        {
            // A probe shows the shard's end, and that later messages will be received.
            self.started = true;
            memory.begin();
            self.first = Some(envelope.position.epoch);
            self.order = Order::after(view);
            let (position, previous) = (envelope.position, Position::UNKNOWN);
            let start = EpochStart { position, previous, ends: view.ends.clone() };
            found.deliveries.push(Delivery::Start(start));
        }
        found
    }

    /// False if an envelope, on a channel on which everything has tags, is not to be believed.
    fn is_genuine(&mut self, envelope: &Envelope, found: &mut Found) -> bool {
        match &envelope.body {
            // If history has an entry at its position, the next probe shows that it is missing.
            Body::Forged => {
                (found.received, found.forged) = (None, 1);
                false
            }
            Body::Probe { writer, number, .. } => {
                if self.probes.get(writer).is_some_and(|last| number <= last) {
                    (found.received, found.forged) = (None, 1);
                    return false;
                }
                if self.probes.len() >= MAX_WRITERS && !self.probes.contains_key(writer) {
                    self.probes.clear();
                }
                self.probes.insert(*writer, *number);
                true
            }
            // They have no tag because the script makes them, so anybody could have written them.
            // History has them too, next to the shard's state, to which writers append.
            Body::EpochStart { .. } | Body::Note(_) => {
                found.recover = true;
                match &mut self.pending {
                    Some(pending) => pending.overflowed = true,
                    None if self.started && !self.order.has(envelope.position) => {
                        found.read_history = self.read_at_once();
                    }
                    None => {}
                }
                false
            }
            // One of an epoch that ended before this gateway came would be a replay.
            Body::Frame(_) => {
                let later = self.first.is_some_and(|first| envelope.position.epoch >= first);
                if !later {
                    found.received = None;
                }
                later
            }
            Body::Unreadable => true,
        }
    }

    /// Delivers an envelope if it follows; a hole starts a repair.
    fn offer(&mut self, envelope: Envelope, found: &mut Found) {
        if let Some(pending) = &mut self.pending {
            pending.add(envelope);
            return;
        }
        match self.order.offer(&envelope) {
            Step::Next(delivery) => found.deliveries.push(delivery),
            Step::Nothing => {}
            // History has the envelope too; if not, it was never accepted.
            Step::Hole => found.read_history = found.read_history.or(self.read_at_once()),
        }
    }

    /// Takes what a reading brought, then the envelopes that waited for it.
    pub fn repaired(&mut self, reading: Reading, memory: &mut Memory, now: Instant) -> Found {
        let mut found = Found { forged: reading.forged(), ..Found::default() };
        let from = self.read_from();
        let mut read_again = reading.more;
        memory.report_view(&reading.view);
        let takes = self.order.begin_history(&reading.view, &reading.entries, reading.more);
        for mut entry in reading.entries {
            memory.learn(&mut entry, now);
            found.publishes(&entry);
            found.recover |= matches!(entry.body, Body::EpochStart { .. });
            if takes && !self.order.take_history(&entry, &mut found.deliveries) {
                read_again = true;
                break;
            }
        }
        if takes && !read_again {
            read_again = !self.order.finish_history(&reading.view, &mut found.deliveries);
        }
        let goes_on = (reading.more || !takes) && self.read_from() != from;
        let pending = self.pending.take().unwrap_or_default();
        if read_again || !takes || pending.overflowed {
            self.pending = Some(Pending { overflowed: false, ..pending });
            let is_new = !found.deliveries.is_empty() || goes_on;
            found.read_history = Some(if is_new { Duration::ZERO } else { PAUSE });
            return found;
        }
        // An envelope that still does not follow is newer than the reading, or was never accepted:
        // the next reading shows which.
        for envelope in pending.envelopes {
            self.offer(envelope, &mut found);
        }
        found
    }
}
