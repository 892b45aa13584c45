//! Examination of a deployment's Redis, as a gateway would use it, for `trunkline doctor`.
//!
//! Nothing that gateways use is changed: the doctor writes under names of its own below the prefix,
//! removes them, and gives them a time to live in case it cannot. Every step has a time limit.

mod path;
mod rights;
mod sentinel;
mod server;

use std::{future::Future, sync::Arc, time::Duration};

use redis::{RedisError, RedisResult, aio::MultiplexedConnection};

use self::server::Info;
use super::{
    Settings,
    causes::{About, error_text},
    names::{self, ShardNames},
    server::Server,
    topology::Topology,
};
use crate::bus::{Finding, Level, Progress, ShardId};

/// The time limit of one step.
const LIMIT: Duration = Duration::from_secs(10);

/// The time limit of a connection, and of one answer.
const CONNECT: Duration = Duration::from_secs(3);

/// The checks of each master.
const OF_MASTERS: [&str; 10] = [
    "role",
    "eviction",
    "memory",
    "persistence",
    "output buffer",
    "timeout",
    "clock",
    "rights",
    "sizes",
    "round trip",
];

/// All checks.
pub(super) const CHECKS: &[&str] = &{
    let mut checks =
        ["reach", "mode", "deployment", "shards", "", "", "", "", "", "", "", "", "", ""];
    let mut nth = 0;
    while nth < OF_MASTERS.len() {
        checks[4 + nth] = OF_MASTERS[nth];
        nth += 1;
    }
    checks
};

/// A server that answers.
struct Reached {
    address: String,
    about: About,
    info: Info,
    connection: MultiplexedConnection,
}

/// Examines the Redis of `settings`. `max_frame`: the limit of a request, and so of a frame, in
/// bytes.
pub(super) async fn examine(
    settings: &Settings,
    max_frame: u64,
    report: &mut (dyn FnMut(Progress) + Send),
) {
    let mut seeds = Vec::new();
    report(Progress::Begins("reach"));
    let known = match &settings.sentinel {
        Some(_) => Box::pin(sentinel::examine(settings, report)).await,
        None => settings
            .seeds
            .iter()
            .filter_map(|seed| Some(Arc::new(Server::new(seed.clone(), settings).ok()?)))
            .collect(),
    };
    for seed in &known {
        match limited(reach(seed)).await {
            Ok(reached) => {
                let seen = format!("{} answers", reached.address);
                report(Progress::Found(Finding::ok("reach", seen)));
                seeds.push(reached);
            }
            Err(why) => {
                let mut finding = unreached(seed, &why);
                if settings.cluster && known.len() > 1 {
                    // The others may be enough.
                    finding.level = Level::Warning;
                }
                report(Progress::Found(finding));
            }
        }
    }
    if seeds.is_empty() {
        if known.len() > 1 {
            let seen = "no server of coordinator.urls can be used";
            report(Progress::Found(Finding::failure("reach", seen, "see above")));
        }
        return;
    }
    report(Progress::Begins("mode"));
    let mut goes_on = true;
    for seed in &seeds {
        let mode = server::mode(&seed.address, &seed.info, settings.cluster);
        goes_on &= mode.level != Level::Failure;
        report(Progress::Found(mode));
    }
    if !goes_on {
        // A gateway would not use such a server at all.
        return;
    }
    report(Progress::Begins("deployment"));
    let shards = match limited(Box::pin(path::deployment(settings))).await {
        Ok((finding, shards)) => {
            if finding.level != Level::NotChecked {
                report(Progress::Shards(shards));
            }
            report(Progress::Found(finding));
            shards
        }
        Err(why) => {
            report(Progress::Found(path::unknown_deployment(&why)));
            return;
        }
    };
    let found = Box::pin(limited(find_masters(settings, shards))).await;
    let Found { masters, names, unused, .. } = match found {
        Ok(found) => found,
        Err(why) => {
            let advice = "see that every slot has a master: redis-cli --cluster check";
            report(Progress::Found(Finding::failure("shards", why, advice)));
            return;
        }
    };
    report(Progress::Begins("shards"));
    report(Progress::Found(path::balance(&masters)));
    if !unused.is_empty() {
        let seen = format!("coordinator.addressMap: no server announces {}", unused.join(", "));
        let advice = "compare with what the servers announce: CLUSTER SLOTS, SENTINEL REPLICAS";
        report(Progress::Found(Finding::warning("shards", seen, advice)));
    }
    for (server, shards) in by_server(&masters) {
        let address = server.shown();
        let mut reached = match limited(reach(&server)).await {
            Ok(reached) => reached,
            Err(why) => {
                report(Progress::Found(unreached(&server, &why)));
                for check in OF_MASTERS {
                    let seen = format!("{address}, which cannot be used");
                    let advice = "cure the failure above, and run doctor again";
                    report(Progress::Found(Finding::not_checked(check, seen, advice)));
                }
                continue;
            }
        };
        if seeds.iter().all(|seed| seed.address != reached.address) {
            let mode = server::mode(&reached.address, &reached.info, settings.cluster);
            report(Progress::Found(mode));
        }
        server::examine(&mut reached, settings, max_frame, shards.len(), report).await;
        let first = &names[shards[0].index()];
        step("rights", report, rights::examine(&reached, settings, first)).await;
        step("sizes", report, server::sizes(&server, settings)).await;
        for shard in shards {
            let work = path::round_trip(&server, settings, shard, &names);
            step("round trip", report, work).await;
        }
    }
    if settings.read_from_replicas {
        let seen = "the replicas, which serve history here (readFromReplicas)";
        let advice = "see on each of them that the user has the same rights: ACL GETUSER";
        report(Progress::Found(Finding::not_checked("replicas", seen, advice)));
    }
}

/// Runs one check within its time limit.
async fn step(
    check: &'static str,
    report: &mut (dyn FnMut(Progress) + Send),
    work: impl Future<Output = Vec<Finding>>,
) {
    report(Progress::Begins(check));
    let late = || {
        let advice = "see whether the server is overloaded, or the network to it slow";
        vec![Finding::failure(check, format!("not done after {LIMIT:?}"), advice)]
    };
    let found = tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| late());
    for finding in found {
        report(Progress::Found(finding));
    }
}

pub(super) async fn limited<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let done = tokio::time::timeout(LIMIT, work).await;
    done.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")))
}

/// A connection of its own, with short limits.
pub(super) async fn connect(server: &Server) -> RedisResult<MultiplexedConnection> {
    let config =
        server.config().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(CONNECT));
    server.client().await?.get_multiplexed_async_connection_with_config(&config).await
}

async fn reach(server: &Server) -> Result<Reached, String> {
    let text = |error: RedisError| error_text(&error);
    let mut connection = match connect(server).await {
        Ok(connection) => connection,
        Err(error) => {
            let said = if error.code().is_none() { server.look().await } else { None };
            return Err(said.unwrap_or_else(|| error_text(&error)));
        }
    };
    let answer: String = redis::cmd("INFO").query_async(&mut connection).await.map_err(text)?;
    let (about, address) = (server.about.clone(), server.shown());
    Ok(Reached { address, about, info: Info::parse(&answer), connection })
}

/// The finding for a server that cannot be reached, with the most likely remedy.
fn unreached(server: &Server, why: &str) -> Finding {
    Finding::failure("reach", format!("{}: {why}", server.shown()), server.about.cure(why))
}

/// A shard's master.
pub(super) struct Master {
    shard: ShardId,
    pub(super) server: Arc<Server>,
}

/// The masters of all shards, in their order.
pub(super) struct Found {
    pub(super) topology: Topology,
    pub(super) masters: Vec<Master>,
    names: Vec<ShardNames>,
    /// Entries of `addressMap` that no server announces.
    unused: Vec<String>,
}

/// The number of shards that is recorded, or that the first gateway would record.
pub(super) async fn shards(settings: &Settings) -> Result<u16, String> {
    path::deployment(settings).await.map(|(_, shards)| shards)
}

/// Finds the masters of all shards.
pub(super) async fn find_masters(settings: &Settings, shards: u16) -> Result<Found, String> {
    let names: Vec<_> = ShardId::all(shards).map(|shard| settings.names(shard, shards)).collect();
    let slots = names.iter().map(|names| names.slot).collect();
    let topology = Topology::new(settings.clone(), slots).map_err(|error| error.to_string())?;
    topology.refresh().await.map_err(|error| error.to_string())?;
    let mut masters = Vec::new();
    for shard in ShardId::all(shards) {
        let server = topology.master(shard).ok_or(format!("shard {shard} has no master"))?;
        masters.push(Master { shard, server });
    }
    let unused = settings.addresses.unused(&topology.announced());
    Ok(Found { topology, masters, names, unused })
}

/// The servers, each with its shards, in the order of the shards.
pub(super) fn by_server(masters: &[Master]) -> Vec<(Arc<Server>, Vec<ShardId>)> {
    let mut servers: Vec<(Arc<Server>, Vec<ShardId>)> = Vec::new();
    for master in masters {
        match servers.iter_mut().find(|(known, _)| known.address == master.server.address) {
            Some((_, shards)) => shards.push(master.shard),
            None => servers.push((master.server.clone(), vec![master.shard])),
        }
    }
    servers
}
