//! Every promise, under faults injected for real, on two gateways and under load.
//!
//! Publishers and subscribers write down what they see (`load`, `history`); a validator for each promise judges it
//! (`promises`), and is shown to be able to fail (`judged`). Each test is one fault, and writes one line of the table of
//! docs/reliability.md.
//!
//! The short form is the ordinary one. The long form, with the durations of the table: `./test faults`.

#[path = "../support/mod.rs"]
mod support;

mod gateways;
mod history;
mod judged;
mod load;
mod over_cluster;
mod promises;
mod redis;
mod refusals;
mod report;
mod slow;

use std::time::Duration;

use support::{
    gateway::{Gateway, GatewayOptions},
    redis::RedisServer,
    shared,
};

/// `short` in an ordinary run, `long` where the long form was asked for by `TRUNKLINE_TEST_LONG`.
pub fn seconds(long: u64, short: u64) -> Duration {
    let is_long = std::env::var_os("TRUNKLINE_TEST_LONG").is_some_and(|value| !value.is_empty());
    Duration::from_secs(if is_long { long } else { short })
}

/// Two gateways alike.
pub async fn pair(options: GatewayOptions) -> (Gateway, Gateway) {
    tokio::join!(Gateway::start(options.clone()), Gateway::start(options))
}

/// Two gateways on a standalone Redis.
pub async fn pair_on(redis: &RedisServer) -> (Gateway, Gateway) {
    pair(GatewayOptions::redis(&redis.url(), &shared::prefix())).await
}
