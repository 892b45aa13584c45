//! The agreement of the gateways of one prefix: the first one records it in Redis, and all others
//! compare their configuration with it.

use std::{sync::Arc, time::Instant};

use redis::Value;
use tokio::sync::watch;

use super::{
    Settings,
    auth::Keys,
    names,
    topology::{Topology, TopologyError},
};
use crate::bus::ShardId;

/// Numbers of shards that a deployment may have.
const SHARDS: std::ops::RangeInclusive<u16> = 1..=256;

/// Shards of a new deployment on a cluster if none are configured. The number does not depend on
/// the masters: gateways that start before and after a master is added must agree even if the
/// record was lost meanwhile.
const CLUSTER_SHARDS: u16 = 16;

/// The same on a standalone server, which executes the scripts of all shards one after the other.
const STANDALONE_SHARDS: u16 = 1;

/// The configuration that the gateways of one prefix must have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deployment {
    pub shards: u16,
    pub mode: String,
    /// The id of the key that makes authentication tags.
    pub key: Option<String>,
}

/// The version of the protocol between gateways: the scripts, the state of a shard, the messages.
pub(super) const PROTOCOL: u32 = 2;

impl Deployment {
    /// What the shards' script compares on every call. Two gateways that differ in it cannot both
    /// append.
    pub(super) fn text(&self, settings: &Settings) -> String {
        // Not which key: while keys are rotated, gateways make tags with different ones.
        let key = if self.key.is_some() { "frameKey" } else { "no frameKey" };
        let database = settings.database();
        format!(
            "protocol {PROTOCOL}, {} shards, {} channels, {key}, database {database}",
            self.shards, self.mode
        )
    }
}

/// What shard 0 says of this gateway's deployment. All gateways of a prefix share its names,
/// whatever they are configured to, so those that disagree find out there; the other shards of a
/// gateway go by it.
#[derive(Debug)]
pub(super) struct Agreement(watch::Sender<Agreed>);

#[derive(Clone, Debug, Default)]
struct Agreed {
    /// When shard 0 last took a call of this gateway.
    at: Option<Instant>,
    /// What the gateways there have in common, if this one has not.
    theirs: Option<String>,
}

impl Agreement {
    pub(super) fn new() -> Agreement {
        Agreement(watch::Sender::new(Agreed::default()))
    }

    /// Shard 0 took a call that began at `started`, or refused it.
    pub(super) fn answered(&self, started: Instant, theirs: Option<String>) {
        self.0.send_modify(|agreed| {
            agreed.at = if theirs.is_none() { Some(started) } else { None };
            agreed.theirs = theirs;
        });
    }

    /// What the gateways of shard 0 have in common, if this one has not.
    pub(super) fn theirs(&self) -> Option<String> {
        self.0.borrow().theirs.clone()
    }

    /// Waits until shard 0 took, or refused, a call that began after `since`.
    pub(super) async fn after(&self, since: Instant) {
        let known = |agreed: &Agreed| agreed.theirs.is_some() || agreed.at >= Some(since);
        // It ends with this value, which the caller holds.
        let _ = self.0.subscribe().wait_for(known).await;
    }
}

/// Reason why a gateway cannot join a deployment.
pub(super) enum JoinError {
    /// Redis is not reachable or not ready: to be tried again.
    Unavailable(String),
    /// The gateway is configured otherwise than the others.
    Mismatch(String),
}

/// The name of the channels' mode in the record.
pub(super) fn mode(settings: &Settings) -> &'static str {
    match (settings.cluster, settings.sharded) {
        (false, _) => "standalone",
        (true, true) => "sharded",
        (true, false) => "classic",
    }
}

/// Joins the deployment: reads what its first gateway recorded, or records it.
pub(super) async fn join(settings: &Arc<Settings>) -> Result<Deployment, JoinError> {
    let key = names::deployment(&settings.prefix);
    // A topology of one pseudo-shard: the slot of the record.
    let topology = Topology::new((**settings).clone(), vec![names::slot_of(&key)])
        .map_err(|error| JoinError::Mismatch(error.to_string()))?;
    let unavailable = |error: TopologyError| JoinError::Unavailable(error.to_string());
    topology.refresh().await.map_err(unavailable)?;
    let ours = shards_of_new(settings);
    let mode = mode(settings);
    let keys = settings.keys.as_ref().map(Keys::ids).unwrap_or_default();
    let recorded = match record(&topology, &key, ours, mode, &keys).await {
        Err(JoinError::Unavailable(why)) if settings.cluster => {
            // The master of the record may be down while others serve, whose shards say it too.
            agreed_by_shards(settings, ours, mode, keys.first())
                .await
                .inspect(|_| tracing::warn!(why, "the record of the deployment is not reachable"))
                .ok_or(JoinError::Unavailable(why))?
        }
        recorded => recorded?,
    };
    if let Some(why) = key_mismatch(&settings.prefix, recorded.key.as_deref(), &keys) {
        return Err(JoinError::Mismatch(why));
    }
    if let Some(shards) = settings.shards.filter(|shards| *shards != recorded.shards) {
        return Err(JoinError::Mismatch(format!(
            "shards is {shards} here, and the deployment with prefix {:?} has {}: set shards to {} \
             or leave it out",
            settings.prefix, recorded.shards, recorded.shards
        )));
    }
    if recorded.mode != mode {
        return Err(JoinError::Mismatch(format!(
            "this gateway would use {mode} channels, and the deployment with prefix {:?} uses {} \
             ones: set coordinator.@type and coordinator.protocolVersion as on the other gateways",
            settings.prefix, recorded.mode
        )));
    }
    Ok(recorded)
}

/// The error if the keys of this gateway do not fit the one that the deployment recorded.
pub(super) fn key_mismatch(
    prefix: &str,
    recorded: Option<&str>,
    ours: &[String],
) -> Option<String> {
    let deployment = format!("the deployment with prefix {prefix:?}");
    match (recorded, ours.first()) {
        (Some(recorded), Some(_)) if ours.iter().any(|key| key == recorded) => None,
        (None, None) => None,
        (Some(recorded), Some(_)) => Some(format!(
            "frameKey holds the keys {} here, and {deployment} has {recorded}: all gateways need a \
             key in common",
            ours.join(", ")
        )),
        (Some(recorded), None) => Some(format!(
            "frameKey is not set here, and {deployment} has the key {recorded}: set it as on the \
             other gateways"
        )),
        (None, Some(_)) => Some(format!(
            "frameKey is set here, and {deployment} has no key: leave it out, or turn it on for \
             all (stop every gateway, DEL {prefix}:deployment, start them with the key)"
        )),
    }
}

/// Records what is not recorded yet, and reads the record.
async fn record(
    topology: &Topology,
    key: &str,
    shards: u16,
    mode: &str,
    keys: &[String],
) -> Result<Deployment, JoinError> {
    let server = topology
        .master(ShardId(0))
        .ok_or_else(|| unavailable(&"no server is known to own the deployment's record"))?;
    // The client library does not survive a transaction whose beginning is refused.
    let refusals = server.try_rights(None).await.map_err(|error| unavailable(&error))?;
    if let Some((seen, cure)) = refusals.missing(&server.about) {
        return Err(unavailable(&format!("{}: {seen} ({cure})", server.address)));
    }
    let mut command = server.command().await.map_err(|error| unavailable(&error))?;
    let failed = |error: redis::RedisError| {
        unavailable(&format!("{}: {}", server.address, server.explain(&error)))
    };
    let ours = keys.first();
    // Only the first gateway records a key: a deployment without one stays so.
    let mut records_key = false;
    if ours.is_some() {
        let asked = redis::cmd("HMGET").arg(key).arg("shards").arg("key").to_owned();
        let fields: Result<(Option<String>, Option<String>), _> =
            asked.query_async(&mut command.connection).await;
        let (shards, recorded) = fields.map_err(failed)?;
        records_key = shards.is_none() || recorded.is_some();
    }
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("HSETNX").arg(key).arg("shards").arg(shards).ignore();
    pipe.cmd("HSETNX").arg(key).arg("mode").arg(mode).ignore();
    if let Some(ours) = ours.filter(|_| records_key) {
        pipe.cmd("HSETNX").arg(key).arg("key").arg(ours).ignore();
    }
    pipe.cmd("HMGET").arg(key).arg("shards").arg("mode").arg("key");
    let answer: Result<Vec<Value>, _> = pipe.query_async(&mut command.connection).await;
    let answer = answer.map_err(failed)?;
    let fields: Option<(u16, String, Option<String>)> =
        answer.into_iter().next().and_then(|value| redis::from_redis_value(value).ok());
    match fields {
        Some((shards, mode, mut recorded)) if SHARDS.contains(&shards) => {
            // During a rotation a gateway that knows the recorded key, and makes its tags with
            // another one, records that one.
            let knows = recorded.as_ref().is_some_and(|recorded| keys.contains(recorded));
            if let Some(ours) = ours.filter(|ours| knows && recorded.as_ref() != Some(*ours)) {
                let mut set = redis::cmd("HSET");
                set.arg(key).arg("key").arg(ours);
                let set: Result<(), _> = set.query_async(&mut command.connection).await;
                set.map_err(failed)?;
                recorded = Some(ours.clone());
            }
            Ok(Deployment { shards, mode, key: recorded })
        }
        _ => Err(JoinError::Mismatch(format!(
            "the record {key:?} in Redis has an unknown form: another system wrote it; take \
             another prefix, or DEL {key}"
        ))),
    }
}

/// The deployment as it stands in the state of a shard whose master answers: of those that `ours`
/// shards would have, with shard 0, which is the same whatever their number.
async fn agreed_by_shards(
    settings: &Arc<Settings>,
    ours: u16,
    mode: &str,
    key: Option<&String>,
) -> Option<Deployment> {
    let names: Vec<_> = ShardId::all(ours).map(|shard| settings.names(shard, ours)).collect();
    let slots = names.iter().map(|names| names.slot).collect();
    let topology = Topology::new((**settings).clone(), slots).ok()?;
    topology.refresh().await.ok()?;
    for (shard, names) in ShardId::all(ours).zip(&names) {
        let Some(server) = topology.master(shard) else { continue };
        let Ok(mut command) = server.command().await else { continue };
        let mut asked = redis::cmd("HMGET");
        asked.arg(&names.state).arg("deployment");
        let text: Result<(Option<String>,), _> = asked.query_async(&mut command.connection).await;
        let Ok((Some(text),)) = text else { continue };
        let shards = shards_in(&text)?;
        let found = Deployment { shards, mode: mode.to_owned(), key: key.cloned() };
        return (found.text(settings) == text).then_some(found);
    }
    None
}

/// The number of shards in the text of a deployment, as the state of a shard holds it.
pub fn shards_in(text: &str) -> Option<u16> {
    let number = text.split(", ").find_map(|part| part.strip_suffix(" shards"))?;
    number.parse().ok().filter(|shards| SHARDS.contains(shards))
}

fn unavailable(why: &impl ToString) -> JoinError {
    JoinError::Unavailable(why.to_string())
}

/// The number of shards of a new deployment.
pub(super) fn shards_of_new(settings: &Settings) -> u16 {
    let default = if settings.cluster { CLUSTER_SHARDS } else { STANDALONE_SHARDS };
    settings.shards.unwrap_or(default)
}
