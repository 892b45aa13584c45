//! What operators see of agents and of the programs that they serve.

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::relay::{CHANNEL, Host};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, gateway::trunkline, ports::Port, process::Process, until,
};

async fn output(gateway: &Gateway, arguments: &[&str]) -> String {
    let program = trunkline(arguments.iter().copied());
    program.env("TRUNKLINE_GATEWAY", gateway.url()).run(LIMIT).await.success()
}

/// What an agent's admin port answers, with status and headers. None if nobody answers.
pub async fn admin(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

async fn publish(connection: &mut redis::aio::MultiplexedConnection, message: &[u8]) {
    let mut publish = redis::cmd("PUBLISH");
    let publish = publish.arg(CHANNEL).arg(message);
    let _: redis::RedisResult<i64> = publish.query_async(connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_top_and_page_show_agents_with_their_programs_and_healings() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::start("host-1", &gateway.url()).await;
    host.is_connected().await;
    let _node = host.subscribe("").await;
    let mut program = host.redis("").get_multiplexed_async_connection().await.expect("connected");
    publish(&mut program, &[5, 12, 10]).await;
    publish(&mut program, &[5, 99]).await;
    let mut status = String::new();
    until(LIMIT, "a report", async || {
        status = output(&gateway, &["status"]).await;
        status.contains("program   5 at 127.0.0.1:")
    })
    .await;
    for expected in [
        "agent     host-1 on this-host\n",
        "2 messages (2 events) published",
        "delivered to 1 subscribers",
        "1 messages undecodable, 0 events left out, 0 rejected, 0 given up",
        ", agora 0.16.19, 2 messages in ",
        "ago, it has subscribed: 1 program, with 0 accounts",
    ] {
        assert!(status.contains(expected), "{expected:?} in {status}");
    }
    let json = output(&gateway, &["status", "--json"]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let agent = &json["agents"][0]["agent"];
    assert_eq!((&agent["host"], &agent["publishedEvents"]), (&"this-host".into(), &"2".into()));
    assert_eq!(agent["programs"][0]["programId"], "5");
    let top = output(&gateway, &["top", "--once", "--interval", "0.1"]).await;
    assert!(top.contains("host-1  this-host  5 (0.16.19)"), "{top}");
    let page: Value = serde_json::from_str(&gateway.admin("/api/nodes").await).expect("JSON");
    let row = &page["agents"][0];
    assert_eq!((&row["nodeId"], &row["undecodable"]), (&"host-1".into(), &1.into()));
    let metrics = gateway.admin("/metrics").await;
    for expected in ["trunkline_agents 1\n", "trunkline_agent_programs 1\n"] {
        assert!(metrics.contains(expected), "{expected} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_with_one_id_on_one_host_are_told() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::start("host-1", &gateway.url()).await;
    let connect = || async { host.redis("").get_multiplexed_async_connection().await };
    let mut one = connect().await.expect("connected");
    let mut two = connect().await.expect("connected");
    for _ in 0..4 {
        publish(&mut one, &[5, 12]).await;
        publish(&mut two, &[5, 12]).await;
    }
    until(LIMIT, "a duplicate", async || {
        output(&gateway, &["status"]).await.contains("DUPLICATE: two processes use this id")
    })
    .await;
    drop(two);
    until(LIMIT, "one program", async || {
        let status = output(&gateway, &["status"]).await;
        status.contains("program   5 ") && !status.contains("DUPLICATE")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_an_admin_port_of_its_own() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let (listen, admin) = (Port::free(), Port::free());
    let address = |port: &Port| format!("127.0.0.1:{}", port.number());
    let (listen, admin) = (address(&listen), address(&admin));
    let url = gateway.url();
    let arguments = ["agent", "--listen", &listen, "--admin", &admin, "--gateway", &url];
    let _agent = Process::start("agent", trunkline(arguments));
    let starts = async |path: &str, status: &str| {
        self::admin(&admin, path).await.is_some_and(|answer| answer.starts_with(status))
    };
    until(LIMIT, "ready", async || starts("/readyz", "HTTP/1.1 200").await).await;
    let client = redis::Client::open(format!("redis://{listen}")).expect("a URL");
    let mut program = client.get_multiplexed_async_connection().await.expect("connected");
    gateway.kill_9();
    until(LIMIT, "not ready", async || starts("/readyz", "HTTP/1.1 503").await).await;
    assert!(starts("/livez", "HTTP/1.1 200").await);
    publish(&mut program, &[5, 12]).await;
    let metrics = self::admin(&admin, "/metrics").await.expect("an answer");
    for expected in [
        "trunkline_agent_connected 0\n",
        "trunkline_agent_published_messages_total 1\n",
        "trunkline_agent_waiting_events 1\n",
        "trunkline_agent_programs 1\n",
    ] {
        assert!(metrics.contains(expected), "{expected} in {metrics}");
    }
}
