//! Formats of messages: what programs that know Redis only say to one another on a channel, as
//! events of Trunkline.
//!
//! A format is one folder with an implementation of [`Format`], and one line in [`all`]. Everything
//! that was not understood stays out: a message is decoded, checked and encoded anew, and never
//! passed on as it came.

pub mod agora;
mod known;
mod opaque;

use std::fmt::{self, Debug};

use bytes::Bytes;
use trunkline_proto::v1::event::Kind;

pub use self::{known::Known, opaque::Opaque};

/// The formats that there are, each in its default version. Any other channel is [`Opaque`].
pub fn all() -> Vec<Box<dyn Format>> {
    vec![Box::<agora::Agora>::default()]
}

/// The format of the messages of one channel.
pub trait Format: Debug + Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// The channel that programs use for it.
    fn channel(&self) -> &str;

    /// The version that programs of this host have.
    fn version(&self) -> String;

    /// The sender of the agent's own messages, where messages have one. Programs have other ones.
    fn sender(&self) -> Option<u16>;

    /// Begins to read a message. Nothing is allocated for what the message only announces.
    ///
    /// # Errors
    ///
    /// Nothing of the message is of use: not even who sent it can be read.
    fn decode<'a>(&self, message: &'a [u8]) -> Result<Decoded<'a>, Undecodable>;

    /// Reads a message and writes it again, for other programs on this host: what can be read of
    /// it, and the error where that ends.
    fn recode(&self, message: &[u8]) -> (Vec<Bytes>, Option<Undecodable>);

    /// Writes events, in their order, as messages of the agent.
    fn encode(&self, events: &[Kind]) -> Encoded;

    /// The messages that bring a program up to date that may have missed any events, in order. The
    /// first brings back what holds for everybody; the others are changes of accounts, at most
    /// [`ACCOUNTS`] in one, to be sent at the pace that the program can follow.
    fn heal(&self, healing: &Healing<'_>) -> Vec<Bytes>;

    /// A message of the agent that says nothing to any program, if the format has one: where it
    /// comes back, the channel works.
    fn probe(&self) -> Option<Bytes> {
        None
    }
}

/// The most accounts whose changes are in one message of a healing.
pub const ACCOUNTS: usize = 250;

/// A message whose sender was read.
pub struct Decoded<'a> {
    /// Number of the program that sent it, which ignores messages with its own. None in a format
    /// that has no senders.
    pub sender: Option<u16>,
    /// The events, as they are read. After an error there are no more.
    pub events: Box<dyn Iterator<Item = Result<Kind, Undecodable>> + 'a>,
}

impl Debug for Decoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoded").field("sender", &self.sender).finish_non_exhaustive()
    }
}

/// Why a message, or the rest of one, cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {why}")]
pub struct Undecodable {
    /// Number of bytes before what is wrong.
    pub at: usize,
    /// What is wrong with it.
    pub why: String,
}

impl Undecodable {
    /// What is wrong after so many bytes.
    pub fn new(at: usize, why: impl Into<String>) -> Undecodable {
        Undecodable { at, why: why.into() }
    }
}

/// Events, as messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The messages, in the order in which they are to be sent.
    pub messages: Vec<Bytes>,
    /// The events that the format has nothing for.
    pub left_out: Vec<LeftOut>,
}

/// An event that a format, or a version of it, has nothing for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {index}: {why}")]
pub struct LeftOut {
    /// Its index among the events.
    pub index: usize,
    /// The reason.
    pub why: &'static str,
}

/// What brings a program up to date that may have missed events.
#[derive(Clone, Copy, Debug)]
pub struct Healing<'a> {
    /// What the agent knows of the events before.
    pub known: &'a Known,
    /// The accounts that events were missed of, where that is known; else all that the agent knows.
    pub accounts: Option<&'a [String]>,
    /// True if a changed setting may have been missed. It is what costs a program most.
    pub settings: bool,
}
