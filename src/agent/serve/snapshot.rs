//! What an agent leaves to the process that goes on in its place.

use std::time::{Duration, SystemTime};

use trunkline_client::{
    Unacknowledged,
    v1::{Event, queue_status::State},
};

use crate::agent::formats::Known;

/// The state of an agent that has ended: given to the next process, or kept in a file until that
/// starts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Snapshot {
    /// When it was taken, in milliseconds since 1970.
    #[prost(uint64, tag = "1")]
    taken_at: u64,
    /// Where the stream of events goes on.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) resume_token: Vec<u8>,
    /// The other nodes are to be healed.
    #[prost(bool, tag = "3")]
    pub(super) repair: bool,
    /// The state of the queue; 0: unknown.
    #[prost(int32, tag = "4")]
    queue: i32,
    /// The accounts that changed lately, the older ones first.
    #[prost(message, repeated, tag = "5")]
    accounts: Vec<Account>,
    #[prost(string, tag = "6")]
    publisher_id: String,
    #[prost(uint64, tag = "7")]
    first_sequence: u64,
    /// The events that no gateway has acknowledged.
    #[prost(message, repeated, tag = "8")]
    events: Vec<Waiting>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Account {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint64, tag = "2")]
    state: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Waiting {
    #[prost(message, optional, tag = "1")]
    event: Option<Event>,
    /// In milliseconds, when the snapshot was taken.
    #[prost(uint64, tag = "2")]
    waited: u64,
}

impl Snapshot {
    pub(super) fn new(
        resume_token: Vec<u8>,
        known: &Known,
        repair: bool,
        unacknowledged: Unacknowledged,
    ) -> Snapshot {
        let account = |(id, state): (&str, u64)| Account { id: id.to_owned(), state };
        let waiting = |(event, waited)| Waiting { event: Some(event), waited: millis(waited) };
        Snapshot {
            taken_at: now(),
            resume_token,
            repair,
            queue: known.queue().map_or(0, |state| state as i32),
            accounts: known.states().map(account).collect(),
            publisher_id: unacknowledged.publisher_id,
            first_sequence: unacknowledged.first_sequence,
            events: unacknowledged.events.into_iter().map(waiting).collect(),
        }
    }

    /// That of an agent which left none, though it had begun: it ended by force, and events that
    /// waited are lost.
    pub(super) fn of_a_crash() -> Snapshot {
        Snapshot { repair: true, ..Snapshot::default() }
    }

    pub(super) fn known(&self) -> Known {
        let queue = State::try_from(self.queue).ok().filter(|state| *state != State::Unspecified);
        let accounts = self.accounts.iter().map(|account| (account.id.clone(), account.state));
        Known::of(queue, accounts)
    }

    /// The events that wait, with the time since the snapshot.
    pub(super) fn unacknowledged(&self) -> Option<Unacknowledged> {
        let since = now().saturating_sub(self.taken_at);
        let event = |waiting: &Waiting| {
            let waited = Duration::from_millis(waiting.waited.saturating_add(since));
            Some((waiting.event.clone()?, waited))
        };
        (!self.publisher_id.is_empty()).then(|| Unacknowledged {
            publisher_id: self.publisher_id.clone(),
            first_sequence: self.first_sequence,
            events: self.events.iter().filter_map(event).collect(),
        })
    }

    /// The number of events that wait.
    pub(super) fn waiting(&self) -> usize {
        self.events.len()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, millis)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use trunkline_client::v1::{MailboxChange, QueueStatus, event::Kind};

    use super::*;

    #[test]
    fn what_an_agent_knew_and_what_waited_is_there_again() {
        let mut known = Known::default();
        known.note(&Kind::from(QueueStatus { state: State::Paused.into() }));
        let account_id = "7".to_owned();
        known.note(&MailboxChange { account_id, change_id: 5, ..Default::default() }.into());
        let waited = Duration::from_secs(3);
        let before = Unacknowledged {
            publisher_id: "p".into(),
            first_sequence: 9,
            events: vec![(Event { event_id: "e".into(), ..Event::default() }, waited)],
        };
        let snapshot = Snapshot::new(b"token".to_vec(), &known, true, before.clone());
        let read = Snapshot::decode(&*snapshot.encode_to_vec()).unwrap();
        assert_eq!(read, snapshot);
        let known = read.known();
        assert_eq!((known.queue(), known.state_of("7")), (Some(State::Paused), 5));
        let after = read.unacknowledged().unwrap();
        assert_eq!((&after.publisher_id[..], after.first_sequence), ("p", 9));
        assert_eq!(after.events[0].0, before.events[0].0);
        assert!(after.events[0].1 >= waited);
        assert_eq!(Snapshot::of_a_crash().unacknowledged(), None);
    }
}
