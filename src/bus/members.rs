//! What the gateways of a bus keep of one another: each puts down its own part, and reads those of the others.
//!
//! A part is a head, which everybody reads each time, and numbered pages, which are read when the head says so. The bus knows
//! what neither holds. A part is forgotten when its gateway has not renewed it for its time to live.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::AppendError;

/// Identity of a member: random per process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// What a member puts down.
#[derive(Clone, Debug)]
pub struct Part {
    /// Whose it is.
    pub member: MemberId,
    /// For how long it is kept.
    pub ttl: Duration,
    /// The number of this exchange, from 1.
    pub number: u64,
    /// The number of the exchange that must have been the last one for this one to add to it. None: what was there of this
    /// member goes first.
    pub follows: Option<u64>,
    /// Whether the member has put down pages before, which must still be there.
    pub has_pages: bool,
    /// The head.
    pub head: Bytes,
    /// The pages that are new, or that are no more.
    pub pages: Vec<(u32, Option<Bytes>)>,
}

/// What came of an exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Whether the part was put down. It was not where the exchange does not follow the last one: the store has lost its memory,
    /// or an answer was lost, or the member has been silent for too long. It begins anew then, without `follows`.
    pub taken: bool,
    /// The members that are there, the asking one too if it is.
    pub members: Vec<MemberHead>,
}

/// A member, as an exchange found it.
#[derive(Clone, Debug)]
pub struct MemberHead {
    /// Who.
    pub member: MemberId,
    /// How long ago it renewed its part, by the store's own clock.
    pub age: Duration,
    /// Its head.
    pub head: Bytes,
}

/// Where members put down their parts.
pub trait Members: Send + Sync {
    /// Puts down what is new of a part, renews all of it, and reads the heads. Nothing, or all of it; one attempt.
    fn exchange(&self, part: Part) -> BoxFuture<'_, Result<Exchange, AppendError>>;

    /// Reads pages of a member, each in the place where it was asked for; none where there is none. One attempt.
    fn pages(
        &self,
        member: MemberId,
        pages: Vec<u32>,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, AppendError>>;
}
