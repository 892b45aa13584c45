//! The store in which the gateways of a deployment publish their state to one another.
//!
//! Each gateway is a member. It has one record, which the exchanges of others read when it changed,
//! and numbered member shards, which others read when the record says that they changed. The bus
//! does not know the contents of either. What a member wrote is removed when it has not renewed it
//! for its time to live.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::AppendError;

/// Identity of a member: random for each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// The changes that a member writes in one exchange.
#[derive(Clone, Debug)]
pub struct MemberUpdate {
    /// The member.
    pub member: MemberId,
    /// The time for which everything of the member is kept.
    pub ttl: Duration,
    /// The number of this exchange, from 1.
    pub number: u64,
    /// The number of the last exchange that was taken, on which this one builds. None: everything
    /// that is stored of this member is removed first.
    pub follows: Option<u64>,
    /// True if the member has written member shards before, which must still be there.
    pub has_shards: bool,
    /// The new record.
    pub record: Bytes,
    /// The member shards that changed, by number; None removes one.
    pub shards: Vec<(u32, Option<Bytes>)>,
    /// The last change that the member knows, from the exchange before. None: it knows none.
    pub known: Option<LastChange>,
    /// The time without renewal after which a member is silent, which is a change of its own.
    pub silent_after: Duration,
}

/// Names the last change of the records in a store, as the store says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastChange {
    /// Its number.
    pub number: u64,
    /// What the store noted of it: another store, and one that lost its memory, has noted another.
    pub content: Bytes,
}

/// The result of an exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// True if the update was written. False if it does not follow the exchange that the store
    /// remembers: the store lost its memory, an answer was lost, or the time to live is over. The
    /// member then begins anew, with `follows` None.
    pub taken: bool,
    /// True if `members` are all that are alive, the caller included if its update was taken.
    /// False if they are those that changed since the last change that the caller knows: that came,
    /// that wrote another record, that became silent or were renewed after that.
    pub all: bool,
    /// The members.
    pub members: Vec<MemberRecord>,
    /// Of those that changed, the members that are gone.
    pub gone: Vec<MemberId>,
    /// What the caller knows now. None: the store gives no changes, only all members.
    pub known: Option<LastChange>,
}

/// The record of one member, as an exchange read it.
#[derive(Clone, Debug)]
pub struct MemberRecord {
    /// The member.
    pub member: MemberId,
    /// The time since the member renewed its record, by the store's own clock.
    pub age: Duration,
    /// The record.
    pub record: Bytes,
}

/// The store of all members.
pub trait Members: Send + Sync {
    /// Writes an update, renews everything of the member, and reads the records that changed, or
    /// all. All of it or nothing; one attempt.
    fn exchange(&self, update: MemberUpdate) -> BoxFuture<'_, Result<Exchange, AppendError>>;

    /// Leaves messages for a member, which takes them with [`Members::take_messages`]. They are
    /// kept for a minute at most. One attempt.
    fn leave_messages(
        &self,
        to: MemberId,
        messages: Vec<Bytes>,
    ) -> BoxFuture<'_, Result<(), AppendError>>;

    /// Takes the messages that were left for a member, in their order, but not all if they are
    /// many. One attempt.
    fn take_messages(&self, own: MemberId) -> BoxFuture<'_, Result<Vec<Bytes>, AppendError>>;

    /// Reads member shards by their numbers, in the order of the numbers; None for one that does
    /// not exist. One attempt.
    fn member_shards(
        &self,
        member: MemberId,
        numbers: Vec<u32>,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, AppendError>>;
}
