//! What an agent reports of itself: to gateways, and on its own admin port.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::watch;
use trunkline_client::v1::{AgentChannel, AgentHealing, AgentReport};

use super::{JOINED, Shared, count};

/// The interval at which a report is sent, if anything changed.
const INTERVAL: Duration = Duration::from_secs(1);

/// Programs and healings in a report, and bytes of its texts. Gateways take no more.
const MAX_PROGRAMS: usize = 32;
const MAX_HEALINGS: usize = 8;
const MAX_TEXT: usize = 128;

/// The last healings, the latest first.
#[derive(Debug, Default)]
pub(super) struct Healings(Mutex<VecDeque<AgentHealing>>);

impl Healings {
    fn add(&self, healing: AgentHealing) {
        let mut healings = self.0.lock();
        healings.truncate(MAX_HEALINGS - 1);
        healings.push_front(healing);
    }
}

/// Reports for as long as it runs.
pub(super) async fn run(shared: &Shared, reports: &watch::Sender<AgentReport>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let report = shared.report();
        reports.send_if_modified(|last| {
            let changed = *last != report;
            *last = report;
            changed
        });
    }
}

impl Shared {
    /// What the agent reports of itself now.
    pub(super) fn report(&self) -> AgentReport {
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let waiting = self.uplink.waiting();
        // That of the mail server is the first one.
        let format = &self.options.formats[0];
        AgentReport {
            host: text(&self.options.host),
            format: format.name().to_owned(),
            start_time: Some(self.started.into()),
            programs: self.programs.list(&format.version(), MAX_PROGRAMS),
            subscribers: number(self.subscribers.lock().len()),
            published_messages: read(&counters.published_messages),
            published_events: read(&counters.published_events),
            received_events: read(&counters.received_events),
            delivered_messages: read(&counters.delivered_messages),
            undecodable_messages: read(&counters.undecodable_messages),
            left_out_events: read(&counters.left_out_events),
            rejected_events: read(&counters.rejected_events),
            lost_events: read(&counters.lost_events),
            waiting_events: waiting.events as u64,
            waiting_age: waiting.age.and_then(|age| prost_types::Duration::try_from(age).ok()),
            healings: read(&counters.healings) + read(&counters.repairs),
            last_healings: self.healings.0.lock().iter().cloned().collect(),
            joined_channel: self.options.join.as_ref().map(|join| AgentChannel {
                channel: text(self.options.formats[JOINED].channel()),
                server: text(join.shown()),
                carried: self.joined.lock().is_some(),
                published_messages: read(&counters.joined_messages),
            }),
        }
    }

    /// Programs of this host were healed.
    pub(super) fn healed_programs(&self, why: &str, programs: usize, accounts: usize) {
        count(&self.counters.healings, programs);
        self.healings.add(AgentHealing {
            heal_time: Some(SystemTime::now().into()),
            reason: text(why),
            programs: number(programs),
            others: false,
            accounts: number(accounts),
        });
    }

    /// The programs of other hosts were healed.
    pub(super) fn healed_others(&self, why: &str) {
        count(&self.counters.repairs, 1);
        self.healings.add(AgentHealing {
            heal_time: Some(SystemTime::now().into()),
            reason: text(why),
            programs: 0,
            others: true,
            accounts: number(self.known.lock().accounts().count()),
        });
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The text, or as much of it as a report takes.
fn text(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_healings_are_kept_and_texts_are_bounded() {
        let healings = Healings::default();
        for reason in 0..20 {
            healings.add(AgentHealing { reason: reason.to_string(), ..Default::default() });
        }
        let reasons: Vec<String> = healings.0.lock().iter().map(|h| h.reason.clone()).collect();
        assert_eq!(reasons, ["19", "18", "17", "16", "15", "14", "13", "12"]);
        assert_eq!(text(&"é".repeat(100)).len(), 128);
        assert_eq!(text(&format!("x{}", "é".repeat(100))).len(), 127);
    }
}
