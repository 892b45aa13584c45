//! The gateway that listens where this configuration says, if there is one, and its state.

use std::{io, net::SocketAddr, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use trunkline::{
    bus::Finding,
    config::{self, BusConfig, Config, ServerTls},
};
use trunkline_proto::v1::{
    GetStatusRequest, GetStatusResponse, SERVICE,
    coordination_service_client::CoordinationServiceClient,
};

use super::{Report, pinned};
use crate::cli::{CredentialArgs, Failure, describe, serve::reachable};

pub(super) const CHECK: &str = "gateway";

const STATUS: &str = "gateway status";

/// Time limit of the connection and the answers together.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn examine(
    config: &Config,
    shards: Option<u16>,
    credentials: &CredentialArgs,
    report: &mut Report,
) -> Result<(), Failure> {
    let bearer = credentials.read()?.bearer();
    if config.listen.port() == 0 {
        let seen = "listen has port 0, so that the port of a running gateway is not known";
        report.found(Finding::not_checked(CHECK, seen, "set listen to the port of the gateway"));
        return Ok(());
    }
    report.begins(CHECK);
    let address = reachable(config.listen);
    let ask = async {
        let channel = connect(address, config.tls.as_ref(), credentials).await?;
        let mut client = CoordinationServiceClient::with_interceptor(channel.clone(), bearer);
        match client.get_status(Request::new(GetStatusRequest {})).await {
            Ok(status) => Ok(assess_status(address, status.get_ref(), config, shards)),
            Err(status) if is_denied(&status) => Ok(assess_health(address, &status, channel).await),
            Err(status) => Err(Unknown::Refused(status)),
        }
    };
    let findings = match tokio::time::timeout(LIMIT, ask).await {
        Err(_) => {
            let advice = "check that the process that listens there is a gateway";
            let seen = format!("{address} does not answer within {LIMIT:?}");
            vec![Finding::failure(CHECK, seen, advice)]
        }
        Ok(Err(Unknown::NotListening(why))) => {
            let seen = format!("no gateway runs at {address} ({why})");
            vec![Finding::not_checked(CHECK, seen, "start it, and run doctor again")]
        }
        Ok(Err(Unknown::OtherServer(why))) => {
            let advice =
                "restart it if it is this gateway and has not reloaded the file; see its log";
            vec![Finding::failure(CHECK, format!("{address}: {why}"), advice)]
        }
        Ok(Err(Unknown::Refused(status))) => {
            let seen = format!("{address} answers {:?}: {}", status.code(), describe(&status));
            let requires = config.tls.as_ref().is_some_and(|tls| tls.client_certificate_required);
            let advice = if requires && credentials.tls_cert.is_none() {
                "it requires a client certificate: give one with --tls-cert and --tls-key"
            } else {
                "check that a gateway of this configuration listens there"
            };
            vec![Finding::warning(CHECK, seen, advice)]
        }
        Ok(Ok(findings)) => findings,
    };
    for finding in findings {
        report.found(finding);
    }
    Ok(())
}

/// The reasons for which the state of the gateway is not known.
enum Unknown {
    /// Nothing listens at the address.
    NotListening(String),
    /// The server that listens is not the gateway of this configuration.
    OtherServer(String),
    /// It answered with an error.
    Refused(Status),
}

async fn connect(
    address: SocketAddr,
    tls: Option<&ServerTls>,
    credentials: &CredentialArgs,
) -> Result<Channel, Unknown> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| Unknown::NotListening(error.to_string()))?;
    let Some(tls) = tls else { return channel_over(stream).await };
    let client = credentials.tls_cert.as_deref().zip(credentials.tls_key.as_deref());
    let stream = pinned::handshake(stream, &tls.certificate, client).await;
    channel_over(stream.map_err(Unknown::OtherServer)?).await
}

/// A channel over this one connection.
async fn channel_over<S>(stream: S) -> Result<Channel, Unknown>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async { stream.ok_or_else(|| io::Error::other("the connection was closed")) }
    });
    let channel = Endpoint::from_static("http://gateway").connect_with_connector(connector).await;
    channel.map_err(|error| Unknown::Refused(Status::from_error(Box::new(error))))
}

fn is_denied(status: &Status) -> bool {
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
}

/// Assesses the gateway by its health, which needs no permission, where its status does.
async fn assess_health(address: SocketAddr, denied: &Status, channel: Channel) -> Vec<Finding> {
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let health = HealthClient::new(channel).check(request).await;
    match health.map(|answer| answer.get_ref().status()) {
        Ok(ServingStatus::Serving) => {
            let more = format!(
                "its bus, its shards and its version are not shown to this identity ({:?})",
                denied.code()
            );
            let advice = "give --token-file, or --tls-cert and --tls-key, of an identity with the \
                          operation getStatus";
            vec![
                Finding::ok(CHECK, format!("the gateway at {address} serves")),
                Finding::not_checked(STATUS, more, advice),
            ]
        }
        Ok(_) => {
            let seen = format!("the gateway at {address} does not serve");
            let advice = "/readyz of its admin port and its log have the reason";
            vec![Finding::failure(CHECK, seen, advice)]
        }
        Err(status) => {
            let seen = format!("{address} answers {:?}: {}", status.code(), status.message());
            let advice = "check that a gateway of this configuration listens there";
            vec![Finding::warning(CHECK, seen, advice)]
        }
    }
}

/// Assesses the gateway by its status.
fn assess_status(
    address: SocketAddr,
    status: &GetStatusResponse,
    config: &Config,
    shards: Option<u16>,
) -> Vec<Finding> {
    let gateway = format!("{} at {address} (version {})", status.gateway_id, status.version);
    let fails = |seen: String, advice: &str| vec![Finding::failure(CHECK, seen, advice)];
    let bus = match config.bus {
        BusConfig::Embedded => "embedded",
        BusConfig::Redis(_) => "redis",
        BusConfig::RedisCluster(_) => "redis-cluster",
        BusConfig::RedisSentinel(_) => "redis-sentinel",
    };
    if !status.bus.is_empty() && status.bus != bus {
        let seen = format!(
            "{gateway} has the bus {}, and this configuration has {bus}: events of its nodes reach \
             no other gateway",
            status.bus
        );
        return fails(seen, "restart it with this configuration, or stop it");
    }
    if !status.serving {
        let seen = format!("{gateway} does not serve: {}", status.reason);
        return fails(seen, "that is the state of its bus; its log has more");
    }
    let count = status.shards.len();
    if shards.is_some_and(|shards| usize::from(shards) != count) {
        let seen = format!(
            "{gateway} has {count} shards, and its deployment has {}",
            shards.unwrap_or_default()
        );
        let advice = "it runs with another configuration, or another prefix: restart it with this \
                      one";
        return fails(seen, advice);
    }
    let unverified: Vec<_> =
        status.shards.iter().filter(|shard| !shard.proven).map(|s| s.shard.to_string()).collect();
    if !unverified.is_empty() {
        let seen = format!("{gateway}: shards {} are not verified", unverified.join(", "));
        return fails(seen, "see the findings about their Redis masters");
    }
    if let Some(other) = other_server(status, config) {
        let seen = format!(
            "{gateway} is connected to {other}, which this configuration does not \
             name"
        );
        let advice = "if that is another server, restart it with this configuration";
        return vec![Finding::warning(CHECK, seen, advice)];
    }
    if status.version != env!("CARGO_PKG_VERSION") {
        let advice = "restart it at a convenient time: the installed version is another one";
        let seen = format!("{gateway} serves; this is doctor {}", env!("CARGO_PKG_VERSION"));
        return vec![Finding::warning(CHECK, seen, advice)];
    }
    let streams = status.streams;
    vec![Finding::ok(CHECK, format!("{gateway} serves {streams} streams on {count} shards"))]
}

/// A server to which the gateway is connected, and which is not that of this configuration. Of a
/// cluster only some servers are named.
fn other_server(status: &GetStatusResponse, config: &Config) -> Option<String> {
    let BusConfig::Redis(redis) = &config.bus else { return None };
    let named = match redis.url.endpoint() {
        config::Endpoint::Tcp { host, port, .. } => format!("{host}:{port}"),
        config::Endpoint::Unix { path } => path.display().to_string(),
    };
    let other = status.links.iter().map(|link| &link.address).find(|link| **link != named)?;
    Some(other.clone())
}
