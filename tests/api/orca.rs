//! Load reports (ORCA), as clients that balance by them get them.

use std::time::Duration;

use prost::Message;
use serde_json::json;
use tonic::{
    Code, Request, Status, Streaming, codegen::http::uri::PathAndQuery, transport::Channel,
};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;
use trunkline::proto::xds::{
    data::orca::v3::OrcaLoadReport, service::orca::v3::OrcaLoadReportRequest,
};
use trunkline_proto::v1::{GetStatusRequest, ListNodesRequest};

use crate::support::{Gateway, GatewayOptions, LIMIT, TestNode, events::mailbox_change};

/// Opens a stream of reports on a connection.
async fn reports(channel: &Channel) -> Result<Streaming<OrcaLoadReport>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("a connection");
    let interval = prost_types::Duration { seconds: 0, nanos: 1 };
    let request = OrcaLoadReportRequest {
        report_interval: Some(interval),
        ..OrcaLoadReportRequest::default()
    };
    let path = PathAndQuery::from_static("/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics");
    let codec = ProstCodec::default();
    let response = client.server_streaming(Request::new(request), path, codec).await?;
    Ok(response.into_inner())
}

async fn next(reports: &mut Streaming<OrcaLoadReport>) -> Result<OrcaLoadReport, Status> {
    let next = tokio::time::timeout(LIMIT, reports.message()).await.expect("in time");
    next.map(|report| report.expect("no end"))
}

/// The report that came with a response.
fn trailer<T>(response: &tonic::Response<T>) -> OrcaLoadReport {
    let value = response.metadata().get_bin("endpoint-load-metrics-bin").expect("a report");
    OrcaLoadReport::decode(value.to_bytes().expect("base64")).expect("a report")
}

fn is(value: f64, expected: f64) -> bool {
    (value - expected).abs() < 1e-9
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_and_streams_carry_the_load() {
    let options = GatewayOptions::embedded().set("limits", json!({"maxStreams": 4}));
    let gateway = Gateway::start(options).await;
    let mut node = TestNode::connect(&gateway, "n1").await;
    let mut out_of_band = reports(&gateway.connect().await.unwrap()).await.unwrap();
    let report = loop {
        node.client.get_status(GetStatusRequest {}).await.unwrap();
        let report = next(&mut out_of_band).await.unwrap();
        // The first one has no rates yet.
        if report.rps_fractional > 0.0 {
            break report;
        }
    };
    assert!(report.cpu_utilization >= 0.0 && is(report.eps, 0.0), "{report:?}");
    assert!(is(report.named_metrics["streams"], 0.0), "{report:?}");

    let events = node.subscribe(node.request()).await;
    events.subscribed().await;
    let report = loop {
        let report = next(&mut out_of_band).await.unwrap();
        if is(report.named_metrics["streams"], 1.0) {
            break report;
        }
    };
    assert!(is(report.utilization["streams"], 0.25), "{report:?}");
    assert!(is(report.application_utilization, 0.25), "{report:?}");

    let status = node.client.get_status(GetStatusRequest {}).await.unwrap();
    assert!(is(trailer(&status).named_metrics["streams"], 1.0));
    let list = node.client.list_nodes(ListNodesRequest::default()).await.unwrap();
    assert!(is(trailer(&list).application_utilization, 0.25));
    let request = trunkline_proto::v1::PublishRequest {
        node_id: "n1".into(),
        events: vec![mailbox_change("a", 1)],
        ..Default::default()
    };
    trailer(&node.client.publish(request).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_reports_are_limited_and_end_when_the_gateway_drains() {
    let limits = json!({"maxStreamsPerConnection": 2});
    let gateway = Gateway::start(GatewayOptions::embedded().set("limits", limits)).await;
    let channel = gateway.connect().await.unwrap();
    let mut first = reports(&channel).await.unwrap();
    let _second = reports(&channel).await.unwrap();
    let refused = reports(&channel).await.expect_err("a limit");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("limits.maxStreamsPerConnection"), "{refused:?}");
    next(&mut first).await.unwrap();
    gateway.signal_term();
    let ended = loop {
        if let Err(status) = next(&mut first).await {
            break status;
        }
    };
    let reason = ended.get_details_error_info().map(|info| info.reason);
    assert_eq!((ended.code(), reason.as_deref()), (Code::Unavailable, Some("DRAINING")));
    gateway.ends(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_need_the_right_to_the_status() {
    let identity = |name: &str, operations: &[&str]| {
        let tokens = [token_of(name)];
        json!({"name": name, "operations": operations, "tokens": tokens})
    };
    let auth = json!({"identities": [
        identity("monitor", &["getStatus"]), identity("other", &["listNodes"]),
    ]});
    let gateway = Gateway::start(GatewayOptions::embedded().set("auth", auth)).await;
    let as_somebody = async |token: Option<&str>| {
        let mut client = tonic::client::Grpc::new(gateway.connect().await.unwrap());
        client.ready().await.expect("a connection");
        let mut request = Request::new(OrcaLoadReportRequest::default());
        if let Some(token) = token {
            let bearer = format!("Bearer {token}").parse().expect("ASCII");
            request.metadata_mut().insert("authorization", bearer);
        }
        let path =
            PathAndQuery::from_static("/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics");
        let codec = ProstCodec::<OrcaLoadReportRequest, OrcaLoadReport>::default();
        client.server_streaming(request, path, codec).await
    };
    let mut allowed = as_somebody(Some(&secret("monitor"))).await.unwrap().into_inner();
    tokio::time::timeout(Duration::from_secs(15), allowed.message()).await.unwrap().unwrap();
    let other = as_somebody(Some(&secret("other"))).await.expect_err("no right");
    assert_eq!(other.code(), Code::PermissionDenied);
    assert_eq!(as_somebody(None).await.expect_err("nobody").code(), Code::Unauthenticated);
}

fn secret(name: &str) -> String {
    format!("{name}-0123456789abcdef0123456789abcdef")
}

fn token_of(name: &str) -> serde_json::Value {
    json!({"@type": "Value", "secret": secret(name)})
}
