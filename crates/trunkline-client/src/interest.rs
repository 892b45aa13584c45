//! What a subscription says while it lives: its accounts, which change, and what its node reports
//! of itself.

use std::collections::{BTreeSet, VecDeque};

use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::{Error, ErrorKind, error::status_of};
use trunkline_proto::v1::{
    Acknowledge, AgentReport, Filter, InterestRejected, InterestUpdate, SubscribeRequest,
    WatchOpen, WatchRequest, watch_request::Request,
};

/// Accounts of one message. A gateway takes 10,000 unless configured otherwise.
const MESSAGE_ACCOUNTS: usize = 5_000;

/// Changes that wait for the subscription.
pub(super) const CHANGES: usize = 64;

/// Changes the accounts of a [`Subscription`](crate::Subscription) while it lives: see
/// [`Client::watch`](crate::Client::watch). Clones change the same one.
#[derive(Clone, Debug)]
pub struct Interest {
    changes: mpsc::Sender<Change>,
}

/// A change, and who waits for it.
#[derive(Debug)]
pub(super) struct Change {
    what: What,
    done: oneshot::Sender<Result<(), Error>>,
}

#[derive(Debug)]
enum What {
    Add(Vec<String>),
    Remove(Vec<String>),
    Replace(BTreeSet<String>),
}

impl Interest {
    pub(super) fn new() -> (Interest, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(CHANGES);
        (Interest { changes }, receiver)
    }

    /// Adds accounts. Once this returns, every event that concerns one of them, and that is
    /// acknowledged to its publisher after that, is delivered or reported as a gap, over all
    /// streams of the subscription.
    ///
    /// Works only while the subscription is polled, and waits while it has no stream.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] and [`ErrorKind::Denied`] for accounts that the gateway rejects:
    /// nothing has changed then. [`ErrorKind::Unavailable`] if the subscription has ended.
    pub async fn add<A: Into<String>>(
        &self,
        accounts: impl IntoIterator<Item = A>,
    ) -> Result<(), Error> {
        self.change(What::Add(accounts.into_iter().map(Into::into).collect())).await
    }

    /// Removes accounts. Events that concern them may be delivered until this returns.
    ///
    /// # Errors
    ///
    /// As [`Interest::add`].
    pub async fn remove<A: Into<String>>(
        &self,
        accounts: impl IntoIterator<Item = A>,
    ) -> Result<(), Error> {
        self.change(What::Remove(accounts.into_iter().map(Into::into).collect())).await
    }

    /// Replaces all accounts by these.
    ///
    /// # Errors
    ///
    /// As [`Interest::add`].
    pub async fn replace<A: Into<String>>(
        &self,
        accounts: impl IntoIterator<Item = A>,
    ) -> Result<(), Error> {
        self.change(What::Replace(accounts.into_iter().map(Into::into).collect())).await
    }

    async fn change(&self, what: What) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let ended = || {
            let status = Status::unavailable("the subscription has ended");
            Error::new(ErrorKind::Unavailable, status)
        };
        self.changes.send(Change { what, done }).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// The accounts of a subscription, and the changes that are not confirmed.
#[derive(Debug)]
pub(super) struct Watching {
    changes: mpsc::Receiver<Change>,
    /// Accounts are named one by one: these. Otherwise the stream has all of them.
    named: bool,
    accounts: BTreeSet<String>,
    /// What the node reports of itself, if it is an agent.
    reports: Option<watch::Receiver<AgentReport>>,
    /// The stream has begun: its first token is known.
    is_open: bool,
    /// The number of the last update of the open stream; none while it is not open.
    last_id: Option<u64>,
    /// Requests that are still to be sent on it.
    outgoing: VecDeque<WatchRequest>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// The number of its update; 0: it is in what the stream is opened with.
    id: u64,
    /// The accounts that it added and removed.
    added: Vec<String>,
    removed: Vec<String>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Watching {
    pub(super) fn new(accounts: Vec<String>, changes: mpsc::Receiver<Change>) -> Watching {
        Watching {
            changes,
            named: true,
            accounts: accounts.into_iter().collect(),
            reports: None,
            is_open: false,
            last_id: None,
            outgoing: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Of all accounts, by a node that reports of itself.
    pub(super) fn reporting(reports: watch::Receiver<AgentReport>) -> Watching {
        let (_, changes) = Interest::new();
        let watching = Watching::new(Vec::new(), changes);
        Watching { named: false, reports: Some(reports), ..watching }
    }

    /// A stream is opened: with all accounts, in as many requests as they need.
    pub(super) fn open(&mut self, mut subscribe: SubscribeRequest) {
        let all: Vec<&String> = self.accounts.iter().collect();
        let mut parts = all.chunks(MESSAGE_ACCOUNTS);
        let names = |part: &[&String]| part.iter().map(|name| (*name).clone()).collect();
        let first = parts.next().unwrap_or_default();
        if self.named {
            subscribe.filter.get_or_insert_default().accounts = names(first);
        }
        let rest: Vec<_> = parts.map(|part| (names(part), vec![])).collect();
        let open = WatchOpen {
            subscribe: Some(subscribe),
            accounts_named: self.named,
            custom_types_named: false,
            incomplete: !rest.is_empty(),
        };
        self.outgoing = VecDeque::from([request(Request::Open(open))]);
        self.last_id = Some(0);
        self.updates(rest);
        self.waiting.iter_mut().for_each(|waiting| waiting.id = 0);
    }

    /// The stream is lost.
    pub(super) fn lost(&mut self) {
        self.is_open = false;
        self.last_id = None;
        self.outgoing.clear();
    }

    /// The stream has begun.
    pub(super) fn opened(&mut self) {
        self.is_open = true;
        if let Some(reports) = &mut self.reports {
            // This stream has had none.
            reports.mark_changed();
        }
        self.updated(0);
    }

    /// Sends a request, or takes a change or a report. `token` covers what the node has processed.
    /// Nothing is lost if it is dropped.
    pub(super) async fn work(&mut self, requests: &mpsc::Sender<WatchRequest>, token: &[u8]) {
        if self.outgoing.is_empty() {
            let reports = self.reports.as_mut().filter(|_| self.is_open);
            let reported = async {
                if let Some(reports) = reports
                    && reports.changed().await.is_ok()
                {
                    return reports.borrow_and_update().clone();
                }
                std::future::pending().await
            };
            let changes = &mut self.changes;
            let changed = async {
                match changes.recv().await {
                    Some(change) => change,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = changed => self.change(change),
                report = reported => {
                    let (resume_token, agent) = (token.to_vec(), Some(report));
                    let acknowledge = Acknowledge { resume_token, agent };
                    self.outgoing.push_back(request(Request::Acknowledge(acknowledge)));
                }
            }
            return;
        }
        match requests.reserve().await {
            Ok(permit) => {
                if let Some(next) = self.outgoing.pop_front() {
                    permit.send(next);
                }
            }
            // The stream is over, which its responses say.
            Err(_) => std::future::pending().await,
        }
    }

    fn change(&mut self, Change { what, done }: Change) {
        let (add, remove) = match what {
            What::Add(accounts) => (accounts, vec![]),
            What::Remove(accounts) => (vec![], accounts),
            What::Replace(all) => {
                let remove = self.accounts.difference(&all).cloned().collect();
                (all.difference(&self.accounts).cloned().collect(), remove)
            }
        };
        let removed: Vec<String> =
            remove.into_iter().filter(|name| self.accounts.remove(name)).collect();
        let added: Vec<String> =
            add.into_iter().filter(|name| self.accounts.insert(name.clone())).collect();
        let parts = |names: &[String]| -> Vec<Vec<String>> {
            names.chunks(MESSAGE_ACCOUNTS).map(<[String]>::to_vec).collect()
        };
        let (mut adds, mut removes) = (parts(&added), parts(&removed));
        // At least one, so that there is an answer.
        let count = adds.len().max(removes.len()).max(1);
        adds.resize(count, vec![]);
        removes.resize(count, vec![]);
        let id = self.updates(adds.into_iter().zip(removes).collect());
        self.waiting.push_back(Waiting { id, added, removed, done });
    }

    /// Queues updates that take effect together: what each adds and removes. Returns the number of
    /// the last one; 0 while no stream is open.
    fn updates(&mut self, parts: Vec<(Vec<String>, Vec<String>)>) -> u64 {
        let Some(last_id) = &mut self.last_id else { return 0 };
        let count = parts.len();
        for (nth, (add, remove)) in parts.into_iter().enumerate() {
            *last_id += 1;
            let filter = |accounts| Some(Filter { accounts, ..Filter::default() });
            let update = InterestUpdate {
                update_id: *last_id,
                add: filter(add),
                remove: filter(remove),
                incomplete: nth + 1 < count,
                ..InterestUpdate::default()
            };
            self.outgoing.push_back(request(Request::Update(update)));
        }
        *last_id
    }

    /// Everything up to this update is in force; 0: what the stream was opened with.
    pub(super) fn updated(&mut self, id: u64) {
        while self.waiting.front().is_some_and(|waiting| waiting.id <= id) {
            let waiting = self.waiting.pop_front();
            // Nobody may wait for it.
            let _ = waiting.map(|waiting| waiting.done.send(Ok(())));
        }
    }

    /// An update has changed nothing.
    pub(super) fn rejected(&mut self, rejected: InterestRejected) {
        let index = self.waiting.iter().position(|waiting| waiting.id == rejected.update_id);
        // The answer to a part: that to the whole follows.
        let Some(waiting) = index.and_then(|index| self.waiting.remove(index)) else { return };
        for name in &waiting.added {
            self.accounts.remove(name);
        }
        self.accounts.extend(waiting.removed);
        let error = status_of(rejected.status.unwrap_or_default());
        let _ = waiting.done.send(Err(error));
    }
}

fn request(request: Request) -> WatchRequest {
    WatchRequest { request: Some(request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(from: usize, to: usize) -> Vec<String> {
        (from..to).map(|n| format!("a{n:06}")).collect()
    }

    fn add(watching: &mut Watching, names: Vec<String>) -> oneshot::Receiver<Result<(), Error>> {
        let (done, answer) = oneshot::channel();
        watching.change(Change { what: What::Add(names), done });
        answer
    }

    fn sent(watching: &mut Watching) -> Vec<Request> {
        watching.outgoing.drain(..).filter_map(|request| request.request).collect()
    }

    #[test]
    fn an_interest_that_does_not_fit_one_message_comes_in_parts() {
        let mut watching = Watching::new(names(0, 12_000), Interest::new().1);
        watching.open(SubscribeRequest::default());
        let all = sent(&mut watching);
        assert_eq!(all.len(), 3);
        let Request::Open(open) = &all[0] else { panic!("{all:?}") };
        assert!(open.incomplete && open.accounts_named);
        let parts: Vec<_> = all[1..]
            .iter()
            .map(|part| match part {
                Request::Update(part) => {
                    let count = part.add.as_ref().map_or(0, |add| add.accounts.len());
                    (part.update_id, count, part.incomplete)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(parts, [(1, 5000, true), (2, 2000, false)]);
    }

    #[test]
    fn a_change_is_confirmed_by_its_update_or_by_the_next_stream() {
        let mut watching = Watching::new(names(0, 1), Interest::new().1);
        watching.open(SubscribeRequest::default());
        sent(&mut watching);
        let mut first = add(&mut watching, names(1, 2));
        let mut second = add(&mut watching, names(2, 3));
        watching.updated(1);
        assert!(first.try_recv().unwrap().is_ok());
        assert!(second.try_recv().is_err());
        watching.lost();
        let mut third = add(&mut watching, names(3, 4));
        watching.open(SubscribeRequest::default());
        let all = sent(&mut watching);
        let [Request::Open(open)] = &all[..] else { panic!("{all:?}") };
        let filter = open.subscribe.as_ref().unwrap().filter.as_ref().unwrap();
        assert_eq!(filter.accounts, names(0, 4));
        watching.updated(0);
        assert!(second.try_recv().unwrap().is_ok() && third.try_recv().unwrap().is_ok());
    }

    #[test]
    fn a_rejected_change_is_undone() {
        let mut watching = Watching::new(names(0, 2), Interest::new().1);
        watching.open(SubscribeRequest::default());
        let (done, mut answer) = oneshot::channel();
        let all = names(1, 4).into_iter().collect();
        watching.change(Change { what: What::Replace(all), done });
        watching.rejected(InterestRejected { update_id: 1, status: None });
        assert!(answer.try_recv().unwrap().is_err());
        assert!(watching.accounts.iter().eq(&names(0, 2)));
    }
}
