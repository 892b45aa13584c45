//! Whether a gateway runs where this configuration would listen, and how it does.

use std::time::Duration;

use tonic::{Status, transport::Endpoint};
use trunkline::{
    bus::redis::doctor::Finding,
    config::Config,
    proto::v1::{
        GetStatusRequest, GetStatusResponse, coordination_service_client::CoordinationServiceClient,
    },
};

use super::Report;
use crate::cli::{describe, serve::reachable};

const CHECK: &str = "gateway";

/// How long it may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn examine(config: &Config, report: &mut Report) {
    if config.listen.port() == 0 {
        return;
    }
    report.begins(CHECK);
    let address = reachable(config.listen);
    if config.tls.is_some() {
        let seen = format!("a gateway at {address} would speak TLS: it was not asked");
        let advice = "ask it yourself: trunkline status --gateway https://... --tls-ca ...";
        report.found(Finding::warning(CHECK, seen, advice));
        return;
    }
    let asked = tokio::time::timeout(LIMIT, ask(&format!("http://{address}"))).await;
    report.found(match asked {
        Err(_) => {
            let advice = "look at the process that listens there; is it a gateway?";
            Finding::failure(CHECK, format!("{address} does not answer within {LIMIT:?}"), advice)
        }
        Ok(Err(Asked::Nobody(why))) => {
            Finding::ok(CHECK, format!("none runs at {address} ({why})"))
        }
        Ok(Err(Asked::Refused(status))) => {
            let seen = format!("{address} answers {:?}: {}", status.code(), status.message());
            Finding::warning(
                CHECK,
                seen,
                "see whether a gateway of this configuration listens there",
            )
        }
        Ok(Ok(status)) => judge(&address.to_string(), &status),
    });
}

enum Asked {
    Nobody(String),
    Refused(Status),
}

async fn ask(url: &str) -> Result<GetStatusResponse, Asked> {
    let nobody = |error: tonic::transport::Error| Asked::Nobody(describe(&error));
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(nobody)?;
    let channel = endpoint.connect_timeout(LIMIT).connect().await.map_err(nobody)?;
    let mut client = CoordinationServiceClient::new(channel);
    let status = client.get_status(GetStatusRequest {}).await.map_err(Asked::Refused)?;
    Ok(status.into_inner())
}

fn judge(address: &str, status: &GetStatusResponse) -> Finding {
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
