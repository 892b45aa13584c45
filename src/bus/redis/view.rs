//! A shard as its script describes it.

use crate::bus::{Epoch, Position, ranges::Ranges};

/// The state of a shard as an answer of its script says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardView {
    /// The shard's end.
    pub tip: Position,
    /// The offsets of the tip's epoch that hold copies or notes.
    pub copies: Ranges,
    /// Everything of epochs up to this one is handled.
    pub floor: Epoch,
    /// For each earlier epoch the last position that is in the shard, was appended again, or was
    /// told as lost; ascending.
    pub ends: Vec<Position>,
    /// True while appends wait.
    pub recovering: bool,
}

/// Reads `floor epoch:offset ..`, as the script writes the ends of epochs.
pub(in crate::bus::redis) fn parse_ends(text: &str) -> Option<(Epoch, Vec<Position>)> {
    let mut parts = text.split_ascii_whitespace();
    let floor = Epoch(parts.next()?.parse().ok()?);
    let end = |part: &str| {
        let (epoch, offset) = part.split_once(':')?;
        Some(Position::new(epoch.parse().ok()?, offset.parse().ok()?))
    };
    Some((floor, parts.take(MAX_ENDS).map(end).collect::<Option<_>>()?))
}

/// Ended epochs that the script keeps, and some more.
const MAX_ENDS: usize = 128;

/// Reads the parts of a view as the script writes them.
pub(in crate::bus::redis) fn parse_view(
    tip: Position,
    copies: &str,
    ends: &str,
    recovering: bool,
) -> Option<ShardView> {
    let (floor, ends) = parse_ends(ends)?;
    Some(ShardView { tip, copies: Ranges::parse(copies)?, floor, ends, recovering })
}
