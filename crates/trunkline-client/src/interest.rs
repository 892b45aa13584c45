//! What a subscription says while it lives: its interest, which changes, and what its node reports
//! of itself.

use std::collections::{BTreeSet, VecDeque};

use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::{Error, ErrorKind, error::status_of};
use trunkline_proto::v1::{
    Acknowledge, AgentReport, EventKind, Filter, InterestRejected, InterestUpdate,
    SubscribeRequest, WatchOpen, WatchRequest, watch_request::Request,
};

/// Accounts of one message. A gateway takes 10,000 unless configured otherwise.
const MESSAGE_ACCOUNTS: usize = 5_000;

/// Changes that wait for the subscription.
pub(super) const CHANGES: usize = 64;

/// The numbers that kinds may have.
const KINDS: std::ops::RangeInclusive<i32> = 10..=99;

/// Changes the interest of a [`Subscription`](crate::Subscription) while it lives: see
/// [`Client::watch`](crate::Client::watch). Clones change the same one.
#[derive(Clone, Debug)]
pub struct Interest {
    changes: mpsc::Sender<Change>,
    processed: watch::Sender<Progress>,
}

/// A change of an [`Interest`]: what is removed, and then what is added. Parts of it that change
/// nothing are passed over.
#[derive(Clone, Debug, Default)]
pub struct InterestChange {
    add: Filter,
    remove: Filter,
    since: Vec<u8>,
}

/// How far a [`Subscription`](crate::Subscription) was taken: see [`Interest::acknowledge`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of the stream on which the token came.
    pub(super) stream: u64,
    pub(super) token: Vec<u8>,
    /// True if the token covers everything that was taken.
    pub(super) whole: bool,
}

/// A change, and who waits for it.
#[derive(Debug)]
pub(super) struct Change {
    what: What,
    done: oneshot::Sender<Result<(), Error>>,
}

#[derive(Debug)]
enum What {
    Change(InterestChange),
    Replace(BTreeSet<String>),
}

impl InterestChange {
    /// No change.
    pub fn new() -> InterestChange {
        InterestChange::default()
    }

    /// Adds an account.
    #[must_use]
    pub fn add_account(mut self, account_id: impl Into<String>) -> InterestChange {
        self.add.accounts.push(account_id.into());
        self
    }

    /// Adds a kind. Of a subscription to all kinds it changes nothing.
    #[must_use]
    pub fn add_kind(mut self, kind: EventKind) -> InterestChange {
        self.add.kinds.push(kind.into());
        self
    }

    /// Adds a type of custom events, whole or as a prefix. The subscription must name its types:
    /// [`SubscribeOptions::custom_types_named`](crate::SubscribeOptions::custom_types_named).
    #[must_use]
    pub fn add_custom_type(mut self, pattern: impl Into<String>) -> InterestChange {
        self.add.custom_types.push(pattern.into());
        self
    }

    /// Removes an account.
    #[must_use]
    pub fn remove_account(mut self, account_id: impl Into<String>) -> InterestChange {
        self.remove.accounts.push(account_id.into());
        self
    }

    /// Removes a kind. The last one cannot be removed.
    #[must_use]
    pub fn remove_kind(mut self, kind: EventKind) -> InterestChange {
        self.remove.kinds.push(kind.into());
        self
    }

    /// Removes a type of custom events, as it was added.
    #[must_use]
    pub fn remove_custom_type(mut self, pattern: impl Into<String>) -> InterestChange {
        self.remove.custom_types.push(pattern.into());
        self
    }

    /// What is added begins after this [resume token](crate::Subscription::resume_token): events
    /// that are kept since then follow, before newer ones. What the subscription had is not
    /// repeated. Where the gateway cannot tell, as on a stream that was opened after the token, and
    /// where the stream is lost before all of them were delivered, a gap tells of the others.
    /// Default: now.
    #[must_use]
    pub fn since(mut self, token: impl Into<Vec<u8>>) -> InterestChange {
        self.since = token.into();
        self
    }
}

impl Interest {
    pub(super) fn new() -> (Interest, Changes) {
        let (changes, receiver) = mpsc::channel(CHANGES);
        let (processed, acknowledged) = watch::channel(Progress::default());
        (Interest { changes, processed }, (receiver, acknowledged))
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
        self.change(accounts.into_iter().fold(InterestChange::new(), InterestChange::add_account))
            .await
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
        let change =
            accounts.into_iter().fold(InterestChange::new(), InterestChange::remove_account);
        self.change(change).await
    }

    /// Makes a change, all of it or nothing. What it adds and removes is delivered, and not, as
    /// [`Interest::add`] and [`Interest::remove`] say.
    ///
    /// # Errors
    ///
    /// As [`Interest::add`].
    pub async fn change(&self, change: InterestChange) -> Result<(), Error> {
        self.send(What::Change(change)).await
    }

    /// Replaces all accounts by these. Kinds and custom types stay.
    ///
    /// # Errors
    ///
    /// As [`Interest::add`].
    pub async fn replace<A: Into<String>>(
        &self,
        accounts: impl IntoIterator<Item = A>,
    ) -> Result<(), Error> {
        self.send(What::Replace(accounts.into_iter().map(Into::into).collect())).await
    }

    /// Tells the gateway that everything up to there was processed:
    /// [`Subscription::progress`](crate::Subscription::progress) of that time. It is for operators
    /// and for publishers that wait; what came on an earlier stream needs none, and is not sent.
    /// Sent while the subscription is polled; of several that wait, the last one.
    pub fn acknowledge(&self, processed: Progress) {
        self.processed.send_replace(processed);
    }

    async fn send(&self, what: What) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let ended = || {
            let status = Status::unavailable("the subscription has ended");
            Error::new(ErrorKind::Unavailable, status)
        };
        self.changes.send(Change { what, done }).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// What is asked for, and what was processed.
pub(super) type Changes = (mpsc::Receiver<Change>, watch::Receiver<Progress>);

/// The interest of a subscription, and the changes that are not confirmed.
#[derive(Debug)]
pub(super) struct Watching {
    changes: mpsc::Receiver<Change>,
    processed: watch::Receiver<Progress>,
    /// What the node reports of itself, if it is an agent.
    reports: Option<watch::Receiver<AgentReport>>,
    /// Accounts are named one by one: these. Otherwise the stream has all of them.
    named: bool,
    accounts: BTreeSet<String>,
    /// None: all.
    kinds: Option<BTreeSet<i32>>,
    /// None: all.
    custom_types: Option<BTreeSet<String>>,
    /// The number of the open stream, once it is confirmed: tokens of others are not its own.
    stream: Option<u64>,
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
    /// What it added and removed.
    added: Filter,
    removed: Filter,
    since: Vec<u8>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Watching {
    /// The interest of a filter; `named`: its custom types are named one by one.
    pub(super) fn new(filter: Filter, named: bool, (changes, processed): Changes) -> Watching {
        let Filter { kinds, accounts, custom_types } = filter;
        let named = named || !custom_types.is_empty();
        Watching {
            changes,
            processed,
            reports: None,
            named: true,
            accounts: accounts.into_iter().collect(),
            kinds: (!kinds.is_empty()).then(|| kinds.into_iter().collect()),
            custom_types: named.then(|| custom_types.into_iter().collect()),
            stream: None,
            last_id: None,
            outgoing: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Of all accounts, by a node that reports of itself.
    pub(super) fn reporting(filter: Filter, reports: watch::Receiver<AgentReport>) -> Watching {
        let (_, changes) = Interest::new();
        let watching = Watching::new(filter, false, changes);
        Watching { named: false, reports: Some(reports), ..watching }
    }

    /// A stream is opened: with the whole interest, in as many requests as it needs. What began in
    /// the past, and everything behind it, is added again.
    pub(super) fn open(&mut self, mut subscribe: SubscribeRequest) {
        let past = self.waiting.iter().position(|waiting| !waiting.since.is_empty());
        let again = self.waiting.split_off(past.unwrap_or(self.waiting.len()));
        again.iter().rev().for_each(|waiting| self.undo(waiting));
        let all: Vec<&String> = self.accounts.iter().collect();
        let mut parts = all.chunks(MESSAGE_ACCOUNTS);
        let names = |part: &[&String]| part.iter().map(|name| (*name).clone()).collect();
        let first = parts.next().unwrap_or_default();
        subscribe.filter = Some(Filter {
            kinds: self.kinds.iter().flatten().copied().collect(),
            accounts: names(first),
            custom_types: self.custom_types.iter().flatten().cloned().collect(),
        });
        let rest: Vec<_> = parts
            .map(|part| (Filter { accounts: names(part), ..Filter::default() }, Filter::default()))
            .collect();
        let open = WatchOpen {
            subscribe: Some(subscribe),
            accounts_named: self.named,
            custom_types_named: self.custom_types.is_some(),
            incomplete: !rest.is_empty(),
        };
        self.outgoing = VecDeque::from([request(Request::Open(open))]);
        self.last_id = Some(0);
        self.updates(rest, &[]);
        self.waiting.iter_mut().for_each(|waiting| waiting.id = 0);
        for waiting in again {
            self.make(waiting);
        }
    }

    /// The stream is confirmed: tokens that come from now on have this number.
    pub(super) fn subscribed(&mut self, stream: u64) {
        self.stream = Some(stream);
        if let Some(reports) = &mut self.reports {
            // This stream has had none.
            reports.mark_changed();
        }
        self.updated(0);
    }

    /// The stream is lost.
    pub(super) fn lost(&mut self) {
        (self.last_id, self.stream) = (None, None);
        self.outgoing.clear();
    }

    /// Sends a request, or takes a change or a report. `token` covers what the node has processed.
    /// Nothing is lost if it is dropped.
    pub(super) async fn work(&mut self, requests: &mpsc::Sender<WatchRequest>, token: &[u8]) {
        if self.outgoing.is_empty() {
            let (changes, processed) = (&mut self.changes, &mut self.processed);
            let is_open = self.stream.is_some();
            let reported = async {
                if let Some(reports) = self.reports.as_mut().filter(|_| is_open)
                    && reports.changed().await.is_ok()
                {
                    return reports.borrow_and_update().clone();
                }
                std::future::pending().await
            };
            tokio::select! {
                Some(change) = changes.recv() => self.change(change),
                Ok(()) = processed.changed() => self.acknowledge(),
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

    fn acknowledge(&mut self) {
        let Progress { stream, token, .. } = self.processed.borrow().clone();
        if self.stream == Some(stream) {
            let acknowledge = Acknowledge { resume_token: token, agent: None };
            self.outgoing.push_back(request(Request::Acknowledge(acknowledge)));
        }
    }

    fn change(&mut self, Change { what, done }: Change) {
        let InterestChange { add: added, remove: removed, since } = match what {
            What::Change(change) => change,
            What::Replace(all) => {
                let gone = self.accounts.difference(&all).cloned().collect();
                let new = all.difference(&self.accounts).cloned().collect();
                let accounts = |accounts| Filter { accounts, ..Filter::default() };
                let (add, remove) = (accounts(new), accounts(gone));
                InterestChange { add, remove, since: vec![] }
            }
        };
        let left = |kind: &i32| !removed.kinds.contains(kind);
        let keeps_some = match &self.kinds {
            Some(kinds) => kinds.iter().any(left),
            None => KINDS.clone().any(|kind| left(&kind)),
        };
        if !keeps_some && added.kinds.is_empty() {
            let status = Status::invalid_argument("the last kind cannot be removed");
            let _ = done.send(Err(Error::new(ErrorKind::Invalid, status)));
            return;
        }
        self.make(Waiting { id: 0, added, removed, since, done });
    }

    /// Makes a change: what of it changes nothing is left out.
    fn make(&mut self, change: Waiting) {
        let Waiting { added, removed, since, done, .. } = change;
        let removed = Filter {
            accounts: taken(&mut self.accounts, removed.accounts),
            kinds: match &mut self.kinds {
                None if removed.kinds.is_empty() => vec![],
                kinds => taken(kinds.get_or_insert_with(|| KINDS.collect()), removed.kinds),
            },
            custom_types: match &mut self.custom_types {
                Some(types) => taken(types, removed.custom_types),
                // The gateway says what is wrong with it.
                None => removed.custom_types,
            },
        };
        let added = Filter {
            accounts: put(&mut self.accounts, added.accounts),
            kinds: self.kinds.as_mut().map_or(vec![], |kinds| put(kinds, added.kinds)),
            custom_types: match &mut self.custom_types {
                Some(types) => put(types, added.custom_types),
                None => added.custom_types,
            },
        };
        let (adds, removes) = (parts(added.clone()), parts(removed.clone()));
        // At least one, so that there is an answer.
        let count = adds.len().max(removes.len()).max(1);
        let nth = |all: &[Filter], nth: usize| all.get(nth).cloned().unwrap_or_default();
        let parts = (0..count).map(|at| (nth(&adds, at), nth(&removes, at))).collect();
        let id = self.updates(parts, &since);
        self.waiting.push_back(Waiting { id, added, removed, since, done });
    }

    /// Takes back what a change did.
    fn undo(&mut self, change: &Waiting) {
        let Waiting { added, removed, .. } = change;
        taken(&mut self.accounts, added.accounts.iter().cloned());
        put(&mut self.accounts, removed.accounts.iter().cloned());
        if let Some(kinds) = &mut self.kinds {
            taken(kinds, added.kinds.iter().copied());
            put(kinds, removed.kinds.iter().copied());
        }
        if let Some(types) = &mut self.custom_types {
            taken(types, added.custom_types.iter().cloned());
            put(types, removed.custom_types.iter().cloned());
        }
    }

    /// Queues updates that take effect together: what each adds and removes, and where what is
    /// added begins. Returns the number of the last one; 0 while no stream is open.
    fn updates(&mut self, parts: Vec<(Filter, Filter)>, since: &[u8]) -> u64 {
        let Some(last_id) = &mut self.last_id else { return 0 };
        let count = parts.len();
        for (nth, (add, remove)) in parts.into_iter().enumerate() {
            *last_id += 1;
            let incomplete = nth + 1 < count;
            let update = InterestUpdate {
                update_id: *last_id,
                add: Some(add),
                remove: Some(remove),
                incomplete,
                since: if incomplete { vec![] } else { since.to_vec() },
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
        self.undo(&waiting);
        let error = status_of(rejected.status.unwrap_or_default());
        let _ = waiting.done.send(Err(error));
    }
}

/// Takes values out of a set; returns those that were there.
fn taken<T: Ord>(set: &mut BTreeSet<T>, values: impl IntoIterator<Item = T>) -> Vec<T> {
    values.into_iter().filter(|value| set.remove(value)).collect()
}

/// Puts values into a set; returns those that were not there.
fn put<T: Ord + Clone>(set: &mut BTreeSet<T>, values: impl IntoIterator<Item = T>) -> Vec<T> {
    values.into_iter().filter(|value| set.insert(value.clone())).collect()
}

/// A filter in as many parts as its accounts need.
fn parts(filter: Filter) -> Vec<Filter> {
    let Filter { kinds, accounts, custom_types } = filter;
    let chunks = accounts.chunks(MESSAGE_ACCOUNTS);
    let mut parts: Vec<Filter> = chunks
        .map(|accounts| Filter { accounts: accounts.to_vec(), ..Filter::default() })
        .collect();
    if parts.is_empty() {
        parts.push(Filter::default());
    }
    (parts[0].kinds, parts[0].custom_types) = (kinds, custom_types);
    parts
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

    fn watching(accounts: Vec<String>) -> Watching {
        let filter = Filter { accounts, ..Filter::default() };
        Watching::new(filter, false, Interest::new().1)
    }

    type Outcome = oneshot::Receiver<Result<(), Error>>;

    fn change(watching: &mut Watching, change: InterestChange) -> Outcome {
        let (done, answer) = oneshot::channel();
        watching.change(Change { what: What::Change(change), done });
        answer
    }

    fn add(watching: &mut Watching, names: Vec<String>) -> Outcome {
        let all = names.into_iter().fold(InterestChange::new(), InterestChange::add_account);
        change(watching, all)
    }

    fn updates(watching: &mut Watching) -> Vec<InterestUpdate> {
        let update = |request| match request {
            Request::Update(update) => Some(update),
            _ => None,
        };
        sent(watching).into_iter().filter_map(update).collect()
    }

    fn opened(watching: &mut Watching) -> WatchOpen {
        watching.open(SubscribeRequest::default());
        match watching.outgoing.pop_front().and_then(|request| request.request) {
            Some(Request::Open(open)) => open,
            other => panic!("{other:?}"),
        }
    }

    fn filter(open: &WatchOpen) -> &Filter {
        open.subscribe.as_ref().and_then(|it| it.filter.as_ref()).unwrap()
    }

    fn sent(watching: &mut Watching) -> Vec<Request> {
        watching.outgoing.drain(..).filter_map(|request| request.request).collect()
    }

    #[test]
    fn an_interest_that_does_not_fit_one_message_comes_in_parts() {
        let mut watching = watching(names(0, 12_000));
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
        let mut watching = watching(names(0, 1));
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
        let mut watching = watching(names(0, 2));
        watching.open(SubscribeRequest::default());
        let (done, mut answer) = oneshot::channel();
        let all = names(1, 4).into_iter().collect();
        watching.change(Change { what: What::Replace(all), done });
        watching.rejected(InterestRejected { update_id: 1, status: None });
        assert!(answer.try_recv().unwrap().is_err());
        assert!(watching.accounts.iter().eq(&names(0, 2)));
    }

    #[test]
    fn kinds_and_custom_types_change_too_and_stay_over_streams() {
        let mut watching = Watching::new(Filter::default(), true, Interest::new().1);
        let open = opened(&mut watching);
        assert!(open.custom_types_named && filter(&open).kinds.is_empty());
        let (queue, policy) = (EventKind::QueueRefresh, EventKind::BlockedIp);
        let all = InterestChange::new().add_kind(queue).add_custom_type("com.example.*");
        change(&mut watching, all.remove_kind(queue).remove_kind(policy));
        let update = updates(&mut watching).remove(0);
        let add = update.add.unwrap();
        assert_eq!(
            (&*add.kinds, &*add.custom_types),
            (&[queue.into()][..], &["com.example.*".into()][..])
        );
        assert_eq!(update.remove.unwrap().kinds, [i32::from(queue), policy.into()]);
        let open = opened(&mut watching);
        let kinds: Vec<i32> = KINDS.filter(|kind| *kind != i32::from(policy)).collect();
        assert_eq!(filter(&open).kinds, kinds);
        assert_eq!(filter(&open).custom_types, ["com.example.*"]);
        let others = kinds.into_iter().map(|kind| EventKind::try_from(kind).ok());
        assert!(others.flatten().count() > 5);
    }

    #[test]
    fn the_last_kind_stays() {
        let kinds = vec![EventKind::QueueRefresh.into()];
        let options = Filter { kinds, ..Filter::default() };
        let mut watching = Watching::new(options, false, Interest::new().1);
        opened(&mut watching);
        let none = InterestChange::new().remove_kind(EventKind::QueueRefresh);
        let error = change(&mut watching, none).try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(sent(&mut watching).is_empty());
        assert_eq!(filter(&opened(&mut watching)).kinds, [i32::from(EventKind::QueueRefresh)]);
    }

    #[test]
    fn what_begins_in_the_past_begins_there_on_the_next_stream_too() {
        let mut watching = watching(names(0, 1));
        opened(&mut watching);
        let past = names(1, 7_001).into_iter();
        let past = past.fold(InterestChange::new(), InterestChange::add_account).since(*b"token");
        let mut first = change(&mut watching, past);
        let mut second = change(&mut watching, InterestChange::new().remove_account("a000001"));
        for _ in 0..2 {
            let sent = updates(&mut watching);
            let sinces: Vec<&[u8]> = sent.iter().map(|update| &*update.since).collect();
            assert_eq!(sinces, [&b""[..], b"token", b""], "the last part of it has the token");
            assert_eq!(sent[2].remove.as_ref().unwrap().accounts, names(1, 2));
            watching.lost();
            assert_eq!(filter(&opened(&mut watching)).accounts, names(0, 1));
            watching.subscribed(1);
            assert!(first.try_recv().is_err() && second.try_recv().is_err());
        }
        watching.updated(2);
        assert!(first.try_recv().unwrap().is_ok() && second.try_recv().is_err());
        watching.updated(3);
        assert!(second.try_recv().unwrap().is_ok());
        watching.lost();
        assert!(opened(&mut watching).incomplete, "all of it is in what a stream begins with");
    }

    #[tokio::test]
    async fn a_stream_is_sent_acknowledgements_of_its_own_tokens_alone() {
        let (interest, changes) = Interest::new();
        let mut watching = Watching::new(Filter::default(), false, changes);
        let (requests, _receiver) = mpsc::channel(1);
        let progress =
            |stream, token: &[u8]| Progress { stream, token: token.to_vec(), whole: true };
        opened(&mut watching);
        interest.acknowledge(progress(0, b"of another process"));
        watching.work(&requests, &[]).await;
        watching.subscribed(1);
        assert!(sent(&mut watching).is_empty());
        interest.acknowledge(progress(1, b"first"));
        interest.acknowledge(progress(1, b"second"));
        watching.work(&requests, &[]).await;
        let [Request::Acknowledge(one)] = &sent(&mut watching)[..] else { panic!("not one") };
        assert_eq!(one.resume_token, b"second");
        watching.lost();
        opened(&mut watching);
        watching.subscribed(2);
        interest.acknowledge(progress(1, b"third"));
        watching.work(&requests, &[]).await;
        assert!(sent(&mut watching).is_empty());
    }
}
