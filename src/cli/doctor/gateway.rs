//! Whether a gateway runs where this configuration would listen, and how it does.

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
    bus::redis::doctor::Finding,
    config::{Config, ServerTls},
};
use trunkline_proto::v1::{
    GetStatusRequest, GetStatusResponse, SERVICE,
    coordination_service_client::CoordinationServiceClient,
};

use super::{Report, pinned};
use crate::cli::{Failure, Proof, describe, serve::reachable};

const CHECK: &str = "gateway";

/// How long it may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn examine(
    config: &Config,
    proof: &Proof,
    report: &mut Report,
) -> Result<(), Failure> {
    let bearer = proof.credentials()?.bearer();
    if config.listen.port() == 0 {
        return Ok(());
    }
    report.begins(CHECK);
    let address = reachable(config.listen);
    let asked = async {
        let channel = connect(address, config.tls.as_ref(), proof).await?;
        let mut client = CoordinationServiceClient::with_interceptor(channel.clone(), bearer);
        match client.get_status(Request::new(GetStatusRequest {})).await {
            Ok(status) => Ok(judge(address, status.get_ref())),
            Err(status) if is_denied(&status) => Ok(judge_health(address, &status, channel).await),
            Err(status) => Err(Asked::Refused(status)),
        }
    };
    report.found(match tokio::time::timeout(LIMIT, asked).await {
        Err(_) => {
            let advice = "look at the process that listens there; is it a gateway?";
            Finding::failure(CHECK, format!("{address} does not answer within {LIMIT:?}"), advice)
        }
        Ok(Err(Asked::Nobody(why))) => {
            Finding::ok(CHECK, format!("none runs at {address} ({why})"))
        }
        Ok(Err(Asked::Other(why))) => {
            let advice =
                "restart it if it is this one and does not follow the file; its log says why";
            Finding::failure(CHECK, format!("{address}: {why}"), advice)
        }
        Ok(Err(Asked::Refused(status))) => {
            let seen = format!("{address} answers {:?}: {}", status.code(), describe(&status));
            let wants = config.tls.as_ref().is_some_and(|tls| tls.client_certificate_required);
            let advice = if wants && proof.tls_cert.is_none() {
                "it asks for a client certificate: show one with --tls-cert and --tls-key"
            } else {
                "see whether a gateway of this configuration listens there"
            };
            Finding::warning(CHECK, seen, advice)
        }
        Ok(Ok(finding)) => finding,
    });
    Ok(())
}

/// Why a gateway did not say how it does.
enum Asked {
    /// Nobody listens.
    Nobody(String),
    /// Who listens is not the gateway of this configuration.
    Other(String),
    /// It answered with an error.
    Refused(Status),
}

async fn connect(
    address: SocketAddr,
    tls: Option<&ServerTls>,
    proof: &Proof,
) -> Result<Channel, Asked> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| Asked::Nobody(error.to_string()))?;
    let Some(tls) = tls else { return over(stream).await };
    let shown = proof.tls_cert.as_deref().zip(proof.tls_key.as_deref());
    over(pinned::handshake(stream, &tls.certificate, shown).await.map_err(Asked::Other)?).await
}

/// A channel that has this one connection.
async fn over<S>(stream: S) -> Result<Channel, Asked>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async { stream.ok_or_else(|| io::Error::other("the connection ended")) }
    });
    let channel = Endpoint::from_static("http://gateway").connect_with_connector(connector).await;
    channel.map_err(|error| Asked::Refused(Status::from_error(Box::new(error))))
}

fn is_denied(status: &Status) -> bool {
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
}

/// What a gateway says to anybody, where its status is not for everybody.
async fn judge_health(address: SocketAddr, denied: &Status, channel: Channel) -> Finding {
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let health = HealthClient::new(channel).check(request).await;
    match health.map(|answer| answer.get_ref().status()) {
        Ok(ServingStatus::Serving) => {
            let more = "an identity with the operation getStatus would see more";
            Finding::ok(CHECK, format!("one at {address} serves ({:?}: {more})", denied.code()))
        }
        Ok(_) => {
            let seen = format!("one at {address} does not serve");
            Finding::failure(CHECK, seen, "/readyz of its admin port says why, and so does its log")
        }
        Err(status) => {
            let seen = format!("{address} answers {:?}: {}", status.code(), status.message());
            let advice = "see whether a gateway of this configuration listens there";
            Finding::warning(CHECK, seen, advice)
        }
    }
}

fn judge(address: SocketAddr, status: &GetStatusResponse) -> Finding {
    let who = format!("{} at {address} (version {})", status.gateway_id, status.version);
    if !status.serving {
        let seen = format!("{who} does not serve: {}", status.reason);
        return Finding::failure(CHECK, seen, "what it says of its bus; its log says more");
    }
    let unproven: Vec<_> =
        status.shards.iter().filter(|shard| !shard.proven).map(|s| s.shard.to_string()).collect();
    if !unproven.is_empty() {
        let seen = format!("{who}: shards {} are not proven", unproven.join(", "));
        return Finding::failure(CHECK, seen, "see the findings about their Redis masters");
    }
    if status.version != env!("CARGO_PKG_VERSION") {
        let advice = "restart it when it suits: this is another version";
        return Finding::warning(
            CHECK,
            format!("{who} serves; this is doctor {}", env!("CARGO_PKG_VERSION")),
            advice,
        );
    }
    let streams = status.streams;
    Finding::ok(CHECK, format!("{who} serves {streams} streams on {} shards", status.shards.len()))
}
