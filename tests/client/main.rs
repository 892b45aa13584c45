//! Clients against real gateways: the Rust client crate and its example, the Python client,
//! grpcurl; and what clients in all languages have in common.

#[path = "../support/mod.rs"]
mod support;

mod conformance;
mod example;
mod external_crate;
mod grpcurl;
mod mail_server;
mod publish;
mod publisher;
mod python;
mod reconnect;
mod subscribe;
mod watch;

use std::{process::Command, time::Duration};

use support::{Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, shared};
use trunkline_client::{Client, Notification, Subscription};

/// Two gateways on one Redis.
struct Pair {
    redis: RedisServer,
    first: Gateway,
    second: Gateway,
}

impl Pair {
    async fn start() -> Pair {
        Pair::with(|options| options).await
    }

    async fn with(change: impl Fn(GatewayOptions) -> GatewayOptions) -> Pair {
        Pair::on(RedisOptions::default(), change).await
    }

    async fn on(redis: RedisOptions, change: impl Fn(GatewayOptions) -> GatewayOptions) -> Pair {
        let redis = RedisServer::start(redis).await;
        let prefix = shared::prefix();
        let options = || change(GatewayOptions::redis(&redis.url(), &prefix));
        let (first, second) = tokio::join!(Gateway::start(options()), Gateway::start(options()));
        Pair { redis, first, second }
    }

    /// A node that knows both gateways, the first one preferred, and retries soon.
    fn client(&self, node_id: &str) -> Client {
        Client::builder(node_id)
            .gateways([self.first.url(), self.second.url()])
            .in_order()
            .attempt_timeout(Duration::from_secs(1))
            .build()
            .expect("built")
    }
}

/// A node that knows one gateway.
fn client_of(gateway: &Gateway, node_id: &str) -> Client {
    Client::builder(node_id).gateway(gateway.url()).build().expect("built")
}

/// The next notification.
///
/// # Panics
///
/// If there is none within the limit, or an error.
async fn next(subscription: &mut Subscription) -> Notification {
    let next = tokio::time::timeout(LIMIT, subscription.next()).await;
    next.expect("a notification in time").expect("no end").expect("no error")
}

/// Takes notifications up to the first that matches, and returns all of them.
async fn until(
    subscription: &mut Subscription,
    matches: impl Fn(&Notification) -> bool,
) -> Vec<Notification> {
    let mut seen = vec![];
    loop {
        let notification = next(subscription).await;
        let done = matches(&notification);
        seen.push(notification);
        if done {
            return seen;
        }
    }
}

/// Takes notifications up to the event with this id.
async fn until_event(subscription: &mut Subscription, id: &str) -> Vec<Notification> {
    until(subscription, |seen| matches!(seen, Notification::Event(event) if event.event_id == id))
        .await
}

/// Waits until the stream is open.
async fn subscribed(subscription: &mut Subscription) {
    let opened = |seen: &Notification| matches!(seen, Notification::Subscribed(_));
    until(subscription, opened).await;
}

/// The ids of the events, in order.
fn ids(seen: &[Notification]) -> Vec<&str> {
    seen.iter()
        .filter_map(|seen| match seen {
            Notification::Event(event) => Some(event.event_id.as_str()),
            _ => None,
        })
        .collect()
}

/// The gaps, in order.
fn gaps(seen: &[Notification]) -> Vec<&trunkline_proto::v1::Gap> {
    seen.iter()
        .filter_map(|seen| match seen {
            Notification::Gap(gap) => Some(gap),
            _ => None,
        })
        .collect()
}

/// Cargo, without the variables that it has set for this test: build scripts that depend on them
/// would run again, now and in the next build.
fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let of_this_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CFG_", "OUT_DIR"];
        if of_this_package.iter().any(|start| text.starts_with(start)) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

#[test]
fn the_client_crate_depends_on_no_redis_no_server_and_no_command_line() {
    let tree = cargo()
        .args(["tree", "--package", "trunkline-client", "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("UTF-8");
    let crates: Vec<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"trunkline-proto") && crates.contains(&"tonic"), "{crates:?}");
    for unwanted in ["trunkline", "redis", "deadpool-redis", "axum", "clap", "ratatui"] {
        assert!(!crates.contains(&unwanted), "{unwanted} is in the tree of trunkline-client");
    }
}
