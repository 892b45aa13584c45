//! The variants of `coordinator` and `inMemoryStore`.

use serde_json::{Map, Value, json};

use super::{BusConfig, Redis, RedisCluster, RedisSentinel};
use crate::config::{
    declaration::{Declaration, Shape, Variant, Variants},
    error::{Problem, shown},
    fields::Fields,
    settings::{Declared, Settings},
};

const COORDINATOR: &str = "coordinator";
const STORE: &str = "inMemoryStore";

/// The types of a store that a bus can share.
const STORE_TYPES: [&str; 3] = ["Redis", "RedisCluster", "RedisSentinel"];

/// The bus: the keys `coordinator` and `inMemoryStore`.
pub(in crate::config) struct Bus;

impl Declared for Bus {
    type Value = BusConfig;

    fn read(&self, fields: &mut Fields<'_>) -> BusConfig {
        let mut shares_store = false;
        let bus = fields.optional_group(COORDINATOR, |fields| {
            fields.value("id");
            match fields.variant(&coordinator().names())? {
                "Default" => shares_store = true,
                "Disabled" => {
                    let problem = "is Disabled: there is nothing to do without a bus";
                    fields.fail("@type", Problem::Invalid(problem.to_owned()));
                }
                other => return read_redis(other, fields),
            }
            None
        });
        let store = fields.optional_group(STORE, |fields| read_store(fields, shares_store));
        if !shares_store {
            return bus.flatten().unwrap_or_default();
        }
        match store {
            Some(Ok(bus)) => bus,
            Some(Err(other)) => {
                let problem = format!(
                    "{} cannot be shared: the coordinator is Default, so it must be Redis, \
                     RedisCluster or RedisSentinel",
                    shown(&other)
                );
                fields.fail_in(STORE, "@type", Problem::Invalid(problem));
                BusConfig::default()
            }
            None => {
                let problem = "is Default, which uses the Redis of inMemoryStore, and there is \
                               none; it must be Redis, RedisCluster or RedisSentinel";
                fields.fail_in(COORDINATOR, "@type", Problem::Invalid(problem.to_owned()));
                BusConfig::default()
            }
        }
    }

    fn show(&self, value: &BusConfig, object: &mut Map<String, Value>) {
        let (name, keys) = match value {
            BusConfig::Embedded => ("Embedded", Map::new()),
            BusConfig::Redis(redis) => ("Redis", redis.show()),
            BusConfig::RedisCluster(cluster) => ("RedisCluster", cluster.show()),
            BusConfig::RedisSentinel(sentinel) => ("RedisSentinel", sentinel.show()),
        };
        let mut bus = Map::new();
        bus.insert("@type".to_owned(), json!(name));
        bus.extend(keys);
        object.insert(COORDINATOR.to_owned(), Value::Object(bus));
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        let store = "The store whose Redis is shared, for `\"coordinator\": \
                     {\"@type\": \"Default\"}`. Any other `@type` is accepted, with any keys, \
                     while the coordinator is not `Default`; the store has no effect then, and its \
                     secrets and files are not read.";
        vec![
            Declaration::new(COORDINATOR, doc, Shape::Variants(coordinator())),
            Declaration::new(STORE, store, Shape::Variants(self::store())),
        ]
    }
}

/// Reads an `inMemoryStore`: its bus, or its type if a bus cannot share it. A store of another
/// server may be in the document without being `used`: its secrets and files are left alone
/// then.
fn read_store(fields: &mut Fields<'_>, used: bool) -> Result<BusConfig, String> {
    fields.value("id");
    if !used {
        fields.skip_lookups();
    }
    let name = fields.any_variant(&STORE_TYPES);
    if let Some(bus) = name.as_deref().and_then(|name| read_redis(name, fields)) {
        return Ok(bus);
    }
    fields.let_through();
    name.map_or_else(|| Ok(BusConfig::default()), Err)
}

/// Reads the keys of a variant of Redis; None if that is not its name.
fn read_redis(name: &str, fields: &mut Fields<'_>) -> Option<BusConfig> {
    match name {
        "Redis" => Some(BusConfig::Redis(Redis::read(fields))),
        "RedisCluster" => Some(BusConfig::RedisCluster(RedisCluster::read(fields))),
        "RedisSentinel" => Some(BusConfig::RedisSentinel(RedisSentinel::read(fields))),
        _ => None,
    }
}

fn coordinator() -> Variants {
    let variant = |name, meaning, keys| Variant { name, meaning, keys };
    Variants {
        meaning: "The variant. Required in the object.",
        default: Some("Embedded"),
        common: id(),
        known: vec![
            variant(
                "Embedded",
                "Within this process: one gateway, without Redis. It has no other keys.",
                Some(vec![]),
            ),
            variant("Redis", "One Redis or Valkey server, 6.2 or later.", Some(Redis::describe())),
            variant(
                "RedisCluster",
                "A Redis or Valkey cluster, 7.0 or later.",
                Some(RedisCluster::describe()),
            ),
            variant(
                "RedisSentinel",
                "A Redis or Valkey, 6.2 or later, whose master sentinels name.",
                Some(RedisSentinel::describe()),
            ),
            variant(
                "Default",
                "The Redis of `inMemoryStore`, with one pool for both. An error if that is not \
                 `Redis`, `RedisCluster` or `RedisSentinel`. It has no other keys.",
                Some(vec![]),
            ),
            variant("Disabled", "An error: there is nothing to do.", None),
        ],
        open: false,
    }
}

fn store() -> Variants {
    let coordinator = coordinator();
    let shared = |variant: &Variant| STORE_TYPES.contains(&variant.name);
    Variants {
        meaning: "`Redis`, `RedisCluster` or `RedisSentinel`, with the keys that `coordinator` \
                  has.",
        default: None,
        known: coordinator.known.into_iter().filter(shared).collect(),
        common: id(),
        open: true,
    }
}

fn id() -> Vec<Declaration> {
    vec![Declaration::new("id", "Ignored; other servers write it.", Shape::Ignored)]
}
