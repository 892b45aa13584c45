//! A publisher: sends one request after the other, and retries each until it is answered.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tonic::Code;
use trunkline_proto::v1::{Event, PublishRequest};

use super::{ACCOUNTS, PATIENCE, Shape, Shared, account, is_connection_error, node_id};
use crate::{
    history::{Acknowledged, Sent},
    support::events,
};

/// How long a publisher waits for an answer before it retries: longer than a gateway's own limit of
/// 10 s.
const ANSWER: Duration = Duration::from_secs(12);

pub async fn publish(shared: Arc<Shared>, index: usize, shape: Shape) {
    // The first publisher subscribes too.
    let node_id = if index == 0 { node_id(0) } else { format!("publisher-{index}") };
    let mut turn = index;
    let mut number = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let count = 1 + number % shape.batch;
        let batch: Vec<Event> = (0..count).map(|nth| event(&node_id, number + nth)).collect();
        number += count;
        let first = {
            let at = shared.start.elapsed();
            let mut history = shared.history.lock();
            history.sent.extend(batch.iter().map(|event| Sent {
                event_id: event.event_id.clone(),
                source: node_id.clone(),
                account: account(event).to_owned(),
                at,
                acknowledged: None,
            }));
            history.sent.len() - batch.len()
        };
        let request = PublishRequest {
            node_id: node_id.clone(),
            request_id: uuid::Uuid::new_v4().to_string(),
            events: batch,
        };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let answer = timeout(ANSWER, shared.client(turn).publish(request.clone())).await;
            match answer {
                Ok(Ok(answer)) => {
                    let positions = answer.into_inner().positions;
                    if positions.len() != request.events.len() {
                        shared.unexcused(format!("{} positions", positions.len()));
                        break;
                    }
                    let at = shared.start.elapsed();
                    shared.acknowledged.fetch_add(positions.len(), Ordering::Relaxed);
                    let mut history = shared.history.lock();
                    for (nth, position) in positions.iter().enumerate() {
                        history.sent[first + nth].acknowledged = Some(Acknowledged {
                            shard: position.shard,
                            position: (position.epoch, position.offset),
                            at,
                        });
                    }
                    break;
                }
                Ok(Err(status))
                    if status.code() != Code::Unavailable && !is_connection_error(&status) =>
                {
                    shared.unexcused(format!("publish: {status:?}"));
                    break;
                }
                Ok(Err(_)) | Err(_) => {
                    shared.history.lock().refused += 1;
                    turn += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        tokio::time::sleep(shape.pace).await;
    }
}

fn event(node_id: &str, number: u64) -> Event {
    let account = format!("account-{}", number % ACCOUNTS);
    let event = if number.is_multiple_of(3) {
        events::email_delivery(&account, &format!("message-{number}"))
    } else {
        events::mailbox_change(&account, number)
    };
    events::with_id(format!("{node_id}/{number}"), event)
}
