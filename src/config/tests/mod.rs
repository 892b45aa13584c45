//! Tests of the whole configuration: documents and variables in, settings or violations out.

mod all_keys;
mod bus;
mod declaration;
mod documentation;
mod effective;
mod errors;
mod layers;
mod random;
mod schema;
mod secrets;
mod urls;

use serde_json::Value;

use super::{BusConfig, Config, Redis, RedisCluster, RedisSentinel, Sources};

/// A file with `text`, deleted with what is returned.
fn file_of(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The configuration of all three sources, or the lines of the errors.
fn load_all(
    text: &str,
    env: &[(&str, &str)],
    overrides: &[(&str, &str)],
) -> Result<Config, Vec<String>> {
    let file = file_of(text);
    let sources = Sources {
        file: Some(file.path().to_owned()),
        env: pairs(env),
        overrides: pairs(overrides),
    };
    Config::load(&sources).map_err(|errors| {
        let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), errors.violations().len(), "one line a violation: {errors}");
        lines
    })
}

fn load_text(text: &str) -> Result<Config, Vec<String>> {
    load_all(text, &[], &[])
}

fn load(document: &Value) -> Config {
    load_text(&document.to_string()).unwrap_or_else(|lines| panic!("{document}: {lines:#?}"))
}

/// The lines of the errors of `document`.
fn errors(document: &Value) -> Vec<String> {
    load_text(&document.to_string()).expect_err("an error")
}

/// The one line of the only error of `document`.
fn error(document: &Value) -> String {
    let mut lines = errors(document);
    assert_eq!(lines.len(), 1, "{document}: {lines:#?}");
    lines.remove(0)
}

fn redis(config: Config) -> Redis {
    match config.bus {
        BusConfig::Redis(redis) => redis,
        other => panic!("not Redis: {other:?}"),
    }
}

fn sentinel(config: Config) -> RedisSentinel {
    match config.bus {
        BusConfig::RedisSentinel(sentinel) => sentinel,
        other => panic!("not RedisSentinel: {other:?}"),
    }
}

fn cluster(config: Config) -> RedisCluster {
    match config.bus {
        BusConfig::RedisCluster(cluster) => cluster,
        other => panic!("not RedisCluster: {other:?}"),
    }
}

/// `document` with `value` at `path`.
fn with(mut document: Value, path: &str, value: impl Into<Value>) -> Value {
    let mut at = &mut document;
    for segment in path.split('.') {
        at = &mut at[segment];
    }
    *at = value.into();
    document
}
