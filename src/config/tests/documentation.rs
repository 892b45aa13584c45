//! The tables of docs/configuration.md are made from the declarations, and its examples are real.
//!
//! `UPDATE_DOCS=1 cargo nextest run --lib -E 'test(/tables_are_those/)'` rewrites the tables.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::json;

use super::load;
use crate::config::{Config, Key, declaration::Shape, declarations, keys};

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

/// The table that a comment of the document asks for: `<!-- keys: history -->`.
enum Table<'d> {
    /// The keys at the prefixes; with `variants`, those that exactly these types of the bus have. A
    /// prefix that ends with a dot leaves out the key itself.
    Keys { prefixes: Vec<&'d str>, variants: Vec<&'d str> },
    /// The variants of the key.
    Variants(&'d str),
}

impl<'d> Table<'d> {
    fn parse(line: &'d str) -> Option<Table<'d>> {
        let text = line.strip_prefix("<!-- ")?.strip_suffix("-->")?;
        let list = |text: &'d str| text.split(',').map(str::trim).collect();
        match text.split_once(':')? {
            ("keys", text) => {
                let (prefixes, variants) = text.split_once(" of ").unwrap_or((text, ""));
                let variants = if variants.is_empty() { vec![] } else { list(variants) };
                Some(Table::Keys { prefixes: list(prefixes), variants })
            }
            ("variants", key) => Some(Table::Variants(key.trim())),
            _ => None,
        }
    }

    /// The fit of the table for a key: the length of the prefix, and whether the variants agree.
    fn fit(&self, key: &Key) -> Option<(usize, bool)> {
        let Table::Keys { prefixes, variants } = self else { return None };
        if !variants.is_empty() && *variants != key.variants {
            return None;
        }
        let fits = |prefix: &&&str| {
            let rest = key.path.strip_prefix(**prefix);
            prefix.is_empty()
                || rest.is_some_and(|rest| {
                    prefix.ends_with('.') || rest.is_empty() || rest.starts_with(['.', '['])
                })
        };
        let longest = prefixes.iter().filter(fits).map(|prefix| prefix.len()).max()?;
        Some((longest, !variants.is_empty()))
    }
}

/// Keys of the store that the coordinator has too are listed once.
fn is_listed(key: &Key) -> bool {
    let of_store = key.path.strip_prefix("inMemoryStore.");
    of_store.is_none_or(|name| name == "@type")
}

pub(super) fn row(key: &Key) -> String {
    let default = key.default_text().map(|text| format!(" `{text}`")).unwrap_or_default();
    let range = key.range.as_ref().map(|range| format!(" {range}")).unwrap_or_default();
    let Key { path, type_name, meaning, .. } = key;
    format!("| `{path}` | {type_name} |{default} |{range} | {meaning} |\n")
}

/// The document with new tables.
fn made() -> String {
    let tables: Vec<Table<'_>> = DOCUMENT.lines().filter_map(Table::parse).collect();
    let mut bodies = vec![String::new(); tables.len()];
    for key in keys().iter().filter(|key| is_listed(key)) {
        let fits = tables.iter().enumerate().filter_map(|(i, table)| Some((table.fit(key)?, i)));
        let (_, best) = fits.max().unwrap_or_else(|| panic!("no table for {}", key.path));
        bodies[best] += &row(key);
    }
    for (table, body) in tables.iter().zip(&mut bodies) {
        *body = match table {
            Table::Keys { .. } => {
                format!("| key | type | default | range | meaning |\n|---|---|---|---|---|\n{body}")
            }
            Table::Variants(key) => variants(key),
        };
    }
    let mut document = String::new();
    let mut bodies = bodies.into_iter();
    let mut of_table = false;
    for line in DOCUMENT.lines() {
        if of_table && (line.is_empty() || line.starts_with('|')) {
            continue;
        }
        if of_table {
            document.push('\n');
        }
        writeln!(document, "{line}").unwrap();
        of_table = Table::parse(line).is_some();
        if of_table {
            write!(document, "\n{}", bodies.next().unwrap()).unwrap();
        }
    }
    document
}

fn variants(key: &str) -> String {
    let declared = declarations().iter().find(|declaration| declaration.name == key).unwrap();
    let Shape::Variants(variants) = &declared.shape else { panic!("{key} has no variants") };
    let rows = variants.known.iter().map(|v| format!("| `{}` | {} |\n", v.name, v.meaning));
    format!("| `@type` | meaning |\n|---|---|\n{}", rows.collect::<String>())
}

#[test]
fn the_tables_are_those_of_the_declarations() {
    let made = made();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        std::fs::write(path, &made).unwrap();
        return;
    }
    for (line, made) in DOCUMENT.lines().zip(made.lines()) {
        assert_eq!(line, made, "rewrite the tables with UPDATE_DOCS=1");
    }
    assert_eq!(DOCUMENT.len(), made.len(), "rewrite the tables with UPDATE_DOCS=1");
}
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
            let [key, _, default, range, meaning] = cells[..] else { panic!("five cells: {line}") };
            assert!(!meaning.is_empty(), "{line}");
            let twice = rows.insert(key.trim_matches('`'), (default.trim_matches('`'), range));
            assert!(twice.is_none(), "twice: {line}");
        }
    }
    rows
}

/// The row of a key: the keys of the store have those of the coordinator.
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
fn every_documented_default_is_the_effective_one() {
    let mut documents = vec![Config::default().effective()];
    for variant in ["RedisCluster", "Redis", "RedisSentinel"] {
        documents.push(load(&json!({ "coordinator": { "@type": variant } })).effective());
    }
    let pointer = |name: &str| format!("/{}", name.replace('.', "/"));
    let mut compared = 0;
    for (name, (default, _)) in rows() {
        let found = documents.iter().find_map(|document| document.pointer(&pointer(name)));
        let Some(found) = found else { continue };
        // Lists are empty by default.
        if found.is_object() || default.is_empty() && found == &json!([]) {
            continue;
        }
        let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
        assert_eq!(default, text, "{name}");
        compared += 1;
    }
    assert!(compared >= 35, "{compared} defaults");
}

#[test]
fn the_documented_variables_and_examples_load() {
    for variable in DOCUMENT.lines().filter_map(|line| line.strip_prefix("    TRUNKLINE_")) {
        let Some((name, _)) = variable.split_once('=') else { continue };
        let name = format!("TRUNKLINE_{name}");
        assert!(keys().iter().any(|key| key.variable().as_deref() == Some(&name)), "{name}");
    }
    // In place of the files of the examples, those of the tests.
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
fn the_documented_errors_are_those_of_the_loader() {
    let text = r#"{"coordinator": {"@type": "Redis", "poolMaxConection": 1}}"#;
    let env = [("TRUNKLINE_COORDINATOR__TIMEOUT", "0s"), ("TRUNKLINE_LISTN", "x")];
    let lines = super::load_all(text, &env, &[("history.maxAge", "5 minutes")]).unwrap_err();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for line in lines {
        assert!(DOCUMENT.contains(&format!("    {line}\n")), "{line}");
    }
}
