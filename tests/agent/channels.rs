//! Channels of other programs, which the agent carries as they are.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use prost::Message as _;
use tokio::time::timeout;
use trunkline::agent::{
    formats::{Format, Opaque},
    serve::Options,
};
use trunkline_proto::v1::{CustomEvent, event::Kind};

use crate::{
    relay::{Host, next},
    support::{Gateway, GatewayOptions, LIMIT, TestNode, gateway::trunkline, process::Process},
};

fn carrying(options: Options) -> Options {
    let channel = |name, healing: Option<&'static str>| -> Box<dyn Format> {
        Box::new(Opaque::new(name, healing.map(Into::into)).expect("a channel"))
    };
    let mut options = options;
    options.carry(channel("app:jobs", Some("read all"))).expect("a new channel");
    options.carry(channel("plain", None)).expect("a new channel");
    options
}

async fn subscribe(host: &Host, channel: &str) -> impl Stream<Item = Vec<u8>> + Unpin + use<> {
    let mut pubsub = host.redis("").get_async_pubsub().await.expect("connected");
    pubsub.subscribe(channel).await.expect("subscribed");
    pubsub.into_on_message().map(|message| message.get_payload_bytes().to_vec())
}

async fn publish(host: &Host, channel: &str, message: &[u8]) -> redis::RedisResult<i64> {
    let mut connection =
        host.redis("").get_multiplexed_async_connection().await.expect("connected");
    redis::cmd("PUBLISH").arg(channel).arg(message).query_async(&mut connection).await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_other_channels_are_carried_as_custom_events() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let url = gateway.url();
    let (first, second) =
        tokio::join!(Host::with("host-1", &url, carrying), Host::with("host-2", &url, carrying));
    let node = TestNode::connect(&gateway, "node").await;
    let observer = node.subscribe(node.request()).await;
    observer.subscribed().await;
    second.is_connected().await;
    let mut jobs = subscribe(&second, "app:jobs").await;
    let mut plain = subscribe(&second, "plain").await;
    // The operator's message for a program that may have missed some.
    assert_eq!(next(&mut jobs).await, b"read all");

    let bytes = b"\x00\xff not a text";
    assert_eq!(publish(&first, "app:jobs", bytes).await.expect("answered"), 0);
    assert_eq!(publish(&first, "plain", b"").await.expect("answered"), 0);
    // What begins a healing is given to all who subscribed before; nothing heals the other one.
    loop {
        let message = next(&mut jobs).await;
        if message != b"read all" {
            assert_eq!(message, bytes);
            break;
        }
    }
    assert_eq!(next(&mut plain).await, b"");
    let recording = observer.events(2, LIMIT).await;
    let Some(Kind::Custom(event)) = &recording.events[0].kind else { panic!("{recording:?}") };
    assert_eq!(event.r#type, "redis/app_jobs");
    assert_eq!(event.labels["channel"], "app:jobs");
    let payload = event.payload.clone().expect("a payload");
    assert_eq!(Vec::<u8>::decode(&*payload.value).expect("bytes"), bytes);

    // The other way, and to the channel that it names alone.
    let event = CustomEvent {
        payload: Some(prost_types::Any {
            type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
            value: "wake up".to_owned().encode_to_vec(),
        }),
        ..event.clone()
    };
    node.publish(vec![Kind::from(event).into()]).await.expect("published");
    assert_eq!(next(&mut jobs).await, b"wake up");
    let more = timeout(Duration::from_millis(100), plain.next()).await;
    assert!(more.is_err(), "{more:?}");
    // One that no channel has is left out.
    assert_eq!(
        second.agent.counters().left_out_events.load(std::sync::atomic::Ordering::Relaxed),
        0
    );

    let error = publish(&first, "app:other", b"x").await.expect_err("refused").to_string();
    assert!(error.contains("'app:other' is not carried by this agent"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_are_named_by_flags_or_in_a_file() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("agent.sock");
    let file = folder.path().join("agent.json");
    let keys = serde_json::json!({
        "listen": format!("unix:{}", socket.display()),
        "gateway": gateway.url(),
        "carry": ["app:jobs=read all", "plain"],
    });
    std::fs::write(&file, keys.to_string()).expect("written");
    let file = file.display().to_string();
    let agent = Process::start("agent", trunkline(["agent", "--config", &file]));
    let client = redis::Client::open(format!("unix://{}", socket.display())).expect("a URL");
    crate::support::until(LIMIT, "an agent that has the channels", async || {
        assert!(agent.ended().is_none(), "{}", agent.stderr());
        let Ok(mut pubsub) = client.get_async_pubsub().await else { return false };
        pubsub.subscribe(&["app:jobs", "plain"]).await.expect("subscribed");
        let message = pubsub.into_on_message().next().await.expect("a message");
        assert_eq!(message.get_channel_name(), "app:jobs");
        message.get_payload_bytes() == b"read all"
    })
    .await;
    let wrong = trunkline(["agent", "--carry", "a", "--carry", "a", "--config", &file]);
    let wrong = wrong.run(LIMIT).await;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stderr.contains("--carry a: this channel is carried already"), "{wrong:?}");
}
