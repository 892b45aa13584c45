//! One connection of a program that speaks Redis' protocol: a state machine of bytes and replies.
//!
//! It has no socket and no clock. Its owner gives it bytes and calls [`Session::next`] until that
//! asks for more; each call carries out one command, so that the owner can wait before the next one
//! while its output is not taken. It knows channels, and nothing of what is in their messages.
//!
//! It answers what a client of a Redis server or cluster asks before it uses channels. Everything
//! else is an error that says so: data is not stored here.

mod channels;
mod cluster;
mod connection;
mod dispatch;

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::resp::{Limits, Parser, ProtocolError, Reply, Version};

/// What all sessions of a listener have in common.
#[derive(Debug)]
pub struct Settings {
    /// The channels that there are. No other can be subscribed to or published on, so that nothing
    /// is lost on a channel that nobody carries.
    pub channels: Vec<Bytes>,
    /// Who may use the session. `None`: whoever can connect, which the owner limits to this host.
    pub credentials: Option<Credentials>,
    /// Limits of a command.
    pub limits: Limits,
    /// A session with as many wrong passwords is closed.
    pub wrong_passwords: u32,
    /// Identity of this process.
    pub run_id: [u8; 20],
}

/// A name and its password.
#[derive(Clone)]
pub struct Credentials {
    /// `default` is also who gives only a password.
    pub user: String,
    /// Never empty.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A channel: its index in [`Settings::channels`].
pub type Channel = usize;

/// What a call of [`Session::next`] did, or what its owner must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: more bytes are needed.
    Receive,
    /// A command was answered.
    Answered,
    /// A message for a channel. The command is answered by [`Session::published`] or
    /// [`Session::refused`], before the next call.
    Publish {
        /// The channel.
        channel: Channel,
        /// The message, as it came.
        payload: Bytes,
    },
    /// Subscriptions changed, and the command was answered.
    Subscriptions {
        /// Channels whose messages the session gets from now on.
        added: Vec<Channel>,
        /// Channels whose messages it does not get any more.
        removed: Vec<Channel>,
    },
    /// The connection ends when what was written is sent.
    Close(Ended),
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The client said goodbye.
    #[error("the client quit")]
    Quit,
    /// What it sends cannot be read.
    #[error("{0}")]
    Protocol(ProtocolError),
    /// It does not know the password.
    #[error("too many wrong passwords")]
    WrongPasswords,
    /// It speaks HTTP: a web page must not publish on a channel of this host.
    #[error("the client speaks HTTP")]
    Http,
}

/// What a client says of itself. Each text has at most 128 bytes; empty if it said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientInfo {
    /// `CLIENT SETNAME`.
    pub name: String,
    /// `CLIENT SETINFO LIB-NAME`.
    pub library: String,
    /// `CLIENT SETINFO LIB-VER`.
    pub library_version: String,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
    /// Number of the connection, unique in this process.
    id: u64,
    /// The address that the client connected to: clients of a cluster are sent there.
    address: (String, u16),
    parser: Parser,
    version: Version,
    authenticated: bool,
    wrong_passwords: u32,
    client: ClientInfo,
    subscriptions: BTreeSet<Channel>,
    /// A `PUBLISH` waits for its answer.
    owes_answer: bool,
    ended: Option<Ended>,
}

impl Session {
    /// A new connection, with a number, to an address of this host.
    pub fn new(settings: Arc<Settings>, id: u64, address: (String, u16)) -> Session {
        let authenticated = settings.credentials.is_none();
        let mut session = Session {
            parser: Parser::new(settings.limits),
            settings,
            id,
            address,
            version: Version::default(),
            authenticated: false,
            wrong_passwords: 0,
            client: ClientInfo::default(),
            subscriptions: BTreeSet::new(),
            owes_answer: false,
            ended: None,
        };
        session.set_authenticated(authenticated);
        session
    }

    /// Takes bytes that arrived. The owner calls [`Session::next`] until it answers
    /// [`Step::Receive`] before it reads more.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.parser.receive(bytes);
    }

    /// Carries out the next command, and writes its reply behind what is in `out`. What one command
    /// writes is bounded by 1 KiB, its own size, and for each of its arguments the length of the
    /// longest channel and 64 bytes.
    #[allow(clippy::should_implement_trait, reason = "it ends and goes on")]
    pub fn next(&mut self, out: &mut BytesMut) -> Step {
        debug_assert!(!self.owes_answer, "a PUBLISH was not answered");
        if let Some(ended) = &self.ended {
            return Step::Close(ended.clone());
        }
        let step = match self.parser.next() {
            Ok(None) => Step::Receive,
            Ok(Some(command)) => self.execute(&command, out),
            Err(error) => {
                Reply::new(out, self.version).error(format_args!("ERR {error}"));
                Step::Close(Ended::Protocol(error))
            }
        };
        match &step {
            Step::Publish { .. } => self.owes_answer = true,
            Step::Close(ended) => self.ended = Some(ended.clone()),
            _ => {}
        }
        step
    }

    /// Answers a `PUBLISH` that was accepted: so many sessions receive it here.
    pub fn published(&mut self, receivers: usize, out: &mut BytesMut) {
        self.owes_answer = false;
        let receivers = i64::try_from(receivers).unwrap_or(i64::MAX);
        Reply::new(out, self.version).integer(receivers);
    }

    /// Answers a `PUBLISH` that was not accepted, with the reason.
    pub fn refused(&mut self, reason: impl std::fmt::Display, out: &mut BytesMut) {
        self.owes_answer = false;
        Reply::new(out, self.version).error(format_args!("ERR {reason}"));
    }

    /// The version that messages are to be written in: see [`message`](super::resp::message).
    pub fn version(&self) -> Version {
        self.version
    }

    /// True if the session gets the messages of a channel.
    pub fn is_subscribed(&self, channel: Channel) -> bool {
        self.subscriptions.contains(&channel)
    }

    /// True if the session gets messages of any channel: it is then never closed for being idle.
    pub fn is_subscriber(&self) -> bool {
        !self.subscriptions.is_empty()
    }

    /// True if every command may be called.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// True while a part of a command is there, and not all of it.
    pub fn is_within_command(&self) -> bool {
        self.parser.is_within_command()
    }

    /// The bytes of commands that the session holds.
    pub fn buffered(&self) -> usize {
        self.parser.buffered()
    }

    /// What the client says of itself.
    pub fn client(&self) -> &ClientInfo {
        &self.client
    }

    fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
        let limits = self.settings.limits;
        self.parser.set_limits(if authenticated {
            limits
        } else {
            let strict = Limits::UNAUTHENTICATED;
            Limits {
                arguments: limits.arguments.min(strict.arguments),
                command_bytes: limits.command_bytes.min(strict.command_bytes),
                inline_bytes: limits.inline_bytes.min(strict.inline_bytes),
            }
        });
    }
}

#[cfg(test)]
mod tests;
