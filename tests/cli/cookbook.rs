//! Every command of docs/cookbook.md, as it stands there: those that publish succeed, and each that
//! subscribes prints something.

use serde_json::Value;

use super::{
    Gateway, GatewayOptions, LIMIT, folder, run,
    support::{gateway::binary, until},
};
use crate::support::process::{Process, Program};

/// The sections, each with its commands.
fn recipes() -> Vec<(&'static str, Vec<&'static str>)> {
    let text = include_str!("../../docs/cookbook.md");
    let sections = text.split("\n## ").skip(1);
    sections
        .map(|section| {
            let (title, body) = section.split_once('\n').expect("a title");
            (title, body.lines().filter_map(|line| line.strip_prefix("    ")).collect())
        })
        .collect()
}

/// The streams that are open.
async fn streams(gateway: &Gateway) -> u64 {
    let output = run(["status", "--json", "--gateway", &gateway.url()]).await;
    let status: Value = serde_json::from_str(&output.success()).expect("JSON");
    status["streams"].as_u64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_cookbook_does_what_it_says() {
    let recipes = recipes();
    assert!(recipes.len() >= 8, "{recipes:?}");
    let binaries = binary().parent().expect("a folder").display().to_string();
    let path = format!("{binaries}:{}", std::env::var("PATH").expect("a path"));
    for (title, commands) in recipes {
        let gateway = Gateway::start(GatewayOptions::embedded()).await;
        let place = folder::new();
        let shell = |command: &str| {
            // The shell becomes a command that does not end by itself, which ends with it then.
            let exec = if command.contains('|') { "" } else { "exec " };
            let script = format!("cd '{}'; {exec}{command}", place.path().display());
            Program::new("/bin/sh", ["-c".to_owned(), script])
                .env("PATH", &path)
                .env("TRUNKLINE_GATEWAY", gateway.url())
        };
        let mut subscribers = Vec::new();
        for command in commands {
            if command.starts_with("trunkline subscribe") {
                let before = streams(&gateway).await;
                subscribers.push((command, Process::start("subscribe", shell(command))));
                until(LIMIT, command, async || streams(&gateway).await > before).await;
                continue;
            }
            let output = shell(command).run(LIMIT).await;
            assert!(output.status.success(), "{title}: {command}: {}", output.stderr);
        }
        for (command, subscriber) in &subscribers {
            let what = format!("{title}: {command} prints");
            until(LIMIT, &what, async || !subscriber.stdout().trim().is_empty()).await;
        }
    }
}
