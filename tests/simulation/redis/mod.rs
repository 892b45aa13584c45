//! One Redis server, as far as gateways use it.
//!
//! A copy (`Clone`) is a snapshot: a replica that lags, a file on disk, the state that a failover
//! goes back to. Scripts are executed by Lua 5.1, as Redis does it, and what a failing script has
//! written stays written.

mod command;
mod hashes;
mod keyspace;
mod lists;
mod reply;
mod scripts;
mod streams;
mod strings;

use std::{collections::BTreeMap, sync::Arc};

pub use self::reply::{Reply, Text};
use self::{keyspace::Keyspace, reply::error};

/// One server.
#[derive(Clone, Debug, Default)]
pub struct Server {
    keys: Keyspace,
    identity: Arc<Identity>,
    /// What INFO says of replication.
    replication: Option<Text>,
    /// Scripts by their SHA-1, in hexadecimal. Shared with snapshots.
    scripts: Arc<BTreeMap<Text, Arc<str>>>,
    /// What was published and not taken yet, in order.
    published: Vec<Message>,
}

/// What tells one run of a server from another, and one line of its data from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Changes with each start of the process: `run_id` of `INFO server`.
    pub run_id: String,
    /// Changes with a start and when a replica is promoted: `master_replid` of `INFO replication`.
    pub replication_id: String,
}

/// A message on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub channel: Text,
    pub payload: Text,
    /// Published by SPUBLISH.
    pub sharded: bool,
}

impl Server {
    /// An empty server.
    pub fn new(identity: Identity) -> Server {
        Server { identity: Arc::new(identity), ..Server::default() }
    }

    /// Sets the clock: microseconds since 1970. It may go back, as real ones do.
    pub fn set_time(&mut self, micros: u64) {
        self.keys.micros = micros;
    }

    /// Gives the process another identity: a restart, or a replica that became the master.
    pub fn set_identity(&mut self, identity: Identity) {
        (self.identity, self.replication) = (Arc::new(identity), None);
    }

    /// Sets how exactly `MAXLEN ~` trims: a stream keeps whole nodes of this many entries
    /// (`stream-node-max-entries`; by default 100).
    pub fn set_stream_node_entries(&mut self, entries: usize) {
        self.keys.stream_node_entries = entries;
    }

    /// Executes one command.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        let args: Vec<Text> = args.iter().map(|arg| arg.as_ref().into()).collect();
        self.call_with(&args)
    }

    /// Executes one command, whose arguments it may keep.
    pub fn call_with(&mut self, args: &[Text]) -> Reply {
        match self.execute(args) {
            Ok(reply) => reply,
            Err(message) => Reply::Error(message),
        }
    }

    /// Takes the messages that were published since the last call, in order.
    pub fn take_published(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.published)
    }

    /// Removes one key, as an eviction does.
    pub fn evict(&mut self, key: &[u8]) -> bool {
        self.keys.remove(key)
    }

    /// The names of all keys, in order.
    pub fn key_names(&mut self) -> Vec<Vec<u8>> {
        self.keys.names()
    }

    fn execute(&mut self, args: &[Text]) -> Result<Reply, String> {
        let name = args.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
        match &name[..] {
            b"EVAL" => scripts::eval(self, args),
            b"EVALSHA" => scripts::eval_sha(self, args),
            b"SCRIPT" => scripts::script(self, args),
            _ => command::execute(self, &name, args),
        }
    }

    fn info(&mut self, section: Option<&[u8]>) -> Reply {
        let Identity { run_id, replication_id } = &*self.identity;
        let replication = self.replication.get_or_insert_with(|| {
            let text =
                format!("# Replication\r\nrole:master\r\nmaster_replid:{replication_id}\r\n");
            text.into_bytes().into()
        });
        // Every script asks for this one.
        if section.is_some_and(|section| section.eq_ignore_ascii_case(b"replication")) {
            return Reply::Bulk(replication.clone());
        }
        let mut text =
            format!("# Server\r\nredis_version:7.0.15\r\nrun_id:{run_id}\r\n").into_bytes();
        if section.is_none_or(|section| !section.eq_ignore_ascii_case(b"server")) {
            text.extend(b"\r\n");
            text.extend(&**replication);
        }
        Reply::Bulk(text.into())
    }

    fn publish(&mut self, args: &[Text], sharded: bool) -> Result<Reply, String> {
        let [_, channel, payload] = args else { return Err(error::arguments(args)) };
        self.published.push(Message {
            channel: channel.clone(),
            payload: payload.clone(),
            sharded,
        });
        // Connections are not modelled: nobody subscribes here.
        Ok(Reply::Integer(0))
    }
}
