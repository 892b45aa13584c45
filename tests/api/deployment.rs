//! The deployment of most tests here: the embedded bus, or a standalone Redis with two gateways.

use crate::support::{Gateway, GatewayOptions, SharedRedis, TestNode};

/// One gateway on the embedded bus, or two on a Redis.
pub struct Deployment {
    /// The gateway that most nodes use.
    pub gateway: Gateway,
    second: Option<Gateway>,
    redis: Option<SharedRedis>,
}

impl Deployment {
    /// The embedded bus.
    pub async fn embedded() -> Deployment {
        Deployment::embedded_with(|options| options).await
    }

    /// The embedded bus, with further settings.
    pub async fn embedded_with(set: impl FnOnce(GatewayOptions) -> GatewayOptions) -> Deployment {
        let gateway = Gateway::start(set(GatewayOptions::embedded())).await;
        Deployment { gateway, second: None, redis: None }
    }

    /// A standalone Redis and two gateways.
    pub async fn redis() -> Deployment {
        Deployment::redis_with(|options| options).await
    }

    /// A standalone Redis and two gateways with further settings.
    pub async fn redis_with(set: impl Fn(GatewayOptions) -> GatewayOptions) -> Deployment {
        let redis = SharedRedis::get().await;
        let options = || set(GatewayOptions::redis(&redis.url, &redis.prefix));
        let (gateway, second) = tokio::join!(Gateway::start(options()), Gateway::start(options()));
        Deployment { gateway, second: Some(second), redis: Some(redis) }
    }

    /// Another gateway of the deployment; on the embedded bus there is only the one.
    pub fn other(&self) -> &Gateway {
        self.second.as_ref().unwrap_or(&self.gateway)
    }

    /// The Redis, if it is one.
    pub fn redis_server(&self) -> Option<&SharedRedis> {
        self.redis.as_ref()
    }

    /// The options of a further gateway on the same Redis.
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

/// Makes two tests of each `async fn name(deployment: Deployment)`: on the embedded bus, and over
/// Redis between two gateways. `with set;` changes the settings.
#[macro_export]
macro_rules! on_both_buses {
    (with $set:ident; $($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test] async fn $name() {
                let deployment = $crate::deployment::Deployment::embedded_with(super::$set).await;
                super::$name(deployment).await;
            })*
        }
        mod redis {
            $(#[tokio::test] async fn $name() {
                super::$name($crate::deployment::Deployment::redis_with(super::$set).await).await;
            })*
        }
    };
    ($($name:ident),* $(,)?) => {
        use std::convert::identity as as_it_is;
        $crate::on_both_buses!(with as_it_is; $($name),*);
    };
}
