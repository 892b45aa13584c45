//! Metrics under the names that others have given them: of gRPC servers, of processes, of the
//! runtime; and OpenMetrics, with exemplars, as the parser of Prometheus' own client reads it.

use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use tonic::Code;
use tonic_prost::ProstCodec;
use trunkline_proto::v1::{GetStatusRequest, GetStatusResponse, PublishRequest};

use super::admin::Scrape;
use super::http::curl::{Answer, Curl};
use super::support::{
    Gateway, GatewayOptions, LIMIT, TestNode, events, folder, process::Program, tools, until,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn of(method: &str, kind: &str, code: &str) -> String {
    let service = "trunkline.v1.CoordinationService";
    let labels = format!(
        "grpc_type=\"{kind}\",grpc_service=\"{service}\",grpc_method=\"{method}\",\
         grpc_code=\"{code}\""
    );
    format!("grpc_server_handled_total{{{labels}}}")
}

/// Reads metrics with the parser of Prometheus' client for Python.
async fn parses(text: &str, module: &str) {
    let folder = folder::new();
    let file = folder.path().join("metrics");
    std::fs::write(&file, text).expect("a file");
    let code = format!(
        "import sys\nfrom prometheus_client{module} import text_string_to_metric_families as read\n\
         print(len(list(read(open(sys.argv[1]).read()))))"
    );
    let args = ["-c".to_owned(), code, file.display().to_string()];
    let families = Program::new(tools::python(), args).run(LIMIT).await.success();
    let families: usize = families.trim().parse().expect("a number");
    assert!(families > 50, "{families}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_counts_once_with_the_code_that_its_client_got() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let node = TestNode::connect(&gateway, "imap-1").await;
    let collector = node.subscribe(node.request()).await;
    // Accepted, with a trace; refused; ended by the client; of no method.
    let publish = || PublishRequest {
        node_id: "n".into(),
        events: vec![events::queue_refresh()],
        ..PublishRequest::default()
    };
    let mut client = gateway.client().await;
    for flags in ["00", "01"] {
        let mut request = tonic::Request::new(publish());
        let parent = format!("00-{TRACE}-b7ad6b7169203331-{flags}");
        request.metadata_mut().insert("traceparent", parent.parse().expect("a value"));
        client.publish(request).await.expect("published");
    }
    client.publish(PublishRequest::default()).await.expect_err("no node");
    drop(collector);
    let mut grpc = tonic::client::Grpc::new(gateway.connect().await.expect("a channel"));
    grpc.ready().await.expect("ready");
    let path = PathAndQuery::from_static("/trunkline.v1.CoordinationService/Nothing");
    let codec = ProstCodec::<GetStatusRequest, GetStatusResponse>::default();
    let status = grpc.unary(tonic::Request::new(GetStatusRequest {}), path, codec).await;
    assert_eq!(status.expect_err("no method").code(), Code::Unimplemented);

    let count = async |name: String| Scrape::of(&gateway).await.samples.get(&name).copied();
    until(LIMIT, "the stream that its client left", async || {
        count(of("Subscribe", "server_stream", "Canceled")).await == Some(1.0)
    })
    .await;
    assert_eq!(count(of("Publish", "unary", "OK")).await, Some(2.0));
    assert_eq!(count(of("Publish", "unary", "InvalidArgument")).await, Some(1.0));
    assert_eq!(count(of("Watch", "bidi_stream", "OK")).await, Some(0.0));
    let unknown = "grpc_server_handled_total{grpc_type=\"unary\",grpc_service=\"unknown\",\
        grpc_method=\"unknown\",grpc_code=\"Unimplemented\"}";
    assert_eq!(count(unknown.into()).await, Some(1.0));
    let started = of("Publish", "unary", "OK").replace("handled", "started");
    let started = started.replace(",grpc_code=\"OK\"", "");
    assert_eq!(count(started).await, Some(3.0));
    let health = "grpc_server_handled_total{grpc_type=\"unary\",\
        grpc_service=\"grpc.health.v1.Health\",grpc_method=\"Check\",grpc_code=\"OK\"}";
    assert!(count(health.into()).await >= Some(1.0), "the gateway was ready");
    parses(&gateway.admin("/metrics").await, ".parser").await;

    // OpenMetrics has the trace of the request that was recorded, beside its bucket.
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let scrape = async |accept: &str| {
        let url = format!("http://{}/metrics", gateway.admin_address());
        Curl::new(url).header(format!("accept: {accept}")).send().await
    };
    let Answer { headers, body, .. } = scrape(accept).await;
    let media_type = "content-type: application/openmetrics-text; version=1.0.0";
    assert!(headers.contains(media_type), "{headers}");
    let exemplar = format!("# {{trace_id=\"{TRACE}\"}}");
    let with: Vec<_> = body.lines().filter(|line| line.contains(&exemplar)).collect();
    assert_eq!(with.len(), 1, "{with:?}");
    assert!(with[0].starts_with("grpc_server_handling_seconds_bucket{"), "{with:?}");
    assert!(with[0].contains("grpc_method=\"Publish\""), "{with:?}");
    assert!(body.ends_with("# EOF\n"));
    parses(&body, ".openmetrics.parser").await;
    let plain = scrape("text/plain").await;
    assert!(plain.headers.contains("content-type: text/plain; version=0.0.4"), "{plain:?}");
    assert!(!plain.body.contains("trace_id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_and_its_runtime_are_shown() {
    let before = SystemTime::now();
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let Scrape { samples, .. } = Scrape::of(&gateway).await;
    let value = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("no {name}: {samples:?}"));
    #[allow(clippy::cast_precision_loss)] // far below 2^53
    let resident = gateway.rss_bytes() as f64;
    let ratio = value("process_resident_memory_bytes") / resident;
    assert!((0.5..2.0).contains(&ratio), "{ratio}");
    assert!(value("process_virtual_memory_bytes") > resident);
    let started = Duration::from_secs_f64(value("process_start_time_seconds"));
    let started = SystemTime::UNIX_EPOCH + started;
    // The system counts in hundredths of a second, from a whole second on.
    let apart = started.duration_since(before).unwrap_or_else(|error| error.duration());
    assert!(apart < Duration::from_mins(1), "{apart:?}");
    assert!(value("process_cpu_seconds_total") < 3600.0);
    assert!(value("process_threads") >= 2.0);
    assert!(value("process_open_fds") >= 5.0);
    assert!(value("process_max_fds") > value("process_open_fds"));
    assert!(value("tokio_workers") >= 1.0);
    assert!(value("tokio_alive_tasks") >= 3.0);
    assert!(value("tokio_worker_busy_seconds_total{worker=\"0\"}") >= 0.0);
}
