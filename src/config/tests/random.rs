//! No document, no variable and no flag makes the reader panic.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Number, Value};

use super::load_all;
use crate::config::{RedisUrl, keys};

fn loads_or_reports(text: &str, env: &[(&str, &str)], overrides: &[(&str, &str)]) {
    if let Err(lines) = load_all(text, env, overrides) {
        assert!(!lines.is_empty() && lines.iter().all(|line| !line.is_empty()));
    }
}

/// A segment of some key's path, so that values get to keys that are read.
fn name() -> impl Strategy<Value = String> {
    let known: Vec<String> =
        keys().iter().flat_map(|key| key.path.split('.')).map(str::to_owned).collect();
    prop_oneof![4 => select(known), 1 => "\\PC{0,8}"]
}

pub(super) fn leaf() -> impl Strategy<Value = Value> {
    let word = select(vec![
        "Redis",
        "RedisCluster",
        "RedisSentinel",
        "Default",
        "Value",
        "File",
        "EnvironmentVariable",
        "redis://h",
        "10s",
        "64MiB",
        "127.0.0.1:7",
        "resp2",
        "/",
        "null",
    ]);
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|n| Value::Number(n.into())),
        any::<u64>().prop_map(|n| Value::Number(n.into())),
        any::<f64>().prop_map(|n| Number::from_f64(n).map_or(Value::Null, Value::Number)),
        word.prop_map(|text| Value::String(text.to_owned())),
        "\\PC{0,16}".prop_map(Value::String),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            vec((name(), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A document with random values at some keys.
pub(super) fn placed() -> impl Strategy<Value = Value> {
    let paths: Vec<&str> = keys().iter().map(|key| key.path.as_str()).collect();
    vec((select(paths), document()), 0..12).prop_map(|pairs| {
        let mut document = Value::Object(Map::new());
        for (path, value) in pairs {
            let mut place = &mut document;
            for segment in path.split('.') {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                place = &mut place[segment];
            }
            *place = value;
        }
        document
    })
}

proptest! {
    #[test]
    fn no_document_makes_the_reader_panic(document in document()) {
        loads_or_reports(&document.to_string(), &[], &[]);
    }

    #[test]
    fn no_value_at_any_key_makes_the_reader_panic(document in placed()) {
        loads_or_reports(&document.to_string(), &[], &[]);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*") {
        loads_or_reports(&text, &[], &[]);
        let _ = RedisUrl::parse(&text);
    }

    #[test]
    fn no_near_json_makes_the_parser_panic(text in "[{}\\[\\]\",:0-9a-z.e\\\\ -]{0,64}") {
        loads_or_reports(&text, &[], &[]);
    }

    #[test]
    fn no_near_url_makes_its_parser_panic(
        text in "(redis|rediss|unix|x)?:?/{0,3}[a-z0-9:@/?#%&=\\[\\].*-]{0,40}",
    ) {
        if let Ok(url) = RedisUrl::parse(&text) {
            prop_assert_eq!(url.as_str_with_password(), &text);
        }
    }

    #[test]
    fn no_variable_and_no_flag_makes_the_reader_panic(
        document in placed(), name in name(), value in "\\PC{0,12}",
        known in select(keys().iter().collect::<Vec<_>>()),
    ) {
        let variable = known.variable().unwrap_or_else(|| format!("TRUNKLINE_{name}"));
        let text = document.to_string();
        loads_or_reports(&text, &[(&variable, &value)], &[(&known.path, &value), (&name, &value)]);
    }

    #[test]
    fn loading_any_effective_configuration_gives_the_same(document in placed()) {
        let Ok(mut config) = load_all(&document.to_string(), &[], &[]) else { return Ok(()) };
        let again = load_all(&config.effective().to_string(), &[], &[]);
        let mut again = again.map_err(|lines| TestCaseError::fail(lines.join("\n")))?;
        again.gateway_id.clone_from(&config.gateway_id);
        config.gateway_id_is_random = again.gateway_id_is_random;
        prop_assert_eq!(again, config);
    }
}
