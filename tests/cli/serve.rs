//! `trunkline serve`.

use std::time::Duration;

use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{code, run, to};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer,
    gateway::{binary, trunkline},
    ports::Port,
    process::Process,
    shared, tools, until,
};

/// The commands to try that a gateway prints, without indentation.
fn hints(stderr: &str) -> Vec<String> {
    let (_, rest) = stderr.split_once("Try:\n").expect("commands to try");
    rest.lines().take(3).map(|line| line.trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_commands_to_try_work() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let stderr = gateway.stderr();
    let first =
        format!("Trunkline {} listens on {}. Try:", env!("CARGO_PKG_VERSION"), gateway.address());
    assert!(stderr.starts_with(&first), "{stderr}");
    let hints = hints(&stderr);
    let [grpcurl, subscribe, publish] = &hints[..] else { panic!("{stderr}") };

    // Each line unchanged in a shell.
    let shell = |line: &str| {
        let path = format!(
            "{}:{}",
            tools::grpcurl().parent().expect("a folder").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        crate::support::process::Program::new("sh", ["-c", line]).env("PATH", path)
    };
    assert!(grpcurl.starts_with("grpcurl -plaintext "), "{grpcurl}");
    let listed = shell(grpcurl).run(LIMIT).await.success();
    assert!(listed.contains("trunkline.v1.CoordinationService"), "{listed}");
    assert!(subscribe.starts_with(&format!("{} subscribe ", binary().display())), "{subscribe}");
    let subscriber =
        Process::start("subscribe", shell(&format!("{subscribe} --heartbeats --max-events 1")));
    subscriber.stderr_has("subscriptionId", LIMIT).await;
    shell(publish).run(LIMIT).await.success();
    let (status, _) = subscriber.wait(LIMIT).await;
    assert!(status.success(), "{status}");
    assert!(subscriber.stdout().contains("\"mailboxChange\""), "{}", subscriber.stdout());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_commands_of_a_gateway_on_all_addresses_use_loopback() {
    let port = Port::free();
    let options = GatewayOptions::embedded()
        .set("listen", format!("0.0.0.0:{}", port.number()))
        .set("insecure", true)
        .ready(Ready::Started);
    let gateway = Gateway::start(options).await;
    gateway.stderr_has("mailbox-change", LIMIT).await;
    let stderr = gateway.stderr();
    assert!(stderr.contains(&format!("listens on 0.0.0.0:{}", port.number())), "{stderr}");
    let reachable = format!("127.0.0.1:{}", port.number());
    assert!(hints(&stderr).iter().all(|line| line.contains(&reachable)), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_command_it_serves_as_the_environment_says() {
    let (listen, admin) = (Port::free(), Port::free());
    let address = |port: &Port| format!("127.0.0.1:{}", port.number());
    let folder = crate::support::folder::new();
    let file = folder.path().join("trunkline.json");
    std::fs::write(&file, json!({ "listen": address(&listen) }).to_string()).expect("a file");
    let program = trunkline::<String>([])
        .env("TRUNKLINE_CONFIG", file.display().to_string())
        .env("TRUNKLINE_ADMIN", address(&admin))
        // A variable of the other commands.
        .env("TRUNKLINE_GATEWAY", address(&listen));
    let process = Process::start("trunkline", program);
    process.stderr_has(&format!("listens on {}", address(&listen)), LIMIT).await;
    until(LIMIT, "it serves", async || {
        trunkline(["status", "--gateway", &address(&listen)]).run(LIMIT).await.status.success()
    })
    .await;
    process.signal("TERM");
    assert!(process.wait(LIMIT).await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_needs_one_flag() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let mut options = GatewayOptions::embedded();
    options.args = vec!["--redis".into(), redis.url(), "--set".into(), format!("prefix={prefix}")];
    let gateway = Gateway::start(options).await;
    let status = to(&gateway, ["status"]).run(LIMIT).await.success();
    assert!(status.contains("bus       redis\n"), "{status}");
    let keys = redis.cli(&["KEYS", "*"]).await;
    assert!(keys.lines().all(|key| key.starts_with(&prefix)) && !keys.is_empty(), "{keys}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_overrides_a_variable_and_a_variable_the_file() {
    let file = Port::free();
    let [variable, flag] = [Port::free(), Port::free()].map(|port| (port.number(), port));
    let mut options = GatewayOptions::embedded()
        .set("listen", format!("127.0.0.1:{}", file.number()))
        .ready(Ready::Started);
    options.env = vec![("TRUNKLINE_LISTEN".into(), format!("127.0.0.1:{}", variable.0))];
    let by_variable = Gateway::start(options.clone()).await;
    by_variable.stderr_has(&format!("listens on 127.0.0.1:{}.", variable.0), LIMIT).await;
    drop(by_variable);
    options.args = vec!["--listen".into(), format!("127.0.0.1:{}", flag.0)];
    let by_flag = Gateway::start(options).await;
    by_flag.stderr_has(&format!("listens on 127.0.0.1:{}.", flag.0), LIMIT).await;
}

#[tokio::test]
async fn a_wrong_configuration_exits_with_78_before_listening() {
    for (args, expected) in [
        (["--set", "coordinator.@type=Disabled"], "there is nothing to do"),
        (["--set", "coordinator.@type=Default"], "inMemoryStore"),
        (["--redis", "http://127.0.0.1"], "coordinator.url"),
        (["--listen", "localhost"], "an IP address with a port"),
        (["--set", "prefx=x"], "did you mean prefix?"),
        (["--config", "/no/such/file.json"], "/no/such/file.json"),
    ] {
        let output = run(["serve", args[0], args[1]]).await;
        assert_eq!(code(&output), 78, "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(expected), "{args:?}: {}", output.stderr);
        assert!(!output.stderr.contains("listens on"), "{args:?}: {}", output.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_reported() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let output = run(["serve", "--listen", &gateway.address(), "--set", "admin=null"]).await;
    assert_eq!(code(&output), 1, "{}", output.stderr);
    let expected = format!("listen: cannot listen on {}", gateway.address());
    assert!(output.stderr.contains(&expected), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_redis_a_gateway_waits_and_does_not_exit() {
    let (_port, address) = super::unused_address();
    let options = GatewayOptions::redis(&format!("redis://{address}"), &shared::prefix());
    let gateway = Gateway::start(options.ready(Ready::Listening)).await;
    gateway.health_is("", ServingStatus::NotServing, LIMIT).await;
    let output = to(&gateway, ["status"]).run(LIMIT).await;
    assert_eq!(code(&output), 69, "{}", output.stderr);
    assert!(output.stdout.contains("NOT SERVING: "), "{}", output.stdout);
    let ended = gateway.terminate(Duration::from_secs(5)).await;
    assert!(ended.status.success(), "{}", ended.status);
}
