//! docs/configuration.md says what is true.

use std::collections::BTreeMap;

use serde_json::json;

use super::load;
use crate::config::{Config, keys};

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

/// The rows about keys: key, default and range.
fn rows() -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let mut rows = BTreeMap::new();
    let mut of_keys = false;
    for line in DOCUMENT.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if !line.starts_with('|') {
            of_keys = false;
        } else if cells[0] == "key" {
            of_keys = true;
        } else if of_keys && !cells[0].starts_with('-') {
            let [key, default, range, what] = cells[..] else { panic!("four cells: {line}") };
            assert!(!what.is_empty(), "{line}");
            let twice = rows.insert(key.trim_matches('`'), (default.trim_matches('`'), range));
            assert!(twice.is_none(), "twice: {line}");
        }
    }
    rows
}

/// The row that stands for a key: the keys of the store are those of the coordinator.
fn documented(path: &str) -> String {
    match path.strip_prefix("inMemoryStore.") {
        Some("@type") | None => path.to_owned(),
        Some(key) => format!("coordinator.{key}"),
    }
}

#[test]
fn every_key_has_a_row_with_its_range() {
    let rows = rows();
    for key in keys() {
        let name = documented(&key.path);
        let (_, range) = rows.get(name.as_str()).unwrap_or_else(|| panic!("no row for {name}"));
        if let Some(expected) = &key.range {
            assert_eq!(range, expected, "{name}");
        }
    }
}

#[test]
fn every_row_has_a_key() {
    for name in rows().keys() {
        assert!(keys().iter().any(|key| key.path == *name), "{name} does not exist");
    }
}

#[test]
fn every_default_is_the_one_in_effect() {
    let mut documents = vec![Config::default().effective()];
    for variant in ["RedisCluster", "Redis"] {
        documents.push(load(&json!({ "coordinator": { "@type": variant } })).effective());
    }
    let pointer = |name: &str| format!("/{}", name.replace('.', "/"));
    let mut compared = 0;
    for (name, (default, _)) in rows() {
        let found = documents.iter().find_map(|document| document.pointer(&pointer(name)));
        let Some(found) = found else { continue };
        if found.is_object() {
            continue;
        }
        let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
        assert_eq!(default, text, "{name}");
        compared += 1;
    }
    assert!(compared >= 35, "{compared} defaults");
}

#[test]
fn the_variables_and_the_json_in_it_are_real() {
    for variable in DOCUMENT.lines().filter_map(|line| line.strip_prefix("    TRUNKLINE_")) {
        let Some((name, _)) = variable.split_once('=') else { continue };
        let name = format!("TRUNKLINE_{name}");
        assert!(keys().iter().any(|key| key.variable().as_deref() == Some(&name)), "{name}");
    }
    // Their files are those of the tests.
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("webmail.tokens");
    std::fs::write(&tokens, "a-token-of-the-webmail\n").unwrap();
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/");
    let mut loaded = vec![];
    for block in DOCUMENT.split("```json\n").skip(1) {
        let (example, _) = block.split_once("```").unwrap();
        let example = example
            .replace("/etc/trunkline/webmail.tokens", &tokens.display().to_string())
            .replace("/etc/trunkline/clients-ca.pem", &format!("{files}ca.pem"))
            .replace("/etc/trunkline/", files);
        loaded.push(load(&serde_json::from_str(&example).unwrap()));
    }
    let identities = loaded.iter().filter_map(|config| config.auth.as_ref());
    let names: Vec<_> =
        identities.flat_map(|auth| &auth.identities).map(|rules| rules.name.as_str()).collect();
    assert!(loaded.len() >= 2 && names == ["spiffe://example.org/mail/*", "webmail"], "{names:?}");
}

#[test]
fn the_errors_shown_in_it_are_the_real_ones() {
    let text = r#"{"coordinator": {"@type": "Redis", "poolMaxConection": 1}}"#;
    let env = [("TRUNKLINE_COORDINATOR__TIMEOUT", "0s"), ("TRUNKLINE_LISTN", "x")];
    let lines = super::load_all(text, &env, &[("history.maxAge", "5 minutes")]).unwrap_err();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for line in lines {
        assert!(DOCUMENT.contains(&format!("    {line}\n")), "{line}");
    }
}
