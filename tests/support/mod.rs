//! The harness: real servers, real gateways and nodes for the integration tests.
//!
//! Every test starts its servers on its own ports and in its own folders, so that tests run in
//! parallel. They end with the test: when it returns, when it panics, and when its process is
//! killed.
//!
//! Everything here waits for a condition with a time limit; nothing sleeps for a fixed time. A
//! failure panics with what was seen.

// Each test binary uses a part of the harness.
#![allow(dead_code, unused_imports, unreachable_pub)]

pub mod browser;
pub mod certificates;
pub mod cluster;
pub mod events;
pub mod folder;
pub mod gateway;
pub mod haproxy;
pub mod long_line;
pub mod nodes;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod publishing;
pub mod redis;
pub mod sentinel;
pub mod shared;
pub mod tools;
pub mod view;
pub mod wait;
pub mod watch;

pub use browser::Browser;
pub use cluster::{ClusterOptions, RedisCluster};
pub use gateway::{Gateway, GatewayOptions, Ready};
pub use nodes::{Collector, Keep, Recording, Seen, TestNode};
pub use redis::{Data, RedisOptions, RedisServer};
pub use sentinel::{SentinelOptions, SentinelSet};
pub use shared::{SharedCluster, SharedRedis};
pub use wait::{LIMIT, eventually, until};
pub use watch::Watch;

/// The configuration of a file with this content.
pub fn config(content: &serde_json::Value) -> trunkline::config::Config {
    let folder = folder::new();
    let file = folder.path().join("trunkline.json");
    std::fs::write(&file, content.to_string()).expect("a file");
    let sources = trunkline::config::Sources { file: Some(file), ..Default::default() };
    trunkline::config::Config::load(&sources).expect("a configuration")
}
