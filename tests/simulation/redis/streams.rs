//! Commands on streams.

use std::{collections::VecDeque, fmt, str::from_utf8, sync::Arc};

use super::{Reply, Text, command::number, keyspace::Keyspace, reply::error};

/// A stream: entries in the order of their ids, and the last id that it ever had.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    entries: VecDeque<(Id, Arc<[Text]>)>,
    last: Id,
}

/// The id of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(u64, u64);

/// What XADD and XTRIM remove.
enum Limit {
    Length(usize),
    Oldest(Id),
}

struct Trim {
    limit: Limit,
    /// `~`: whole nodes only, and no more entries than Redis takes in one call.
    approximate: bool,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

impl Id {
    /// Reads an id; one without a sequence gets `sequence`.
    fn parse(text: &[u8], sequence: u64) -> Result<Id, String> {
        let text = from_utf8(text).map_err(|_| error::STREAM_ID)?;
        let (time, sequence) = match text.split_once('-') {
            None => (text, Ok(sequence)),
            Some((time, sequence)) => (time, sequence.parse()),
        };
        match (time.parse(), sequence) {
            (Ok(time), Ok(sequence)) => Ok(Id(time, sequence)),
            _ => Err(error::STREAM_ID.into()),
        }
    }
}

impl Stream {
    fn trim(&mut self, trim: &Trim, node: usize) -> usize {
        let surplus = match trim.limit {
            Limit::Length(length) => self.entries.len().saturating_sub(length),
            Limit::Oldest(oldest) => self.entries.partition_point(|(id, _)| *id < oldest),
        };
        // A node goes only as a whole; Redis removes at most a hundred nodes' worth in one call.
        let surplus =
            if trim.approximate { (surplus / node * node).min(100 * node) } else { surplus };
        self.entries.drain(..surplus);
        surplus
    }
}

impl Trim {
    /// Reads the options from the front of `args`, and gives the rest.
    fn parse(args: &[Text]) -> Result<(Option<Trim>, &[Text]), String> {
        let Some((name, rest)) = args.split_first() else { return Ok((None, args)) };
        let by_length = name.eq_ignore_ascii_case(b"MAXLEN");
        if !by_length && !name.eq_ignore_ascii_case(b"MINID") {
            return Ok((None, args));
        }
        let (approximate, rest) = match rest.split_first() {
            Some((sign, rest)) if **sign == *b"~" => (true, rest),
            Some((sign, rest)) if **sign == *b"=" => (false, rest),
            _ => (false, rest),
        };
        let (threshold, rest) = rest.split_first().ok_or(error::SYNTAX)?;
        let limit = if by_length {
            Limit::Length(number(threshold)?)
        } else {
            Limit::Oldest(Id::parse(threshold, 0)?)
        };
        Ok((Some(Trim { limit, approximate }), rest))
    }
}

pub fn add(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, rest @ ..] = args else { return Err(error::arguments(args)) };
    let (trim, rest) = Trim::parse(rest)?;
    let [id, fields @ ..] = rest else { return Err(error::arguments(args)) };
    if fields.is_empty() || fields.len() % 2 != 0 {
        return Err(error::arguments(args));
    }
    let id = Id::parse(id, 0)?;
    if id == Id::default() {
        return Err(error::ID_ZERO.into());
    }
    let node = keys.stream_node_entries;
    keys.change(key, |stream: &mut Stream| {
        if id <= stream.last {
            return Err(error::ID_TOO_SMALL.into());
        }
        stream.last = id;
        stream.entries.push_back((id, fields.into()));
        if let Some(trim) = trim {
            stream.trim(&trim, node);
        }
        Ok(Reply::Bulk(id.to_string().into_bytes().into()))
    })
}

pub fn trim(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, rest @ ..] = args else { return Err(error::arguments(args)) };
    let (Some(trim), []) = Trim::parse(rest)? else { return Err(error::SYNTAX.into()) };
    if !keys.has(key) {
        return Ok(Reply::Integer(0));
    }
    let node = keys.stream_node_entries;
    keys.change(key, |stream: &mut Stream| Ok(Reply::count(stream.trim(&trim, node))))
}

pub fn len(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key] = args else { return Err(error::arguments(args)) };
    Ok(Reply::count(keys.read(key, |stream: &Stream| stream.entries.len())?.unwrap_or(0)))
}

pub fn range(keys: &mut Keyspace, args: &[Text], reverse: bool) -> Result<Reply, String> {
    let [_, key, one, other, options @ ..] = args else { return Err(error::arguments(args)) };
    let count = match options {
        [] => usize::MAX,
        [name, count] if name.eq_ignore_ascii_case(b"COUNT") => number(count)?,
        _ => return Err(error::SYNTAX.into()),
    };
    let (from, to) = if reverse { (other, one) } else { (one, other) };
    let (from, to) = (bound(from, true)?, bound(to, false)?);
    let entries = keys.read(key, |stream: &Stream| {
        let first = stream.entries.partition_point(|(id, _)| *id < from);
        let end = stream.entries.partition_point(|(id, _)| *id <= to).max(first);
        let within = stream.entries.range(first..end).map(|(id, fields)| entry(*id, fields));
        Reply::Array(if reverse {
            within.rev().take(count).collect()
        } else {
            within.take(count).collect()
        })
    })?;
    Ok(entries.unwrap_or(Reply::Array(vec![])))
}

pub fn info(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, what, key] = args else { return Err(error::arguments(args)) };
    if !what.eq_ignore_ascii_case(b"STREAM") {
        return Err(error::SYNTAX.into());
    }
    let parts = keys.read(key, |stream: &Stream| {
        let name = |name: &str| Reply::Bulk(name.as_bytes().into());
        Reply::Array(vec![
            name("length"),
            Reply::count(stream.entries.len()),
            name("last-generated-id"),
            Reply::Bulk(stream.last.to_string().into_bytes().into()),
        ])
    })?;
    parts.ok_or_else(|| error::NO_SUCH_KEY.into())
}

fn entry(id: Id, fields: &[Text]) -> Reply {
    Reply::Array(vec![
        Reply::Bulk(id.to_string().into_bytes().into()),
        Reply::bulks(fields.iter().cloned()),
    ])
}

/// The first id of a range, or its last one: `-`, `+`, an id, or `(` and an id that is not part of
/// it.
fn bound(text: &[u8], first: bool) -> Result<Id, String> {
    let sequence = if first { 0 } else { u64::MAX };
    match text {
        b"-" => Ok(Id(0, 0)),
        b"+" => Ok(Id(u64::MAX, u64::MAX)),
        [b'(', id @ ..] => {
            let Id(time, sequence) = Id::parse(id, sequence)?;
            Ok(match (first, sequence) {
                (true, u64::MAX) => Id(time.saturating_add(1), 0),
                (true, _) => Id(time, sequence + 1),
                (false, 0) => Id(time.saturating_sub(1), u64::MAX),
                (false, _) => Id(time, sequence - 1),
            })
        }
        id => Id::parse(id, sequence),
    }
}
