//! The member store in Redis: one hash of all records, one of their last changes, and one hash of
//! member shards for each gateway, all in one slot.
//!
//! A call does not use the connection that the writers share unless the pool has only one, and is
//! made once: the caller repeats exchanges anyway.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use redis::{ErrorKind, ServerErrorKind, Value};

use super::{
    names::MemberNames,
    script::{Failure, classify},
    server::Server,
    topology::Topology,
};
use crate::bus::{
    AppendError, Exchange, LastChange, MemberId, MemberRecord, MemberUpdate, ShardId, millis,
};

static EXCHANGE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("members.lua")));

/// The time limit of one call.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long messages for a member are kept.
const KEPT_MESSAGES: Duration = Duration::from_mins(1);

/// The number of messages that one call takes.
const MAX_MESSAGES: usize = 256;

/// The store of all members.
pub(super) struct MemberStore {
    pub names: MemberNames,
    /// The pseudo-shard under which the topology knows the slot of the names.
    pub slot: ShardId,
    pub topology: Arc<Topology>,
}

impl MemberStore {
    pub(super) async fn exchange(&self, update: &MemberUpdate) -> Result<Exchange, AppendError> {
        let mut call = redis::cmd("EVALSHA");
        call.arg(EXCHANGE.get_hash()).arg(3);
        call.arg(&self.names.records).arg(self.names.shards(update.member));
        call.arg(&self.names.changes);
        call.arg(field(update.member)).arg(millis(update.ttl));
        call.arg(update.number).arg(update.follows.unwrap_or(0));
        call.arg(u8::from(update.has_shards)).arg(&update.record[..]);
        call.arg(millis(update.silent_after));
        let known = update.known.as_ref();
        call.arg(known.map_or(0, |known| known.number));
        call.arg(known.map_or(&[][..], |known| &known.content));
        for (number, shard) in &update.shards {
            call.arg(*number).arg(shard.as_deref().unwrap_or_default());
        }
        parse(self.ask(&call).await?)
            .ok_or_else(|| AppendError::Unavailable("an unknown form of the members script".into()))
    }

    pub(super) async fn leave_messages(
        &self,
        to: MemberId,
        messages: &[Bytes],
    ) -> Result<(), AppendError> {
        let name = self.names.messages(to);
        let mut call = redis::cmd("RPUSH");
        call.arg(&name);
        for message in messages {
            call.arg(&message[..]);
        }
        self.ask(&call).await?;
        let mut call = redis::cmd("PEXPIRE");
        call.arg(&name).arg(millis(KEPT_MESSAGES));
        self.ask(&call).await.map(|_| ())
    }

    pub(super) async fn take_messages(&self, own: MemberId) -> Result<Vec<Bytes>, AppendError> {
        let mut call = redis::cmd("LPOP");
        call.arg(self.names.messages(own)).arg(MAX_MESSAGES);
        let Value::Array(messages) = self.ask(&call).await? else { return Ok(vec![]) };
        Ok(messages.into_iter().filter_map(bulk).collect())
    }

    pub(super) async fn shards(
        &self,
        member: MemberId,
        numbers: &[u32],
    ) -> Result<Vec<Option<Bytes>>, AppendError> {
        let mut call = redis::cmd("HMGET");
        call.arg(self.names.shards(member)).arg(numbers);
        let Value::Array(shards) = self.ask(&call).await? else {
            return Err(AppendError::Unavailable("an unknown form of HMGET".into()));
        };
        Ok(shards.into_iter().map(bulk).collect())
    }

    /// Calls the slot's master. After a failure the topology is read again for the next call.
    async fn ask(&self, call: &redis::Cmd) -> Result<Value, AppendError> {
        let attempt = async {
            let Some(server) = self.topology.master(self.slot) else {
                // If the refresh fails, so does the next call, with a reason.
                let _ = self.topology.refresh().await;
                return Err("no server is known to own the members".to_owned());
            };
            match ask(&server, call).await {
                Ok(value) => Ok(value),
                Err(failure) => {
                    let _ = self.topology.refresh().await;
                    Err(match failure {
                        Failure::NotConnected(error) => error.clone(),
                        failure => format!("{}: {failure}", server.address),
                    })
                }
            }
        };
        let answer = tokio::time::timeout(TIMEOUT, attempt).await;
        answer.unwrap_or_else(|_| Err("no answer in time".into())).map_err(AppendError::Unavailable)
    }
}

async fn ask(server: &Server, call: &redis::Cmd) -> Result<Value, Failure> {
    let mut query =
        server.query().await.map_err(|error| Failure::NotConnected(error.to_string()))?;
    let connection = query.connection();
    let mut reply = call.query_async(connection).await;
    if let Err(error) = &reply
        && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
    {
        EXCHANGE.load_async(connection).await.map_err(|error| classify(&error))?;
        reply = call.query_async(connection).await;
    }
    reply.map_err(|error| classify(&error))
}

/// The bytes of a value; none if it is nil, or another one.
fn bulk(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

/// The field of a member in the hash of records.
fn field(member: MemberId) -> String {
    format!("{:016x}", member.0)
}

/// Reads an answer of the script that exchanges records. Fields that no gateway wrote are skipped.
pub fn parse(value: Value) -> Option<Exchange> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let Some(Value::Int(taken)) = parts.next() else { return None };
    let Some(Value::Int(all)) = parts.next() else { return None };
    let mut next = || parts.next().and_then(bulk);
    let number = std::str::from_utf8(&next()?).ok()?.parse().ok()?;
    let known = LastChange { number, content: next()? };
    let (mut members, mut gone) = (Vec::with_capacity(parts.len() / 3), Vec::new());
    while let Some(member) = parts.next() {
        let (Value::BulkString(member), Value::BulkString(age), Value::BulkString(record)) =
            (member, parts.next()?, parts.next()?)
        else {
            return None;
        };
        let age = std::str::from_utf8(&age).ok()?.parse().ok()?;
        let Some(member) = std::str::from_utf8(&member)
            .ok()
            .filter(|text| text.len() == 16)
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .map(MemberId)
        else {
            continue;
        };
        if record.is_empty() && all == 0 {
            gone.push(member);
            continue;
        }
        let (age, record) = (Duration::from_millis(age), Bytes::from(record));
        members.push(MemberRecord { member, age, record });
    }
    Some(Exchange { taken: taken == 1, all: all == 1, members, gone, known: Some(known) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn an_exchange_is_parsed_and_unknown_fields_are_skipped() {
        let parts = |all| {
            Value::Array(vec![
                Value::Int(1),
                Value::Int(all),
                text("1700"),
                text("content"),
                text("00000000000000ff"),
                text("1500"),
                text("record"),
                text("not a member"),
                text("0"),
                text(""),
                text("000000000000000a"),
                text("0"),
                text(""),
            ])
        };
        let members = |exchange: &Exchange| {
            exchange
                .members
                .iter()
                .map(|member| (member.member.0, member.age.as_millis(), member.record.clone()))
                .collect::<Vec<_>>()
        };
        let exchange = parse(parts(0)).unwrap();
        assert!(exchange.taken && !exchange.all);
        assert_eq!(members(&exchange), [(255, 1500, "record".into())]);
        assert_eq!(exchange.gone, [MemberId(10)]);
        let known = LastChange { number: 1700, content: "content".into() };
        assert_eq!(exchange.known, Some(known));
        // An empty record among all is one that says nothing.
        let exchange = parse(parts(1)).unwrap();
        assert!(exchange.all && exchange.gone.is_empty());
        assert_eq!(members(&exchange)[1], (10, 0, "".into()));
        for wrong in [
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(0), Value::Int(1), text("x"), text("")]),
            Value::Array(vec![Value::Int(0), Value::Int(1), text("1"), text(""), text("ff")]),
            Value::Okay,
        ] {
            assert!(parse(wrong).is_none());
        }
    }
}
