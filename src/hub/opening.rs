//! Opening a stream: the position at which it begins in each shard.

use std::sync::Arc;

use super::{
    Hub,
    cursor::{Cursor, Opening, ReadOptions},
    filter::Filter,
};
use crate::bus::{AppendError, Delivery, Gap, GapReason, Position, ShardId, unix_ms};

/// Where a stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the next event.
    Latest,
    /// With the oldest event that is kept.
    Oldest,
    /// After these positions, one per shard.
    After(Vec<Position>),
}

/// An opened stream.
pub struct Opened {
    /// The stream's cursor.
    pub cursor: Cursor,
    /// True if the stream continues without loss, as far as is known.
    pub resumed: bool,
    /// The number of events between the token and the newest event, before filtering.
    pub replayed: u64,
}

impl Hub {
    /// Opens a stream. Every event that the bus accepts after this is delivered, or reported as a
    /// gap.
    ///
    /// # Errors
    ///
    /// The bus was needed to look up a position, and did not answer.
    pub async fn open(
        self: &Arc<Self>,
        filter: Filter,
        begin: &Begin,
        options: ReadOptions,
    ) -> Result<Opened, AppendError> {
        // Registered first: events that arrive while positions are looked up become pending.
        let registration = self.router.register(filter, self.logs.len());
        let mut openings = Vec::with_capacity(self.logs.len());
        let (mut resumed, mut replayed) = (matches!(begin, Begin::After(_)), 0);
        for (shard, log) in self.logs.iter().enumerate() {
            let id = ShardId::at_index(shard);
            let extent = log.extent();
            let opening = match begin {
                Begin::Latest => Opening::Log {
                    position: extent.end,
                    next: extent.next,
                    end: extent.next,
                    resumed: false,
                },
                Begin::Oldest if self.bus().history().is_some() => {
                    Opening::History { position: Position::UNKNOWN }
                }
                Begin::Oldest => Opening::Log {
                    position: extent.start,
                    next: extent.base,
                    end: extent.next,
                    resumed: false,
                },
                Begin::After(positions) => {
                    let position = positions
                        .get(shard)
                        .copied()
                        .filter(|_| positions.len() == self.logs.len());
                    self.resume(id, position.unwrap_or(Position::UNKNOWN)).await?
                }
            };
            match &opening {
                Opening::Gap { .. } => resumed = false,
                Opening::Log { next, end, position, .. } if next < end => {
                    let before = log.locate(*position).map_or(0, |(_, before)| before);
                    replayed += log.extent().total.saturating_sub(before);
                }
                Opening::Log { .. } => {}
                Opening::History { position } => {
                    let (lost, events) = self.preview(id, *position).await?;
                    resumed &= !lost;
                    replayed += events;
                }
            }
            openings.push(opening);
        }
        let interest = registration.interest.clone();
        let mut cursor = Cursor::new(self.clone(), registration, openings, options);
        let first = self.last_values(&interest.filter, &cursor.positions());
        cursor.begin_with(&first);
        Ok(Opened { cursor, resumed, replayed })
    }

    /// Decides how a stream continues after a position.
    async fn resume(&self, shard: ShardId, position: Position) -> Result<Opening, AppendError> {
        let log = &self.logs[shard.index()];
        let in_log = || {
            let (next, _) = log.locate(position)?;
            Some(Opening::Log { position, next, end: log.extent().next, resumed: true })
        };
        if let Some(opening) = in_log() {
            return Ok(opening);
        }
        let unknown = || {
            let extent = log.extent();
            let gap = Gap {
                reason: GapReason::UnknownEpoch,
                from: position,
                to: extent.end,
                missed: None,
                from_ms: None,
                to_ms: unix_ms(),
            };
            Opening::Gap { gap, next: extent.next, end: extent.next }
        };
        if !position.is_known() {
            return Ok(unknown());
        }
        let Some(history) = self.bus().history() else {
            let extent = log.extent();
            if position.epoch == extent.start.epoch && position < extent.start {
                let gap = extent.gap_after(position);
                return Ok(Opening::Gap { gap, next: extent.base, end: extent.next });
            }
            return Ok(unknown());
        };
        if position <= log.extent().end {
            return Ok(Opening::History { position });
        }
        // The other gateway was ahead of this one, or the position never existed.
        let tip = history.tip(shard).await?;
        if position.epoch == tip.epoch && position.offset <= tip.offset {
            let extent = log.extent();
            return Ok(Opening::Log {
                position,
                next: extent.base,
                end: extent.next,
                resumed: true,
            });
        }
        // The gateway may have caught up in the meantime.
        Ok(in_log().unwrap_or_else(unknown))
    }

    /// Reads a page of history after a position. Returns whether anything after the position is
    /// lost, and about how many events follow it.
    async fn preview(
        &self,
        shard: ShardId,
        position: Position,
    ) -> Result<(bool, u64), AppendError> {
        let page = self.history_page(shard, position, 64 * 1024).await?;
        let lost = matches!(page.deliveries.first(), Some(Delivery::Gap(_)));
        let mut events = 0;
        for delivery in &page.deliveries {
            if let Delivery::Frame(frame) = delivery {
                events += frame.count;
            }
        }
        let extent = self.logs[shard.index()].extent();
        if page.next.epoch == extent.end.epoch {
            events += extent.end.offset.0.saturating_sub(page.next.offset.0);
        }
        Ok((lost, events))
    }
}
