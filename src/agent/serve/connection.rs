//! One connection of a program: its bytes go to the session, and replies and messages to it.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    Shared, count,
    programs::Origin,
    subscriber::{Next, Subscriber},
};
use crate::agent::{
    resp::message,
    session::{Session, Step},
};

/// No command is carried out and no message taken while more than this waits to be written.
const MAX_OUT: usize = 64 << 10;

/// Bytes that are read at once.
const READ: usize = 16 << 10;

/// How long the rest of a command may take, and a client that must authenticate.
const PATIENCE: Duration = Duration::from_mins(1);

/// Takes the connection out of those that get messages.
struct Registration<'a> {
    shared: &'a Shared,
    id: u64,
    subscriber: Arc<Subscriber>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.shared.unsubscribe(self.id);
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

/// Serves a connection until it ends.
pub(super) async fn run(shared: Arc<Shared>, mut stream: TcpStream, id: u64) {
    // A message must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let (Ok(address), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let origin = Origin { connection: id, peer: peer.to_string() };
    let _publisher = Publisher { shared: &shared, id };
    let address = (address.ip().to_string(), address.port());
    let mut session = Session::new(shared.settings.clone(), id, address);
    let mut registration: Option<Registration<'_>> = None;
    let mut out = BytesMut::new();
    let mut buffer = BytesMut::with_capacity(READ);
    let (mut wants_bytes, mut ended) = (false, false);
    loop {
        while !ended && !wants_bytes && out.len() < MAX_OUT {
            match session.next(&mut out) {
                Step::Receive => wants_bytes = true,
                Step::Answered => {}
                Step::Publish { payload, .. } => match shared.publish(&payload, &origin) {
                    Ok(receivers) => session.published(receivers, &mut out),
                    Err(error) => session.refused(error, &mut out),
                },
                // There is one channel.
                Step::Subscriptions { added, removed } => {
                    if !removed.is_empty() {
                        registration = None;
                    }
                    if !added.is_empty() {
                        let subscriber = Arc::<Subscriber>::default();
                        shared.subscribe(id, &subscriber);
                        registration = Some(Registration { shared: &shared, id, subscriber });
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
                    Next::Message(payload) => {
                        let channel = &shared.settings.channels[0];
                        out.extend_from_slice(&message(session.version(), channel, &payload));
                        count(&shared.counters.delivered_messages, 1);
                    }
                    Next::Heal => shared.heal_one(id, subscriber, "it read too slowly"),
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
        let impatient = session.is_within_command() || !session.is_authenticated();
        let patience = if impatient { PATIENCE } else { Duration::MAX };
        let bytes = tokio::select! {
            () = pin!(filled) => continue,
            read = timeout(patience, read) => match read {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(_)) | Err(_) => return,
            },
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
