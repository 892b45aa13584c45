//! The list of buses: from `coordinator.@type` in the configuration to a constructor.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};

use super::{Progress, SharedBus, Sink, embedded::EmbeddedFactory, redis::RedisFactory};
use crate::config::Config;

/// The parts from which a bus starts.
pub struct Starting<'a> {
    /// The configuration of the gateway.
    pub config: &'a Config,
    /// Called with the reason, for people, while the bus waits for its servers.
    pub waiting: Box<dyn Fn(String) + Send + Sync + 'a>,
    /// Makes the sink, as soon as the bus knows its number of shards. Called once.
    pub sink: Box<dyn FnOnce(u16) -> Arc<dyn Sink> + Send + 'a>,
}

/// A bus that cannot be used as it is configured. Waiting does not help.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// A fault that `trunkline verify` causes at the servers of a bus, with the rights of an
/// administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connections of all gateways to the servers are closed. `user` is what gateways log in
    /// as; None: as this configuration does.
    Disconnect {
        /// The user.
        user: Option<String>,
    },
    /// One master hands over to a replica of its own.
    Failover,
}

/// The constructor of one kind of bus.
pub trait BusFactory: Send + Sync {
    /// Starts the bus. Waits for servers that are not reachable yet; the error is for what waiting
    /// does not mend.
    fn start<'a>(&'a self, starting: Starting<'a>) -> BoxFuture<'a, Result<SharedBus, StartError>>;

    /// The names of the checks of [`examine`](Self::examine). Those that have no finding in the end
    /// are reported as not checked.
    fn checks(&self) -> &'static [&'static str] {
        &[]
    }

    /// Examines the servers of the bus for `trunkline doctor`, and reports what it finds. Changes
    /// nothing that gateways use.
    fn examine<'a>(
        &'a self,
        config: &'a Config,
        report: &'a mut (dyn FnMut(Progress) + Send),
    ) -> BoxFuture<'a, ()>;

    /// Causes a fault for `trunkline verify`, and waits until it has happened. Returns what was
    /// done, for people.
    ///
    /// # Errors
    ///
    /// Why it cannot be done, and what would help.
    fn cause<'a>(
        &'a self,
        config: &'a Config,
        fault: &'a Fault,
    ) -> BoxFuture<'a, Result<String, String>> {
        let _ = fault;
        let why = format!(
            "a bus of the type {} has no servers; --config or --redis names others",
            config.bus.type_name()
        );
        async move { Err(why) }.boxed()
    }
}

/// All kinds of bus, by their `@type`.
pub struct Registry(Vec<(&'static str, Box<dyn BusFactory>)>);

impl Default for Registry {
    /// The buses of this crate: one line each.
    fn default() -> Registry {
        Registry(vec![])
            .with("Embedded", EmbeddedFactory)
            .with("Redis", RedisFactory)
            .with("RedisCluster", RedisFactory)
            .with("RedisSentinel", RedisFactory)
    }
}

impl Registry {
    /// The registry with one more bus.
    #[must_use]
    pub fn with(mut self, name: &'static str, factory: impl BusFactory + 'static) -> Registry {
        self.0.push((name, Box::new(factory)));
        self
    }

    /// The bus of a type name.
    ///
    /// # Errors
    ///
    /// No bus has this name.
    pub fn get(&self, name: &str) -> Result<&dyn BusFactory, StartError> {
        let found = self.0.iter().find(|(registered, _)| *registered == name);
        found.map(|(_, factory)| &**factory).ok_or_else(|| {
            let names: Vec<_> = self.0.iter().map(|(name, _)| *name).collect();
            let names = names.join(", ");
            StartError(format!("coordinator.@type {name} is not a bus of this build: {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn every_type_of_the_configuration_has_a_bus() {
        let registry = Registry::default();
        for coordinator in [
            r#"{"@type": "Embedded"}"#,
            r#"{"@type": "Redis"}"#,
            r#"{"@type": "RedisCluster", "urls": ["redis://seed:7000"]}"#,
            r#"{"@type": "RedisSentinel", "urls": ["redis://sentinel"]}"#,
        ] {
            let text = format!(r#"{{"coordinator": {coordinator}}}"#);
            let config = Config::load_text(text.as_bytes(), &Sources::default()).unwrap();
            assert!(registry.get(config.bus.type_name()).is_ok(), "{coordinator}");
        }
    }

    #[test]
    fn an_unknown_type_is_an_error_that_names_the_known_ones() {
        let error = Registry::default().get("Pigeon").err().unwrap().to_string();
        assert!(error.contains("Pigeon") && error.contains("Embedded, Redis"), "{error}");
    }
}
