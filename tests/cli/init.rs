//! `trunkline init`: what it writes passes `check` and `doctor`, and a gateway starts with it.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    LIMIT, code, folder, run,
    support::{
        RedisOptions, RedisServer,
        gateway::trunkline,
        ports::Port,
        process::{Output, Process},
        until,
    },
};

/// Runs it for a file in a new folder, with answers if there are any.
async fn init(args: &[&str], answers: Option<&str>) -> (TempDir, String, Output) {
    let folder = folder::new();
    let file = folder.path().join("trunkline.json").display().to_string();
    let mut all = vec!["init", &file];
    all.extend(args);
    let program = match answers {
        Some(answers) => {
            all.extend(["--ask", "always"]);
            trunkline(all).stdin(answers)
        }
        None => trunkline(all),
    };
    let output = program.run(LIMIT).await;
    (folder, file, output)
}

fn read(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_writes_passes_check_and_doctor_and_serves() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let port = Port::free();
    let listen = format!("127.0.0.1:{}", port.number());
    let args = ["--redis", &redis.url(), "--listen", &listen, "--identity", "imap"];
    let (folder, file, output) = init(&args, None).await;
    let shown = output.success();
    assert!(shown.contains(&format!("trunkline serve --config {file}")), "{shown}");
    assert_eq!(read(&file)["coordinator"]["@type"], "Redis");
    run(["check", "--config", &file]).await.success();
    let token = folder.path().join("imap.token").display().to_string();
    let mode = std::fs::metadata(&token).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only its owner reads a token");

    let admin = Port::free();
    let admin = format!("127.0.0.1:{}", admin.number());
    let serve = trunkline(["serve", "--config", &file, "--admin", &admin]);
    let gateway = Process::start("gateway", serve);
    let status = async |token: &[&str]| {
        let args = [&["status", "--gateway", &listen][..], token].concat();
        trunkline(args).run(LIMIT).await
    };
    until(LIMIT, "the gateway serves", async || {
        status(&["--token-file", &token]).await.status.success()
    })
    .await;
    assert_eq!(code(&status(&[]).await), 3, "nobody without a token");
    let doctor = ["doctor", "--config", &file, "--admin", &admin, "--token-file", &token];
    let doctor = run(doctor).await;
    assert!(doctor.status.success(), "{}{}", doctor.stdout, doctor.stderr);
    drop(gateway);
}

#[tokio::test]
async fn answers_make_the_same_as_flags() {
    let cases: [(&str, Value); 5] = [
        ("\n\n\n", json!({ "listen": "127.0.0.1:7420" })),
        (
            "redis://10.0.0.1\n127.0.0.1\n\n",
            json!({ "listen": "127.0.0.1:7420",
                "coordinator": { "@type": "Redis", "url": "redis://10.0.0.1" } }),
        ),
        (
            "redis://a, redis://b\n\n127.0.0.1:1\n\n",
            json!({ "listen": "127.0.0.1:1", "coordinator":
                { "@type": "RedisCluster", "urls": ["redis://a", "redis://b"] } }),
        ),
        (
            "redis://a:1,redis://b:1\nmymaster\n\n\n",
            json!({ "listen": "127.0.0.1:7420", "coordinator": { "@type": "RedisSentinel",
                "urls": ["redis://a:1", "redis://b:1"], "masterName": "mymaster" } }),
        ),
        ("\n10.0.0.5\n\n\n", json!({ "listen": "10.0.0.5:7420", "insecure": true })),
    ];
    for (answers, expected) in cases {
        let (_folder, file, output) = init(&[], Some(answers)).await;
        output.success();
        assert_eq!(read(&file), expected, "{answers:?}");
    }
    // Too few answers: nothing is written.
    let (_folder, file, output) = init(&[], Some("redis://a\n")).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    assert!(!std::path::Path::new(&file).exists());
}

#[tokio::test]
async fn what_is_wrong_is_said_and_nothing_is_written_or_overwritten() {
    for (args, expected, why) in [
        (&["--listen", "nowhere"][..], 78, "listen: \"nowhere\" is not an IP address"),
        (&["--redis", "http://a"], 78, "coordinator.url"),
        (&["--redis", "redis://:secret@a"], 2, "--redis: a password does not belong"),
        (&["--cluster"], 2, "--cluster and --sentinel need --redis"),
        (&["--certificate", "a.pem"], 2, "--key"),
        (&["--certificate", "a.pem", "--key", "a.key"], 78, "tls.certificate"),
        (&["--identity", "../x"], 2, "--identity: \"../x\" names a file too"),
        (&["--identity", "a", "--identity", "a"], 2, "--identity: a is there twice"),
        (&["--redis", "redis://a", "--redis-secret-file", "/nowhere/x"], 78, "authSecret"),
    ] {
        let (folder, _, output) = init(args, None).await;
        assert_eq!(code(&output), expected, "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(why), "{args:?}: {}", output.stderr);
        assert!(!output.stderr.contains("secret@"), "{}", output.stderr);
        let left: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").collect();
        assert!(left.is_empty(), "{args:?}: {left:?}");
    }
    let (_folder, file, output) = init(&["--identity", "a"], None).await;
    output.success();
    let before = std::fs::read_to_string(&file).expect("a file");
    let again = run(["init", &file, "--listen", "127.0.0.1:1"]).await;
    assert_eq!(code(&again), 1);
    assert!(again.stderr.contains("exists: --force overwrites it"), "{}", again.stderr);
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), before);
    run(["init", &file, "--listen", "127.0.0.1:1", "--force"]).await.success();
    assert_eq!(read(&file)["listen"], "127.0.0.1:1");
}
