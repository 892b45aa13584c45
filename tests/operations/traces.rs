//! Traces of events through gateways: the spans that a collector gets, from real gateways over a
//! real Redis.

// A test states what it expects by unwrapping it.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, SharedCluster, SharedRedis,
    TestNode,
    events::{mailbox_change, numbered, with_id},
    shared,
    wait::{eventually, until},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, status::StatusCode},
};
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use trunkline_proto::v1::{Event, SubscribeRequest};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A span, and its sender.
#[derive(Clone, Debug)]
struct Received {
    service: String,
    gateway: String,
    span: Span,
}

/// A collector that keeps the spans that it gets.
#[derive(Clone, Default)]
struct Collector {
    received: Arc<Mutex<Vec<Received>>>,
    secrets: Arc<Mutex<BTreeSet<String>>>,
    /// It never answers.
    hangs: bool,
    /// It rejects all spans but one of each request.
    rejects: bool,
}

/// A collector that listens; it ends with the test.
struct Listening {
    collector: Collector,
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.clone()).and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key}: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let secret = request.metadata().get("api-key").map(|value| value.to_str().unwrap().into());
        self.secrets.lock().extend(secret);
        let before = self.received.lock().len();
        for part in request.into_inner().resource_spans {
            let resource = part.resource.unwrap().attributes;
            for span in part.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let service = text(&resource, "service.name");
                let gateway = text(&resource, "service.instance.id");
                self.received.lock().push(Received { service, gateway, span });
            }
        }
        let mut response = ExportTraceServiceResponse::default();
        if self.rejects {
            let spans = i64::try_from(self.received.lock().len() - before).unwrap();
            let error_message = "too many".to_owned();
            response.partial_success =
                Some(ExportTracePartialSuccess { rejected_spans: spans - 1, error_message });
        }
        Ok(Response::new(response))
    }
}

impl Listening {
    async fn start(collector: Collector) -> Listening {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Listening::on(listener, collector)
    }

    fn on(listener: TcpListener, collector: Collector) -> Listening {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(collector.clone());
        let server = Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Listening { collector, url, task }
    }

    /// The spans of a name, once there are `count`.
    async fn spans(&self, name: &str, count: usize) -> Vec<Received> {
        let what = format!("{count} spans {name}");
        eventually(LIMIT, &what, async || {
            let received = self.collector.received.lock();
            let found: Vec<_> =
                received.iter().filter(|received| received.span.name == name).cloned().collect();
            (found.len() >= count).then_some(found)
        })
        .await
    }

    fn count(&self) -> usize {
        self.collector.received.lock().len()
    }
}

fn otlp(url: &str) -> Json {
    let secret = json!({ "@type": "Value", "secret": "hunter2" });
    json!({ "endpoint": url, "timeout": "500ms", "header": "api-key", "headerSecret": secret })
}

async fn gateway(redis: &SharedRedis, id: &str, otlp: &Json) -> Gateway {
    gateway_on(GatewayOptions::redis(&redis.url, &redis.prefix), id, otlp).await
}

async fn gateway_on(bus: GatewayOptions, id: &str, otlp: &Json) -> Gateway {
    Gateway::start(bus.set("gatewayId", id).set("otlp", otlp.clone())).await
}

fn traced(id: &str, flags: &str) -> Event {
    let traceparent = format!("00-{TRACE}-{PARENT}-{flags}");
    Event { traceparent, ..with_id(id, mailbox_change("a", 1)) }
}

/// True if a span has not failed.
fn succeeded(span: &Span) -> bool {
    span.status
        .as_ref()
        .is_none_or(|status| status.code() == StatusCode::Unset && status.message.is_empty())
}

/// A metric without labels.
async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let url = gateway.admin_address();
    let mut stream = tokio::net::TcpStream::connect(&url).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {url}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_traced_from_its_publish_to_its_delivery_by_another_gateway() {
    let collector = Listening::start(Collector::default()).await;
    let redis = SharedRedis::get().await;
    let otlp = otlp(&collector.url);
    let (one, two) = tokio::join!(gateway(&redis, "gw-1", &otlp), gateway(&redis, "gw-2", &otlp));
    let subscriber = TestNode::connect(&two, "subscriber").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    publisher.publish(vec![traced("traced", "01")]).await.unwrap();
    stream.event("traced", LIMIT).await;

    let publish = &collector.spans("trunkline.v1.CoordinationService/Publish", 1).await[0];
    let append = &collector.spans("append", 1).await[0];
    let deliver = &collector.spans("deliver", 1).await[0];
    for (received, gateway) in [(publish, "gw-1"), (append, "gw-1"), (deliver, "gw-2")] {
        assert_eq!((received.gateway.as_str(), received.service.as_str()), (gateway, "trunkline"));
        assert_eq!(hex(&received.span.trace_id), TRACE);
        assert_eq!(hex(&received.span.parent_span_id), PARENT, "what the publisher named");
        assert!(succeeded(&received.span) && received.span.links.is_empty());
        assert!(received.span.start_time_unix_nano <= received.span.end_time_unix_nano);
    }
    let ids: BTreeSet<_> =
        [publish, append, deliver].map(|received| hex(&received.span.span_id)).into();
    assert_eq!(ids.len(), 3);
    assert_eq!(text(&publish.span.attributes, "trunkline.node_id"), "publisher");
    assert_eq!(text(&deliver.span.attributes, "trunkline.node_id"), "subscriber");
    assert_eq!(text(&append.span.attributes, "trunkline.offset"), "1");
    assert_eq!(collector.collector.secrets.lock().iter().collect::<Vec<_>>(), ["hunter2"]);

    // Neither an event without a context nor one that is not sampled makes a span, nor does
    // anything else.
    publisher.publish(vec![traced("unsampled", "00")]).await.unwrap();
    publisher.publish(vec![with_id("untraced", mailbox_change("a", 1))]).await.unwrap();
    let marker = Event {
        traceparent: traced("", "01").traceparent.replace('4', "5"),
        ..traced("marker", "01")
    };
    publisher.publish(vec![marker]).await.unwrap();
    stream.event("marker", LIMIT).await;
    collector.spans("deliver", 2).await;
    collector.spans("append", 2).await;
    collector.spans("trunkline.v1.CoordinationService/Publish", 2).await;
    assert_eq!(collector.count(), 6);
    until(LIMIT, "each span counts as exported", async || {
        metric(&one, "trunkline_trace_spans_exported_total").await == 4
            && metric(&two, "trunkline_trace_spans_exported_total").await == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_request_are_traced_over_all_shards_of_a_cluster() {
    let collector = Listening::start(Collector::default()).await;
    let cluster = SharedCluster::get().await;
    let otlp = otlp(&collector.url);
    let bus = || GatewayOptions::redis_cluster(&cluster.urls, &cluster.prefix);
    let (one, two) =
        tokio::join!(gateway_on(bus(), "gw-1", &otlp), gateway_on(bus(), "gw-2", &otlp));
    let subscriber = TestNode::connect(&two, "subscriber").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let traceparent = traced("", "01").traceparent;
    let events = numbered("e", 60, 60)
        .into_iter()
        .map(|event| Event { traceparent: traceparent.clone(), ..event })
        .collect();
    let positions = publisher.publish(events).await.unwrap();
    let shards: BTreeSet<_> = positions.iter().map(|position| position.shard.to_string()).collect();
    assert!(shards.len() > 6, "more shards than servers are in use: {shards:?}");
    stream.events(60, LIMIT).await;

    // One for the request, one for the frame of each shard, one for each event.
    let published = collector.spans("trunkline.v1.CoordinationService/Publish", 1).await;
    let appended = collector.spans("append", shards.len()).await;
    let delivered = collector.spans("deliver", 60).await;
    assert_eq!((published.len(), delivered.len()), (1, 60));
    let named: BTreeSet<_> = appended
        .iter()
        .map(|received| text(&received.span.attributes, "trunkline.shard"))
        .collect();
    assert_eq!(named, shards);
    for (spans, gateway) in [(published, "gw-1"), (appended, "gw-1"), (delivered, "gw-2")] {
        for received in spans {
            assert_eq!(
                (received.gateway.as_str(), hex(&received.span.trace_id)),
                (gateway, TRACE.into())
            );
            assert!(succeeded(&received.span), "{received:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_append_of_events_of_many_traces_is_linked_to_them() {
    let collector = Listening::start(Collector::default()).await;
    let options = GatewayOptions::embedded().set("otlp", otlp(&collector.url));
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let events = (1..=40)
        .map(|n| Event { traceparent: format!("00-{n:032x}-{PARENT}-01"), ..traced("e", "01") })
        .collect();
    node.publish(events).await.unwrap();
    let append = &collector.spans("append", 1).await[0].span;
    assert_eq!(hex(&append.trace_id), format!("{:032x}", 1));
    let linked: Vec<_> = append.links.iter().map(|link| hex(&link.trace_id)).collect();
    assert_eq!(linked, (2..=33).map(|n| format!("{n:032x}")).collect::<Vec<_>>(), "32 at most");
    let publish = &collector.spans("trunkline.v1.CoordinationService/Publish", 1).await[0].span;
    assert_eq!((publish.links.len(), publish.dropped_links_count), (32, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_request_without_a_context_begins_a_trace() {
    let collector = Listening::start(Collector::default()).await;
    let mut otlp = otlp(&collector.url);
    otlp["sampleOneIn"] = 1.into();
    let gateway = Gateway::start(GatewayOptions::embedded().set("otlp", otlp)).await;
    let subscriber = TestNode::connect(&gateway, "subscriber").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    let node = TestNode::connect(&gateway, "n1").await;
    node.publish(vec![with_id("e", mailbox_change("a", 1))]).await.unwrap();
    let event = stream.event("e", LIMIT).await.events.remove(0);
    let publish = &collector.spans("trunkline.v1.CoordinationService/Publish", 1).await[0].span;
    let deliver = &collector.spans("deliver", 1).await[0].span;
    assert!(publish.parent_span_id.is_empty());
    assert_eq!(deliver.parent_span_id, publish.span_id);
    assert_eq!(deliver.trace_id, publish.trace_id);
    let expected = format!("00-{}-{}-01", hex(&publish.trace_id), hex(&publish.span_id));
    assert_eq!(event.traceparent, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_span_of_a_failed_request_has_the_error() {
    let collector = Listening::start(Collector::default()).await;
    let options = GatewayOptions::embedded().set("otlp", otlp(&collector.url));
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let mut request = Request::new(trunkline_proto::v1::PublishRequest {
        node_id: "n1".into(),
        events: vec![mailbox_change("", 1)],
        ..Default::default()
    });
    let parent = format!("00-{TRACE}-{PARENT}-01");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    node.client.clone().publish(request).await.unwrap_err();
    let publish = &collector.spans("trunkline.v1.CoordinationService/Publish", 1).await[0].span;
    let status = publish.status.clone().unwrap();
    assert_eq!((status.code, status.message.as_str()), (2, "INVALID_REQUEST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_span_of_a_cancelled_request_is_marked_as_cancelled() {
    let collector = Listening::start(Collector::default()).await;
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let gateway = gateway_on(options, "gw-1", &otlp(&collector.url)).await;
    let node = TestNode::connect(&gateway, "n1").await;
    redis.pause().await;
    let publish = node.publish(vec![traced("e", "01")]);
    tokio::time::timeout(Duration::from_millis(300), publish).await.expect_err("no answer");
    let publish = &collector.spans("trunkline.v1.CoordinationService/Publish", 1).await[0].span;
    let status = publish.status.clone().unwrap();
    assert_eq!((status.code, status.message.as_str()), (2, "CANCELLED"));
    redis.resume();
}

/// Publishes traced events, and returns when they are delivered.
async fn load(gateway: &Gateway, count: usize) -> Duration {
    let subscriber = TestNode::connect(gateway, "subscriber").await;
    let stream = subscriber.subscribe(SubscribeRequest { ..subscriber.request() }).await;
    let node = TestNode::connect(gateway, "n1").await;
    let begun = std::time::Instant::now();
    for batch in numbered("e", count, 9).chunks(100) {
        let traceparent = traced("", "01").traceparent;
        let traced = |event| Event { traceparent: traceparent.clone(), ..event };
        node.publish(batch.iter().cloned().map(traced).collect()).await.unwrap();
    }
    stream.events(count, LIMIT).await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_costs_nothing() {
    // A port without a listener, until later.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let options = GatewayOptions::embedded().set("otlp", otlp(&format!("http://{address}")));
    let gateway = Gateway::start(options).await;
    load(&gateway, 10_000).await;
    until(LIMIT, "dropped spans are counted", async || {
        metric(&gateway, "trunkline_trace_spans_dropped_total").await > 0
    })
    .await;
    gateway.stderr_has("does not accept spans", LIMIT).await;
    assert_eq!(metric(&gateway, "trunkline_trace_spans_exported_total").await, 0);
    // It starts: spans from then on are exported.
    let listener = TcpListener::bind(address).await.unwrap();
    let collector = Listening::on(listener, Collector::default());
    let node = TestNode::connect(&gateway, "n2").await;
    until(LIMIT, "the collector gets spans", async || {
        node.publish(vec![traced("e", "01")]).await.unwrap();
        collector.count() > 0
    })
    .await;
    gateway.stderr_has("accepts spans again", LIMIT).await;
    let log = gateway.stderr();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("does not accept spans"), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_delays_neither_events_nor_the_stop() {
    let collector = Listening::start(Collector { hangs: true, ..Collector::default() }).await;
    let options = GatewayOptions::embedded().set("otlp", otlp(&collector.url));
    let gateway = Gateway::start(options).await;
    load(&gateway, 10_000).await;
    until(LIMIT, "dropped spans are counted", async || {
        metric(&gateway, "trunkline_trace_spans_dropped_total").await > 0
    })
    .await;
    let ended = gateway.terminate(LIMIT).await;
    assert!(ended.status.success());
    assert!(ended.took < Duration::from_secs(5), "{:?}", ended.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_spans_are_exported_when_the_gateway_stops() {
    let collector = Listening::start(Collector::default()).await;
    let options = GatewayOptions::embedded().set("otlp", otlp(&collector.url));
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "n1").await;
    node.publish(vec![traced("e", "01")]).await.unwrap();
    assert!(gateway.terminate(LIMIT).await.status.success());
    assert_eq!(collector.count(), 2, "the request and the append");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_the_collector_rejects_count_as_dropped() {
    let collector = Listening::start(Collector { rejects: true, ..Collector::default() }).await;
    let options = GatewayOptions::embedded().set("otlp", otlp(&collector.url));
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let subscriber = TestNode::connect(&gateway, "subscriber").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    let traceparent = traced("", "01").traceparent;
    let events = numbered("e", 20, 1).into_iter();
    node.publish(events.map(|event| Event { traceparent: traceparent.clone(), ..event }).collect())
        .await
        .unwrap();
    stream.events(20, LIMIT).await;
    // A publish, an append and twenty deliveries.
    collector.spans("deliver", 20).await;
    until(LIMIT, "every span is exported or dropped", async || {
        let exported = metric(&gateway, "trunkline_trace_spans_exported_total").await;
        let dropped = metric(&gateway, "trunkline_trace_spans_dropped_total").await;
        dropped >= 10 && exported >= 1 && exported + dropped == 22
    })
    .await;
}
