//! Secrets: their sources, and that no output shows them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{cluster, file_of, load_all};
use crate::config::{Config, Password, RedisUrl, Secret, SecretSource};

fn with_secret(secret: &Value) -> String {
    json!({ "coordinator": { "@type": "RedisCluster", "authSecret": secret } }).to_string()
}

fn secret_of(secret: &Value, env: &[(&str, &str)]) -> Result<Option<Secret>, Vec<String>> {
    load_all(&with_secret(secret), env, &[]).map(|config| match cluster(config).secret {
        Some(Password::Secret(secret)) => Some(secret),
        None => None,
        Some(other) => panic!("{other:?}"),
    })
}

fn error_of(secret: &Value, env: &[(&str, &str)]) -> String {
    let mut lines = secret_of(secret, env).unwrap_err();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines.remove(0)
}

#[test]
fn a_secret_of_type_none_is_none() {
    assert_eq!(secret_of(&json!({ "@type": "None" }), &[]).unwrap(), None);
    assert_eq!(secret_of(&json!(null), &[]).unwrap(), None);
}

#[test]
fn a_secret_value_is_taken_unchanged() {
    let secret = secret_of(&json!({ "@type": "Value", "secret": " s\n" }), &[]).unwrap().unwrap();
    assert_eq!((secret.expose(), secret.source()), (" s\n", &SecretSource::Value));
}

#[test]
fn a_secret_is_read_from_its_variable() {
    let named = json!({ "@type": "EnvironmentVariable", "variableName": "REDIS_PASSWORD" });
    let secret = secret_of(&named, &[("REDIS_PASSWORD", "hunter2")]).unwrap().unwrap();
    assert_eq!(secret.expose(), "hunter2");
    assert_eq!(*secret.source(), SecretSource::EnvironmentVariable("REDIS_PASSWORD".into()));
    let start = "coordinator.authSecret.variableName: ";
    let line = error_of(&named, &[]);
    assert_eq!(line, format!("{start}the variable \"REDIS_PASSWORD\" is not set"));
    let line = error_of(&named, &[("REDIS_PASSWORD", "")]);
    assert_eq!(line, format!("{start}the secret is empty"));
}

#[test]
fn a_secret_is_read_from_its_file_and_trimmed_at_its_end() {
    let of = |text: &str| {
        let file = file_of(text);
        let secret = json!({ "@type": "File", "filePath": file.path().to_str().unwrap() });
        secret_of(&secret, &[])
    };
    assert_eq!(of(" hunter2 \r\n\n").unwrap().unwrap().expose(), " hunter2");
    for (text, expected) in [
        (String::new(), "the secret is empty"),
        (" \n".to_owned(), "the secret is empty"),
        ("x".repeat(65_537), "is longer than 64KiB"),
    ] {
        let lines = of(&text).unwrap_err();
        assert!(lines[0].starts_with("coordinator.authSecret.filePath: "), "{lines:#?}");
        assert!(lines[0].ends_with(expected), "{lines:#?}");
    }
    assert_eq!(of(&"x".repeat(65_536)).unwrap().unwrap().expose().len(), 65_536);

    let file = file_of("");
    std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
    let binary = file.path().to_str().unwrap().to_owned();
    for path in ["/no/such/file", "/", &binary] {
        let line = error_of(&json!({ "@type": "File", "filePath": path }), &[]);
        assert!(line.contains(&format!("\"{path}\" cannot be read: ")), "{line}");
    }
}

#[test]
fn a_broken_secret_is_reported() {
    for (secret, expected) in [
        (json!({}), "coordinator.authSecret.@type: is missing: one of None, Value, Env"),
        (json!("hunter2"), "coordinator.authSecret: is a string; expected an object"),
        (
            json!({ "@type": "Vaule", "secret": "s" }),
            "coordinator.authSecret.@type: \"Vaule\" is not one of None, Value, \
             EnvironmentVariable, File, Command; did you",
        ),
        (json!({ "@type": "Value" }), "coordinator.authSecret.secret: is missing: the secret"),
        (
            json!({ "@type": "Value", "secret": "" }),
            "coordinator.authSecret.secret: the secret is empty",
        ),
        (
            json!({ "@type": "Value", "secret": 5 }),
            "coordinator.authSecret.secret: is a number; expected",
        ),
        (
            json!({ "@type": "Value", "secret": "*****" }),
            "coordinator.authSecret.secret: the secret is masked",
        ),
        (
            json!({ "@type": "EnvironmentVariable" }),
            "coordinator.authSecret.variableName: is missing: the name of a variable",
        ),
        (
            json!({ "@type": "File" }),
            "coordinator.authSecret.filePath: is missing: the path of a file",
        ),
        (
            json!({ "@type": "None", "secret": "s" }),
            "coordinator.authSecret.secret: is not known; known here: @type",
        ),
    ] {
        let line = error_of(&secret, &[]);
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn a_secret_is_displayed_as_a_mask() {
    let secret = Secret::new("hunter2");
    assert_eq!(format!("{secret:?} {secret}"), "Secret(***) ***");
}

#[test]
fn a_configuration_displays_no_secret() {
    let secret = json!({ "@type": "Value", "secret": "hunter2" });
    for coordinator in [
        json!({ "@type": "RedisCluster", "authSecret": secret, "urls": ["redis://u:hunter2@a"] }),
        json!({ "@type": "Redis", "url": "rediss://:hunter2@a:1/2#insecure" }),
        json!({ "@type": "Redis", "url": "unix:///x?pass=hunter2&user=u" }),
    ] {
        let config =
            load_all(&json!({ "coordinator": coordinator }).to_string(), &[], &[]).unwrap();
        for shown in [format!("{config:?}"), format!("{config:#?}"), config.effective().to_string()]
        {
            assert!(shown.contains("***") && !shown.contains("hunter2"), "{shown}");
        }
    }
}

/// Documents with a password where it is an error.
fn leaky_documents(password: &str) -> Vec<Value> {
    let url = format!("redis://user:{password}@host:6379/1");
    let bus = |kind: &str, key: &str, value: Value| {
        let bus = json!({ "@type": kind, key: value });
        json!({ "coordinator": bus })
    };
    vec![
        bus("Redis", "url", json!(url)),
        bus("Redis", "url", json!(format!("http://user:{password}@host"))),
        bus("Redis", "url", json!(format!("user:{password}@host:6379"))),
        bus("Redis", "url", json!(format!("unix:///x?pass={password}"))),
        bus("Redis", "url", json!(format!("redis://host?password={password}"))),
        bus("Redis", "url", json!(format!("redis://host/{password}"))),
        bus("Redis", "url", json!({ (url.clone()): true })),
        bus("Redis", "url", json!([url])),
        bus("Redis", &url, json!(true)),
        bus("RedisCluster", "urls", json!(url)),
        bus("RedisCluster", "urls", json!([url, url, 5])),
        bus("RedisCluster", "urls", json!({ (url.clone()): 5 })),
        bus("RedisCluster", "authSecret", json!(password)),
        bus("RedisCluster", "authSecret", json!([password])),
        bus("RedisCluster", "authSecret", json!({ "@type": "Value", "secret": [password] })),
        bus("RedisCluster", "authSecret", json!({ "@type": "Value", "secret": password, "x": 1 })),
        json!({ "coordinator": { "@type": url } }),
        json!({ "listen": url, "prefix": url, "logLevel": url, "logFormat": url, "shards": url }),
        json!({ "heartbeat": url, "log": { "maxBytes": url }, "gatewayId": format!("{url} x") }),
    ]
}

fn assert_no_leak(password: &str) {
    let url = format!("redis://user:{password}@host:6379/1");
    let shown =
        |text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]| match load_all(text, env, flags)
        {
            Ok(config) => format!("{config:?} {}", config.effective()),
            Err(lines) => lines.join("\n"),
        };
    for document in leaky_documents(password) {
        let shown = shown(&document.to_string(), &[], &[]);
        assert!(!shown.contains("S3CRET"), "{document}: {shown}");
    }
    let env = [("TRUNKLINE_COORDINATOR__URL", url.as_str()), ("TRUNKLINE_NONSENSE", password)];
    let shown = shown("{}", &env, &[("coordinator.url", &url), ("nonsense", password)]);
    assert!(!shown.contains("S3CRET"), "{shown}");
}

#[test]
fn no_stray_separator_reveals_a_password() {
    for separator in
        ["", "/", "?", "#", "@", ":", "%", "&", "=", ",", ".", " ", "\n", "\"", "\\", "[", "://"]
    {
        assert_no_leak(&format!("{separator}S3CRET"));
        assert_no_leak(&format!("S3CRET{separator}"));
        assert_no_leak(&format!("1{separator}S3CRET{separator}1"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_error_and_no_output_holds_a_password(odd in "[ -~]{0,6}", more in "[/?#@:%&= -~]{0,4}") {
        assert_no_leak(&format!("{odd}S3CRET{more}"));
    }

    #[test]
    fn a_percent_encoded_password_is_decoded_and_masked(password in "\\PC{1,12}") {
        prop_assume!(password.chars().any(|c| c != '*'));
        let encode = |text: String, byte| format!("{text}%{byte:02X}");
        let encoded = password.bytes().fold(String::new(), encode);
        for text in [
            format!("redis://user:{encoded}@host/3"),
            format!("unix:///run/redis.sock?db=3&pass={encoded}"),
        ] {
            let url = RedisUrl::parse(&text).unwrap();
            prop_assert_eq!(url.password().unwrap().expose(), &password);
            prop_assert_eq!(url.as_str_with_password(), &text);
            let shown = format!("{url} {url:?}");
            prop_assert!(shown.contains("***") && !shown.contains(&encoded), "{}", shown);
        }
    }
}

#[test]
fn the_default_configuration_has_no_secret() {
    assert!(!format!("{:?}", Config::default()).contains("Secret"));
}

#[test]
fn frame_keys_have_a_minimum_length_and_may_be_several() {
    let (one, two) = ("a".repeat(32), "b".repeat(40));
    let document = |key: &Value, bus: &str| {
        json!({ "coordinator": { "@type": bus }, "frameKey": key }).to_string()
    };
    let value = |secret: &str| json!({ "@type": "Value", "secret": secret });
    let load = |key: &Value, env: &[(&str, &str)]| load_all(&document(key, "Redis"), env, &[]);
    for keys in [one.clone(), format!("{one}\n{two}\n")] {
        let config = load(&value(&keys), &[]).unwrap();
        assert_eq!(config.frame_key.as_ref().map(Secret::expose), Some(keys.as_str()));
        assert!(!config.effective().to_string().contains(&one));
        assert!(!format!("{config:?}").contains(&one));
    }
    let named = json!({ "@type": "EnvironmentVariable", "variableName": "FRAME_KEY" });
    let config = load(&named, &[("FRAME_KEY", &one)]).unwrap();
    assert_eq!(config.effective()["frameKey"], named);
    assert_eq!(load(&json!({ "@type": "None" }), &[]).unwrap().frame_key, None);

    let short = format!("{one} {}", "c".repeat(31));
    let lines = load(&value(&short), &[]).unwrap_err();
    assert_eq!(lines, ["frameKey.@type: holds a key of 31 bytes; each has at least 32"]);
    for key in [value(&one), named] {
        let lines = load_all(&document(&key, "Embedded"), &[], &[]).unwrap_err();
        assert_eq!(lines, ["frameKey: has no effect: the bus is embedded, without Redis"]);
    }
}
