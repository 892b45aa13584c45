//! What an agent remembers of the events that it saw, to bring programs up to date that missed
//! some.

use std::collections::HashMap;

use trunkline_proto::v1::{ChangedType, event::Kind, queue_status::State};

/// Accounts in one of two generations.
const ACCOUNTS: usize = 10_000;

/// The state of the queue, and the accounts that changed lately: at most 20,000.
#[derive(Clone, Debug, Default)]
pub struct Known {
    queue: Option<State>,
    /// Accounts, with the last state of each; 0: unknown. The new ones become the old ones when
    /// they are full, so that the last 10,000 are always among both.
    new: HashMap<String, u64>,
    old: HashMap<String, u64>,
}

impl Known {
    /// What another agent remembered; the older accounts come first.
    pub fn of(queue: Option<State>, accounts: impl IntoIterator<Item = (String, u64)>) -> Known {
        let mut known = Known { queue, ..Known::default() };
        for (account, state) in accounts {
            known.changed(&account, Some(state));
        }
        known
    }

    /// Remembers what an event says.
    pub fn note(&mut self, event: &Kind) {
        match event {
            Kind::QueueStatus(status) if status.state() != State::Unspecified => {
                self.queue = Some(status.state());
            }
            Kind::MailboxChange(change) => {
                // The number of a share notification is of another counter.
                let shared = [ChangedType::ShareNotification as i32];
                let state = (change.changed_types != shared).then_some(change.change_id);
                self.changed(&change.account_id, state);
            }
            Kind::EmailDelivery(delivery) => {
                self.changed(&delivery.account_id, Some(delivery.change_id));
            }
            _ => {}
        }
    }

    fn changed(&mut self, account: &str, state: Option<u64>) {
        if let Some(known) = self.new.get_mut(account) {
            *known = state.unwrap_or(*known);
            return;
        }
        if self.new.len() == ACCOUNTS {
            self.forget_old();
        }
        let known = self.old.remove(account).unwrap_or_default();
        self.new.insert(account.to_owned(), state.unwrap_or(known));
    }

    /// Forgets the accounts that changed before the last call, and not since then. An agent that
    /// calls this each hour knows those of the last one or two.
    pub fn forget_old(&mut self) {
        self.old = std::mem::take(&mut self.new);
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.queue.is_none() && self.accounts().next().is_none()
    }

    /// Adds what happened before everything that is known.
    pub fn add_earlier(&mut self, earlier: &Known) {
        let mut all = earlier.clone();
        for (account, state) in self.states() {
            all.changed(account, Some(state).filter(|state| *state != 0));
        }
        all.queue = self.queue.or(earlier.queue);
        *self = all;
    }

    /// The state of the queue, if any event said it.
    pub fn queue(&self) -> Option<State> {
        self.queue
    }

    /// The accounts that changed lately.
    pub fn accounts(&self) -> impl Iterator<Item = &str> {
        self.new.keys().chain(self.old.keys()).map(String::as_str)
    }

    /// The same, the older ones first, with the last state of each.
    pub fn states(&self) -> impl Iterator<Item = (&str, u64)> {
        self.old.iter().chain(&self.new).map(|(account, state)| (account.as_str(), *state))
    }

    /// The last state of an account; 0: unknown.
    pub fn state_of(&self, account: &str) -> u64 {
        self.new.get(account).or_else(|| self.old.get(account)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::v1::{EmailDelivery, MailboxChange, QueueStatus};

    use super::*;

    fn change(account: &str, change_id: u64, changed: ChangedType) -> Kind {
        let account_id = account.to_owned();
        let changed_types = vec![changed.into()];
        MailboxChange { account_id, change_id, changed_types, ..Default::default() }.into()
    }

    #[test]
    fn the_last_state_of_queue_and_accounts_is_known() {
        let mut known = Known::default();
        assert_eq!(known.queue(), None);
        for state in [State::Paused, State::Running, State::Unspecified] {
            known.note(&QueueStatus { state: state.into() }.into());
        }
        assert_eq!(known.queue(), Some(State::Running));
        known.note(&change("1", 7, ChangedType::Email));
        known.note(&change("1", 343_216_267_687_114_240, ChangedType::ShareNotification));
        assert_eq!((known.state_of("1"), known.state_of("2")), (7, 0));
        let delivery = EmailDelivery { account_id: "1".into(), change_id: 8, ..Default::default() };
        known.note(&delivery.into());
        known.note(&change("2", 5, ChangedType::ShareNotification));
        assert_eq!((known.state_of("1"), known.state_of("2")), (8, 0));
        assert_eq!(known.accounts().count(), 2);
    }

    #[test]
    fn what_happened_earlier_is_added_and_replaces_nothing() {
        let status = |state: State| Kind::from(QueueStatus { state: state.into() });
        let (mut known, mut earlier) = (Known::default(), Known::default());
        assert!(earlier.is_empty());
        known.note(&change("1", 7, ChangedType::Email));
        earlier.note(&change("1", 5, ChangedType::Email));
        earlier.note(&change("2", 3, ChangedType::Email));
        earlier.note(&status(State::Paused));
        assert!(!earlier.is_empty());
        known.add_earlier(&earlier);
        assert_eq!((known.state_of("1"), known.state_of("2")), (7, 3));
        assert_eq!(known.queue(), Some(State::Paused));
        known.note(&status(State::Running));
        known.add_earlier(&earlier);
        assert_eq!(known.queue(), Some(State::Running));
    }

    #[test]
    fn accounts_are_bounded_and_the_latest_are_kept() {
        let mut known = Known::default();
        for id in 0..50_000u64 {
            known.note(&change(&id.to_string(), id, ChangedType::Email));
            known.note(&change("often", id, ChangedType::Email));
        }
        assert!(known.accounts().count() <= 2 * ACCOUNTS);
        assert!((40_001..50_000).all(|id| known.state_of(&id.to_string()) == id));
        assert_eq!(known.state_of("often"), 49_999);
        known.forget_old();
        known.forget_old();
        assert_eq!(known.accounts().count(), 0);
    }
}
