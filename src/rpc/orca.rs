//! Load reports beside responses (`xds.service.orca.v3.OpenRcaService`), for clients that balance
//! by them. A stream of them counts against the same limits as streams of events.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, future::pending};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};
use tonic::{Request, Response, Status};

use super::stream::Revoked;
use crate::{
    access::{
        Caller,
        quota::{Quotas, StreamPermit},
    },
    errors::{CredentialError, Error, Requester},
    leave::ConnectionLeave,
    lifecycle::{Drain, Lifecycle},
    observe::load::LoadReports,
    proto::xds::{
        data::orca::v3::OrcaLoadReport,
        service::orca::v3::{
            OrcaLoadReportRequest,
            open_rca_service_server::{OpenRcaService, OpenRcaServiceServer},
        },
    },
};

/// The interval of a stream that asks for none, and the limits of what others may ask for.
const INTERVAL: Duration = Duration::from_secs(30);
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_hours(1);

/// Called with the sender and the error of each stream that is refused.
pub type OnRefused = Arc<dyn Fn(&Requester, &Error) + Send + Sync>;

/// The gRPC service.
#[derive(Clone)]
pub struct OrcaService {
    load: Arc<LoadReports>,
    gateway: Arc<Lifecycle>,
    quotas: Arc<Quotas>,
    on_refused: OnRefused,
}

impl OrcaService {
    /// The service, whose streams count against these quotas and end when the gateway drains.
    pub fn server(
        load: Arc<LoadReports>,
        gateway: Arc<Lifecycle>,
        quotas: Arc<Quotas>,
        on_refused: OnRefused,
    ) -> OpenRcaServiceServer<OrcaService> {
        OpenRcaServiceServer::new(OrcaService { load, gateway, quotas, on_refused })
    }
}

/// The state of one stream.
struct Reports {
    load: Arc<LoadReports>,
    interval: Interval,
    drain: watch::Receiver<Option<Drain>>,
    retry_after: Duration,
    connection: Arc<ConnectionLeave>,
    revoked: Revoked,
    _permit: StreamPermit,
}

impl Reports {
    async fn next(&mut self) -> Result<OrcaLoadReport, Error> {
        tokio::select! {
            biased;
            () = &mut self.revoked => {
                Err(Error::Unauthenticated(CredentialError::Revoked))
            }
            // Neither holds up the end of the gateway nor that of a connection.
            _ = self.drain.wait_for(Option::is_some) => {
                Err(Error::Draining { retry_after: self.retry_after })
            }
            () = self.connection.all_asked().cancelled() => {
                Err(Error::Draining { retry_after: Duration::ZERO })
            }
            _ = self.interval.tick() => Ok(self.load.report()),
        }
    }
}

/// The time between two reports of a stream that asks for this.
fn interval_of(asked: Option<prost_types::Duration>) -> Duration {
    let asked = asked.filter(|asked| *asked != prost_types::Duration::default());
    let Some(asked) = asked else { return INTERVAL };
    // A negative one is less than the least.
    Duration::try_from(asked).unwrap_or_default().clamp(MIN_INTERVAL, MAX_INTERVAL)
}

#[tonic::async_trait]
impl OpenRcaService for OrcaService {
    type StreamCoreMetricsStream =
        Pin<Box<dyn Stream<Item = Result<OrcaLoadReport, Status>> + Send>>;

    async fn stream_core_metrics(
        &self,
        request: Request<OrcaLoadReportRequest>,
    ) -> Result<Response<Self::StreamCoreMetricsStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let permit = self.quotas.stream(caller.in_flight.quota(), &caller.peer.streams);
        let permit = permit.inspect_err(|error| (self.on_refused)(&caller.requester(), error))?;
        let mut interval = interval(interval_of(request.get_ref().report_interval));
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reports = Reports {
            load: self.load.clone(),
            interval,
            drain: self.gateway.drain(),
            retry_after: self.gateway.reconnect_delay(),
            connection: caller.peer.leaving.clone(),
            revoked: match &caller.grant {
                Some(grant) => Box::pin(grant.clone().revoked()),
                None => Box::pin(pending()),
            },
            _permit: permit,
        };
        // The error ends it.
        let stream = futures_util::stream::unfold(Some(reports), |reports| async move {
            let mut reports = reports?;
            match reports.next().await {
                Ok(report) => Some((Ok(report), Some(reports))),
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_bounded() {
        let of = |seconds, nanos| interval_of(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(interval_of(None), INTERVAL);
        assert_eq!(of(0, 0), INTERVAL);
        assert_eq!(of(0, 1), MIN_INTERVAL);
        assert_eq!(of(-5, 0), MIN_INTERVAL);
        assert_eq!(of(7, 0), Duration::from_secs(7));
        assert_eq!(of(i64::MAX, 0), MAX_INTERVAL);
    }
}
