//! Every promise, under faults injected for real, on two gateways and under load.
//!
//! Publishers and subscribers record what they send and receive (`load`, `history`). One validator
//! for each promise checks the record (`promises`), and each validator is shown to be able to fail
//! (`validators`). Each test injects one fault, and writes one line of the table of
//! docs/reliability.md.
//!
//! `chaos` draws faults by seed and injects several at a time, on three gateways:
//! `./test --chaos MINUTES`.
//!
//! `./test` runs the short form; `./test faults` runs the long form, with the durations of the
//! table.

#[path = "../support/mod.rs"]
mod support;

mod behind_haproxy;
mod chaos;
mod clocks;
mod combinations;
mod credentials;
mod far;
mod gateways;
mod history;
mod interest;
mod last_values;
mod load;
mod many;
mod one_shard;
mod over_cluster;
mod over_sentinel;
mod partly;
mod promises;
mod redis;
mod refusals;
mod report;
mod rotation;
mod slow;
mod tokens;
mod validators;

use std::time::Duration;

use support::{
    gateway::{Gateway, GatewayOptions},
    redis::RedisServer,
    shared,
};

/// `short` by default, `long` if `TRUNKLINE_TEST_LONG` is set.
pub fn either(long: u64, short: u64) -> u64 {
    let is_long = std::env::var_os("TRUNKLINE_TEST_LONG").is_some_and(|value| !value.is_empty());
    if is_long { long } else { short }
}

/// The same in seconds.
pub fn seconds(long: u64, short: u64) -> Duration {
    Duration::from_secs(either(long, short))
}

/// Two gateways with the same options.
pub async fn pair(options: GatewayOptions) -> (Gateway, Gateway) {
    tokio::join!(Gateway::start(options.clone()), Gateway::start(options))
}

/// Two gateways on a standalone Redis.
pub async fn pair_on(redis: &RedisServer) -> (Gateway, Gateway) {
    pair(GatewayOptions::redis(&redis.url(), &shared::prefix())).await
}
