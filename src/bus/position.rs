//! The position of an event: shard, epoch and offset.

use std::fmt;

/// One ordered channel of the bus; from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The shard as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The shard with this index. A bus has far fewer shards than a `u16` counts.
    pub fn at_index(index: usize) -> ShardId {
        ShardId(u16::try_from(index).unwrap_or(u16::MAX))
    }

    /// All shards of a bus that has `count` of them.
    pub fn all(count: u16) -> impl Iterator<Item = ShardId> {
        (0..count).map(ShardId)
    }
}

/// Identity of one unbroken run of a shard's offsets. A later epoch is higher; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// No epoch is known.
    pub const NONE: Epoch = Epoch(0);

    /// The epochs of one millisecond: the low bits of an epoch are random.
    const PER_MS: u64 = 4096;

    /// An epoch that is opened at `ms` milliseconds since 1970, with random low bits of `entropy`.
    pub fn opened_at(ms: u64, entropy: u64) -> Epoch {
        Epoch(ms.saturating_mul(Epoch::PER_MS).saturating_add(entropy % Epoch::PER_MS))
    }

    /// When it was opened, in milliseconds since 1970.
    pub fn opened_ms(self) -> u64 {
        self.0 / Epoch::PER_MS
    }
}

/// The number of an event in its epoch, from 1. As a position, 0 is before the first event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `count` events later.
    #[must_use]
    pub fn plus(self, count: u64) -> Offset {
        Offset(self.0.saturating_add(count))
    }
}

/// A position in one shard: after the event with this epoch and offset, and everything before it.
/// Later positions are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The run of offsets.
    pub epoch: Epoch,
    /// The number in it.
    pub offset: Offset,
}

impl Position {
    /// Nothing is known of the shard yet.
    pub const UNKNOWN: Position = Position { epoch: Epoch::NONE, offset: Offset(0) };

    /// The position of an epoch and an offset.
    pub fn new(epoch: u64, offset: u64) -> Position {
        Position { epoch: Epoch(epoch), offset: Offset(offset) }
    }

    /// True if an epoch is known.
    pub fn is_known(self) -> bool {
        self.epoch != Epoch::NONE
    }

    /// The number of events after this position up to `later`; `None` if the two are in different
    /// epochs.
    pub fn events_until(self, later: Position) -> Option<u64> {
        let same_epoch = self.epoch == later.epoch;
        same_epoch.then(|| later.offset.0.saturating_sub(self.offset.0))
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch.0, self.offset.0)
    }
}
