//! Calls of the append script, and their outcomes.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use super::{
    names::ShardNames,
    server::{Command, ConnectError, Server},
    settings::Settings,
};
use crate::bus::{Appended, Epoch, Offset, Position, RequestId, millis};

static APPEND: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("append.lua")));

/// The time for which a writer's last frame is remembered, in milliseconds: longer than any retry.
const WRITER_TTL_MS: u64 = 600_000;

/// Capacity (arguments, bytes) of a call beside its frame, and of each request or retained event
/// beside its bytes. An estimate that is too small costs a copy.
const CALL_CAPACITY: (usize, usize) = (22, 768);
const EACH_CAPACITY: (usize, usize) = (3, 96);

/// The time that one WAIT may block the connection, which the writers of other shards share.
const WAIT_SLICE: Duration = Duration::from_millis(100);

/// One call of the script.
pub(super) struct Call<'a> {
    pub names: &'a ShardNames,
    /// The writer's key.
    pub writer: &'a str,
    /// The last position that the caller has seen. For a frame its epoch is the one that the caller
    /// appends to.
    pub seen: Position,
    /// True if the frame may be appended at the position after `seen` and at no other.
    pub exact: bool,
    /// The writer's number of the frame; 0: a probe.
    pub sequence: u64,
    pub count: u64,
    pub frame: &'a [u8],
    /// Request ids, each with the index of its first event in the frame.
    pub requests: &'a [(RequestId, u64)],
    pub retain: &'a [Retain<'a>],
}

/// An event of the frame that becomes the last value of its key.
pub(super) struct Retain<'a> {
    pub key: u8,
    pub index: u64,
    pub event: &'a [u8],
}

/// Answer of the script.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The frame was appended, now or by an earlier call whose answer was lost.
    Appended(Appended),
    /// A later frame of the writer was appended, and this one was not.
    Overtaken,
    /// The epoch is over, or an exact position is taken; nothing was done. The shard's end.
    EpochOver(Position),
    /// Requests, by index, that were accepted before, at these positions; nothing was done.
    Seen(Vec<(usize, Appended)>),
    /// The probe was published. The shard's end.
    Tip(Position),
}

/// Reason why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There was no connection: nothing was sent.
    #[error(transparent)]
    NotConnected(ConnectError),
    /// The server refused the call: nothing was done.
    #[error("{0}")]
    Refused(String),
    /// The server does not own the shard: nothing was done.
    #[error("{0}")]
    NotOwner(String),
    /// The slot is moving, and this server already has it: the call is to be sent there.
    #[error("its slot is moving to {0}")]
    AskAt(String),
    /// It was sent and not answered: it may have been done.
    #[error("{0}")]
    Unknown(String),
}

impl Call<'_> {
    /// Calls the script on `server`. `asking`: the server is still importing the slot, and serves
    /// it only after `ASKING`.
    pub(super) async fn send(
        &self,
        server: &Arc<Server>,
        settings: &Settings,
        asking: bool,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let started = Instant::now();
        let Ok(command) = tokio::time::timeout(limit, server.command()).await else {
            return Err(Failure::NotConnected(server.slow()));
        };
        let mut command = command.map_err(Failure::NotConnected)?;
        let limit = limit.saturating_sub(started.elapsed());
        let Ok(sent) =
            tokio::time::timeout(limit, self.send_over(&mut command, settings, asking)).await
        else {
            // The connection may be half open: the next attempt opens another.
            server.discard(&command).await;
            return Err(Failure::Unknown(format!("{} did not answer in time", server.address)));
        };
        match sent {
            Ok(value) => {
                let answer = parse(&value).ok_or_else(|| {
                    Failure::Unknown(format!("the append script answered {value:?}"))
                })?;
                let appended = matches!(answer, Answer::Appended { .. } | Answer::Seen(_));
                if appended && settings.min_replicas > 0 {
                    let limit = limit.saturating_sub(started.elapsed());
                    replicated(&mut command, settings.min_replicas, limit).await?;
                }
                Ok(answer)
            }
            Err(error) => {
                let failure = classify(&error);
                if matches!(failure, Failure::Unknown(_)) || error.is_unrecoverable_error() {
                    server.discard(&command).await;
                }
                Err(failure)
            }
        }
    }

    async fn send_over(
        &self,
        command: &mut Command,
        settings: &Settings,
        asking: bool,
    ) -> RedisResult<Value> {
        let evalsha = self.command(settings, &command.run);
        let connection = &mut command.connection;
        let reply = invoke(connection, &evalsha, asking).await;
        match reply {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                APPEND.load_async(connection).await?;
                invoke(connection, &evalsha, asking).await
            }
            reply => reply,
        }
    }

    fn command(&self, settings: &Settings, run: &str) -> Cmd {
        let names = self.names;
        let retained: usize = self.retain.iter().map(|retain| retain.event.len()).sum();
        let each = self.requests.len() + self.retain.len();
        let mut cmd = Cmd::with_capacity(
            CALL_CAPACITY.0 + each * EACH_CAPACITY.0,
            CALL_CAPACITY.1 + each * EACH_CAPACITY.1 + self.frame.len() + retained,
        );
        cmd.arg("EVALSHA").arg(APPEND.get_hash()).arg(5 + self.requests.len());
        cmd.arg(&names.state)
            .arg(&names.history)
            .arg(&names.trim_index)
            .arg(self.writer)
            .arg(&names.retained);
        for (id, _) in self.requests {
            cmd.arg(names.request(id));
        }
        cmd.arg(&names.channel).arg(if settings.sharded { "SPUBLISH" } else { "PUBLISH" });
        cmd.arg(run).arg(self.seen.epoch.0);
        if self.exact {
            cmd.arg(format!("={}", self.seen.offset.0));
        } else {
            cmd.arg(self.seen.offset.0);
        }
        cmd.arg(self.sequence).arg(self.count).arg(self.frame);
        cmd.arg(settings.history.max_frames).arg(settings.history.max_bytes);
        cmd.arg(millis(settings.history.max_age));
        cmd.arg(WRITER_TTL_MS).arg(millis(settings.request_id_window));
        cmd.arg(self.retain.len());
        for retain in self.retain {
            cmd.arg(retain.key).arg(retain.index).arg(retain.event);
        }
        for (_, index) in self.requests {
            cmd.arg(*index);
        }
        cmd
    }
}

/// Waits until so many replicas have the last write of the connection.
async fn replicated(command: &mut Command, replicas: u32, limit: Duration) -> Result<(), Failure> {
    let until = Instant::now() + limit;
    loop {
        let mut wait = redis::cmd("WAIT");
        wait.arg(replicas).arg(millis(WAIT_SLICE));
        let asked = tokio::time::timeout(limit, wait.query_async(&mut command.connection)).await;
        let have: u32 = match asked {
            Ok(Ok(have)) => have,
            Ok(Err(error)) => return Err(Failure::Unknown(server_text(&error))),
            Err(_) => 0,
        };
        if have >= replicas {
            return Ok(());
        }
        if Instant::now() >= until {
            let why = format!("it was appended, and {have} of {replicas} replicas have it");
            return Err(Failure::Unknown(why));
        }
    }
}

async fn invoke(
    connection: &mut redis::aio::MultiplexedConnection,
    evalsha: &Cmd,
    asking: bool,
) -> Result<Value, RedisError> {
    if !asking {
        return evalsha.query_async(connection).await;
    }
    let mut pipe = redis::pipe();
    pipe.cmd("ASKING").ignore().add_command(evalsha.clone());
    let mut values: Vec<Value> = pipe.query_async(connection).await?;
    Ok(values.pop().unwrap_or(Value::Nil))
}

/// Classifies an error by what is known about the call. An error that the server wrote means that
/// the script did nothing: it checks before it writes, and Redis refuses a script that may not
/// write at its first write.
pub(super) fn classify(error: &RedisError) -> Failure {
    let text = server_text(error);
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved) => Failure::NotOwner(text),
        ErrorKind::Server(ServerErrorKind::Ask) => match error.redirect_node() {
            Some((address, _)) => Failure::AskAt(address.to_owned()),
            None => Failure::NotOwner(text),
        },
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => {
            Failure::NotOwner(text)
        }
        _ if error.code().is_some() => Failure::Refused(text),
        _ => Failure::Unknown(text),
    }
}

/// The error as the server wrote it, so that a search for "READONLY" or "NOPERM" finds it.
fn server_text(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

fn parse(value: &Value) -> Option<Answer> {
    let Value::Array(parts) = value else { return None };
    let text = |index: usize| match parts.get(index)? {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text.as_str()),
        _ => None,
    };
    let number = |index: usize| text(index)?.parse::<u64>().ok();
    let position = || Some(Position::new(number(1)?, number(2)?));
    Some(match text(0)? {
        "ok" | "dup" => {
            Answer::Appended(Appended { epoch: Epoch(number(1)?), first: Offset(number(2)?) })
        }
        "old" => Answer::Overtaken,
        "epoch" => Answer::EpochOver(position()?),
        "tip" => Answer::Tip(position()?),
        "seen" => {
            let pairs = (1..parts.len()).step_by(2).map(|at| {
                let (epoch, first) = text(at + 1)?.split_once(' ')?;
                let index = usize::try_from(number(at)?).ok()?;
                let (epoch, first) = (Epoch(epoch.parse().ok()?), Offset(first.parse().ok()?));
                Some((index, Appended { epoch, first }))
            });
            Answer::Seen(pairs.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(parts: &[&str]) -> Value {
        Value::Array(parts.iter().map(|p| Value::BulkString(p.as_bytes().to_vec())).collect())
    }

    fn at(epoch: u64, first: u64) -> Appended {
        Appended { epoch: Epoch(epoch), first: Offset(first) }
    }

    #[test]
    fn every_answer_of_the_script_is_parsed() {
        let appended = Some(Answer::Appended(at(9, 4)));
        assert_eq!(parse(&reply(&["ok", "9", "4"])), appended);
        assert_eq!(parse(&reply(&["dup", "9", "4"])), appended);
        assert_eq!(parse(&reply(&["old"])), Some(Answer::Overtaken));
        assert_eq!(
            parse(&reply(&["epoch", "9", "4"])),
            Some(Answer::EpochOver(Position::new(9, 4)))
        );
        assert_eq!(parse(&reply(&["tip", "9", "4"])), Some(Answer::Tip(Position::new(9, 4))));
        let seen = Answer::Seen(vec![(0, at(9, 4)), (2, at(9, 7))]);
        assert_eq!(parse(&reply(&["seen", "0", "9 4", "2", "9 7"])), Some(seen));
        assert_eq!(parse(&reply(&["what", "9", "4"])), None);
        assert_eq!(parse(&Value::Nil), None);
    }

    #[test]
    fn only_a_call_without_an_answer_has_an_unknown_outcome() {
        let server =
            |code: &str| RedisError::from((ErrorKind::Extension, "server", code.to_owned()));
        let io = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(matches!(classify(&io), Failure::Unknown(_)));
        // An error made on this side has no server code, and says nothing about the call.
        assert!(matches!(classify(&server("x")), Failure::Unknown(_)));
    }
}
