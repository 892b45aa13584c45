//! The servers of a leg, and what is done to them.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::Mutex;
use tonic_health::pb::health_check_response::ServingStatus;

use super::plan::{Fault, GATEWAYS, Kind};
use crate::support::{
    cluster::RedisCluster,
    gateway::{Gateway, GatewayOptions, Ready},
    proxy::Proxy,
    redis::{Data, RedisOptions, RedisServer},
    sentinel::SentinelSet,
    shared,
};

/// The shards of a standalone deployment.
const SHARDS: u64 = 4;

/// The age of history, longer than a round: a subscriber that begins with the oldest event reads
/// all of it.
const HISTORY: &str = "60s";

/// Time limit for a gateway to end after SIGTERM: its drain limit and some tolerance.
const END: Duration = Duration::from_secs(25);

/// How long the gateways may take to serve again once everything is healed.
const HEAL: Duration = Duration::from_secs(40);

/// Three gateways and their Redis.
pub struct Stage {
    redis: Redis,
    /// Between each gateway and a standalone Redis.
    proxies: Vec<Proxy>,
    pub gateways: Vec<Gateway>,
    /// Held while a fault of Redis, or of one gateway, lasts: those follow one another.
    redis_lock: Mutex<()>,
    gateway_locks: [Mutex<()>; GATEWAYS],
}

enum Redis {
    Standalone(RedisServer),
    Cluster(RedisCluster),
    Sentinel(SentinelSet),
}

impl Stage {
    pub async fn start(kind: Kind) -> Stage {
        let (prefix, mut proxies) = (shared::prefix(), Vec::new());
        let (redis, options) = match kind {
            Kind::Standalone => {
                let redis = RedisServer::start(RedisOptions::default()).await;
                for _ in 0..GATEWAYS {
                    proxies.push(Proxy::start(redis.port()).await);
                }
                let options = |proxy: &Proxy| {
                    GatewayOptions::redis(&proxy.url(), &prefix).set("shards", SHARDS)
                };
                let options: Vec<_> = proxies.iter().map(options).collect();
                (Redis::Standalone(redis), options)
            }
            Kind::Cluster => {
                let cluster = RedisCluster::start().await;
                let options = GatewayOptions::redis_cluster(&cluster.urls(), &prefix);
                (Redis::Cluster(cluster), vec![options; GATEWAYS])
            }
            Kind::Sentinel => {
                let set = SentinelSet::start().await;
                let options =
                    GatewayOptions::redis_sentinel(&set.urls(), &prefix).set("shards", SHARDS);
                (Redis::Sentinel(set), vec![options; GATEWAYS])
            }
        };
        // One that is started again answers while its Redis does not.
        let start = options.into_iter().map(|options| {
            let options = options.set("history", json!({ "maxAge": HISTORY }));
            Gateway::start(options.ready(Ready::Listening))
        });
        let gateways = join_all(start).await;
        let (redis_lock, gateway_locks) = (Mutex::default(), Default::default());
        let stage = Stage { redis, proxies, gateways, redis_lock, gateway_locks };
        stage.serving().await;
        stage
    }

    /// Waits until all gateways serve.
    pub async fn serving(&self) {
        let serve =
            self.gateways.iter().map(|gateway| gateway.health_is("", ServingStatus::Serving, HEAL));
        join_all(serve).await;
    }

    /// A snapshot of Redis, for [`Fault::OldSnapshot`].
    pub async fn save(&self) {
        if let Redis::Standalone(redis) = &self.redis {
            redis.cli(&["SAVE"]).await;
        }
    }

    /// Injects a fault, and returns when it is healed.
    pub async fn inject(&self, fault: Fault) {
        let _held = match fault.gateway() {
            Some(gateway) => self.gateway_locks[gateway].lock().await,
            None if fault == Fault::CutAll => return self.cut_all().await,
            None => self.redis_lock.lock().await,
        };
        match fault {
            Fault::Kill(nth, time) => {
                self.gateways[nth].kill_9();
                tokio::time::sleep(time).await;
                self.gateways[nth].restart().await;
            }
            Fault::Freeze(nth, time) => {
                self.gateways[nth].pause().await;
                tokio::time::sleep(time).await;
                self.gateways[nth].resume();
            }
            Fault::Restart(nth) => {
                self.gateways[nth].terminate(END).await;
                self.gateways[nth].restart().await;
            }
            Fault::Cut(nth) => self.proxies[nth].cut(),
            Fault::Partition(nth, time) => {
                self.proxies[nth].drop_bytes();
                tokio::time::sleep(time).await;
                self.proxies[nth].forward();
            }
            _ => match &self.redis {
                Redis::Standalone(redis) => standalone(redis, fault).await,
                Redis::Cluster(cluster) => clustered(cluster, fault).await,
                Redis::Sentinel(set) => watched(set, fault).await,
            },
        }
    }

    async fn cut_all(&self) {
        let servers = match &self.redis {
            Redis::Standalone(redis) => std::slice::from_ref(redis),
            Redis::Cluster(cluster) => cluster.nodes(),
            Redis::Sentinel(set) => set.servers(),
        };
        for kind in ["normal", "pubsub"] {
            // A server that is down or frozen has none to close.
            let kill = |server: &RedisServer| {
                let url = server.url();
                async move {
                    let _: ::redis::RedisResult<u64> =
                        crate::support::redis::command(&url, &["CLIENT", "KILL", "TYPE", kind])
                            .await;
                }
            };
            join_all(servers.iter().filter(|server| server.is_running()).map(kill)).await;
        }
    }
}

async fn standalone(redis: &RedisServer, fault: Fault) {
    match fault {
        Fault::PutBack(age) => {
            redis.cli(&["SAVE"]).await;
            tokio::time::sleep(age).await;
            redis.kill_9();
            redis.restart(Data::Kept).await;
        }
        Fault::OldSnapshot => redis.restart(Data::Kept).await,
        Fault::Wiped => redis.restart(Data::Wiped).await,
        Fault::Flush => {
            redis.cli(&["FLUSHALL"]).await;
        }
        Fault::FreezeRedis(time) => {
            redis.pause().await;
            tokio::time::sleep(time).await;
            redis.resume();
        }
        other => panic!("{other}: not of a standalone server"),
    }
}

/// Kills a master after its replica received nothing for this long.
async fn kill_behind(replica: &RedisServer, lag: Duration, kill: impl FnOnce()) {
    if !lag.is_zero() {
        replica.pause().await;
        tokio::time::sleep(lag).await;
    }
    kill();
    if !lag.is_zero() {
        replica.resume();
    }
}

async fn clustered(cluster: &RedisCluster, fault: Fault) {
    let masters = cluster.masters().await;
    match fault {
        Fault::Failover(nth, lag) => {
            let master = masters[nth % masters.len()];
            let slot = cluster.slot_of_master(master).await;
            let replica = cluster.replicas_of(master).await[0];
            kill_behind(cluster.node(replica), lag, || cluster.kill_9(master)).await;
            cluster.taken_over(slot, master).await;
            cluster.restart(master, Data::Kept).await;
        }
        Fault::Handover(nth) => {
            let replica = cluster.replicas_of(masters[nth % masters.len()]).await[0];
            cluster.failover(replica).await;
        }
        Fault::FreezeRedis(time) => {
            let master = masters[0];
            cluster.node(master).pause().await;
            tokio::time::sleep(time).await;
            cluster.node(master).resume();
            cluster.settled().await;
        }
        other => panic!("{other}: not of a cluster"),
    }
}

async fn watched(set: &SentinelSet, fault: Fault) {
    let master = set.master().await;
    let replica = set.server(1 - master);
    match fault {
        Fault::Failover(_, lag) => {
            kill_behind(replica, lag, || set.server(master).kill_9()).await;
            set.taken_over(master).await;
            set.server(master).restart(Data::Kept).await;
        }
        Fault::Handover(_) => {
            set.fail_over().await;
        }
        Fault::FreezeRedis(time) => {
            set.server(master).pause().await;
            tokio::time::sleep(time).await;
            set.server(master).resume();
        }
        Fault::KillSentinels(time) => {
            let dying = &set.sentinels()[1..];
            dying.iter().for_each(RedisServer::kill_9);
            tokio::time::sleep(time).await;
            join_all(dying.iter().map(|sentinel| sentinel.restart(Data::Kept))).await;
        }
        other => panic!("{other}: not of a set of sentinels"),
    }
    set.settled().await;
}
