//! Publishers that number their events on streams, and send again what was not answered, cut
//! otherwise, on whatever gateway they reach.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::sync::oneshot;
use trunkline::bus::{
    AppendError, Batch, Numbering, PublisherId, ShardId, StreamNumber, redis::writer::Job,
};

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
    /// Its events without an answer.
    waiting: Vec<Waiting>,
    stream: Option<Stream>,
    /// Streams that it has left, and whose gateways do not know: what it sent on them arrives late.
    left: Vec<Stream>,
    streams: u64,
}

/// An event without an answer: its sequence, and the index of its request.
type Waiting = (u64, usize);

/// A stream of a publisher.
struct Stream {
    /// Its number among those of the publisher.
    nth: u64,
    gateway: usize,
    gateway_id: u64,
    /// Its number on the bus, while it waits for that.
    number: Option<oneshot::Receiver<StreamNumber>>,
    /// No other one of the publisher can get a number after it.
    is_last: bool,
    /// The shard gave its number without a gateway that may know of greater ones.
    is_unsure: bool,
    numbering: Numbering,
    /// The last sequence that was sent on it.
    sent: u64,
    /// What is still on its way, once it is left.
    late: Vec<Waiting>,
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
        if self.rng.percent(10)
            && let Some(mut stream) = self.publishers[index].stream.take()
            && self.rng.percent(75)
        {
            // Its gateway takes it for open, and gets what was on its way some time.
            let publisher = &mut self.publishers[index];
            stream.late.extend(publisher.waiting.iter().filter(|(at, _)| *at > stream.sent));
            publisher.left.push(stream);
        }
        let most = 1 + self.rng.below(4);
        if self.rng.percent(30) {
            self.send_late(index, most);
        }
        self.send_waiting(index, most);
    }

    /// Up to `most` events arrive on a stream that its publisher has left.
    fn send_late(&mut self, index: usize, most: usize) {
        let left = self.publishers[index].left.len();
        if left == 0 {
            return;
        }
        let nth = self.rng.below(left);
        let mut stream = self.publishers[index].left.swap_remove(nth);
        if !self.may_send(&mut stream) {
            self.publishers[index].left.push(stream);
            return;
        }
        let new: Vec<Waiting> = stream.late.drain(..most.min(stream.late.len())).collect();
        self.send_on(index, &mut stream, &new);
        self.count("events sent late");
        if !stream.late.is_empty() {
            self.publishers[index].left.push(stream);
        }
    }

    /// Sends up to `most` of a publisher's events that were not sent on its stream.
    pub fn send_waiting(&mut self, index: usize, most: usize) {
        let stream = self.publishers[index].stream.take();
        let is_there = |stream: &Stream| self.gateways[stream.gateway].id == stream.gateway_id;
        let stream = stream.filter(is_there).or_else(|| self.open_stream(index));
        let Some(mut stream) = stream else { return };
        if self.may_send(&mut stream) {
            let waiting = &self.publishers[index].waiting;
            let new = waiting.iter().copied().filter(|(at, _)| *at > stream.sent);
            let new: Vec<Waiting> = new.take(most).collect();
            self.send_on(index, &mut stream, &new);
        }
        self.publishers[index].stream = Some(stream);
    }

    /// Opens a stream where the publisher finds a gateway.
    fn open_stream(&mut self, index: usize) -> Option<Stream> {
        let gateway = self.pick()?;
        if !self.gateways[gateway].reader.is_started() {
            return None;
        }
        let (number, numbered) = oneshot::channel();
        self.gateways[gateway].number_stream(number);
        let publisher = &mut self.publishers[index];
        publisher.streams += 1;
        let first = publisher.first_waiting();
        let is_last = publisher.left.iter().all(|left| left.number.is_none());
        let stream = Stream {
            nth: publisher.streams,
            gateway,
            gateway_id: self.gateways[gateway].id,
            number: Some(numbered),
            numbering: Numbering::new(publisher.id, 0, first, 1),
            is_last,
            is_unsure: false,
            sent: first - 1,
            late: vec![],
        };
        self.note(|| format!("publisher {index} opens a stream on gateway {gateway}"));
        Some(stream)
    }

    /// True if the gateway of a stream takes events from it: it has a number, or has waited for one
    /// for long.
    fn may_send(&mut self, stream: &mut Stream) -> bool {
        let gateway = &self.gateways[stream.gateway];
        if gateway.id != stream.gateway_id || gateway.frozen {
            // What the publisher sent there is gone, or waits.
            return false;
        }
        let Some(number) = &mut stream.number else { return true };
        match number.try_recv() {
            Ok(number) => {
                stream.is_unsure = self.unsure_streams.contains(&number);
                stream.numbering.set_stream(number);
            }
            Err(oneshot::error::TryRecvError::Empty) if !self.rng.percent(3) => return false,
            Err(_) => self.count("streams without a number"),
        }
        stream.number = None;
        true
    }

    /// Hands these events to the gateway of a stream.
    fn send_on(&mut self, index: usize, stream: &mut Stream, new: &[Waiting]) {
        let Some((last, _)) = new.last().copied() else { return };
        let mut runs = Vec::new();
        for sequence in stream.sent + 1..=last {
            if sequence.is_multiple_of(REJECTED) {
                stream.numbering.reject(sequence);
            } else if new.iter().any(|(at, _)| *at == sequence) {
                stream.numbering.add(ShardId(0), sequence, &mut runs);
            }
        }
        stream.sent = last;
        let gateway = stream.gateway;
        let events: Vec<u64> =
            new.iter().flat_map(|(_, request)| self.requests[*request].events.clone()).collect();
        self.note(|| {
            let covers: Vec<_> =
                runs.iter().map(|run| (run.stream, run.from, run.last())).collect();
            format!("gateway {gateway} gets {events:?} of publisher {index} as {covers:?}")
        });
        let batch = Batch {
            events: events.iter().copied().map(event::encode).collect(),
            request_id: None,
            runs,
            retain: vec![],
            trace: None,
        };
        let sent = Sent { publisher: index, stream: stream.nth, last, events };
        let (answer, answered) = oneshot::channel();
        let deadline = self.now() + Duration::from_secs(10);
        let job = Job { batch, deadline, sent: Arc::new(AtomicBool::new(false)), answer };
        self.add_job(gateway, job, Answers::Stream(sent), answered);
    }

    /// A batch of a stream was accepted, or failed: then the stream is over.
    pub fn stream_answered(&mut self, sent: &Sent, answer: Result<(), &AppendError>) {
        let step = self.steps();
        let taken_over = matches!(answer, Err(AppendError::TakenOver));
        let publisher = &mut self.publishers[sent.publisher];
        if answer.is_err() {
            publisher.left.retain(|stream| stream.nth != sent.stream);
        }
        if publisher.stream.as_ref().is_none_or(|stream| stream.nth != sent.stream) {
            if taken_over {
                self.count("streams taken over");
            }
            return;
        }
        if answer.is_err() {
            let stream = publisher.stream.take();
            let is_last = stream.is_some_and(|stream| stream.is_last && !stream.is_unsure);
            if taken_over {
                self.count("last streams taken over");
                // On two masters numbers do not rise together.
                if is_last && !self.happened.contains_key("splits") {
                    let why =
                        format!("TakenOver: by no later stream of publisher {}", sent.publisher);
                    self.events.broken.push(why);
                }
            }
            return;
        }
        let acknowledged = publisher.waiting.extract_if(.., |(at, _)| *at <= sent.last);
        for (_, request) in acknowledged {
            self.requests[request].answered.get_or_insert(step);
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline::bus::redis::script::SHARD;

    use crate::redis::{Identity, Reply, Server};

    #[test]
    fn a_publisher_and_its_stream_are_forgotten_together() {
        let mut server = Server::default();
        let id = "a".repeat(40);
        server.set_identity(Identity { run_id: id.clone(), replication_id: id });
        server.set_time(2_000_000_000);
        let Reply::Bulk(sha) = server.call(&["SCRIPT", "LOAD", SHARD]) else { panic!("no script") };
        let sha = String::from_utf8(sha.to_vec()).expect("hex");
        // Two, of which one has published lately; an earlier version has forgotten half of a third.
        for (field, value) in [
            ("p:one", "1300 1-5"),
            ("s:one", "77"),
            ("p:two", "1500 1-5"),
            ("s:two", "88"),
            ("s:three", "99"),
        ] {
            server.call(&["HSET", "state", field, value]);
        }
        let keys = ["state", "history", "marks", "retained"];
        let probe = [
            "probe", "channel", "PUBLISH", "ours", "0", "", "100", "100", "100", "0", "0", "", "g",
            "1", "",
        ];
        server.call(&[&["EVALSHA", &sha, "4"], &keys[..], &probe[..]].concat());
        let read = ["HMGET", "state", "p:one", "s:one", "p:two", "s:two", "s:three"];
        let Reply::Array(left) = server.call(&read) else { panic!("no fields") };
        let left: Vec<bool> = left.iter().map(|field| *field != Reply::Nil).collect();
        assert_eq!(left, [false, false, true, true, false]);
    }
}
