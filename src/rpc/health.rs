//! The health protocol (`grpc.health.v1`), for load balancers.
//!
//! The service of `tonic-health` reports `SERVING` from the start, answers `NOT_FOUND` where a
//! `Watch` of an unknown service should report `SERVICE_UNKNOWN`, and its open `Watch` streams keep
//! a server from stopping. So the state is ours, on its generated code.

use std::pin::Pin;

use futures_util::Stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::proto::v1::SERVICE;

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

impl HealthState {
    /// A gateway that does not serve yet. `Watch` streams end with `ended`.
    pub fn new(ended: CancellationToken) -> HealthState {
        HealthState { serving: watch::Sender::new(false), ended }
    }

    /// Sets whether the gateway serves. Streams report changes only.
    pub fn set(&self, serving: bool) {
        self.serving.send_if_modified(|before| std::mem::replace(before, serving) != serving);
    }

    /// The gRPC service.
    pub fn service(&self) -> HealthServer<HealthState> {
        HealthServer::new(self.clone())
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
impl Health for HealthState {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = &request.get_ref().service;
        if !names().contains(name) {
            return Err(Status::not_found(format!("no service is named {name:?} here")));
        }
        Ok(Response::new(status(*self.serving.borrow())))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watch = Watch {
            // The protocol has the stream of an unknown service stay open.
            known: names().contains(&request.get_ref().service),
            first: true,
            serving: self.serving.subscribe(),
            ended: self.ended.clone(),
        };
        let stream = futures_util::stream::unfold(watch, |mut watch| async move {
            let next = watch.next().await?;
            Some((Ok(next), watch))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
