//! Readings of a shard's history and state in Redis.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use redis::{Cmd, Value};

use super::{
    auth::Authenticator,
    envelope::{Body, Envelope},
    names::ShardNames,
    order::Order,
    recovery::Memory,
    script::{Failure, Target, classify},
    server::Server,
    topology::Topology,
    view::{ShardView, parse_view},
};
use crate::bus::{Delivery, Gap, GapReason, HistoryPage, Position, ShardId, unix_ms};

/// Entries of one reading, at most.
const MAX_ENTRIES: usize = 128;

/// Bytes of events, unpacked, of one reading. More only if its first entry has more: a request of a
/// few MiB is one frame, and packed it may have a few KiB.
const READING_BYTES: usize = 1024 * 1024;

/// The time limit of a replica, after which its master is asked.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(1);

/// The time limit of the master, for all attempts together.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The wait between two attempts.
const RETRY: Duration = Duration::from_millis(100);

/// The result of one reading.
#[derive(Debug)]
pub struct Reading {
    /// Entries after the position asked for, in order.
    pub entries: Vec<Envelope>,
    /// The shard at the same instant. Unknown: Redis has no state of it.
    pub view: ShardView,
    /// True if there may be more entries.
    pub more: bool,
}

impl Reading {
    /// The reading of at most `asked` entries that the answers of its two commands make. None if
    /// they have another form.
    pub fn read(target: &Target, asked: usize, entries: Value, state: &Value) -> Option<Reading> {
        Reading::of(entries, state, &target.names, (asked, READING_BYTES))
    }

    /// `asked` entries were asked for; those beyond `max_bytes` are left out.
    fn of(
        entries: Value,
        state: &Value,
        names: &ShardNames,
        (asked, max_bytes): (usize, usize),
    ) -> Option<Reading> {
        let Value::Array(entries) = entries else { return None };
        let complete = entries.len() < asked;
        let (entries, next) = parse_entries(entries, names, max_bytes)?;
        let more = !complete || next.is_some();
        let view = read_view(state).unwrap_or_default();
        Some(Reading { more, entries: without_unknown(entries, next, view.tip), view })
    }

    /// The number of entries whose authentication tag does not verify.
    pub(super) fn forged(&self) -> u64 {
        self.entries.iter().filter(|entry| matches!(entry.body, Body::Forged)).count() as u64
    }
}

/// A page of history for a stream, which is made of one reading after the other.
#[derive(Debug)]
pub struct Page {
    order: Order,
    deliveries: Vec<Delivery>,
    bytes: usize,
    max_bytes: usize,
}

impl Page {
    /// A page of what follows a position.
    pub fn after(position: Position, max_bytes: usize) -> Page {
        Page { order: Order::page(position), deliveries: vec![], bytes: 0, max_bytes }
    }

    /// The position after which the next reading is to be made.
    pub fn read_from(&self) -> Position {
        self.order.read_from()
    }

    /// Bytes of events that it may still take.
    pub(super) fn room(&self) -> usize {
        self.max_bytes.saturating_sub(self.bytes)
    }

    /// Takes the next reading. Returns the page when it is complete.
    pub fn take(&mut self, reading: Reading, memory: &mut Memory) -> Option<HistoryPage> {
        memory.report_view(&reading.view);
        if !self.order.begin_history(&reading.view, &reading.entries, reading.more) {
            return None;
        }
        // What comes next is for another page, after the recovery.
        let mut early = false;
        for mut entry in reading.entries {
            memory.report(&entry);
            if let Body::Frame(stamped) = &mut entry.body {
                memory.name(stamped);
            }
            early = !self.order.take_history(&entry, &mut self.deliveries);
            if early {
                break;
            }
            self.bytes += entry.size();
        }
        if !early && !reading.more {
            early = !self.order.finish_history(&reading.view, &mut self.deliveries);
        } else if !early && self.bytes < self.max_bytes {
            return None;
        }
        // Another page has room for more readings.
        if self.order.looks_ahead() && self.deliveries.is_empty() {
            return None;
        }
        let mut deliveries = std::mem::take(&mut self.deliveries);
        let next = self.order.position();
        if deliveries.is_empty() && reading.view.tip.epoch < next.epoch {
            // The epoch of the position lies on another line.
            deliveries.push(Delivery::Gap(Gap {
                reason: GapReason::UnknownEpoch,
                lost: vec![],
                more: true,
                position: next,
                from_ms: None,
                to_ms: unix_ms(),
            }));
        }
        let ends = reading.view.ends;
        Some(HistoryPage { deliveries, next, at_end: !reading.more && !early, ends })
    }
}

/// Reads the entries after `after`. Retries until a time limit; the error is for people.
pub(super) async fn read(
    topology: &Topology,
    names: &ShardNames,
    shard: ShardId,
    after: Position,
    prefer_replica: bool,
) -> Result<Reading, String> {
    read_up_to(topology, names, shard, (after, READING_BYTES), prefer_replica).await
}

/// The same, with at most this many bytes of events, but at least one entry if there is one.
pub(super) async fn read_up_to(
    topology: &Topology,
    names: &ShardNames,
    shard: ShardId,
    (after, max_bytes): (Position, usize),
    prefer_replica: bool,
) -> Result<Reading, String> {
    let max_bytes = max_bytes.min(READING_BYTES);
    let once = async |server: &Server, from_replica| {
        // Only the replicas of a cluster have to be told.
        read_once(server, names, (after, max_bytes), from_replica && topology.is_cluster()).await
    };
    if prefer_replica && let Some(replica) = topology.replica(shard) {
        match tokio::time::timeout(REPLICA_TIMEOUT, once(&replica, true)).await {
            // It may be behind its master, which is asked if it has no entries.
            Ok(Ok(reading)) if reading.entries.is_empty() => {}
            Ok(Ok(reading)) => return Ok(reading),
            Ok(Err(failure)) => topology.back_off(&replica, failure),
            Err(_) => topology.back_off(&replica, "no answer in time"),
        }
    }
    let mut why = String::from("no master is known");
    let attempts = async {
        loop {
            if let Some(master) = topology.master(shard) {
                match once(&master, false).await {
                    Ok(reading) => return reading,
                    Err(failure) => why = failure.to_string(),
                }
            }
            // If the refresh fails, so does the next attempt, with a reason.
            let _ = topology.refresh().await;
            tokio::time::sleep(RETRY).await;
        }
    };
    let reading = tokio::time::timeout(TIMEOUT, attempts).await;
    reading.map_err(|_| why)
}

async fn read_once(
    server: &Server,
    names: &ShardNames,
    (after, max_bytes): (Position, usize),
    from_replica: bool,
) -> Result<Reading, Failure> {
    let read = std::pin::pin!(read_over(server, names, (after, max_bytes), from_replica));
    let closed = || Failure::NotConnected(format!("{} was left", server.address));
    server.unless_closed(read).await.unwrap_or_else(|| Err(closed()))
}

async fn read_over(
    server: &Server,
    names: &ShardNames,
    (after, max_bytes): (Position, usize),
    readonly: bool,
) -> Result<Reading, Failure> {
    let mut query =
        server.query().await.map_err(|error| Failure::NotConnected(error.to_string()))?;
    let connection = query.connection();
    if readonly {
        let readonly: Result<(), _> = redis::cmd("READONLY").query_async(connection).await;
        readonly.map_err(|error| classify(&error))?;
    }
    let mut pipe = redis::pipe();
    pipe.atomic();
    let asked = entries_to_read(names, max_bytes);
    let [entries, state] = queries(names, after, asked);
    pipe.add_command(entries);
    pipe.add_command(state);
    let answer: Result<(Value, Value), _> = pipe.query_async(connection).await;
    let (entries, view) = answer.map_err(|error| classify(&error))?;
    let form = || Failure::Refused("an unknown form of XRANGE and HMGET".into());
    Reading::of(entries, &view, names, (asked, max_bytes)).ok_or_else(form)
}

/// The number of entries to ask for: as many as have about this many bytes, if they are like those
/// that were read last. What Redis sends beyond that is thrown away.
fn entries_to_read(names: &ShardNames, max_bytes: usize) -> usize {
    let each = names.entry_bytes.load(Ordering::Relaxed).max(1);
    (max_bytes / each + 1).clamp(2, MAX_ENTRIES)
}

/// The two commands of a reading, which are executed at one instant.
fn queries(names: &ShardNames, after: Position, asked: usize) -> [Cmd; 2] {
    let start = if after.is_known() { format!("({after}") } else { "-".to_owned() };
    let mut entries = redis::cmd("XRANGE");
    entries.arg(&names.history).arg(start).arg("+").arg("COUNT").arg(asked);
    let mut state = redis::cmd("HMGET");
    state.arg(&names.state).arg("epoch").arg("offset").arg("copies").arg("ends").arg("recovery");
    [entries, state]
}

/// The commands of a reading of at most `asked` entries after a position, for simulations.
pub fn reading(target: &Target, after: Position, asked: usize) -> [Cmd; 2] {
    queries(&target.names, after, asked)
}

/// The entries that gateways wrote. An unknown writer can only add entries beyond the shard's end,
/// or at a position that the next entry shows to be within its own frame. `next` is the entry after
/// them, where it is known.
fn without_unknown(entries: Vec<Envelope>, next: Option<Envelope>, tip: Position) -> Vec<Envelope> {
    let mut limit = tip.is_known().then_some(tip);
    if let Some(next) = next.filter(|next| limit.is_none_or(|tip| next.position <= tip)) {
        limit = next.follows().or(limit);
    }
    let mut kept: Vec<Envelope> = Vec::with_capacity(entries.len());
    for entry in entries.into_iter().rev() {
        if limit.is_some_and(|limit| entry.position > limit) {
            continue;
        }
        limit = entry.follows().or(limit);
        kept.push(entry);
    }
    kept.reverse();
    kept
}

/// Reads entries, as many as have `max_bytes` of events, at least one. The second part is the next
/// one, which is too much.
fn parse_entries(
    entries: Vec<Value>,
    names: &ShardNames,
    max_bytes: usize,
) -> Option<(Vec<Envelope>, Option<Envelope>)> {
    let auth = names.auth.as_deref();
    let (mut read, mut next, mut bytes) = (Vec::new(), None, 0);
    for entry in entries {
        let entry = parse_entry(entry, auth)?;
        bytes += entry.size();
        if bytes > max_bytes && !read.is_empty() {
            next = Some(entry);
            break;
        }
        read.push(entry);
    }
    let count = read.len() + usize::from(next.is_some());
    if let Some(each) = bytes.checked_div(count) {
        names.entry_bytes.store(each, Ordering::Relaxed);
    }
    Some((read, next))
}

fn parse_entry(entry: Value, auth: Option<&Authenticator>) -> Option<Envelope> {
    let Value::Array(parts) = entry else { return None };
    let [id, fields] = <[Value; 2]>::try_from(parts).ok()?;
    let (Value::BulkString(id), Value::Array(mut fields)) = (id, fields) else {
        return None;
    };
    let (Value::BulkString(value), Value::BulkString(field)) = (fields.pop()?, fields.pop()?)
    else {
        return None;
    };
    Envelope::from_history(&id, &field, &Bytes::from(value), auth)
}

fn read_view(value: &Value) -> Option<ShardView> {
    let Value::Array(parts) = value else { return None };
    let text = |index: usize| match parts.get(index)? {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    };
    let tip = Position::new(text(0)?.parse().ok()?, text(1)?.parse().ok()?);
    // The first version kept neither.
    let recovering = text(4).is_some();
    parse_view(tip, text(2).unwrap_or_default(), text(3).unwrap_or("0"), recovering)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::redis::envelope::{Header, encode_events, encode_frame};

    fn entry(id: &str, field: &str, value: &'static [u8]) -> Envelope {
        Envelope::from_history(id.as_bytes(), field.as_bytes(), &Bytes::from_static(value), None)
            .unwrap()
    }

    fn kept(entries: Vec<Envelope>, tip: Position) -> Vec<String> {
        without_unknown(entries, None, tip).iter().map(|entry| entry.position.to_string()).collect()
    }

    #[test]
    fn entries_of_unknown_writers_are_left_out_of_history() {
        // Sequence 1, one event and two events.
        let (one, two) = (b"\x18\x01\x20\x01\x0a\x00", b"\x18\x01\x20\x02\x0a\x00\x0a\x00");
        let entries = || {
            vec![
                entry("7-0", "e", b"0-0 0"),
                entry("7-1", "f", one),
                // Within the next frame; of a later version; far ahead; under a time of day.
                entry("7-2", "f", b"unknown"),
                entry("7-3", "f", two),
                entry("7-5", "later", b"readable one day"),
                entry("7-900", "x", b"unknown"),
                entry("8-0", "x", b"unknown"),
                entry("9-0", "e", b"7-5 0"),
                entry("9-1", "f", one),
                entry("9-7", "x", b"unknown"),
                entry("10-0", "x", b"unknown"),
            ]
        };
        let own = ["7-0", "7-1", "7-3", "7-5", "9-0", "9-1"];
        assert_eq!(kept(entries(), Position::new(9, 1)), own);
        // Without the shard's end the last entries cannot be checked.
        assert_eq!(kept(entries(), Position::UNKNOWN)[6..], ["9-7", "10-0"]);
    }

    #[test]
    fn a_reading_unpacks_no_more_than_its_limit_but_at_least_one_entry() {
        let names = ShardNames::new("p", ShardId(0), 1);
        // Each has some hundred bytes, and unpacks to a little more than 100,000.
        let event = Bytes::from(vec![7; 100_000]);
        let header = Header {
            writer: 1,
            sequence: 1,
            count: 1,
            time_ms: 0,
            provenance: None,
            requests: &[],
            retain: &[],
            runs: &[],
            streams: &[],
        };
        let value = encode_frame(&header, &encode_events([&event].into_iter()));
        assert!(value.len() < 1000);
        let entry = |n: usize| {
            let fields = vec![Value::BulkString(b"f".to_vec()), Value::BulkString(value.clone())];
            Value::Array(vec![
                Value::BulkString(format!("7-{n}").into_bytes()),
                Value::Array(fields),
            ])
        };
        let entries = |count| Value::Array((1..=count).map(entry).collect());
        let read = |count, asked, max_bytes| {
            let reading = Reading::of(entries(count), &Value::Nil, &names, (asked, max_bytes));
            let reading = reading.unwrap();
            (reading.entries.len(), reading.more)
        };
        assert_eq!(entries_to_read(&names, READING_BYTES), 128);
        assert_eq!(read(20, 128, 350_000), (3, true));
        assert_eq!(read(20, 128, 1), (1, true));
        assert_eq!(read(3, 128, 350_000), (3, false));
        assert_eq!(read(3, 3, 350_000), (3, true));
        assert_eq!(read(0, 128, 350_000), (0, false));
        // The next one asks for no more than it can use.
        assert_eq!(entries_to_read(&names, 350_000), 4);
        assert_eq!(entries_to_read(&names, 1), 2);
    }
}
