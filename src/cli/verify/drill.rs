//! The drill: publishers and streams of its own over gRPC, and their judge.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::Rng;
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use trunkline_client::{
    Client, Credentials, Error, ErrorKind, Notification, SubscribeOptions, Subscription,
};
use trunkline_proto::v1::{CustomEvent, Event, EventKind, event::Kind};
use uuid::Uuid;

use super::judge::{Judge, Outcome, Verdict, id};
use crate::cli::Failure;

/// Publishers, each with series of its own.
const PUBLISHERS: usize = 4;

/// Types of events, whose events keep their order. More than there are shards by default, so that
/// each has some.
const SERIES: usize = 64;

/// Time limit until all streams are open.
const OPEN: Duration = Duration::from_secs(30);

/// For how long a publisher tries to have an event acknowledged.
const PUBLISH: Duration = Duration::from_secs(30);

/// For how long acknowledged events are waited for.
const ARRIVE: Duration = Duration::from_secs(30);

/// For how long it is watched whether something comes twice.
const SETTLE: Duration = Duration::from_millis(500);

/// A publisher that loses answers loses one of so many.
const LOSE: u32 = 4;

/// How the drill connects.
pub(super) struct Connect {
    pub(super) urls: Vec<String>,
    pub(super) credentials: Credentials,
    /// The id of this drill.
    pub(super) id: String,
}

/// What publishers do while their gate is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Publishing {
    /// They wait for each answer.
    Plainly,
    /// Some answers are lost: the request is left before its answer, and sent again, with the same
    /// request id, to the next gateway.
    LosingAnswers,
}

/// Open streams and publishers. Dropping it ends them.
pub(super) struct Drill {
    shared: Arc<Shared>,
    /// Held between phases: publishers wait.
    closed: Option<OwnedRwLockWriteGuard<Publishing>>,
    cuts: Cuts,
    tasks: JoinSet<()>,
}

struct Shared {
    connect: Connect,
    judge: Mutex<Judge>,
    began: Instant,
    gate: Arc<RwLock<Publishing>>,
    /// The first error that ended a stream or that no retry of a publisher cures.
    error: Mutex<Option<Error>>,
}

impl Connect {
    /// The type of the events of a series.
    fn event_type(&self, series: usize) -> String {
        format!("{}{series}", self.types())
    }

    /// What the types of all series begin with.
    pub(super) fn types(&self) -> String {
        format!("trunkline.verify.{}.", self.id)
    }

    /// The id of a node of this drill.
    fn node_id(&self, what: &str, number: usize) -> String {
        format!("verify-{}-{what}-{number}", self.id)
    }

    /// The ids of the nodes that subscribe.
    pub(super) fn subscribers(&self, streams: usize) -> impl Iterator<Item = String> {
        (0..streams).map(|number| self.node_id("stream", number))
    }

    /// A connection of its own, to gateway number `first`, or to the others in turn.
    fn client(&self, node_id: &str, first: usize) -> Result<Client, Error> {
        let mut urls = self.urls.clone();
        let first = first % urls.len();
        urls.rotate_left(first);
        Client::builder(node_id)
            .gateways(urls)
            .in_order()
            .credentials(self.credentials.clone())
            // A stream that is cut off and comes back is the same process.
            .incarnation(node_id)
            .publish_timeout(PUBLISH)
            .build()
    }
}

impl Drill {
    /// Opens all streams, spread over the gateways; returns when every one is confirmed.
    pub(super) async fn start(
        connect: Connect,
        streams: usize,
        rate: u32,
    ) -> Result<Drill, Failure> {
        let gate = Arc::new(RwLock::new(Publishing::Plainly));
        let shared = Arc::new(Shared {
            connect,
            judge: Mutex::new(Judge::new(SERIES, streams)),
            began: Instant::now(),
            gate: gate.clone(),
            error: Mutex::default(),
        });
        let closed = Some(gate.write_owned().await);
        let mut drill = Drill { shared, closed, cuts: Cuts(vec![]), tasks: JoinSet::new() };
        let mut opened = vec![];
        for number in 0..streams {
            let (cut, cuts) = mpsc::channel(1);
            let (confirm, confirmed) = oneshot::channel();
            drill.cuts.0.push(cut);
            opened.push(confirmed);
            drill.tasks.spawn(receive(drill.shared.clone(), number, cuts, confirm));
        }
        let all = async {
            for confirmed in opened {
                // An error is looked at below.
                let _ = confirmed.await;
            }
        };
        let in_time = timeout(OPEN, all).await.is_ok();
        drill.check()?;
        if !in_time {
            let why = format!("not all streams were open within {OPEN:?}");
            let address = drill.shared.connect.urls.join(", ");
            return Err(Failure::Unavailable { address, why });
        }
        let pace = Duration::from_secs(1) * u32::try_from(PUBLISHERS).unwrap_or(1) / rate;
        for number in 0..PUBLISHERS {
            drill.tasks.spawn(publish(drill.shared.clone(), number, pace));
        }
        Ok(drill)
    }

    /// Publishes for `length` at least, with the fault `during` behind a quarter of it, and judges.
    pub(super) async fn phase<T>(
        &mut self,
        publishing: Publishing,
        length: Duration,
        during: impl AsyncFnOnce(&Cuts) -> T,
    ) -> Result<(Verdict, T), Failure> {
        self.shared.judge.lock().begins(self.shared.now());
        if let Some(mut closed) = self.closed.take() {
            *closed = publishing;
        }
        let end = Instant::now() + length;
        sleep(length / 4).await;
        let done = during(&self.cuts).await;
        sleep_until(end.max(Instant::now() + length / 4)).await;
        // Each publisher holds the gate while it waits for an answer.
        self.closed = Some(self.shared.gate.clone().write_owned().await);
        let complete = async {
            while !self.shared.judge.lock().is_complete() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        // What is missing then is lost.
        let _ = timeout(ARRIVE, complete).await;
        sleep(SETTLE).await;
        self.check()?;
        Ok((self.shared.judge.lock().verdict(), done))
    }

    /// Events that came twice or out of nowhere since the drill began.
    pub(super) fn repeated(&self) -> u64 {
        self.shared.judge.lock().repeated()
    }

    /// Closes all streams.
    pub(super) async fn close(mut self) {
        self.tasks.shutdown().await;
    }

    fn check(&self) -> Result<(), Failure> {
        match self.shared.error.lock().take() {
            None => Ok(()),
            Some(error) => Err(match error.status() {
                Some(status) => Failure::Gateway(status.clone()),
                None => Failure::Usage(error.to_string()),
            }),
        }
    }
}

/// Cuts off streams: one sender for each of them, of which a message does it.
pub(super) struct Cuts(Vec<mpsc::Sender<()>>);

impl Cuts {
    /// Cuts off each stream once, in turn, over this time; returns their number.
    pub(super) async fn each(&self, time: Duration) -> usize {
        let wait = time / u32::try_from(self.0.len().max(1)).unwrap_or(u32::MAX);
        for cut in &self.0 {
            // One that has not been cut off yet is so soon.
            let _ = cut.try_send(());
            sleep(wait).await;
        }
        self.0.len()
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn fail(&self, error: Error) {
        self.error.lock().get_or_insert(error);
    }
}

/// Receives on a stream. When it is cut off, its connection closes, and it goes on with its last
/// token at the next gateway.
async fn receive(
    shared: Arc<Shared>,
    number: usize,
    mut cuts: mpsc::Receiver<()>,
    confirm: oneshot::Sender<()>,
) {
    let node_id = shared.connect.node_id("stream", number);
    let (mut confirm, mut token, mut gateway) = (Some(confirm), Vec::new(), number);
    loop {
        let client = match shared.connect.client(&node_id, gateway) {
            Ok(client) => client,
            Err(error) => return shared.fail(error),
        };
        let options = SubscribeOptions::new()
            .kind(EventKind::Custom)
            .custom_type(format!("{}*", shared.connect.types()))
            .resume_token(token);
        let mut subscription = client.subscribe(options);
        if let Err(error) =
            receive_until_cut(&shared, number, &mut subscription, &mut cuts, &mut confirm).await
        {
            return shared.fail(error);
        }
        token = subscription.resume_token().to_vec();
        gateway += 1;
    }
}

async fn receive_until_cut(
    shared: &Shared,
    number: usize,
    subscription: &mut Subscription,
    cuts: &mut mpsc::Receiver<()>,
    confirm: &mut Option<oneshot::Sender<()>>,
) -> Result<(), Error> {
    loop {
        // Within a batch the token would repeat what was taken of it.
        let may_cut = subscription.is_between_batches();
        let next = tokio::select! {
            biased;
            Some(()) = cuts.recv(), if may_cut => return Ok(()),
            next = subscription.next() => next,
        };
        match next.transpose()? {
            Some(Notification::Event(event)) => {
                shared.judge.lock().receives(number, &event.event_id, shared.now());
            }
            Some(Notification::Gap(gap)) => {
                shared.judge.lock().gap(number, gap.missed_events);
            }
            Some(Notification::Subscribed(_)) => {
                if let Some(confirm) = confirm.take() {
                    // Nobody waits any more: the drill is over.
                    let _ = confirm.send(());
                }
            }
            Some(_) => {}
            // It has no number of events after which it would end.
            None => return Ok(()),
        }
    }
}

/// Publishes to the series of a publisher in turn, one event each time the pace says so.
async fn publish(shared: Arc<Shared>, number: usize, pace: Duration) {
    let node_id = shared.connect.node_id("publisher", number);
    let clients = (0..shared.connect.urls.len())
        .map(|gateway| shared.connect.client(&node_id, gateway + number))
        .collect::<Result<Vec<_>, _>>();
    let clients = match clients {
        Ok(clients) => clients,
        Err(error) => return shared.fail(error),
    };
    let mut tick = interval(pace);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for series in (number..SERIES).step_by(PUBLISHERS).cycle() {
        tick.tick().await;
        let publishing = shared.gate.read().await;
        let nth = shared.judge.lock().sends(series, shared.now());
        let custom =
            CustomEvent { r#type: shared.connect.event_type(series), ..Default::default() };
        let event = Event {
            event_id: id(series, nth),
            kind: Some(Kind::Custom(custom)),
            ..Event::default()
        };
        let request_id = Uuid::new_v4().to_string();
        let mut client = &clients[0];
        if *publishing == Publishing::LosingAnswers && rand::rng().random_ratio(1, LOSE) {
            let patience = Duration::from_micros(rand::rng().random_range(0..3000));
            let asked = client.publish_as(&request_id, [event.clone()]);
            // Whatever became of it, it is sent again.
            let _ = timeout(patience, asked).await;
            client = clients.last().unwrap_or(client);
        }
        let published = client.publish_as(&request_id, [event]).await;
        let outcome = match published {
            Ok(_) => Outcome::Acknowledged,
            Err(error) => {
                if matches!(
                    error.kind(),
                    ErrorKind::Invalid | ErrorKind::Denied | ErrorKind::Unsupported
                ) {
                    shared.fail(error);
                }
                Outcome::NotAcknowledged
            }
        };
        shared.judge.lock().ends(series, nth, outcome, shared.now());
    }
}
