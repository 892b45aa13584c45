//! Frames that a writer keeps, and re-appends when a new epoch shows that Redis lost them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Writer, call::Outgoing, flush::Flush};
use crate::bus::{
    Appended, Epoch,
    redis::{
        attempts::Attempts,
        envelope::{Header, encode_frame},
        history,
        script::Answer,
    },
};

/// Limits of the frames that are kept.
const KEEP_AGE: Duration = Duration::from_mins(1);
const KEEP_BYTES: usize = 16 * 1024 * 1024;

/// The latest frames of a writer.
#[derive(Default)]
pub(super) struct KeptFrames {
    frames: VecDeque<Kept>,
    bytes: usize,
}

/// A frame that was appended.
struct Kept {
    sequence: u64,
    /// Its position in the current epoch, or in the last one that had it.
    at: Appended,
    /// Its position when it was accepted first.
    origin: Appended,
    count: u64,
    time_ms: u64,
    events: Bytes,
    appended_at: Instant,
}

impl KeptFrames {
    /// Keeps a frame, and drops frames beyond the limits.
    pub(super) fn keep(&mut self, sequence: u64, flush: &Flush, appended: Appended) {
        self.bytes += flush.events.len();
        self.frames.push_back(Kept {
            sequence,
            at: appended,
            origin: appended,
            count: flush.count,
            time_ms: flush.time_ms,
            events: flush.events.clone(),
            appended_at: Instant::now(),
        });
        while let Some(oldest) = self.frames.front() {
            if oldest.appended_at.elapsed() < KEEP_AGE && self.bytes <= KEEP_BYTES {
                break;
            }
            self.bytes -= oldest.events.len();
            self.frames.pop_front();
        }
    }

    /// The epochs of the frames, in their order.
    fn epochs(&self) -> Vec<Epoch> {
        let mut epochs: Vec<Epoch> = self.frames.iter().map(|kept| kept.at.epoch).collect();
        epochs.dedup();
        epochs
    }

    fn get(&self, sequence: u64) -> Option<&Kept> {
        self.frames.iter().find(|kept| kept.sequence == sequence)
    }

    fn moved(&mut self, sequence: u64, to: Appended) {
        if let Some(kept) = self.frames.iter_mut().find(|kept| kept.sequence == sequence) {
            kept.at = to;
        }
    }
}

impl Writer {
    /// Enters a new epoch: re-appends what Redis lost of the last one.
    pub(super) async fn enter(
        &mut self,
        epoch: Epoch,
        attempts: &mut Attempts,
    ) -> Result<(), String> {
        let before = self.state.epoch;
        let lost = self.lost().await?;
        if before != Epoch::NONE && !lost.is_empty() {
            tracing::info!(shard = %self.parts.shard, epoch = epoch.0, before = before.0,
                lost = lost.len(), "re-appending frames that Redis lost");
        }
        self.state.epoch = epoch;
        for sequence in lost {
            let Some(kept) = self.state.kept.get(sequence) else { continue };
            let header = Header {
                writer: self.parts.id,
                sequence,
                count: kept.count,
                time_ms: kept.time_ms,
                origin: Some((kept.origin.epoch, kept.origin.first)),
            };
            let (frame, count) = (encode_frame(&header, &kept.events), kept.count);
            let out = Outgoing { sequence, count, frame: &frame, requests: &[], retain: &[] };
            match self.call(&out, attempts).await {
                Ok(Answer::Appended(appended)) => self.state.kept.moved(sequence, appended),
                Ok(Answer::EpochOver(_)) => {
                    // Another new epoch: to be entered with what is still lost.
                    self.state.epoch = before;
                    return Err("the epoch changed again".into());
                }
                Ok(_) => {}
                Err(why) => {
                    self.state.epoch = before;
                    return Err(why);
                }
            }
        }
        Ok(())
    }

    /// The sequences of the kept frames that Redis no longer has, in ascending order.
    async fn lost(&self) -> Result<Vec<u64>, String> {
        let kept = &self.state.kept;
        let epochs = kept.epochs();
        let mut lost = Vec::new();
        if epochs.is_empty() {
            return Ok(lost);
        }
        let master = self.parts.topology.master(self.parts.shard);
        let server = master.ok_or("no server is known to own the shard")?;
        for epoch in epochs {
            let end = history::end_of_epoch(&server, &self.parts.names, epoch).await?;
            let frames = kept.frames.iter().filter(|kept| kept.at.epoch == epoch);
            // Redis has all of a frame or nothing, so the first event is enough to check.
            let gone = frames.filter(|kept| end.is_none_or(|end| kept.at.first > end));
            lost.extend(gone.map(|kept| kept.sequence));
        }
        lost.sort_unstable();
        Ok(lost)
    }
}
