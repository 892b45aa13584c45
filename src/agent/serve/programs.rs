//! The programs that publish: who they are, by what they write, and whether two use one id.
//!
//! A program has one connection on which it publishes, and opens another one when that fails. Two
//! programs with one id take turns on two connections.

use std::{collections::BTreeMap, time::SystemTime};

use parking_lot::Mutex;
use trunkline_client::v1::AgentProgram;

/// Programs that are known at a time.
const MAX_PROGRAMS: usize = 256;

/// Connections of a program that are known.
const MAX_CONNECTIONS: usize = 8;

/// Times that a program goes on on an earlier connection before it counts as two.
const RETURNS: u32 = 4;

/// The connection that a message came on.
#[derive(Debug)]
pub(super) struct Origin {
    /// Its number.
    pub connection: u64,
    /// The address of its program.
    pub peer: String,
}

/// The programs with an open connection on which they published, by their ids.
#[derive(Debug, Default)]
pub(super) struct Programs(Mutex<BTreeMap<u16, Program>>);

#[derive(Debug)]
struct Program {
    since: SystemTime,
    messages: u64,
    /// Number and address of its connections, the one that it used last at the end.
    connections: Vec<(u64, String)>,
    returns: u32,
}

impl Programs {
    /// A program published a message.
    pub(super) fn published(&self, id: u16, origin: &Origin) {
        let mut programs = self.0.lock();
        let has_room = programs.len() < MAX_PROGRAMS;
        let Some(program) = programs.get_mut(&id) else {
            if has_room {
                let connections = vec![(origin.connection, origin.peer.clone())];
                let since = SystemTime::now();
                programs.insert(id, Program { since, messages: 1, connections, returns: 0 });
            }
            return;
        };
        program.messages += 1;
        if program.connections.last().is_some_and(|(last, _)| *last == origin.connection) {
            return;
        }
        let known = program.connections.iter().position(|(at, _)| *at == origin.connection);
        let Some(at) = known else {
            if program.connections.len() == MAX_CONNECTIONS {
                program.connections.remove(0);
            }
            program.connections.push((origin.connection, origin.peer.clone()));
            return;
        };
        let connection = program.connections.remove(at);
        program.connections.push(connection);
        program.returns = program.returns.saturating_add(1);
        if program.returns == RETURNS {
            let peers: Vec<&str> =
                program.connections.iter().map(|(_, peer)| peer.as_str()).collect();
            let peers = peers.join(", ");
            tracing::warn!(program = id, peers, "two programs of this host use one id");
        }
    }

    /// A connection has ended.
    pub(super) fn left(&self, connection: u64) {
        self.0.lock().retain(|id, program| {
            program.connections.retain(|(at, _)| *at != connection);
            if program.connections.len() == 1 {
                if program.is_duplicate() {
                    tracing::warn!(program = id, "the id belongs to one program again");
                }
                program.returns = 0;
            }
            !program.connections.is_empty()
        });
    }

    /// The programs, those first whose id two of them use; at most so many.
    pub(super) fn list(&self, version: &str, max: usize) -> Vec<AgentProgram> {
        let programs = self.0.lock();
        let mut list: Vec<(&u16, &Program)> = programs.iter().collect();
        list.sort_by_key(|(id, program)| (!program.is_duplicate(), **id));
        let described = list.into_iter().take(max).map(|(id, program)| AgentProgram {
            program_id: id.to_string(),
            version: version.to_owned(),
            peer: program.connections.last().map(|(_, peer)| peer.clone()).unwrap_or_default(),
            since_time: Some(program.since.into()),
            published_messages: program.messages,
            duplicate: program.is_duplicate(),
        });
        described.collect()
    }
}

impl Program {
    fn is_duplicate(&self) -> bool {
        self.returns >= RETURNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(connection: u64) -> Origin {
        Origin { connection, peer: format!("127.0.0.1:{connection}") }
    }

    fn shown(programs: &Programs) -> Vec<(String, String, u64, bool)> {
        let list = programs.list("1", 32).into_iter();
        list.map(|p| (p.program_id, p.peer, p.published_messages, p.duplicate)).collect()
    }

    #[test]
    fn a_program_that_connects_again_is_one_and_two_that_take_turns_are_two() {
        let programs = Programs::default();
        for connection in 1..=3 {
            programs.published(7, &origin(connection));
            programs.published(7, &origin(connection));
        }
        let seven = |peer: &str, messages, twice| {
            vec![("7".to_owned(), format!("127.0.0.1:{peer}"), messages, twice)]
        };
        assert_eq!(shown(&programs), seven("3", 6, false));
        for _ in 0..2 {
            programs.published(7, &origin(2));
            programs.published(7, &origin(3));
        }
        assert_eq!(shown(&programs), seven("3", 10, true));
        programs.left(1);
        assert_eq!(shown(&programs), seven("3", 10, true));
        programs.left(3);
        assert_eq!(shown(&programs), seven("2", 10, false));
        programs.left(2);
        assert_eq!(shown(&programs), []);
    }

    #[test]
    fn programs_and_their_connections_are_bounded() {
        let programs = Programs::default();
        for id in 0..1000 {
            programs.published(id, &origin(1));
        }
        for connection in 0..100 {
            programs.published(0, &origin(connection));
        }
        let known = programs.0.lock();
        assert_eq!((known.len(), known[&0].connections.len()), (MAX_PROGRAMS, MAX_CONNECTIONS));
    }
}
