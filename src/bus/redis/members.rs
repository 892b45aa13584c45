//! The member store in Redis: one hash of all records, and one hash of member shards for each
//! gateway, all in one slot.
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
use crate::bus::{AppendError, Exchange, MemberId, MemberRecord, MemberUpdate, ShardId, millis};

static EXCHANGE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("members.lua")));

/// The time limit of one call.
const TIMEOUT: Duration = Duration::from_secs(2);

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
        call.arg(EXCHANGE.get_hash()).arg(2);
        call.arg(&self.names.records).arg(self.names.shards(update.member));
        call.arg(field(update.member)).arg(millis(update.ttl));
        call.arg(update.number).arg(update.follows.unwrap_or(0));
        call.arg(u8::from(update.has_shards)).arg(&update.record[..]);
        for (number, shard) in &update.shards {
            call.arg(*number).arg(shard.as_deref().unwrap_or_default());
        }
        parse(self.ask(&call).await?)
            .ok_or_else(|| AppendError::Unavailable("an unknown form of the members script".into()))
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
        let bytes = |shard| match shard {
            Value::BulkString(bytes) => Some(Bytes::from(bytes)),
            _ => None,
        };
        Ok(shards.into_iter().map(bytes).collect())
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

/// The field of a member in the hash of records.
fn field(member: MemberId) -> String {
    format!("{:016x}", member.0)
}

/// Reads an answer of the script that exchanges records. Fields that no gateway wrote are skipped.
pub fn parse(value: Value) -> Option<Exchange> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let Some(Value::Int(taken)) = parts.next() else { return None };
    let mut members = Vec::with_capacity(parts.len() / 3);
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
        else {
            continue;
        };
        members.push(MemberRecord {
            member: MemberId(member),
            age: Duration::from_millis(age),
            record: Bytes::from(record),
        });
    }
    Some(Exchange { taken: taken == 1, members })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn an_exchange_is_parsed_and_unknown_fields_are_skipped() {
        let value = Value::Array(vec![
            Value::Int(1),
            bulk("00000000000000ff"),
            bulk("1500"),
            bulk("record"),
            bulk("not a member"),
            bulk("0"),
            bulk(""),
        ]);
        let exchange = parse(value).unwrap();
        assert!(exchange.taken);
        let members: Vec<_> =
            exchange.members.iter().map(|m| (m.member, m.age, &m.record[..])).collect();
        assert_eq!(members, [(MemberId(255), Duration::from_millis(1500), &b"record"[..])]);
        assert!(parse(Value::Array(vec![])).is_none());
        assert!(parse(Value::Array(vec![Value::Int(0), bulk("00000000000000ff")])).is_none());
        assert!(parse(Value::Okay).is_none());
    }
}
