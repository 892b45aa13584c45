//! Every command of docs/getting-started.md, as it stands there and in its order; only the ports
//! are others.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use super::{
    LIMIT, folder, run,
    support::{gateway::binary, ports::Port, tools, until},
};
use crate::support::process::{Process, Program};

const DOCUMENT: &str = include_str!("../../docs/getting-started.md");

/// The ports of the document.
const PORTS: [&str; 5] = ["6379", "7420", "7421", "7430", "7431"];

/// What the document says before a command that goes on until it is ended.
const STAYS: &str = "*(stays)*";

/// Where it asks its reader to end a gateway in the middle of a section.
const END_THE_SECOND: &str = "Now end the second gateway";

/// The streams of a gateway that serves its page on this port.
async fn streams(admin: &str) -> Option<u64> {
    let url = format!("http://127.0.0.1:{admin}/api/status");
    let output = Program::new(tools::curl(), ["-s", &url]).run(LIMIT).await;
    let status: Value = serde_json::from_str(&output.stdout).ok()?;
    if status["serving"] == true { status["streams"].as_u64() } else { None }
}

/// All streams of the gateways that are there.
async fn all_streams(ports: &BTreeMap<&str, String>) -> u64 {
    let mut sum = 0;
    for admin in ["7421", "7431"] {
        sum += streams(&ports[admin]).await.unwrap_or(0);
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_getting_started_does_what_it_says() {
    let leased = PORTS.map(|_| Port::free());
    let ports: BTreeMap<&str, String> =
        PORTS.into_iter().zip(leased.iter().map(|port| port.number().to_string())).collect();
    let place = folder::new();
    let binaries = binary().parent().expect("a folder").display().to_string();
    let redis = tools::redis_server().parent().expect("a folder").display().to_string();
    let path = format!("{binaries}:{redis}:{}", std::env::var("PATH").expect("a path"));
    let here = |command: &str| {
        // In two steps: one of the free ports may have another port in it.
        let (mut command, marked) = (command.to_owned(), |port: &str| format!("<{}>", &port[2..]));
        for port in PORTS {
            command = command.replace(port, &marked(port));
        }
        for (port, free) in &ports {
            command = command.replace(&marked(port), free);
        }
        let script = format!("cd '{}'; exec {command}", place.path().display());
        Program::new("/bin/sh", ["-c".to_owned(), script])
            .env("PATH", &path)
            .env("TRUNKLINE_GATEWAY", format!("127.0.0.1:{}", ports["7420"]))
    };
    let is_there = |process: &Process, what: &str| {
        if let Some(status) = process.ended() {
            panic!("{what}: {status}: {}", process.stderr());
        }
    };

    let mut redis = None;
    for section in DOCUMENT.split("\n## ").skip(1) {
        let (mut gateways, mut subscribers) = (Vec::new(), Vec::new());
        let (mut stays, mut published, mut commands) = (false, 0, 0);
        for line in section.lines() {
            let Some(command) = line.strip_prefix("    ") else {
                if line.starts_with(END_THE_SECOND) {
                    let second: Process = gateways.pop().expect("a second gateway");
                    second.signal("TERM");
                    assert!(second.wait(LIMIT).await.0.success(), "{}", second.stderr());
                }
                stays |= line.starts_with(STAYS);
                continue;
            };
            commands += 1;
            if !stays {
                let output = here(command).run(LIMIT).await;
                assert!(output.status.success(), "{command}: {output:?}");
                published += usize::from(command.starts_with("trunkline publish"));
                if command.starts_with("trunkline init") {
                    let written = fs::read_to_string(place.path().join("trunkline.json"));
                    let config: Value =
                        serde_json::from_str(&written.expect("a file")).expect("JSON");
                    // A service is started in another folder.
                    for key in ["certificate", "privateKey"] {
                        let path = Path::new(config["tls"][key].as_str().expect("a path"));
                        assert!(path.is_absolute(), "{path:?}");
                    }
                }
                continue;
            }
            stays = false;
            let before = all_streams(&ports).await;
            let mut program = here(command);
            if command.starts_with("trunkline serve") && !command.contains("--listen") {
                for (name, port) in [("TRUNKLINE_LISTEN", "7420"), ("TRUNKLINE_ADMIN", "7421")] {
                    program = program.env(name, format!("127.0.0.1:{}", ports[port]));
                }
            }
            let process = Process::start("started", program);
            if command.starts_with("trunkline serve") {
                let admin = if command.contains("7431") { "7431" } else { "7421" };
                until(LIMIT, command, async || {
                    is_there(&process, command);
                    streams(&ports[admin]).await.is_some()
                })
                .await;
                gateways.push(process);
            } else if command.starts_with("trunkline subscribe") {
                until(LIMIT, command, async || {
                    is_there(&process, command);
                    all_streams(&ports).await > before
                })
                .await;
                subscribers.push(process);
            } else {
                until(LIMIT, command, async || {
                    is_there(&process, command);
                    process.stdout().contains("Ready to accept connections")
                })
                .await;
                redis = Some(process);
            }
        }
        assert_eq!(commands > 0, published > 0 && !subscribers.is_empty(), "{section}");
        for subscriber in &subscribers {
            subscriber.stdout_lines(published, LIMIT).await;
        }
    }
    assert!(redis.is_some());
    let output = run(["status", "--gateway", &format!("127.0.0.1:{}", ports["7420"])]).await;
    assert!(!output.status.success(), "all gateways have ended");
}
