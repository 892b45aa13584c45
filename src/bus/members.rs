//! The store in which the gateways of a deployment publish their state to one another.
//!
//! Each gateway is a member. It has one record, which every exchange reads, and numbered member
//! shards, which others read when the record says that they changed. The bus does not know the
//! contents of either. What a member wrote is removed when it has not renewed it for its time to
//! live.

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
}

/// The result of an exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// True if the update was written. False if it does not follow the exchange that the store
    /// remembers: the store lost its memory, an answer was lost, or the time to live is over. The
    /// member then begins anew, with `follows` None.
    pub taken: bool,
    /// All members that are alive, the caller included if its update was taken.
    pub members: Vec<MemberRecord>,
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
    /// Writes an update, renews everything of the member, and reads the records of all. All of it
    /// or nothing; one attempt.
    fn exchange(&self, update: MemberUpdate) -> BoxFuture<'_, Result<Exchange, AppendError>>;

    /// Reads member shards by their numbers, in the order of the numbers; None for one that does
    /// not exist. One attempt.
    fn member_shards(
        &self,
        member: MemberId,
        numbers: Vec<u32>,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, AppendError>>;
}
