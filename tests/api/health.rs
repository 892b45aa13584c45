//! The health protocol, as load balancers use it, and reflection, as grpcurl does.

use std::time::{Duration, Instant};

use tonic::{Code, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};
use trunkline_proto::v1::GetStatusRequest;

use crate::{
    deployment::Deployment,
    support::{Data, Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, shared},
};

const SERVICE: &str = "trunkline.v1.CoordinationService";

/// All names that can be asked for.
const NAMES: [&str; 4] = [
    "",
    SERVICE,
    "trunkline.v1.CoordinationService/Publish",
    "trunkline.v1.CoordinationService/Subscribe",
];

pub async fn watch(gateway: &Gateway, service: &str) -> Streaming<HealthCheckResponse> {
    let mut client = HealthClient::new(gateway.connect().await.unwrap());
    let request = HealthCheckRequest { service: service.into() };
    client.watch(request).await.unwrap().into_inner()
}

/// The next status of a stream; None at its end.
pub async fn next(stream: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let next = tokio::time::timeout(LIMIT, stream.message()).await.expect("a status in time");
    next.ok().flatten().map(|response| response.status())
}

#[tokio::test]
async fn a_gateway_serves_only_while_its_bus_is_verified() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.kill_9();
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix()).ready(Ready::Listening);
    let gateway = Gateway::start(options).await;
    let mut watched = watch(&gateway, SERVICE).await;
    for name in NAMES {
        assert_eq!(gateway.health(name).await.unwrap(), ServingStatus::NotServing, "{name:?}");
    }
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    let mut client = gateway.client().await;
    let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert!(!status.serving && status.reason.contains("refused"), "{status:?}");

    redis.restart(Data::Wiped).await;
    let back = Instant::now();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    eprintln!("SERVING after {:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
    for name in NAMES {
        assert_eq!(gateway.health(name).await.unwrap(), ServingStatus::Serving, "{name:?}");
    }
    let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.serving && status.reason.is_empty(), "{status:?}");

    redis.kill_9();
    let gone = Instant::now();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    // Two probes were missed; and a second for a busy machine.
    eprintln!("NOT_SERVING after {:?}", gone.elapsed());
    assert!(gone.elapsed() < Duration::from_secs(4), "{:?}", gone.elapsed());
    for name in NAMES {
        assert_eq!(gateway.health(name).await.unwrap(), ServingStatus::NotServing, "{name:?}");
    }

    redis.restart(Data::Wiped).await;
    let back = Instant::now();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    eprintln!("SERVING after {:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
}

#[tokio::test]
async fn an_unknown_service_is_reported_as_the_health_protocol_requires() {
    let deployment = Deployment::embedded().await;
    let status = deployment.gateway.health("no.such.Service").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut watched = watch(&deployment.gateway, "no.such.Service").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::ServiceUnknown));
    // The stream stays: the service may come.
    let more = tokio::time::timeout(Duration::from_millis(200), watched.message()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn reflection_lists_the_services_and_their_files() {
    let deployment = Deployment::embedded().await;
    let expected = |mut names: Vec<String>| {
        names.sort();
        for name in [SERVICE, "grpc.health.v1.Health"] {
            assert!(names.iter().any(|listed| listed == name), "{names:?}");
        }
    };
    let channel = deployment.gateway.connect().await.unwrap();

    {
        use v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let ask = async |message: MessageRequest| {
            let mut client = ServerReflectionClient::new(channel.clone());
            let request =
                ServerReflectionRequest { host: String::new(), message_request: Some(message) };
            let requests = tokio_stream::once(request);
            let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
            answers.message().await.unwrap().unwrap().message_response.unwrap()
        };
        let MessageResponse::ListServicesResponse(list) =
            ask(MessageRequest::ListServices(String::new())).await
        else {
            panic!("no list");
        };
        expected(list.service.into_iter().map(|service| service.name).collect());
        // grpcurl needs the last two to show the details of an error.
        for symbol in
            [SERVICE, "trunkline.v1.Event", "google.rpc.ErrorInfo", "google.rpc.BadRequest"]
        {
            let answer = ask(MessageRequest::FileContainingSymbol(symbol.into())).await;
            assert!(
                matches!(answer, MessageResponse::FileDescriptorResponse(_)),
                "{symbol}: {answer:?}"
            );
        }
    }
    {
        use v1alpha::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new(channel.clone());
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let requests = tokio_stream::once(request);
        let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else {
            panic!("no list: {answer:?}");
        };
        expected(list.service.into_iter().map(|service| service.name).collect());
    }
}
