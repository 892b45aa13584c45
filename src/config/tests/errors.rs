//! Violations: all of them are reported, each with its path.

use serde_json::{Value, json};

use super::{error, errors, load, load_text};
use crate::config::{Config, ConfigErrors, Origin, Problem, Sources};

#[test]
fn all_violations_are_reported_at_once() {
    let lines = errors(&json!({
        "listen": "localhost:7420",
        "shards": 257,
        "heartbeet": "1s",
        "history": { "maxAge": "5 minutes" },
        "coordinator": { "@type": "Redis", "url": "http://x", "poolMaxConection": 10,
            "timeout": 0 },
        "limits": { "maxEventBytes": true },
        "logLevel": "inof",
    }));
    let expected = [
        "listen: \"localhost:7420\" is not an IP address with a port",
        "coordinator.url: is not a usable Redis URL: the scheme must be one of redis, rediss",
        "coordinator.timeout: 0s is out of range: at least 1ms, at most 1h",
        "coordinator.poolMaxConection: is not known; did you mean poolMaxConnections?",
        "shards: 257 is out of range: at least 1, at most 256",
        "history.maxAge: \"5 minutes\" is not a duration",
        "limits.maxEventBytes: is a boolean; expected a size",
        "logLevel: \"inof\" is not one of off, error, warn, info, debug, trace; did you mean info?",
        "heartbeet: is not known; did you mean heartbeat?",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn an_unknown_key_gets_the_most_similar_one_suggested() {
    let cases = [
        (json!({ "lsten": 1 }), "lsten: is not known; did you mean listen?"),
        (json!({ "Listen": 1 }), "Listen: is not known; did you mean listen?"),
        (
            json!({ "history": { "max_age": 1 } }),
            "history.max_age: is not known; did you mean maxAge?",
        ),
        (json!({ "maxAge": 1 }), "maxAge: is not known; did you mean history.maxAge?"),
        (json!({ "url": 1 }), "url: is not known; did you mean coordinator.url?"),
        (
            json!({ "log": { "zzzz": 1 } }),
            "log.zzzz: is not known; known here: maxBytes, maxEvents",
        ),
        (
            json!({ "log": { "a.b": 1 } }),
            "log.\"a.b\": is not known; known here: maxBytes, maxEvents",
        ),
        (json!({ "log": { "": 1 } }), "log.\"\": is not known; known here: maxBytes, maxEvents"),
    ];
    for (document, expected) in cases {
        assert_eq!(error(&document), expected);
    }
    let line = error(&json!({ "xyz": 1 }));
    assert!(
        line.starts_with("xyz: is not known; known here: ") && line.contains("prefix"),
        "{line}"
    );
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    let cases = [
        (json!({ "listen": 7420 }), "listen: is a number; expected an IP address with a port"),
        (json!({ "shards": "4" }), "shards: is a string; expected a whole number"),
        (json!({ "shards": 4.5 }), "shards: is a number with a fraction; expected a whole number"),
        (json!({ "shards": -1 }), "shards: -1 is out of range"),
        (json!({ "heartbeat": [] }), "heartbeat: is an array; expected a duration"),
        (json!({ "heartbeat": "15" }), "heartbeat: \"15\" is not a duration"),
        (
            json!({ "heartbeat": 1500.5 }),
            "heartbeat: is a number with a fraction; expected a duration",
        ),
        (json!({ "history": 5 }), "history: is a number; expected an object"),
        (json!({ "history": { "maxBytes": "64M" } }), "history.maxBytes: \"64M\" is not a size"),
        (json!({ "logFormat": 1 }), "logFormat: is a number; expected a string"),
        (
            json!({ "logFormat": "jsn" }),
            "logFormat: \"jsn\" is not one of text, json; did you mean json?",
        ),
        (json!({ "prefix": {} }), "prefix: is an object; expected a string"),
        (
            json!({ "coordinator": { "@type": "RedisCluster", "readFromReplicas": "true" } }),
            "coordinator.readFromReplicas: is a string; expected true or false",
        ),
        (
            json!({ "coordinator": { "@type": "Redis", "url": 5 } }),
            "coordinator.url: is a number; expected a string",
        ),
        (json!([]), "the configuration: is an array; expected an object"),
        (json!(null), "the configuration: is null; expected an object"),
    ];
    for (document, expected) in cases {
        let line = error(&document);
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn the_two_listeners_need_different_ports() {
    let clash =
        |listen: &str, admin: &str| json!({ "listen": listen, "admin": admin, "insecure": true });
    for (listen, admin) in [
        ("127.0.0.1:7", "127.0.0.1:7"),
        ("0.0.0.0:7", "127.0.0.1:7"),
        ("127.0.0.1:7", "0.0.0.0:7"),
        ("[::]:7", "127.0.0.1:7"),
        ("[::1]:7", "[::]:7"),
    ] {
        let line = error(&clash(listen, admin));
        assert_eq!(line, format!("admin: {admin} is taken by listen, which is {listen}"));
    }
    for (listen, admin) in [
        ("127.0.0.1:7", "127.0.0.1:8"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:7", "127.0.0.2:7"),
        ("0.0.0.0:7", "[::1]:7"),
    ] {
        load(&clash(listen, admin));
    }
    let line = error(&json!({ "listen": "0.0.0.0:7421", "insecure": true }));
    assert!(line.starts_with("admin: 127.0.0.1:7421 is taken by listen"), "{line}");
    for (http, taken) in [
        (
            "127.0.0.1:7420",
            "http.listen: 127.0.0.1:7420 is taken by listen, which is 127.0.0.1:7420",
        ),
        (
            "127.0.0.1:7421",
            "http.listen: 127.0.0.1:7421 is taken by admin, which is 127.0.0.1:7421",
        ),
    ] {
        assert_eq!(error(&json!({ "http": { "listen": http } })), taken);
    }
    assert!(load(&json!({ "http": {} })).http.is_some());
    assert!(load(&json!({ "http": null })).http.is_none());
}

#[test]
fn origins_are_those_that_browsers_send() {
    for origin in ["https://mail.example.org", "http://localhost:8080", "http://[::1]:1"] {
        load(&json!({ "http": { "allowedOrigins": [origin] } }));
    }
    for origin in [
        "mail.example.org",
        "https://mail.example.org/",
        "https://Mail.example.org",
        "https://mail.example.org:443",
        "https://user@mail.example.org",
        "file:///page",
        "null",
        "*",
        "",
    ] {
        let line = error(&json!({ "http": { "allowedOrigins": [origin] } }));
        assert!(line.starts_with("http.allowedOrigins[0]: "), "{origin}: {line}");
        assert!(line.contains("is not an origin such as"), "{origin}: {line}");
    }
}

/// An object without a certificate sets no TLS: `"tls": {}` must not open a port in plain text.
#[test]
fn plain_text_beyond_this_machine_needs_to_be_asked_for() {
    let refused = "listen: 0.0.0.0:1 can be reached from other machines: anybody who reaches it";
    for document in [
        json!({ "listen": "0.0.0.0:1" }),
        json!({ "listen": "0.0.0.0:1", "tls": {} }),
        json!({ "listen": "0.0.0.0:1", "tls": { "clientCertificates": "optional" } }),
    ] {
        let line = error(&document);
        assert!(line.starts_with(refused), "{line}");
    }
    // Broken TLS is reported once.
    let broken = json!({ "listen": "0.0.0.0:1", "tls": { "certificate": "/no/such/file" } });
    let lines = errors(&broken);
    assert!(lines.iter().all(|line| line.starts_with("tls.")), "{lines:#?}");
    load(&json!({ "listen": "0.0.0.0:1", "insecure": true }));
    let line = error(&json!({ "http": { "listen": "0.0.0.0:1" } }));
    assert!(line.starts_with("http.listen: 0.0.0.0:1 can be reached from other"), "{line}");
    load(&json!({ "http": { "listen": "0.0.0.0:1" }, "insecure": true }));
    load(&json!({ "listen": "127.0.0.2:1" }));
}

#[test]
fn limits_and_drain_are_consistent() {
    let line = error(&json!({ "limits": { "maxRequestBytes": "32KiB" } }));
    let expected = "limits.maxRequestBytes: 32KiB is less than maxEventBytes, which is 64KiB";
    assert_eq!(line, expected);
    let line = error(&json!({ "drain": { "spread": "11s" } }));
    assert_eq!(line, "drain.spread: 11s is more than drain.timeout, which is 10s");
    // The default is lowered to the limit.
    assert_eq!(load(&json!({ "drain": { "timeout": "1s" } })).drain.spread.as_secs(), 1);
}

#[test]
fn prefix_and_gateway_id_are_checked() {
    for (document, expected) in [
        (
            json!({ "prefix": "" }),
            "prefix: its length of 0 is out of range: at least 1 byte, at most 64 bytes",
        ),
        (json!({ "prefix": "x".repeat(65) }), "prefix: its length of 65 is out of range"),
        (json!({ "prefix": "a{b}" }), "prefix: \"a{b}\" may hold letters, digits"),
        (json!({ "prefix": "a b" }), "prefix: \"a b\" may hold letters, digits"),
        (json!({ "prefix": "a\tb" }), "prefix: \"a\\tb\" may hold letters, digits"),
        (json!({ "prefix": "a\u{7f}" }), "prefix: \"a\\u{7f}\" may hold letters, digits"),
        (json!({ "prefix": "b\u{fc}ro" }), "prefix: \"b\u{fc}ro\" may hold letters, digits"),
        (json!({ "gatewayId": "" }), "gatewayId: its length of 0 is out of range"),
        (json!({ "gatewayId": "x".repeat(129) }), "gatewayId: its length of 129 is out of range"),
        (json!({ "gatewayId": "a b" }), "gatewayId: \"a b\" holds white space"),
        (json!({ "gatewayId": "a\n" }), "gatewayId: \"a\\n\" holds white space"),
    ] {
        let line = error(&document);
        assert!(line.starts_with(expected), "{line}");
    }
    load(&json!({ "prefix": "x".repeat(64), "gatewayId": "ü".repeat(64) }));
}

#[test]
fn log_levels_are_checked() {
    for level in ["off", "INFO", "info,redis=off", "a::b=trace", " info , x = debug "] {
        load(&json!({ "logLevel": level }));
    }
    for (level, expected) in [
        ("", "logLevel: \"\" is not one of off"),
        ("info,", "logLevel: \"\" is not one of off"),
        ("trunkline=dbg", "logLevel: \"dbg\" is not one of off"),
        ("verbose", "logLevel: \"verbose\" is not one of off"),
        ("=info", "logLevel: \"=info\" names no target"),
    ] {
        let line = error(&json!({ "logLevel": level }));
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn a_duplicate_key_is_reported_with_all_other_violations() {
    let text = r#"{
        "prefix": "a", "log": {"maxBytes": 1024, "maxBytes": 2048}, "prefix": "b", "x": 1,
        "coordinator": {"@type": "RedisCluster",
            "urls": {"redis://:hunter2@a": true, "redis://:hunter2@a": true}}}"#;
    let lines = load_text(text).unwrap_err();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert_eq!(lines[0], "log.maxBytes: occurs twice");
    assert_eq!(lines[1], "prefix: occurs twice");
    assert_eq!(lines[2], "coordinator.urls.a URL: occurs twice");
    assert!(lines[3].starts_with("x: is not known"), "{lines:#?}");
}

fn violations_of(text: &str) -> ConfigErrors {
    let file = super::file_of(text);
    let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    Config::load(&sources).unwrap_err()
}

#[test]
fn a_syntax_error_is_reported_with_line_and_column() {
    for (text, place, why) in [
        ("{\n  \"listen\": \"x\",\n}", (3, 1), "trailing comma"),
        ("{ \"listen\" \"x\" }", (1, 12), "expected `:`"),
        ("", (1, 0), "EOF while parsing a value"),
        ("{} {}", (1, 4), "trailing characters"),
        ("// none\n{}", (1, 1), "expected value"),
        ("{\"a\": 1e999}", (1, 11), "number out of range"),
    ] {
        let errors = violations_of(text);
        let [violation] = errors.violations() else { panic!("{errors}") };
        let Problem::Syntax { line, column, why: found } = &violation.problem else {
            panic!("{errors}")
        };
        assert_eq!(((*line, *column), found.as_str()), (place, why), "{text:?}");
    }
    let deep = "[".repeat(100_000);
    assert!(violations_of(&deep).to_string().contains("recursion limit exceeded"));
}

#[test]
fn an_unreadable_file_is_reported_and_the_other_sources_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.json");
    let sources = Sources {
        file: Some(missing.clone()),
        env: super::pairs(&[("TRUNKLINE_LISTN", "x")]),
        overrides: super::pairs(&[("prefx", "x")]),
    };
    let errors = Config::load(&sources).unwrap_err();
    let [file, flag, variable] = errors.violations() else { panic!("{errors}") };
    assert_eq!(file.path, missing.display().to_string());
    assert!(matches!(file.problem, Problem::Unreadable(_)), "{errors}");
    assert_eq!((flag.path.as_str(), &flag.origin), ("prefx", &Origin::Flag));
    assert_eq!(variable.path, "TRUNKLINE_LISTN");

    let sources = Sources { file: Some(folder.path().to_owned()), ..Sources::default() };
    assert!(Config::load(&sources).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn long_and_odd_text_is_reported_in_one_short_line() {
    let long = "x".repeat(100_000);
    let line = error(&json!({ "listen": format!("a\nb\u{1b}[31m{long}") }));
    assert!(line.starts_with("listen: \"a\\nb\\u{1b}[31m"), "{line}");
    assert!(line.len() < 400, "{}", line.len());
    let line = error(&json!({ "log": { (long): Value::Null } }));
    assert!(line.len() < 200, "{}", line.len());
}
