//! The JSON Schema: it accepts what the loader accepts, and refuses keys and numbers that it
//! refuses.

use boon::{Compiler, SchemaIndex, Schemas};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};

use super::{
    all_keys::{number_of, shape_with},
    load_text,
    random::{leaf, placed},
    with,
};
use crate::config::{Key, keys, keys::Kind, schema};

/// A validator of draft 2020-12. It checks the schema itself against that draft's own schema.
pub(super) struct Validator(Schemas, SchemaIndex);

impl Validator {
    pub(super) fn new(schema: Value) -> Validator {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("schema.json", schema).unwrap();
        let index =
            compiler.compile("schema.json", &mut schemas).unwrap_or_else(|e| panic!("{e:#}"));
        Validator(schemas, index)
    }

    /// The reason why `document` is refused.
    pub(super) fn refuses(&self, document: &Value) -> Option<String> {
        self.0.validate(document, self.1).err().map(|error| error.to_string())
    }
}

fn validator() -> Validator {
    Validator::new(schema())
}

/// The JSON documents in a text: from each line that is `{` to the `}` at the same indentation.
fn samples(text: &str) -> Vec<Value> {
    let mut samples = vec![];
    let lines: Vec<&str> = text.lines().collect();
    let mut rest = &lines[..];
    while let Some(first) = rest.iter().position(|line| line.trim() == "{") {
        let end = rest[first].replace('{', "}");
        let last = rest[first..].iter().position(|line| *line == end).expect("an end") + first;
        samples.push(serde_json::from_str(&rest[first..=last].join("\n")).expect("JSON"));
        rest = &rest[last..];
    }
    samples
}

#[test]
fn every_sample_of_a_deployment_and_of_the_documents_is_valid() {
    let validator = validator();
    let texts = [
        (include_str!("../../../docs/configuration.md"), 3),
        (include_str!("../../../deploy/compose/gateway.json"), 1),
        (include_str!("../../../deploy/kubernetes/trunkline.yaml"), 1),
    ];
    for (text, count) in texts {
        let samples: Vec<Value> = samples(text);
        let of_configuration = samples
            .iter()
            .filter(|sample| ["coordinator", "listen"].iter().any(|key| sample.get(key).is_some()));
        let mut found = 0;
        for sample in of_configuration {
            assert_eq!(validator.refuses(sample), None, "{sample:#}");
            found += 1;
        }
        assert_eq!(found, count, "{text}");
    }
}

#[test]
fn an_object_of_an_existing_deployment_is_valid() {
    let document = json!({
        "coordinator": {
            "id": "singleton", "@type": "RedisCluster",
            "urls": { "redis://10.0.0.1:7000": true, "redis://old": false },
            "timeout": 10000, "authUsername": "stalwart", "authSecret": { "@type": "None" },
            "maxRetryWait": null, "readFromReplicas": true, "protocolVersion": "resp2",
            "poolTimeoutCreate": "30s", "poolTimeoutRecycle": null,
        },
        "inMemoryStore": { "@type": "Sharded", "stores": [{ "@type": "Redis" }] },
    });
    assert_eq!(validator().refuses(&document), None);
}

#[test]
fn every_key_is_in_the_schema_with_its_default_its_limits_and_its_meaning() {
    let schema = schema();
    for key in keys() {
        let found = find(&schema, &key.path);
        assert!(!found.is_empty(), "{} is missing", key.path);
        if key.path.ends_with(".@type") {
            assert!(found.iter().any(|schema| schema.get("const").is_some()), "{}", key.path);
            continue;
        }
        for found in found {
            assert!(
                found["description"].as_str().is_some_and(|text| !text.is_empty()),
                "{}",
                key.path
            );
            if let (Kind::Value, Some(default)) = (key.kind, &key.default) {
                assert_eq!(&found["default"], default, "{}", key.path);
            }
            let Some((min, max)) = key.range.as_ref().and_then(|range| range.split_once(" to "))
            else {
                continue;
            };
            if key.type_name == "text" {
                let max = max.trim_end_matches(" bytes").parse::<u64>().unwrap();
                assert_eq!(found["maxLength"], max, "{}", key.path);
            } else {
                assert_eq!(found["minimum"], number_of(min), "{}", key.path);
                assert_eq!(found["maximum"], number_of(max), "{}", key.path);
            }
        }
    }
}

/// The schemas at a path, one for each variant that has the key.
fn find<'s>(schema: &'s Value, path: &str) -> Vec<&'s Value> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let (name, of_list) = name.strip_suffix("[]").map_or((name, false), |name| (name, true));
    let alternatives = schema["oneOf"].as_array();
    let objects: Vec<&Value> =
        alternatives.map_or_else(|| vec![schema], |schemas| schemas.iter().collect());
    let members = objects.into_iter().filter_map(|object| object["properties"].get(name));
    let members = members.map(|member| if of_list { &member["items"] } else { member });
    match rest {
        Some(rest) => members.flat_map(|member| find(member, rest)).collect(),
        None => members.collect(),
    }
}

#[test]
fn a_misspelt_key_is_refused_everywhere() {
    let validator = validator();
    // A key of a list's objects has no path that a document could be made from.
    let settable = |key: &&Key| matches!(key.kind, Kind::Value | Kind::Group);
    for key in keys().iter().filter(settable) {
        let document = shape_with(key);
        assert_eq!(validator.refuses(&document), None, "{document}");
        let wrong = with(document, &format!("{}x", key.path), Value::Null);
        assert!(validator.refuses(&wrong).is_some(), "{wrong}");
        let lines = load_text(&wrong.to_string()).unwrap_err();
        assert!(lines.iter().any(|line| line.contains("x: is not known")), "{lines:#?}");
    }
}

#[test]
fn a_number_is_refused_beyond_its_limits_and_accepted_at_them() {
    let validator = validator();
    let mut ranges = 0;
    for key in keys().iter().filter(|key| key.type_name != "text") {
        let Some((min, max)) = key.range.as_ref().and_then(|range| range.split_once(" to ")) else {
            continue;
        };
        let (min, max) = (number_of(min), number_of(max));
        let refuses =
            |value: Value| validator.refuses(&with(shape_with(key), &key.path, value)).is_some();
        assert!(!refuses(json!(min)) && !refuses(json!(max)), "{}", key.path);
        assert!(refuses(json!(max + 1)), "{}", key.path);
        assert!(refuses(json!(i64::try_from(min).unwrap() - 1)), "{}", key.path);
        for wrong in [json!(1.5), json!("many"), json!([])] {
            assert!(refuses(wrong.clone()), "{} = {wrong}", key.path);
        }
        ranges += 1;
    }
    assert_eq!(ranges, 64);
}

#[test]
fn words_and_types_are_refused_that_are_none() {
    let validator = validator();
    for wrong in [
        json!({ "coordinator": { "@type": "Kafka" } }),
        json!({ "coordinator": { "@type": "Disabled" } }),
        json!({ "coordinator": { "url": "redis://x" } }),
        json!({ "coordinator": { "@type": "Embedded", "url": "redis://x" } }),
        json!({ "coordinator": { "@type": "Redis", "urls": ["redis://x"] } }),
        json!({ "coordinator": { "@type": "RedisCluster", "urls": [] } }),
        json!({ "coordinator": { "@type": "RedisCluster", "authSecret": { "@type": "Value" } } }),
        json!({ "logFormat": "jsn" }),
        json!({ "insecure": "yes" }),
        json!({ "prefix": "" }),
        json!({ "heartbeat": "5 minutes" }),
        json!({ "auth": { "identities": [{}] } }),
        json!({ "auth": { "identities": [{ "name": "a", "operations": ["listNode"] }] } }),
        json!({ "auth": { "identities": [
            { "name": "a", "publish": { "allow": { "kinds": ["x"] } } }
        ] } }),
        json!({ "auth": { "identities": [{ "name": "a", "tokens": ["plain"] }] } }),
        json!([]),
    ] {
        assert!(validator.refuses(&wrong).is_some(), "{wrong}");
        assert!(load_text(&wrong.to_string()).is_err(), "{wrong}");
    }
}

/// A document that is valid but for one value, perhaps: the loader accepts many of these.
fn one_value() -> impl Strategy<Value = Value> {
    let settable: Vec<&Key> = keys().iter().filter(|key| key.kind != Kind::OfList).collect();
    let value = prop_oneof![
        leaf(),
        word().prop_map(Value::String),
        vec(leaf(), 0..3).prop_map(Value::Array),
        word().prop_map(set)
    ];
    (select(settable), value).prop_map(|(key, value)| with(shape_with(key), &key.path, value))
}

/// A word that some key accepts.
fn word() -> impl Strategy<Value = String> {
    let units = "[0-9]{1,3}(ms|s|m|h|d|B|KB|kib|MiB|GB)?";
    prop_oneof![units, "[a-z0-9*]{0,3}", select(vec!["redis://h".to_owned(), "text".to_owned()])]
}

fn set(member: String) -> Value {
    json!({ (member): true })
}

thread_local! {
    static VALIDATOR: Validator = validator();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_document_is_refused_that_the_loader_accepts(
        document in prop_oneof![placed(), one_value()],
    ) {
        if load_text(&document.to_string()).is_ok() {
            let refused = VALIDATOR.with(|validator| validator.refuses(&document));
            prop_assert_eq!(refused, None);
        }
    }

    #[test]
    fn limits_of_the_schema_and_of_the_loader_agree(
        key in select(
            keys()
                .iter()
                .filter(|key| key.range.is_some() && key.type_name != "text")
                .collect::<Vec<_>>()
        ),
        number in prop_oneof![0..70_u64, 0..200_000_u64, any::<u64>()],
    ) {
        let document = with(shape_with(key), &key.path, number);
        let refused = VALIDATOR.with(|validator| validator.refuses(&document)).is_some();
        let out_of_range = load_text(&document.to_string()).is_err_and(|lines| {
            lines.iter().any(|line| line.starts_with(&key.path) && line.contains("out of range"))
        });
        prop_assert_eq!(refused, out_of_range, "{}", document);
    }
}
