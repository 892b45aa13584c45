//! The bus: it carries frames between gateways.
//!
//! A bus has a fixed number of shards. It assigns every event a [`Position`] in its shard, hands
//! the events of all gateways to a [`Sink`] in the order of their positions, and keeps the latest
//! of them as history. Events that it cannot deliver it reports as a [`Gap`], so that a sink always
//! knows what it has. [`Bus`] lists the rules that every bus keeps; `tests/bus/conformance` checks
//! each of them on every bus.
//!
//! The bus knows neither gRPC nor subscribers; events are bytes to it. A new bus is one folder here
//! and one line in [`Registry`].

mod append;
mod delivery;
pub mod embedded;
mod examination;
mod incidents;
mod members;
mod position;
pub mod ranges;
pub mod redis;
mod registry;
mod run;
mod status;
mod traced;

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

pub use self::delivery::put_event;
pub use self::{
    append::{AppendError, Appended, Batch, RequestId, Retained},
    delivery::{
        Delivery, EpochStart, Frame, Gap, GapReason, HistoryPage, Lost, Name, Provenance, Sink,
    },
    examination::{Finding, Level, Progress},
    incidents::{Happening, Incident, Incidents},
    members::{Exchange, LastChange, MemberId, MemberRecord, MemberUpdate, Members},
    position::{Epoch, Offset, Position, ShardId},
    registry::{BusFactory, Fault, Registry, StartError, Starting},
    run::{MAX_SEQUENCE, Numbering, PublisherId, Publishers, Run, StreamNumber},
    status::{BusStatus, GapCount, Health, LinkStatus, ShardBusStatus},
    traced::{AppendOutcome, AppendRecord, AppendRecorder, BatchTrace},
};

/// A bus that several tasks share.
pub type SharedBus = Arc<dyn Bus>;

/// One gateway's access to the bus of its deployment.
///
/// Several gateways may share one deployment, each through a `Bus` of its own; the shards, and the
/// rules below, are those of the deployment.
///
/// # Rules
///
/// - **Start.** The first delivery of a shard is one [`Delivery::Start`], and no other follows. It
///   is delivered before [`Bus::health`] becomes ready.
/// - **Order.** Every sink of a deployment gets the frames of a shard in the same order, which is
///   that of their positions. Batches that one caller appends one after the other keep their order;
///   the events of one batch stay together.
/// - **Contiguous.** The offsets of an epoch begin at 1 and have no holes. Each delivery follows
///   the last one of its epoch: a frame at the next offset, a gap from there on. Events that cannot
///   be delivered are never skipped without a [`Delivery::Gap`], and there is no gap where nothing
///   is missing.
/// - **Delivered.** An event whose append was answered OK reaches every sink of the deployment that
///   had its `Start` before, or lies in a gap of that sink. The sink gets the bytes of the event
///   unchanged, at the position that the append returned.
/// - **Idempotent.** A batch whose request id was accepted within the window of the configuration,
///   by this or another gateway, is not appended again: the answer is the position of the first
///   time.
/// - **Numbered.** An event of [`Batch::runs`] whose number the shard has from this publisher, in
///   any batch and from any gateway, is not appended again. If that left anything of a batch out,
///   the answer is [`Appended::UNKNOWN`].
/// - **Streams.** The numbers of a publisher's streams rise ([`Bus::number_stream`]). Once a shard
///   has an event of a stream, it takes none of an earlier one: that fails with
///   [`AppendError::TakenOver`], also where the shard has its number. A sink is told of the stream
///   with each frame ([`Sink::publishes`]), so that the earlier one can be ended.
/// - **Epochs.** When the bus loses events that it had acknowledged, or may have, it begins a new
///   epoch with a higher number, [`Delivery::Epoch`]; nothing is appended to an earlier one after
///   that. A position never stands for two events. A sink that was connected to a part of the bus
///   that lost against another one may get an epoch with a lower number after a higher one.
/// - **Copies.** Events that the bus lost are appended again if a gateway holds them, and keep
///   their first position as a name ([`Frame::name_of`]): every sink gets them, whether it had
///   them or not. What nobody holds is a gap of those names.
/// - **Last values.** The event of [`Batch::retain`] with the highest position under a key is kept,
///   whatever becomes of history; see [`History::retained`].
/// - **Health.** [`Bus::health`] is ready only while the path from this gateway to the bus and back
///   is verified for every shard: within the last few seconds the bus answered, and what it had
///   published arrived at this gateway's sink. An idle bus sends probes for that. A path that broke
///   is noticed within seconds, whether or not anybody publishes. Where some shards are verified
///   and all were, it is partial.
/// - **Errors.** [`AppendError::Unavailable`] and [`AppendError::Closed`] mean that nothing of the
///   batch was or will be appended. [`AppendError::OutcomeUnknown`] means either; a retry with the
///   same request id is safe after it. Every append is answered within the bus's time limit.
/// - **Cancellation.** A caller may drop the future of any method. An append that was dropped is
///   either made in full or not at all, and disturbs no other.
/// - **Close.** [`Bus::close`] first answers what was given to the bus before, then ends all tasks
///   and connections. Appends after that fail with [`AppendError::Closed`]. A bus that is dropped
///   without `close` ends its tasks too.
pub trait Bus: Send + Sync + 'static {
    /// The name for status and metrics: "embedded", "redis", "redis-cluster", "redis-sentinel".
    fn kind(&self) -> &'static str;

    /// The number of shards, at least 1. It never changes, and all gateways of a deployment have
    /// the same.
    fn shards(&self) -> u16;

    /// Appends a batch to a shard, all of it or nothing. Returns when the bus has accepted it.
    fn append(&self, shard: ShardId, batch: Batch) -> BoxFuture<'_, Result<Appended, AppendError>>;

    /// Numbers a new stream of a publisher: its number is greater than that of every stream that
    /// was numbered before, on any gateway. None while the bus does not answer; then the stream has
    /// no number ([`Run::stream`] is 0), takes over from no other, and none takes over from it.
    fn number_stream(&self, publisher: PublisherId) -> BoxFuture<'_, Option<StreamNumber>> {
        let _ = publisher;
        async { None }.boxed()
    }

    /// The bytes of the largest event that the shard takes, where the bus limits them.
    fn max_event_bytes(&self, _shard: ShardId) -> Option<usize> {
        None
    }

    /// The events that the bus keeps beyond the log of its sink. None if it keeps none.
    fn history(&self) -> Option<&dyn History>;

    /// The store through which gateways find one another. None if a deployment has one gateway.
    fn members(&self) -> Option<&dyn Members>;

    /// The current health and its changes: rule **Health** above.
    fn health(&self) -> watch::Receiver<Health>;

    /// The state of connections and shards. Does not block.
    fn status(&self) -> BusStatus;

    /// What happened to shards and connections lately, for people: what has changed after a change
    /// of this number. Empty for a bus to which nothing happens. Does not block.
    fn incidents(&self, after: u64) -> Vec<Incident> {
        let _ = after;
        Vec::new()
    }

    /// Appends what was accepted, then ends every task and connection of the bus.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// The events that a bus keeps of its shards, for streams that begin before the log does.
///
/// # Rules
///
/// - A page holds what follows the position asked for, contiguous as in [`Bus`]: what is no longer
///   kept is a gap at the beginning, and its count is known if the position lies in the same epoch.
/// - A position within a frame is answered with the whole frame.
/// - Asking from [`HistoryPage::next`] until [`HistoryPage::at_end`] brings every event that is
///   kept, once.
/// - [`Position::UNKNOWN`] asks for the oldest event that is kept, and brings no gap for what came
///   before it.
pub trait History: Send + Sync {
    /// Reads the events after `after`, about `max_bytes` of them, at least one frame if there is
    /// one.
    fn page(
        &self,
        shard: ShardId,
        after: Position,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<HistoryPage, AppendError>>;

    /// Reads the last event under each key of [`Batch::retain`].
    fn retained(&self, shard: ShardId) -> BoxFuture<'_, Result<Vec<Retained>, AppendError>>;

    /// Keeps these as last events under their keys, unless newer ones are kept: for values that the
    /// bus lost. A bus that loses none need not do anything.
    fn retain(
        &self,
        shard: ShardId,
        retained: Vec<Retained>,
    ) -> BoxFuture<'_, Result<(), AppendError>> {
        let _ = (shard, retained);
        async { Ok(()) }.boxed()
    }

    /// Reads the position of the last event that the servers of the bus have accepted. Not before
    /// the position of any append that was answered before the call. With it the ends of earlier
    /// epochs, as [`EpochStart::ends`] has them.
    fn tip(&self, shard: ShardId) -> BoxFuture<'_, Result<(Position, Vec<Position>), AppendError>>;
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, millis)
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
