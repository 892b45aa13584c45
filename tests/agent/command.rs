//! `trunkline agent`, as a process.

use crate::support::{
    Gateway, GatewayOptions, LIMIT, gateway::trunkline, ports::Port, process::Process, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_command_serves_until_it_is_told_to_stop() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let port = Port::free();
    let address = format!("127.0.0.1:{}", port.number());
    let arguments = ["agent", "--listen", &address, "--gateway", &gateway.url()];
    let agent = Process::start("agent", trunkline(arguments));
    let client = redis::Client::open(format!("redis://{address}")).expect("a URL");
    until(LIMIT, "an agent that publishes", async || {
        let Ok(mut connection) = client.get_multiplexed_async_connection().await else {
            return false;
        };
        let mut publish = redis::cmd("PUBLISH");
        let publish = publish.arg("stwt.agora").arg(&b"\x05\x0c"[..]);
        publish.query_async::<i64>(&mut connection).await.is_ok()
    })
    .await;
    agent.signal("TERM");
    let (status, _) = agent.wait(LIMIT).await;
    assert!(status.success(), "{status}: {}", agent.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_password_the_command_listens_on_loopback_alone() {
    let agent = Process::start("agent", trunkline(["agent", "--listen", "0.0.0.0:0"]));
    let (status, _) = agent.wait(LIMIT).await;
    assert_eq!(status.code(), Some(2), "{status}");
    assert!(agent.stderr().contains("set a password for the agent"), "{}", agent.stderr());
}
