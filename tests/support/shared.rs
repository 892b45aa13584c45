//! Redis for tests that inject no faults: a running one where the environment names it, otherwise
//! one that the test starts.
//!
//! `TRUNKLINE_TEST_REDIS_URL` names a standalone server, `TRUNKLINE_TEST_CLUSTER_URLS` the nodes of
//! a cluster, separated by commas: those of docker-compose.yml, for example. Tests on a shared
//! server use different key prefixes.

use std::env;

use super::{
    cluster::RedisCluster,
    redis::{RedisOptions, RedisServer},
};

/// A standalone server.
#[derive(Debug)]
pub struct SharedRedis {
    /// Its URL.
    pub url: String,
    /// The prefix of this test's keys and channels; no other test has it.
    pub prefix: String,
    /// Kept until the test ends.
    own: Option<RedisServer>,
}

impl SharedRedis {
    /// The server that the environment names, or a new one.
    pub async fn get() -> SharedRedis {
        let prefix = prefix();
        if let Some(url) = variable("TRUNKLINE_TEST_REDIS_URL") {
            return SharedRedis { url, prefix, own: None };
        }
        let server = RedisServer::start(RedisOptions::default()).await;
        SharedRedis { url: server.url(), prefix, own: Some(server) }
    }
}

/// A cluster.
#[derive(Debug)]
pub struct SharedCluster {
    /// URLs of its nodes.
    pub urls: Vec<String>,
    /// The prefix of this test's keys and channels; no other test has it.
    pub prefix: String,
    /// Kept until the test ends.
    own: Option<RedisCluster>,
}

impl SharedCluster {
    /// The cluster that the environment names, or a new one.
    pub async fn get() -> SharedCluster {
        let prefix = prefix();
        if let Some(urls) = variable("TRUNKLINE_TEST_CLUSTER_URLS") {
            let urls = urls.split(',').map(|url| url.trim().to_owned()).collect();
            return SharedCluster { urls, prefix, own: None };
        }
        let cluster = RedisCluster::start().await;
        SharedCluster { urls: cluster.urls(), prefix, own: Some(cluster) }
    }
}

/// A prefix that no other test has, now or later.
pub fn prefix() -> String {
    format!("test-{}", uuid::Uuid::new_v4().simple())
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
