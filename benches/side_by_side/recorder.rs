//! Records what a subscriber of any contestant receives, alike for all of them.

use std::sync::Arc;

use crate::{
    raw::{Response, id_of, read_response},
    received::{Received, time},
};

/// Records what one subscriber receives. Clones share the counts.
#[derive(Clone)]
pub struct Recorder {
    received: Arc<Received>,
    timed: bool,
}

impl Recorder {
    /// Nothing recorded yet. `timed`: latencies are recorded too, which needs the id of every
    /// event.
    pub fn new(timed: bool) -> Recorder {
        Recorder { received: Received::new(), timed }
    }

    /// The counts so far.
    pub fn received(&self) -> &Arc<Received> {
        &self.received
    }

    /// Records a message that is one encoded event.
    pub fn event(&self, event: &[u8]) {
        self.record_latency(event);
        self.received.count_message(1);
    }

    /// Records an encoded `SubscribeResponse`.
    pub fn response(&self, response: &[u8]) {
        let mut events = 0;
        let kind = read_response(response, |event| {
            self.record_latency(event);
            events += 1;
        });
        match kind {
            Response::Events => self.received.count_message(events),
            Response::Gap => self.received.count_gap(),
            Response::Other => {}
        }
    }

    fn record_latency(&self, event: &[u8]) {
        // Events that are published without a rate have no due time: their id is 0.
        if self.timed
            && let Some(due) = id_of(event).and_then(time).filter(|due| *due > 0)
        {
            self.received.record_latency(due);
        }
    }
}
