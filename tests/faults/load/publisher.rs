//! A publisher: sends one request after the other, and retries each until it is answered.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tonic::Code;
use trunkline_proto::v1::{Event, PublishRequest};

use super::{PATIENCE, Shared, client, is_connection_error, node_id};
use crate::support::events;

/// How long a publisher waits for an answer before it retries: longer than a gateway's own limit of
/// 10 s.
const ANSWER: Duration = Duration::from_secs(12);

pub async fn publish(shared: Arc<Shared>, index: usize) {
    // The first publisher subscribes too.
    let node_id = if index == 0 { node_id(0) } else { format!("publisher-{index}") };
    let client = shared.is_client(index).then(|| {
        let builder = shared.builder(&node_id, index).publish_timeout(PATIENCE);
        builder.build().expect("a client")
    });
    if shared.is_streaming(index) {
        return client::publish_on_a_stream(&shared, &node_id, index).await;
    }
    let mut turn = index;
    let mut number = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let count = 1 + number % shared.shape.batch;
        let batch: Vec<Event> =
            (0..count).map(|nth| event(&shared, &node_id, number + nth)).collect();
        number += count;
        match &client {
            Some(client) => client::publish(&shared, client, batch).await,
            None => by_hand(&shared, &node_id, &mut turn, batch).await,
        }
        tokio::time::sleep(shared.shape.pace).await;
    }
}

/// Sends one request until it is answered.
async fn by_hand(shared: &Shared, node_id: &str, turn: &mut usize, batch: Vec<Event>) {
    let (first, count) = (shared.sends(node_id, &batch), batch.len());
    let request = PublishRequest {
        node_id: node_id.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        events: batch,
        ..Default::default()
    };
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let answer = timeout(ANSWER, shared.client(*turn).publish(request.clone())).await;
        match answer {
            Ok(Ok(answer)) => {
                return shared.acknowledges(first, count, &answer.into_inner().positions);
            }
            Ok(Err(status))
                if status.code() != Code::Unavailable && !is_connection_error(&status) =>
            {
                return shared.unexcused(format!("publish: {status:?}"));
            }
            Ok(Err(_)) | Err(_) => {
                shared.history.lock().refused += 1;
                *turn += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The event of a publisher with this number.
pub fn event(shared: &Shared, node_id: &str, number: u64) -> Event {
    let account = format!("account-{}", number % shared.shape.accounts);
    let event = if number.is_multiple_of(3) {
        events::email_delivery(&account, &format!("message-{number}"))
    } else {
        events::mailbox_change(&account, number)
    };
    events::with_id(format!("{node_id}/{number}/{}", shared.id), event)
}
