//! The health protocol (`grpc.health.v1`), for load balancers.
//!
//! The service of `tonic-health` reports `SERVING` from the start, answers `NOT_FOUND` where a
//! `Watch` of an unknown service should report `SERVICE_UNKNOWN`, and its open `Watch` streams keep
//! a server from stopping. So the state is ours, on its generated code.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::{
    access::{
        Caller,
        quota::{HealthPermit, Quotas},
    },
    errors::{Error, Requester},
    proto::v1::SERVICE,
};

/// The known service names: the whole gateway, its service, and one each for publishing and
/// subscribing.
pub fn names() -> [String; 4] {
    [String::new(), SERVICE.into(), format!("{SERVICE}/Publish"), format!("{SERVICE}/Subscribe")]
}

/// The state that the health protocol reports; not serving at first.
#[derive(Clone, Debug)]
pub struct HealthState {
    serving: watch::Sender<bool>,
    /// Ends the `Watch` streams.
    ended: CancellationToken,
}

/// The gRPC service over the state.
#[derive(Clone)]
pub struct HealthService {
    state: HealthState,
    quotas: Arc<Quotas>,
    on_refused: OnRefused,
}

/// Called with the sender and the error of each stream that is refused.
pub type OnRefused = Arc<dyn Fn(&Requester, &Error) + Send + Sync>;

impl HealthState {
    /// A gateway that does not serve yet. `Watch` streams end with `ended`.
    pub fn new(ended: CancellationToken) -> HealthState {
        HealthState { serving: watch::Sender::new(false), ended }
    }

    /// Sets whether the gateway serves. Streams report changes only.
    pub fn set(&self, serving: bool) {
        self.serving.send_if_modified(|before| std::mem::replace(before, serving) != serving);
    }

    /// The gRPC service, whose streams count against these quotas.
    pub fn service(
        &self,
        quotas: Arc<Quotas>,
        on_refused: OnRefused,
    ) -> HealthServer<HealthService> {
        HealthServer::new(HealthService { state: self.clone(), quotas, on_refused })
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

fn status(serving: bool) -> HealthCheckResponse {
    response(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

/// The state of one `Watch` stream.
struct Watch {
    known: bool,
    first: bool,
    serving: watch::Receiver<bool>,
    ended: CancellationToken,
    _permit: HealthPermit,
}

impl Watch {
    async fn next(&mut self) -> Option<HealthCheckResponse> {
        if std::mem::take(&mut self.first) {
            let now = *self.serving.borrow_and_update();
            return Some(if self.known {
                status(now)
            } else {
                response(ServingStatus::ServiceUnknown)
            });
        }
        loop {
            tokio::select! {
                () = self.ended.cancelled() => return None,
                changed = self.serving.changed() => {
                    changed.ok()?;
                    let now = *self.serving.borrow_and_update();
                    if self.known {
                        return Some(status(now));
                    }
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = &request.get_ref().service;
        if !names().contains(name) {
            return Err(Status::not_found(format!("no service is named {name:?} here")));
        }
        Ok(Response::new(status(*self.state.serving.borrow())))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let permit = self.quotas.health_stream(caller.in_flight.quota());
        let permit = permit.inspect_err(|error| (self.on_refused)(&caller.requester(), error))?;
        let watch = Watch {
            // The protocol has the stream of an unknown service stay open.
            known: names().contains(&request.get_ref().service),
            first: true,
            serving: self.state.serving.subscribe(),
            ended: self.state.ended.clone(),
            _permit: permit,
        };
        let stream = futures_util::stream::unfold(watch, |mut watch| async move {
            let next = watch.next().await?;
            Some((Ok(next), watch))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
