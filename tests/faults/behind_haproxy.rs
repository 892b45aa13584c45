//! A virtual address: a real haproxy leads to the master, and then to another one.

use std::time::Duration;

use crate::{
    load::{Load, Shape},
    pair,
    redis::serving,
    report::Report,
    support::{
        LIMIT, gateway::GatewayOptions, haproxy::Haproxy, redis::RedisServer, shared, wait::until,
    },
};

/// Tolerance for a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// How the master moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// It becomes a replica of the other one, and connections to it stay open.
    Open,
    /// The same, and they are closed.
    Cut,
    /// The other one is promoted without its knowledge. It has no replica left, and takes no more
    /// writes.
    Promotion,
}

async fn moves(how: Move, fault: &str, within: Duration, seen: Option<&str>) {
    let (master, replica) = RedisServer::with_replica().await;
    if how == Move::Promotion {
        master.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
        // It counts replicas that have acknowledged within ten seconds.
        until(LIMIT, "the replica counts", async || {
            master.info("replication", "min_slaves_good_slaves").await.as_deref() == Some("1")
        })
        .await;
    }
    let haproxy = Haproxy::start([&master, &replica]).await;
    let (one, two) = pair(GatewayOptions::redis(&haproxy.url(), &shared::prefix())).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    load.publishes(300).await;
    if how == Move::Promotion {
        replica.cli(&["REPLICAOF", "NO", "ONE"]).await;
    } else {
        // Without loss: the master waits for its replica.
        master.cli(&["FAILOVER"]).await;
    }
    until(LIMIT, "the replica is the master", async || {
        replica.info("replication", "role").await.as_deref() == Some("master")
    })
    .await;
    haproxy.lead_to(1).await;
    if how == Move::Cut {
        haproxy.cut(0).await;
    }
    let moved = load.now();
    load.publishes(1).await;
    let back = load.now().saturating_sub(moved);
    assert!(back < within + SLACK, "{back:?}");
    serving([&one, &two]).await;
    load.publishes(300).await;
    for gateway in [&one, &two] {
        let log = gateway.stderr();
        assert!(seen.is_none_or(|seen| log.contains(seen)), "{log}");
    }
    let history = load.finish().await;
    Report::of(fault, &history).healed(moved).check_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_moved_behind_haproxy_is_followed_while_connections_stay_open() {
    let fault = "haproxy leads to another master, connections stay open (READONLY)";
    moves(Move::Open, fault, Duration::from_secs(2), Some("it is a replica")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_moved_behind_haproxy_is_followed_where_connections_are_cut() {
    let fault = "haproxy leads to another master, connections are cut";
    moves(Move::Cut, fault, Duration::from_secs(2), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_master_that_lacks_replicas_is_left_while_connections_stay_open() {
    let fault = "haproxy leads to another master, the former one lacks replicas (NOREPLICAS)";
    moves(Move::Promotion, fault, Duration::from_secs(5), Some("it lacks replicas")).await;
}
