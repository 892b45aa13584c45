//! Faults that `trunkline verify` causes at the servers of a deployment. Each needs rights that
//! gateways do not have, and says so where they are missing.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use redis::{RedisError, aio::MultiplexedConnection};

use super::{
    Settings,
    causes::error_text,
    doctor::{by_server, connect, find_masters, limited, shards},
    server::Server,
};
use crate::bus::{Fault, ShardId};

/// The time limit of a failover.
const FAILOVER: Duration = Duration::from_secs(30);

/// The time between two looks for the new master.
const LOOK: Duration = Duration::from_millis(100);

/// Lines of `CLIENT LIST` that are read.
const MAX_CLIENTS: usize = 100_000;

/// Causes a fault; returns what was done.
pub(super) async fn cause(settings: &Settings, fault: &Fault) -> Result<String, String> {
    match fault {
        Fault::Disconnect { user } => disconnect(settings, user.as_deref()).await,
        Fault::Failover => fail_over(settings).await,
    }
}

async fn disconnect(settings: &Settings, user: Option<&str>) -> Result<String, String> {
    let masters = limited(find(settings)).await?.masters;
    let (mut closed, mut servers) = (0, vec![]);
    for (server, _) in by_server(&masters) {
        closed += limited(disconnect_from(&server, user)).await?;
        servers.push(server.shown());
    }
    if closed == 0 {
        let user = user.unwrap_or(&masters[0].server.about.user);
        return Err(format!(
            "no connection of a gateway is known at {}: none says lib-name=trunkline (Redis 7.2 \
             and later), and none has logged in as {user}; give the gateways a user of their own, \
             and name it with --gateway-user",
            servers.join(", ")
        ));
    }
    Ok(format!("{closed} connections of gateways were closed at {}", servers.join(", ")))
}

/// Closes the connections of gateways to a server; returns their number.
async fn disconnect_from(server: &Server, user: Option<&str>) -> Result<usize, String> {
    let refused = |error: RedisError| format!("{}: {}", server.shown(), server.explain(&error));
    let mut connection = open(server).await?;
    let own: u64 =
        command(&["CLIENT", "ID"]).query_async(&mut connection).await.map_err(refused)?;
    let list = command(&["CLIENT", "LIST"]).query_async(&mut connection).await;
    let list: String = list.map_err(refused)?;
    let mut closed = 0;
    for id in gateways(&list, user.unwrap_or(&server.about.user), own) {
        let mut kill = command(&["CLIENT", "KILL", "ID"]);
        let killed: usize = kill.arg(id).query_async(&mut connection).await.map_err(refused)?;
        closed += killed;
    }
    Ok(closed)
}

/// The ids of the connections of gateways in an answer of `CLIENT LIST`, without this one: gateways
/// say what they are, or have a user of their own.
fn gateways(list: &str, user: &str, own: u64) -> Vec<u64> {
    let id = |line: &str| {
        let field = |name: &str| {
            let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
            fields.find_map(|(found, value)| (found == name).then_some(value))
        };
        let is_gateway = field("lib-name") == Some("trunkline")
            || (user != "default" && field("user") == Some(user));
        let id = field("id")?.parse().ok()?;
        (is_gateway && id != own).then_some(id)
    };
    list.lines().take(MAX_CLIENTS).filter_map(id).collect()
}

async fn fail_over(settings: &Settings) -> Result<String, String> {
    let found = limited(find(settings)).await?;
    // Any shard will do: behind sentinels one master has them all.
    let shard = ShardId(0);
    let former = found.masters[0].server.clone();
    let begun = Instant::now();
    if let Some(sentinel) = &settings.sentinel {
        order_a_sentinel(settings, &["SENTINEL", "FAILOVER", &sentinel.master_name]).await?;
    } else if settings.cluster {
        let replica = found
            .topology
            .replica(shard)
            .ok_or_else(|| format!("{} has no replica that could take over", former.shown()))?;
        limited(order(&replica, &["CLUSTER", "FAILOVER"])).await?;
    } else {
        return Err("a single server has no replica that takes over: restart it while `trunkline \
                    verify` runs"
            .to_owned());
    }
    loop {
        // While there is no master, nobody names one.
        let _ = found.topology.refresh().await;
        let master = found.topology.master(shard);
        if let Some(master) = master.filter(|master| master.address != former.address) {
            let took = begun.elapsed().as_secs_f64();
            let (from, to) = (former.shown(), master.shown());
            return Ok(format!("{from} handed over to {to} in {took:.1} s"));
        }
        if begun.elapsed() >= FAILOVER {
            let seen = former.shown();
            return Err(format!("{seen} is the master still, {FAILOVER:?} after the command"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The masters. Many futures of large size are on the way there.
fn find(settings: &Settings) -> impl Future<Output = Result<super::doctor::Found, String>> + '_ {
    Box::pin(async { find_masters(settings, shards(settings).await?).await })
}

/// Gives a command to the first of the sentinels that takes it.
async fn order_a_sentinel(settings: &Settings, words: &[&str]) -> Result<(), String> {
    let mut why = "no sentinel is known".to_owned();
    if let Some(own) = settings.of_sentinels() {
        for info in &own.seeds {
            let server = Server::new(info.clone(), &own).map_err(|error| error.to_string())?;
            match limited(order(&server, words)).await {
                Ok(()) => return Ok(()),
                Err(error) => why = error,
            }
        }
    }
    Err(why)
}

async fn order(server: &Server, words: &[&str]) -> Result<(), String> {
    let mut connection = open(server).await?;
    let answer: Result<(), RedisError> = command(words).query_async(&mut connection).await;
    answer.map_err(|error| format!("{}: {}", server.shown(), server.explain(&error)))
}

async fn open(server: &Server) -> Result<MultiplexedConnection, String> {
    let connected = connect(server).await;
    connected.map_err(|error| format!("{}: {}", server.shown(), error_text(&error)))
}

fn command(words: &[&str]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    command.arg(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_gateways_are_known_by_what_they_say_or_by_their_user() {
        let list = "\
            id=3 addr=127.0.0.1:1 name= user=default lib-name=trunkline lib-ver=0.1.0\n\
            id=4 addr=127.0.0.1:2 name=lib-name=trunkline user=default lib-name=redis-py\n\
            id=5 addr=127.0.0.1:3 user=trunkline cmd=evalsha\r\n\
            id=6 addr=127.0.0.1:4 user=default cmd=client|list\n\
            id=7 addr=127.0.0.1:5 user=trunkline-2 cmd=ping\n\
            id=x user=trunkline\n\
            \n\
            user=trunkline";
        assert_eq!(gateways(list, "trunkline", 6), [3, 5]);
        assert_eq!(gateways(list, "trunkline", 5), [3]);
        assert_eq!(gateways(list, "default", 6), [3]);
        assert!(gateways("", "trunkline", 1).is_empty());
    }
}
