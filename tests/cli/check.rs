//! `trunkline check` and `trunkline config`.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{code, run};
use crate::support::{
    LIMIT, folder,
    gateway::trunkline,
    process::{Output, Program},
};

/// A configuration file, and the folder that contains it.
fn file(config: &Value) -> (TempDir, String) {
    let folder = folder::new();
    let path = folder.path().join("trunkline.json");
    std::fs::write(&path, config.to_string()).expect("a file");
    let path = path.display().to_string();
    (folder, path)
}

async fn check(config: Value) -> Output {
    let (_folder, path) = file(&config);
    run(["check", "--config", &path]).await
}

/// The lines of the errors, without the name of the program.
fn error_lines(output: &Output) -> Vec<&str> {
    output.stderr.lines().map(|line| line.strip_prefix("trunkline: ").unwrap_or(line)).collect()
}

#[tokio::test]
async fn the_effective_configuration_is_printed_and_can_be_loaded() {
    let effective = run(["check"]).await.success();
    let effective: Value = serde_json::from_str(&effective).expect("JSON");
    assert_eq!(effective["listen"], "127.0.0.1:7420");
    assert_eq!(effective["coordinator"], json!({ "@type": "Embedded" }));
    let again = check(effective.clone()).await.success();
    assert_eq!(serde_json::from_str::<Value>(&again).expect("JSON"), effective);
}

#[tokio::test]
async fn all_errors_are_reported_at_once_one_line_each() {
    let output = check(json!({
        "listn": "127.0.0.1:1",
        "shards": 0,
        "coordinator": { "@type": "RedisCluster", "urls": [], "poolMaxConections": 1,
            "minReplicas": 17 },
    }))
    .await;
    assert_eq!(code(&output), 78);
    assert_eq!(output.stdout, "", "nothing is printed");
    let lines = error_lines(&output);
    let expected = [
        "coordinator.urls: is missing",
        "coordinator.minReplicas: 17 is out of range: at least 0, at most 16",
        "coordinator.poolMaxConections: is not known; did you mean poolMaxConnections?",
        "shards: 0 is out of range: at least 1, at most 256",
        "listn: is not known; did you mean listen?",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
    assert!(output.stderr.lines().all(|line| line.starts_with("trunkline: ")), "{}", output.stderr);
}

#[tokio::test]
async fn secrets_are_masked_whatever_their_source() {
    let (_folder, path) = file(&json!({ "coordinator": {
        "@type": "RedisCluster", "urls": ["rediss://u:hunter2@a", "rediss://u:hunter2@b"],
        "authSecret": { "@type": "EnvironmentVariable", "variableName": "REDIS_PASSWORD" } } }));
    let masked = trunkline(["check", "--config", &path]).env("REDIS_PASSWORD", "hunter3");
    let shown = masked.run(LIMIT).await.success();
    assert!(!shown.contains("hunter"), "{shown}");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["coordinator"]["urls"][1], "rediss://u:***@b");
    assert_eq!(shown["coordinator"]["authSecret"]["variableName"], "REDIS_PASSWORD");

    for url in [
        "redis://:hunter2@a",
        "valkeys://u:hunter2@a:1/2?protocol=resp2#insecure",
        "unix:///s?pass=hunter2",
    ] {
        let output = trunkline(["check"]).env("TRUNKLINE_REDIS", url).run(LIMIT).await.success();
        assert!(output.contains("***") && !output.contains("hunter2"), "{output}");
    }
    // In errors too.
    for url in ["redis://:hunter2@a/x", "http://u:hunter2@a", "redis://:hunter2@a b"] {
        let output = trunkline(["check"]).env("TRUNKLINE_REDIS", url).run(LIMIT).await;
        assert_eq!(code(&output), 78);
        assert!(!output.stderr.contains("hunter2"), "{}", output.stderr);
    }
}

#[tokio::test]
async fn a_secret_is_read_from_a_file_or_the_environment_and_refused_on_the_command_line() {
    let folder = folder::new();
    let path = folder.path().join("url").display().to_string();
    std::fs::write(&path, "redis://:hunter2@a/3\n").expect("a file");
    let shown = run(["check", "--redis-file", &path]).await.success();
    assert!(shown.contains("redis://:***@a/3"), "{shown}");
    for args in [
        ["--redis", "redis://:hunter2@a"],
        ["--redis", "redis://hunter2@a"],
        ["--redis", "redis://:hunter2@a b"],
        ["--redis", "unix:///s?pass=hunter2"],
        ["--set", "coordinator.url=rediss://u:hunter2@a"],
        ["--set", "coordinator.authSecret.secret=hunter2"],
        ["--set", "hunter2"],
    ] {
        let output = run(["check", args[0], args[1]]).await;
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(!output.stderr.contains("hunter2"), "{}", output.stderr);
    }
    let output = run(["check", "--redis-file", "/no/such/file"]).await;
    assert_eq!(code(&output), 2);
}

#[tokio::test]
async fn the_environment_and_the_flags_override_the_file() {
    let (_folder, path) = file(&json!({ "prefix": "file", "shards": 1, "heartbeat": "1s" }));
    let program = trunkline(["check", "--set", "heartbeat=3s"])
        .env("TRUNKLINE_CONFIG", &path)
        .env("TRUNKLINE_SHARDS", "2")
        .env("TRUNKLINE_HEARTBEAT", "2s");
    let shown: Value = serde_json::from_str(&program.run(LIMIT).await.success()).expect("JSON");
    let found = [&shown["prefix"], &shown["shards"], &shown["heartbeat"]];
    assert_eq!(found, [&json!("file"), &json!(2), &json!("3s")]);
    // An error names the source of the value.
    let program = trunkline(["check", "--set", "heartbeat=x"])
        .env("TRUNKLINE_CONFIG", &path)
        .env("TRUNKLINE_SHARDS", "0")
        .env("TRUNKLINE_PREFX", "x");
    let output = program.run(LIMIT).await;
    assert_eq!(code(&output), 78);
    for expected in [
        "shards (from TRUNKLINE_SHARDS): ",
        "heartbeat (from the command line): ",
        "TRUNKLINE_PREFX: is not known; did you mean TRUNKLINE_PREFIX?",
    ] {
        assert!(output.stderr.contains(expected), "{expected}: {}", output.stderr);
    }
}

#[tokio::test]
async fn variants_that_cannot_be_used_are_refused_with_the_reason() {
    for (config, expected) in [
        (
            json!({ "coordinator": { "@type": "Disabled" } }),
            "coordinator.@type: is Disabled: there is nothing to do without a bus",
        ),
        (
            json!({ "coordinator": { "@type": "Default" } }),
            "coordinator.@type: is Default, which uses the Redis of inMemoryStore, and there is \
             none",
        ),
        (
            json!({ "coordinator": { "@type": "Default" },
                "inMemoryStore": { "@type": "Default" } }),
            "inMemoryStore.@type: \"Default\" cannot be shared",
        ),
        (
            json!({ "coordinator": { "@type": "Nats" } }),
            "coordinator.@type: \"Nats\" is not one of",
        ),
        (json!({ "prefix": "a{b}" }), "prefix: \"a{b}\" may hold letters"),
        (json!({ "prefix": "a b" }), "prefix: "),
        (json!({ "prefix": "a\u{7}" }), "prefix: "),
    ] {
        let output = check(config).await;
        assert_eq!(code(&output), 78, "{expected}");
        let lines = error_lines(&output);
        assert!(lines.len() == 1 && lines[0].starts_with(expected), "{lines:#?}");
    }
    let shared = json!({ "coordinator": { "@type": "Default" },
        "inMemoryStore": { "@type": "Redis", "url": "valkey://10.0.0.1" } });
    let shown: Value = serde_json::from_str(&check(shared).await.success()).expect("JSON");
    assert_eq!(shown["coordinator"]["@type"], "Redis");
}

#[tokio::test]
async fn a_missing_or_broken_file_is_reported() {
    let output = run(["check", "--config", "/no/such/file.json"]).await;
    assert_eq!(code(&output), 78);
    assert!(output.stderr.contains("/no/such/file.json"), "{}", output.stderr);

    let folder = folder::new();
    let path = folder.path().join("trunkline.json");
    std::fs::write(&path, "{\n  \"listen\": ,\n}").expect("a file");
    let output = run(["check", "--config", &path.display().to_string()]).await;
    assert_eq!(code(&output), 78);
    assert!(output.stderr.contains("line 2"), "{}", output.stderr);
}

#[tokio::test]
async fn config_show_prints_what_check_prints() {
    let (key, url) = ("gatewayId=mx1", "redis://:hunter2@10.0.0.1");
    let with_url = |program: Program| program.env("TRUNKLINE_REDIS", url);
    let check = with_url(trunkline(["check", "--set", key])).run(LIMIT).await.success();
    let show = with_url(trunkline(["config", "show", "--set", key])).run(LIMIT).await.success();
    assert_eq!(show, check);
    assert!(show.contains("redis://:***@10.0.0.1"), "{show}");
}

#[tokio::test]
async fn config_schema_prints_a_schema_that_names_every_key_of_the_effective_configuration() {
    let schema = run(["config", "schema"]).await.success();
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["additionalProperties"], false);
    let effective = run(["check"]).await.success();
    let effective: Value = serde_json::from_str(&effective).expect("JSON");
    for key in effective.as_object().expect("an object").keys() {
        assert!(schema["properties"][key]["description"].is_string(), "{key}");
    }
}

#[tokio::test]
async fn the_help_of_a_flag_has_the_default_of_its_key() {
    let help = run(["serve", "--help"]).await.success();
    for default in ["[default: 127.0.0.1:7420]", "[default: 127.0.0.1:7421]"] {
        assert!(help.contains(default), "{help}");
    }
}
