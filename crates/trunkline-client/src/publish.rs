//! Publishing with one request id over all attempts, so that a retry never publishes twice.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, timeout_at};
use tonic::Status;
use uuid::Uuid;

use super::{
    Client, Error, ErrorKind,
    backoff::{Backoff, retry_delay},
    error::{accepted_events, nothing_published},
};
use trunkline_proto::v1::{
    DeliveryReport, Event, Position, PublishRequest, PublishResponse, WaitFor,
};

impl Client {
    /// Publishes 1 to 1,000 events in one request, and returns their positions in the same order.
    /// Tries the gateways in turn until the publish timeout, with one request id: however many
    /// attempts it takes, each event is published once.
    ///
    /// If the future is dropped, the events may or may not be published.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`], [`ErrorKind::Denied`] and [`ErrorKind::Unsupported`] at once;
    /// [`ErrorKind::Unavailable`] and [`ErrorKind::OutcomeUnknown`] after the publish timeout.
    /// [`Error::accepted_events`] has what was published all the same.
    pub async fn publish<E: Into<Event>>(
        &self,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Vec<Position>, Error> {
        self.publish_as(&Uuid::new_v4().to_string(), events).await
    }

    /// As [`Client::publish`], with a request id of the caller, a UUID. A caller that stores it
    /// with the events can publish them again with it after [`ErrorKind::OutcomeUnknown`] or a
    /// restart.
    ///
    /// # Errors
    ///
    /// As [`Client::publish`].
    pub async fn publish_as<E: Into<Event>>(
        &self,
        request_id: &str,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Vec<Position>, Error> {
        let request = PublishRequest {
            node_id: self.node_id.clone(),
            request_id: request_id.to_owned(),
            events: events.into_iter().map(Into::into).collect(),
            ..Default::default()
        };
        Ok(self.publish_request(request, Duration::ZERO).await?.positions)
    }

    /// As [`Client::publish`], and then waits until every node that the events concern has received
    /// them, or, with `acknowledged`, until it has acknowledged them on its watch; but no longer
    /// than `timeout`, which is at most a minute. The report says whether all have, or who has not.
    /// The events are published in any case.
    ///
    /// If the first attempt was accepted and its answer lost, the report of the next one knows
    /// nothing of the nodes, and is not complete.
    ///
    /// # Errors
    ///
    /// As [`Client::publish`]. A gateway of an earlier version does not wait:
    /// [`ErrorKind::Unsupported`], and the events are published.
    pub async fn publish_and_wait<E: Into<Event>>(
        &self,
        events: impl IntoIterator<Item = E>,
        acknowledged: bool,
        timeout: Duration,
    ) -> Result<DeliveryReport, Error> {
        let wait_for = if acknowledged { WaitFor::Acknowledged } else { WaitFor::Delivered };
        let invalid = |_| Error::new(ErrorKind::Invalid, Status::invalid_argument("timeout"));
        let request = PublishRequest {
            node_id: self.node_id.clone(),
            request_id: Uuid::new_v4().to_string(),
            events: events.into_iter().map(Into::into).collect(),
            wait_for: wait_for.into(),
            wait_timeout: Some(timeout.try_into().map_err(invalid)?),
        };
        let response = self.publish_request(request, timeout).await?;
        response.delivery.ok_or_else(|| {
            let text = "the events are published, and the gateway does not wait for nodes";
            Error::new(ErrorKind::Unsupported, Status::unimplemented(text))
        })
    }

    /// Publishes a request whose answers take `longer` than others.
    async fn publish_request(
        &self,
        request: PublishRequest,
        longer: Duration,
    ) -> Result<PublishResponse, Error> {
        let deadline = Instant::now() + self.publish_timeout + longer;
        let mut backoff = Backoff::new(self.reconnect_wait);
        let mut number = self.preferred();
        let mut kind = ErrorKind::Unavailable;
        let mut accepted = BTreeSet::new();
        loop {
            let limit = deadline.min(Instant::now() + self.attempt_timeout + longer);
            let (mut gateway, changes) = self.gateway(number);
            let status = match timeout_at(limit, gateway.publish(request.clone())).await {
                Ok(Ok(response)) => {
                    self.works(number);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!(
                    "no answer in time from {}",
                    self.address(number)
                )),
            };
            accepted.extend(accepted_events(&status));
            if let Some(kind) = self.final_kind(&status, changes) {
                return Err(Error::new(kind, status).with_accepted(accepted));
            }
            if !nothing_published(&status) {
                kind = ErrorKind::OutcomeUnknown;
            }
            let wait = backoff.next(retry_delay(&status));
            if Instant::now() + wait >= deadline {
                return Err(Error::new(kind, status).with_accepted(accepted));
            }
            tracing::debug!(gateway = self.address(number), %status, ?wait, "retrying to publish");
            tokio::time::sleep(wait).await;
            number += 1;
        }
    }
}
