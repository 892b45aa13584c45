//! The parts of the gateways in Redis: one hash of all heads, and one of pages for each gateway, all in one slot.
//!
//! A call here never takes the connection that the writers share, and is made once: who calls comes again.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use redis::{ErrorKind, ServerErrorKind, Value};

use super::{
    link::Server,
    names::MemberNames,
    script::{Failure, classify},
    topology::Topology,
};
use crate::bus::{AppendError, Exchange, MemberHead, MemberId, Part, ShardId};

static EXCHANGE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("members.lua")));

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Where members are kept.
pub(super) struct MemberStore {
    pub names: MemberNames,
    /// What the topology knows the slot of the names as.
    pub slot: ShardId,
    pub topology: Arc<Topology>,
}

impl MemberStore {
    pub(super) async fn exchange(&self, part: &Part) -> Result<Exchange, AppendError> {
        let mut call = redis::cmd("EVALSHA");
        call.arg(EXCHANGE.get_hash()).arg(2);
        call.arg(&self.names.heads).arg(self.names.pages(part.member));
        call.arg(name(part.member)).arg(u64::try_from(part.ttl.as_millis()).unwrap_or(u64::MAX));
        call.arg(part.number).arg(part.follows.unwrap_or(0));
        call.arg(u8::from(part.has_pages)).arg(&part.head[..]);
        for (number, page) in &part.pages {
            call.arg(*number).arg(page.as_deref().unwrap_or_default());
        }
        parse(self.ask(&call).await?)
            .ok_or_else(|| AppendError::Unavailable("an unknown form of the members script".into()))
    }

    pub(super) async fn pages(
        &self,
        member: MemberId,
        pages: &[u32],
    ) -> Result<Vec<Option<Bytes>>, AppendError> {
        let mut call = redis::cmd("HMGET");
        call.arg(self.names.pages(member)).arg(pages);
        let Value::Array(pages) = self.ask(&call).await? else {
            return Err(AppendError::Unavailable("an unknown form of HMGET".into()));
        };
        let bytes = |page| match page {
            Value::BulkString(bytes) => Some(Bytes::from(bytes)),
            _ => None,
        };
        Ok(pages.into_iter().map(bytes).collect())
    }

    /// Asks the slot's master; if it is none any more, the topology is read again for the next call.
    async fn ask(&self, call: &redis::Cmd) -> Result<Value, AppendError> {
        let attempt = async {
            let Some(server) = self.topology.master(self.slot) else {
                // What a refresh that fails would say, the next call says too.
                let _ = self.topology.refresh().await;
                return Err("no server is known to own the members".to_owned());
            };
            match ask(&server, call).await {
                Ok(value) => Ok(value),
                Err(failure) => {
                    let _ = self.topology.refresh().await;
                    Err(match failure {
                        Failure::NoLink(error) => error.to_string(),
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
    let mut query = server.query().await.map_err(Failure::NoLink)?;
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

/// A member in the hash of heads.
fn name(member: MemberId) -> String {
    format!("{:016x}", member.0)
}

fn parse(value: Value) -> Option<Exchange> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let Some(Value::Int(taken)) = parts.next() else { return None };
    let mut members = Vec::with_capacity(parts.len() / 3);
    while let Some(member) = parts.next() {
        let (Value::BulkString(member), Value::BulkString(age), Value::BulkString(head)) =
            (member, parts.next()?, parts.next()?)
        else {
            return None;
        };
        let age = std::str::from_utf8(&age).ok()?.parse().ok()?;
        // Who is none of us is passed over.
        let Some(member) = std::str::from_utf8(&member)
            .ok()
            .filter(|text| text.len() == 16)
            .and_then(|text| u64::from_str_radix(text, 16).ok())
        else {
            continue;
        };
        members.push(MemberHead {
            member: MemberId(member),
            age: Duration::from_millis(age),
            head: Bytes::from(head),
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
    fn the_answer_of_the_script_is_understood_and_strangers_are_passed_over() {
        let value = Value::Array(vec![
            Value::Int(1),
            bulk("00000000000000ff"),
            bulk("1500"),
            bulk("head"),
            bulk("not a member"),
            bulk("0"),
            bulk(""),
        ]);
        let exchange = parse(value).unwrap();
        assert!(exchange.taken);
        let members: Vec<_> =
            exchange.members.iter().map(|m| (m.member, m.age, &m.head[..])).collect();
        assert_eq!(members, [(MemberId(255), Duration::from_millis(1500), &b"head"[..])]);
        assert!(parse(Value::Array(vec![])).is_none());
        assert!(parse(Value::Array(vec![Value::Int(0), bulk("00000000000000ff")])).is_none());
        assert!(parse(Value::Okay).is_none());
    }
}
