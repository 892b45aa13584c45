//! Publishers that number their events on streams, and send again what was not answered, cut
//! otherwise, on whatever gateway they reach.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::sync::oneshot;
use trunkline::bus::{Batch, Numbering, PublisherId, ShardId, redis::writer::Job};

use super::{
    event,
    world::{Answers, World},
};

/// Every seventh sequence is rejected, whenever it comes.
const REJECTED: u64 = 7;

/// A publisher, and what it has not been answered.
#[derive(Default)]
pub struct Publisher {
    id: PublisherId,
    /// The last sequence that it gave.
    last: u64,
    /// Its events without an answer: sequence, and index of the request.
    waiting: Vec<(u64, usize)>,
    stream: Option<Stream>,
    streams: u64,
}

/// A stream of a publisher.
struct Stream {
    number: u64,
    gateway: usize,
    gateway_id: u64,
    numbering: Numbering,
    /// The last sequence that was sent on it.
    sent: u64,
}

/// A batch that was sent on a stream.
pub struct Sent {
    publisher: usize,
    stream: u64,
    last: u64,
    pub events: Vec<u64>,
}

impl Publisher {
    pub fn new(number: u8) -> Publisher {
        Publisher { id: [number; 16], ..Publisher::default() }
    }

    /// True while events have no answer.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The sequences after `from` that it ever gave which were rejected or went to other shards
    /// need no answer of this one.
    fn first_waiting(&self) -> u64 {
        self.waiting.first().map_or(self.last + 1, |(sequence, _)| *sequence)
    }
}

impl World {
    /// A publisher does something: it loses its stream, opens one, or sends on it.
    pub fn stream(&mut self) {
        let index = self.rng.below(self.publishers.len());
        if self.rng.percent(8) {
            self.publishers[index].stream = None;
        }
        if self.rng.percent(60) {
            for _ in 0..=self.rng.below(3) {
                // Those between go to other shards.
                let between = self.rng.below(3) as u64;
                let publisher = &mut self.publishers[index];
                publisher.last += 1 + between;
                if publisher.last.is_multiple_of(REJECTED) {
                    continue;
                }
                let (sequence, request) = (publisher.last, self.requests.len());
                publisher.waiting.push((sequence, request));
                let event = self.new_event();
                self.add_request(None, vec![event]);
            }
        }
        let most = 1 + self.rng.below(4);
        self.send_waiting(index, most);
    }

    /// Sends up to `most` of a publisher's events that were not sent on its stream.
    pub fn send_waiting(&mut self, index: usize, most: usize) {
        let publisher = &mut self.publishers[index];
        let is_there = |stream: &Stream, world: &[super::world::Gateway]| {
            world[stream.gateway].id == stream.gateway_id
        };
        if publisher.stream.as_ref().is_some_and(|stream| !is_there(stream, &self.gateways)) {
            publisher.stream = None;
        }
        if publisher.stream.is_none() {
            let Some(gateway) = self.pick() else { return };
            if !self.gateways[gateway].reader.is_started() {
                return;
            }
            let publisher = &mut self.publishers[index];
            publisher.streams += 1;
            let first = publisher.first_waiting();
            publisher.stream = Some(Stream {
                number: publisher.streams,
                gateway,
                gateway_id: self.gateways[gateway].id,
                numbering: Numbering::new(publisher.id, first, 1),
                sent: first - 1,
            });
            self.note(|| format!("publisher {index} opens a stream on gateway {gateway}"));
        }
        let publisher = &mut self.publishers[index];
        let Some(stream) = &mut publisher.stream else { return };
        let frozen = &self.gateways[stream.gateway];
        if frozen.frozen {
            return;
        }
        let from = stream.sent + 1;
        let new: Vec<(u64, usize)> =
            publisher.waiting.iter().copied().filter(|(at, _)| *at >= from).take(most).collect();
        let Some((last, _)) = new.last().copied() else { return };
        let mut runs = Vec::new();
        for sequence in from..=last {
            if sequence.is_multiple_of(REJECTED) {
                stream.numbering.reject(sequence);
            } else if new.iter().any(|(at, _)| *at == sequence) {
                stream.numbering.add(ShardId(0), sequence, &mut runs);
            }
        }
        stream.sent = last;
        let (number, gateway) = (stream.number, stream.gateway);
        let events: Vec<u64> =
            new.iter().flat_map(|(_, request)| self.requests[*request].events.clone()).collect();
        self.note(|| {
            let covers: Vec<_> = runs.iter().map(|run| (run.from, run.last())).collect();
            format!("gateway {gateway} gets {events:?} of publisher {index} as {covers:?}")
        });
        let batch = Batch {
            events: events.iter().copied().map(event::encode).collect(),
            request_id: None,
            runs,
            retain: vec![],
            trace: None,
        };
        let sent = Sent { publisher: index, stream: number, last, events };
        let (answer, answered) = oneshot::channel();
        let deadline = self.now() + Duration::from_secs(10);
        let job = Job { batch, deadline, sent: Arc::new(AtomicBool::new(false)), answer };
        self.add_job(gateway, job, Answers::Stream(sent), answered);
    }

    /// A batch of a stream was accepted, or failed: then the stream is over.
    pub fn stream_answered(&mut self, sent: &Sent, accepted: bool) {
        let step = self.steps();
        let publisher = &mut self.publishers[sent.publisher];
        if publisher.stream.as_ref().is_none_or(|stream| stream.number != sent.stream) {
            return;
        }
        if !accepted {
            publisher.stream = None;
            return;
        }
        let acknowledged = publisher.waiting.extract_if(.., |(at, _)| *at <= sent.last);
        for (_, request) in acknowledged {
            self.requests[request].answered.get_or_insert(step);
        }
    }
}
