//! Publishing: one request id over all attempts, so that a retry never publishes twice.

use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use super::{Client, backoff::Backoff};
use crate::proto::v1::{Event, Position, PublishRequest};

/// Why events were not published, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The gateway refused them: something in them is wrong, or they may not be published. Nothing was.
    #[error("refused: {}", .0.message())]
    Refused(Status),
    /// No gateway took them in time. They may have been published if an answer was lost.
    #[error("not published in time: {}", .0.message())]
    Unavailable(Status),
}

impl Client {
    /// Publishes 1 to 1,000 events, and returns their positions. Tries all gateways in turn until the publish timeout, under
    /// one request id.
    ///
    /// # Errors
    ///
    /// The events were refused, or no gateway was available for the whole time.
    pub async fn publish(&self, events: Vec<Event>) -> Result<Vec<Position>, PublishError> {
        let request = PublishRequest {
            node_id: self.node_id.clone(),
            request_id: Uuid::new_v4().to_string(),
            events,
        };
        let deadline = Instant::now() + self.publish_timeout;
        let mut backoff = Backoff::new();
        let mut attempt = 0;
        loop {
            let mut gateway = self.gateway(attempt);
            let answer = tokio::time::timeout_at(deadline, gateway.publish(request.clone())).await;
            let status = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner().positions),
                Ok(Err(status)) => status,
                Err(_) => {
                    return Err(PublishError::Unavailable(Status::deadline_exceeded(
                        "no answer in time",
                    )));
                }
            };
            // Under one request id these are all safe to try again; a lost connection is UNKNOWN or UNAVAILABLE.
            let again = matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::ResourceExhausted
            );
            if !again {
                return Err(PublishError::Refused(status));
            }
            let wait = backoff.next(Some(&status));
            if Instant::now() + wait >= deadline {
                return Err(PublishError::Unavailable(status));
            }
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }
}
