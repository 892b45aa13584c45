//! Calls of the shard's script, and their answers.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use super::{
    auth::{Authenticator, Clock},
    causes::error_text,
    envelope::{Envelope, WriterId},
    names::ShardNames,
    server::{Command, Server},
    settings::Settings,
    view::{ShardView, parse_view},
};
use crate::bus::{
    Appended, Epoch, Name, Offset, Position, PublisherId, RequestId, Run, ShardId, StreamNumber,
    millis, ranges::Ranges,
};

/// The script: everything that gateways do to a shard.
pub const SHARD: &str = include_str!("shard.lua");

static SCRIPT: LazyLock<redis::Script> = LazyLock::new(|| redis::Script::new(SHARD));

/// Capacity (arguments, bytes) of a call beside its frame, and of each request or retained event
/// beside its bytes. An estimate that is too small costs a copy.
const CALL_CAPACITY: (usize, usize) = (30, 1024);
const EACH_CAPACITY: (usize, usize) = (3, 96);

/// One call of the script.
#[derive(Clone, Debug)]
pub struct Call {
    /// The last position that the caller has seen. For a frame its epoch is the one that the caller
    /// appends to.
    pub seen: Position,
    /// Where the frame may be placed.
    pub placing: Placing,
    /// The positions that the caller reports.
    pub reported: String,
    /// A random number below 2^18, for an epoch that the call may open.
    pub entropy: u32,
    /// What is to be done.
    pub op: Op,
    /// The time limit for the answer.
    pub limit: Duration,
}

/// Where a frame may be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// Behind what is there.
    Anywhere,
    /// After the position that the caller has seen, and nowhere else.
    Exact,
    /// The same. If that place is taken, other writers wait until this one has come again: others
    /// that are nearer to Redis were faster each time.
    ExactInTurn,
}

/// What a call does.
#[derive(Clone, Debug)]
pub enum Op {
    /// Appends a frame.
    Append(Framed),
    /// Appends a frame again that Redis lost, under its name.
    Again(Framed, Name),
    /// Shows that the shard takes calls, and what was published on its channel last. Publishes a
    /// probe if nothing was for long.
    Probe(Probe),
    /// Ends a recovery, if everybody has appended again what was lost.
    Release {
        /// The caller.
        caller: WriterId,
        /// The shard knows all gateways that may take part: it ends when all have called. False:
        /// only time tells.
        knows_all: bool,
    },
    /// Numbers so many streams of publishers.
    Number(usize),
}

/// A probe, and when it is published.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// The gateway that sends it.
    pub writer: WriterId,
    /// Its number; rises with each probe of the writer.
    pub number: u64,
    /// The encoded probe.
    pub bytes: Vec<u8>,
    /// It is published unless another probe was within this time. None: unless anything was in the
    /// last second.
    pub unless_within: Option<Duration>,
}

/// What was published on a shard's channel last, as the script knows it: who does not receive it is
/// deaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The shard's end.
    pub tip: Position,
    /// The probe, by its writer and number, that was published after it. None: the entry at the
    /// end came last.
    pub probe: Option<(WriterId, u64)>,
    /// How long ago, where a probe was last.
    pub age: Duration,
}

impl Published {
    /// An entry that the shard has just taken, at its end.
    pub fn entry(tip: Position) -> Published {
        Published { tip, probe: None, age: Duration::ZERO }
    }
}

/// A frame, and what the script does with it.
#[derive(Clone, Debug, Default)]
pub struct Framed {
    /// The gateway that wrote it.
    pub writer: WriterId,
    /// The writer's number of the frame.
    pub sequence: u64,
    /// The number of the frame before it, if that is not answered: nothing is done unless it is
    /// there.
    pub after: Option<u64>,
    /// The number of its events. None: all were accepted before.
    pub count: u64,
    /// The encoded frame.
    pub bytes: Vec<u8>,
    /// Request ids, each with the index of its first event.
    pub requests: Vec<(RequestId, u64)>,
    /// The runs of publishers.
    pub runs: Vec<Covers>,
    /// Events that become the last value of their key.
    pub retain: Vec<Retain>,
}

/// What a run of a publisher's events covers.
#[derive(Clone, Copy, Debug)]
pub struct Covers {
    /// The publisher.
    pub publisher: PublisherId,
    /// The stream that they came on.
    pub stream: StreamNumber,
    /// The first sequence.
    pub from: u64,
    /// The last sequence.
    pub last: u64,
}

impl Covers {
    /// What a run covers.
    pub fn of(run: &Run) -> Covers {
        let Run { publisher, stream, from, .. } = *run;
        Covers { publisher, stream, from, last: run.last() }
    }
}

/// An event of a frame that becomes the last value of its key.
#[derive(Clone, Debug)]
pub struct Retain {
    /// The key.
    pub key: u8,
    /// Its index.
    pub index: u64,
    /// The encoded event.
    pub event: Bytes,
}

/// An answer of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The shard after the call, and what became of it.
    Shard(ShardView, Status),
    /// The caller may not serve this shard: the gateways there are configured otherwise. Nothing
    /// was done.
    Deployment(String),
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The frame was appended here; the shard was released.
    Done(Option<Appended>),
    /// The shard takes calls: what was published last.
    Probed(Published),
    /// The frame is there, since an earlier call.
    Duplicate {
        /// Its place and the number of its events, if they are known.
        place: Option<(Appended, u64)>,
        /// Its name: where its first event was accepted first, and their number at that time.
        name: (Appended, u64),
        /// The entry as it stands there; empty if history has it no more.
        entry: Bytes,
    },
    /// Nothing is missing of what was to be appended again.
    There,
    /// Requests, by index, that were accepted before, at these positions; nothing was done.
    Seen(Vec<(usize, Appended)>),
    /// Of these runs' publishers, by the index of the run, the shard has these sequences; nothing
    /// was done.
    Covered(Vec<(usize, Ranges)>),
    /// The publishers of these runs, by index, have later streams; nothing was done.
    TakenOver(Vec<usize>),
    /// Streams were numbered: the number of the last one.
    Numbered(StreamNumber),
    /// The writer's frame before it is not there; nothing was done.
    OutOfOrder,
    /// The epoch is over, or an exact position is taken; nothing was done.
    EpochOver,
    /// Another writer comes first; nothing was done.
    NotItsTurn,
    /// Appends wait for a recovery; nothing was appended.
    Recovering,
    /// Other gateways may hold what comes before; nothing was done.
    Wait,
}

/// Reason why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There was no connection: nothing was sent.
    #[error("{0}")]
    NotConnected(String),
    /// The server refused the call: nothing was done.
    #[error("{0}")]
    Refused(String),
    /// The frame is larger than what the server takes: nothing was sent.
    #[error("the frame has {actual} bytes, and the server takes {limit}")]
    TooLarge {
        /// Bytes that the server takes.
        limit: usize,
        /// Bytes of the frame.
        actual: usize,
    },
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

impl Call {
    /// Calls the script on `server`. `asking`: the server is still importing the slot, and serves
    /// it only after `ASKING`.
    pub(super) async fn send(
        &self,
        target: &Target,
        server: &Arc<Server>,
        asking: bool,
    ) -> Result<Answer, Failure> {
        let sending = std::pin::pin!(self.send_to(target, server, asking));
        let sent = server.unless_closed(sending).await;
        // It may have been executed before.
        sent.unwrap_or_else(|| Err(Failure::Unknown(format!("{} was left", server.address))))
    }

    async fn send_to(
        &self,
        target: &Target,
        server: &Arc<Server>,
        asking: bool,
    ) -> Result<Answer, Failure> {
        let started = Instant::now();
        let Ok(command) = tokio::time::timeout(self.limit, server.command()).await else {
            return Err(Failure::NotConnected(server.slow().to_string()));
        };
        let mut command = command.map_err(|error| Failure::NotConnected(error.to_string()))?;
        let limit = self.limit.saturating_sub(started.elapsed());
        let Ok(sent) =
            tokio::time::timeout(limit, self.send_over(&mut command, target, asking)).await
        else {
            // The connection may be half open: the next attempt opens another.
            server.discard(&command).await;
            return Err(Failure::Unknown(format!("{} did not answer in time", server.address)));
        };
        match sent {
            Ok(value) => {
                let answer = parse(&value).ok_or_else(|| {
                    Failure::Unknown(format!("the shard's script answered {value:?}"))
                })?;
                let accepted = matches!(
                    answer,
                    Answer::Shard(
                        _,
                        Status::Done(Some(_))
                            | Status::Duplicate { .. }
                            | Status::Seen(_)
                            | Status::Covered(_)
                    )
                );
                if accepted && let Some(replicas) = &command.replicas {
                    let needed = target.settings.min_replicas;
                    let limit = self.limit.saturating_sub(started.elapsed());
                    match replicas.wait(&target.names.state, limit).await {
                        Ok(have) if have < needed => {
                            return Err(Failure::Unknown(format!(
                                "it was appended, and {have} of {needed} replicas have it"
                            )));
                        }
                        Ok(_) => {}
                        Err(error) => {
                            server.discard(&command).await;
                            return Err(Failure::Unknown(error_text(&error)));
                        }
                    }
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
        target: &Target,
        asking: bool,
    ) -> RedisResult<Value> {
        let evalsha = self.command(target);
        let connection = &mut command.connection;
        let reply = invoke(connection, &evalsha, asking).await;
        match reply {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                SCRIPT.load_async(connection).await?;
                invoke(connection, &evalsha, asking).await
            }
            reply => reply,
        }
    }

    /// The command that makes this call.
    pub fn command(&self, target: &Target) -> Cmd {
        let (names, settings) = (&*target.names, &*target.settings);
        let framed = match &self.op {
            Op::Append(framed) | Op::Again(framed, _) => Some(framed),
            Op::Probe(_) | Op::Release { .. } | Op::Number(_) => None,
        };
        let size = framed.map_or((0, 0), |framed| {
            let retained: usize = framed.retain.iter().map(|retain| retain.event.len()).sum();
            let each = framed.requests.len() + framed.retain.len() + framed.runs.len();
            (each, framed.bytes.len() + retained)
        });
        let mut cmd = Cmd::with_capacity(
            CALL_CAPACITY.0 + size.0 * EACH_CAPACITY.0,
            CALL_CAPACITY.1 + self.reported.len() + size.0 * EACH_CAPACITY.1 + size.1,
        );
        let requests = framed.map_or(&[][..], |framed| &framed.requests);
        cmd.arg("EVALSHA").arg(SCRIPT.get_hash()).arg(4 + requests.len());
        cmd.arg(&names.state).arg(&names.history).arg(&names.trim_index).arg(&names.retained);
        for (id, _) in requests {
            cmd.arg(names.request(id));
        }
        cmd.arg(match &self.op {
            Op::Append(_) => "append",
            Op::Again(..) => "again",
            Op::Probe(_) => "probe",
            Op::Release { .. } => "release",
            Op::Number(_) => "number",
        });
        cmd.arg(&names.channel).arg(if settings.sharded { "SPUBLISH" } else { "PUBLISH" });
        cmd.arg(&target.deployment).arg(self.entropy).arg(&self.reported);
        cmd.arg(settings.history.max_frames).arg(settings.history.max_bytes);
        cmd.arg(millis(settings.history.max_age));
        cmd.arg(self.seen.epoch.0);
        match self.placing {
            Placing::Anywhere => cmd.arg(self.seen.offset.0),
            Placing::Exact => cmd.arg(format!("={}", self.seen.offset.0)),
            Placing::ExactInTurn => cmd.arg(format!("!{}", self.seen.offset.0)),
        };
        match &self.op {
            Op::Append(framed) => {
                let after = framed.after.map(|sequence| sequence.to_string());
                framed.put(&mut cmd, settings, &after.unwrap_or_default());
            }
            Op::Again(framed, name) => {
                let last = name.last().offset.0;
                framed.put(
                    &mut cmd,
                    settings,
                    &format!("{}:{}-{last}", name.epoch.0, name.first.0),
                );
            }
            Op::Probe(probe) => {
                let within = probe.unless_within.map(|within| millis(within).to_string());
                cmd.arg(&probe.bytes[..]).arg(id_text(probe.writer)).arg(probe.number);
                cmd.arg(within.unwrap_or_default());
            }
            Op::Release { caller, knows_all } => {
                cmd.arg(id_text(*caller)).arg(if *knows_all { "all" } else { "" });
            }
            Op::Number(streams) => {
                cmd.arg(*streams);
            }
        }
        cmd
    }
}

impl Framed {
    fn put(&self, cmd: &mut Cmd, settings: &Settings, name_or_after: &str) {
        cmd.arg(id_text(self.writer)).arg(self.sequence).arg(self.count).arg(&self.bytes[..]);
        cmd.arg(name_or_after).arg(millis(settings.request_id_window));
        cmd.arg(self.retain.len());
        for retain in &self.retain {
            cmd.arg(retain.key).arg(retain.index).arg(&retain.event[..]);
        }
        for (_, index) in &self.requests {
            cmd.arg(*index);
        }
        for Covers { publisher, stream, from, last } in &self.runs {
            let mut name = publisher.to_vec();
            if *stream > 0 {
                name.extend_from_slice(stream.to_string().as_bytes());
            }
            cmd.arg(name).arg(*from).arg(*last);
        }
    }
}

impl Target {
    /// One shard of a deployment.
    pub fn new(
        settings: &Arc<Settings>,
        shard: ShardId,
        shards: u16,
        deployment: String,
    ) -> Target {
        let names = Arc::new(settings.names(shard, shards));
        Target { names, settings: settings.clone(), deployment }
    }

    /// Makes and verifies authentication tags, if there is a key; for simulations.
    pub fn authenticator(&self) -> Option<Arc<Authenticator>> {
        self.names.auth.clone()
    }

    /// The same for a gateway with this clock, which has learned of no other yet; for simulations.
    #[must_use]
    pub fn by_clock(&self, clock: Clock) -> Target {
        let mut target = self.clone();
        let names = Arc::make_mut(&mut target.names);
        names.auth = names.auth.as_ref().map(|auth| Arc::new(auth.by_clock(clock)));
        target
    }

    /// Reads a message from the channel, and verifies its tag; for simulations.
    pub fn open(&self, bytes: Bytes) -> Option<Envelope> {
        Envelope::open(bytes, self.names.auth.as_deref())
    }
}

/// A writer as the script names it.
fn id_text(writer: WriterId) -> String {
    format!("{writer:016x}")
}

/// The shard that calls are made for.
#[derive(Clone)]
pub struct Target {
    pub(super) names: Arc<ShardNames>,
    pub(super) settings: Arc<Settings>,
    /// What all gateways of the shard must have in common, as text.
    pub(super) deployment: String,
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
/// write at its first write. A right that was taken away may have stopped it on a Redis before 7.0.
pub(super) fn classify(error: &RedisError) -> Failure {
    let text = error_text(error);
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved) => Failure::NotOwner(text),
        ErrorKind::Server(ServerErrorKind::Ask) => match error.redirect_node() {
            Some((address, _)) => Failure::AskAt(address.to_owned()),
            None => Failure::NotOwner(text),
        },
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => {
            Failure::NotOwner(text)
        }
        _ if text.contains("NOPERM") && text.contains("script") => Failure::Unknown(text),
        _ if error.code().is_some() => Failure::Refused(text),
        _ => Failure::Unknown(text),
    }
}

/// Reads an answer.
pub fn parse(value: &Value) -> Option<Answer> {
    let Value::Array(parts) = value else { return None };
    let bytes = |index: usize| match parts.get(index)? {
        Value::BulkString(bytes) => Some(&bytes[..]),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    };
    let text = |index: usize| std::str::from_utf8(bytes(index)?).ok();
    let number = |index: usize| text(index)?.parse::<u64>().ok();
    if text(0)? == "deployment" {
        return Some(Answer::Deployment(text(1)?.to_owned()));
    }
    let tip = Position::new(number(1)?, number(2)?);
    let view = parse_view(tip, text(3)?, text(4)?, text(5)? == "1")?;
    let place_at = |index: usize| {
        Some(Appended { epoch: Epoch(number(index)?), first: Offset(number(index + 1)?) })
    };
    let place = || place_at(EXTRA);
    let status = match text(0)? {
        "ok" if parts.len() == EXTRA => Status::Done(None),
        "ok" => Status::Done(Some(place()?)),
        "dup" => {
            let (place, count) = (place()?, number(EXTRA + 2)?);
            let known = place.epoch != Epoch::NONE && count > 0;
            let entry = Bytes::copy_from_slice(bytes(EXTRA + 3)?);
            let name = (place_at(EXTRA + 4)?, number(EXTRA + 6)?);
            Status::Duplicate { place: known.then_some((place, count)), name, entry }
        }
        "probed" => {
            let writer = text(EXTRA)?;
            let probe = match writer {
                "" => None,
                _ => Some((u64::from_str_radix(writer, 16).ok()?, number(EXTRA + 1)?)),
            };
            let age = Duration::from_millis(number(EXTRA + 2)?);
            Status::Probed(Published { tip, probe, age })
        }
        "there" => Status::There,
        "order" => Status::OutOfOrder,
        "epoch" => Status::EpochOver,
        "turn" => Status::NotItsTurn,
        "recovering" => Status::Recovering,
        "wait" => Status::Wait,
        "seen" => {
            let pairs = (EXTRA..parts.len()).step_by(2).map(|at| {
                let (epoch, first) = text(at + 1)?.split_once(' ')?;
                let index = usize::try_from(number(at)?).ok()?;
                let (epoch, first) = (Epoch(epoch.parse().ok()?), Offset(first.parse().ok()?));
                Some((index, Appended { epoch, first }))
            });
            Status::Seen(pairs.collect::<Option<_>>()?)
        }
        "covered" => {
            let pairs = (EXTRA..parts.len()).step_by(2).map(|at| {
                Some((usize::try_from(number(at)?).ok()?, Ranges::parse(text(at + 1)?)?))
            });
            Status::Covered(pairs.collect::<Option<_>>()?)
        }
        "over" => {
            let runs = (EXTRA..parts.len()).map(|at| usize::try_from(number(at)?).ok());
            Status::TakenOver(runs.collect::<Option<_>>()?)
        }
        "numbered" => Status::Numbered(number(EXTRA)?),
        _ => return None,
    };
    Some(Answer::Shard(view, status))
}

/// The index of the first part of an answer that depends on its status.
const EXTRA: usize = 6;

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
        let ends = vec![Position::new(7, 5), Position::new(8, 2)];
        let copies = Ranges::parse("1-2").unwrap();
        let view = ShardView {
            tip: Position::new(9, 4),
            copies,
            floor: Epoch(3),
            ends,
            recovering: false,
        };
        let read = |status: &str, extra: &[&str]| {
            let head = [status, "9", "4", "1-2", "3 7:5 8:2", "0"];
            match parse(&reply(&[&head, extra].concat())) {
                Some(Answer::Shard(read, status)) => {
                    assert_eq!(read, view);
                    Some(status)
                }
                _ => None,
            }
        };
        assert_eq!(read("ok", &["9", "4"]), Some(Status::Done(Some(at(9, 4)))));
        assert_eq!(read("ok", &[]), Some(Status::Done(None)));
        let entry = Bytes::from_static(b"entry");
        let dup = Status::Duplicate { place: Some((at(9, 3), 2)), name: (at(7, 5), 3), entry };
        assert_eq!(read("dup", &["9", "3", "2", "entry", "7", "5", "3"]), Some(dup));
        let gone = Status::Duplicate { place: None, name: (at(0, 0), 0), entry: Bytes::new() };
        assert_eq!(read("dup", &["0", "0", "0", "", "0", "0", "0"]), Some(gone));
        let published = |probe, ms| {
            let (tip, age) = (view.tip, Duration::from_millis(ms));
            Some(Status::Probed(Published { tip, probe, age }))
        };
        assert_eq!(read("probed", &["000000000000001f", "3", "70"]), published(Some((31, 3)), 70));
        assert_eq!(read("probed", &["", "0", "0"]), published(None, 0));
        assert_eq!(read("order", &[]), Some(Status::OutOfOrder));
        assert_eq!(read("epoch", &[]), Some(Status::EpochOver));
        assert_eq!(read("turn", &[]), Some(Status::NotItsTurn));
        assert_eq!(read("recovering", &[]), Some(Status::Recovering));
        let seen = Status::Seen(vec![(0, at(9, 4)), (2, at(9, 7))]);
        assert_eq!(read("seen", &["0", "9 4", "2", "9 7"]), Some(seen));
        let covered = vec![(1, Ranges::parse("1-7.9-9").unwrap())];
        assert_eq!(read("covered", &["1", "1-7.9-9"]), Some(Status::Covered(covered)));
        assert_eq!(read("over", &["0", "2"]), Some(Status::TakenOver(vec![0, 2])));
        assert_eq!(read("numbered", &["77"]), Some(Status::Numbered(77)));
        assert_eq!(read("what", &["9", "4"]), None);
        let theirs = Some(Answer::Deployment("2 16".into()));
        assert_eq!(parse(&reply(&["deployment", "2 16"])), theirs);
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
