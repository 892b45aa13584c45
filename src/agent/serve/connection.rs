//! One connection of a program: its bytes go to the session, and replies and messages to it.

use std::{pin::pin, sync::Arc};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, count,
    listen::Stream,
    programs::Origin,
    subscriber::{Next, Subscriber},
};
use crate::agent::{
    resp::{Reply, message},
    session::{Session, Step},
};

/// No command is carried out and no message taken while more than this waits to be written.
const MAX_OUT: usize = 64 << 10;

/// Bytes that are read at once.
const READ: usize = 16 << 10;

/// Takes the connection out of those that get messages.
struct Registration<'a> {
    shared: &'a Shared,
    id: u64,
    subscriber: Arc<Subscriber>,
}

impl Registration<'_> {
    fn new(shared: &Shared, id: u64) -> Registration<'_> {
        let subscriber = Arc::<Subscriber>::default();
        shared.subscribers.lock().insert(id, subscriber.clone());
        Registration { shared, id, subscriber }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.shared.subscribers.lock().remove(&self.id);
    }
}

/// Takes the connection out of those that programs publish on.
struct Publisher<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Publisher<'_> {
    fn drop(&mut self) {
        self.shared.programs.left(self.id);
    }
}

/// Serves a connection until it ends, or until `closing` is cancelled and everything is answered
/// that was received.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut stream: Stream,
    address: (String, u16),
    id: u64,
    closing: CancellationToken,
) {
    let peer = match &stream {
        Stream::Left(stream) => stream.peer_addr().map(|peer| peer.to_string()),
        Stream::Right(_) => Ok("a Unix socket".to_owned()),
    };
    let origin = Origin { connection: id, peer: peer.unwrap_or_default() };
    let _publisher = Publisher { shared: &shared, id };
    let mut session = Session::new(shared.settings.clone(), id, address);
    let mut registration: Option<Registration<'_>> = None;
    let mut out = BytesMut::new();
    let mut buffer = BytesMut::with_capacity(READ);
    let (mut wants_bytes, mut ended) = (false, false);
    // Since when the client has not authenticated, and since when a part of a command is there.
    let (mut unknown, mut waits) = (Instant::now(), None);
    loop {
        while !ended && !wants_bytes && out.len() < MAX_OUT {
            let step = session.next(&mut out);
            if step != Step::Receive {
                waits = None;
            }
            match step {
                Step::Receive => wants_bytes = true,
                Step::Answered => {}
                Step::Publish { channel, payload } => {
                    match shared.publish(channel, &payload, &origin) {
                        Ok(receivers) => session.published(receivers, &mut out),
                        Err(error) => session.refused(error, &mut out),
                    }
                }
                Step::Subscriptions { added, removed } => {
                    let Registration { subscriber, .. } =
                        registration.get_or_insert_with(|| Registration::new(&shared, id));
                    for channel in removed {
                        subscriber.unsubscribe(channel);
                    }
                    for channel in added {
                        subscriber.subscribe(channel);
                        shared.heal_one(id, subscriber, channel, "it has subscribed");
                    }
                    if !session.is_subscriber() {
                        registration = None;
                    }
                }
                Step::Close(why) => {
                    tracing::debug!(connection = id, %why, "a connection was closed");
                    ended = true;
                }
            }
        }
        if let Some(Registration { subscriber, .. }) = &registration {
            while out.len() < MAX_OUT {
                match subscriber.next() {
                    Next::Message(channel, payload) => {
                        let channel = &shared.settings.channels[channel];
                        out.extend_from_slice(&message(session.version(), channel, &payload));
                        count(&shared.counters.delivered_messages, 1);
                    }
                    Next::Heal => {
                        for channel in subscriber.channels() {
                            shared.heal_one(id, subscriber, channel, "it read too slowly");
                        }
                    }
                    Next::Nothing => break,
                }
            }
        }
        if !out.is_empty() {
            if stream.write_buf(&mut out).await.is_err() {
                return;
            }
            continue;
        }
        if ended {
            let _ = stream.shutdown().await;
            return;
        }
        if !wants_bytes {
            continue;
        }
        let filled = async {
            match &registration {
                Some(registration) => registration.subscriber.filled().await,
                None => std::future::pending().await,
            }
        };
        let read = stream.read_buf(&mut buffer);
        // A subscriber is never closed for being idle, nor is a publisher between two commands.
        if !session.is_within_command() {
            waits = None;
        }
        let since = if session.is_authenticated() {
            unknown = Instant::now();
            session.is_within_command().then(|| *waits.get_or_insert_with(Instant::now))
        } else {
            Some(unknown)
        };
        let read = async {
            match since.and_then(|since| since.checked_add(shared.options.patience)) {
                Some(deadline) => timeout_at(deadline, read).await.ok(),
                None => Some(read.await),
            }
        };
        let bytes = tokio::select! {
            biased;
            read = read => match read {
                Some(Ok(bytes)) => bytes,
                Some(Err(_)) => return,
                None => {
                    let why = if session.is_authenticated() {
                        "ERR the rest of the command did not come in time"
                    } else {
                        "NOAUTH the client did not authenticate in time"
                    };
                    Reply::new(&mut out, session.version()).error(why);
                    ended = true;
                    continue;
                }
            },
            () = pin!(filled) => continue,
            () = closing.cancelled() => return,
        };
        if bytes == 0 {
            return;
        }
        session.receive(&buffer);
        buffer.clear();
        buffer.reserve(READ);
        wants_bytes = false;
    }
}
