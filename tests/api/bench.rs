//! What most tests here stand on: a deployment of the embedded bus, or of a standalone Redis with two gateways.

use crate::support::{Gateway, GatewayOptions, SharedRedis, TestNode};

/// One gateway on the embedded bus, or two on a Redis.
pub struct Bench {
    /// The gateway that most nodes use.
    pub gateway: Gateway,
    second: Option<Gateway>,
    redis: Option<SharedRedis>,
}

impl Bench {
    /// The embedded bus.
    pub async fn embedded() -> Bench {
        Bench::embedded_with(|options| options).await
    }

    /// The embedded bus, with further settings.
    pub async fn embedded_with(set: impl FnOnce(GatewayOptions) -> GatewayOptions) -> Bench {
        let gateway = Gateway::start(set(GatewayOptions::embedded())).await;
        Bench { gateway, second: None, redis: None }
    }

    /// A standalone Redis and two gateways.
    pub async fn redis() -> Bench {
        Bench::redis_with(|options| options).await
    }

    /// A standalone Redis and two gateways with further settings.
    pub async fn redis_with(set: impl Fn(GatewayOptions) -> GatewayOptions) -> Bench {
        let redis = SharedRedis::get().await;
        let options = || set(GatewayOptions::redis(&redis.url, &redis.prefix));
        let (gateway, second) = tokio::join!(Gateway::start(options()), Gateway::start(options()));
        Bench { gateway, second: Some(second), redis: Some(redis) }
    }

    /// Another gateway of the deployment; on the embedded bus there is only the one.
    pub fn other(&self) -> &Gateway {
        self.second.as_ref().unwrap_or(&self.gateway)
    }

    /// The Redis, if it is one.
    pub fn redis_server(&self) -> Option<&SharedRedis> {
        self.redis.as_ref()
    }

    /// What a further gateway on the same Redis is started with.
    pub fn options(&self) -> GatewayOptions {
        let redis = self.redis.as_ref().expect("a Redis");
        GatewayOptions::redis(&redis.url, &redis.prefix)
    }

    /// A node of the gateway.
    pub async fn node(&self, node_id: &str) -> TestNode {
        TestNode::connect(&self.gateway, node_id).await
    }

    /// A node of the other gateway.
    pub async fn remote(&self, node_id: &str) -> TestNode {
        TestNode::connect(self.other(), node_id).await
    }
}

/// Makes two tests of each `async fn name(bench: Bench)`: on the embedded bus, and over Redis between two gateways. `with set;`
/// first sets further settings.
#[macro_export]
macro_rules! on_both_buses {
    (with $set:ident; $($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test] async fn $name() {
                super::$name($crate::bench::Bench::embedded_with(super::$set).await).await;
            })*
        }
        mod redis {
            $(#[tokio::test] async fn $name() {
                super::$name($crate::bench::Bench::redis_with(super::$set).await).await;
            })*
        }
    };
    ($($name:ident),* $(,)?) => {
        use std::convert::identity as as_it_is;
        $crate::on_both_buses!(with as_it_is; $($name),*);
    };
}
