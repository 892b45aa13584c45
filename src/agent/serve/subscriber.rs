//! Messages that wait for one program.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::agent::session::Channel;

/// What a message takes beside its bytes.
const OVERHEAD: usize = 64;

/// The messages that wait for one program, bounded in bytes.
#[derive(Debug, Default)]
pub(super) struct Subscriber {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// The channels whose messages it gets.
    channels: BTreeSet<Channel>,
    messages: VecDeque<Waiting>,
    bytes: usize,
    /// Messages were given up since the queue was empty.
    overflowed: bool,
}

#[derive(Debug)]
struct Waiting {
    channel: Channel,
    message: Bytes,
    /// It is one of a healing.
    heals: bool,
}

/// What is next for a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A message of a channel.
    Message(Channel, Bytes),
    /// Messages were given up, and everything before them was taken: it must be healed.
    Heal,
    /// Nothing waits.
    Nothing,
}

impl Subscriber {
    /// It gets the messages of a channel from now on.
    pub(super) fn subscribe(&self, channel: Channel) {
        self.queue.lock().channels.insert(channel);
    }

    /// It does not get them any more.
    pub(super) fn unsubscribe(&self, channel: Channel) {
        let mut queue = self.queue.lock();
        queue.channels.remove(&channel);
        queue.remove(|waiting| waiting.channel == channel);
    }

    /// The channels whose messages it gets.
    pub(super) fn channels(&self) -> BTreeSet<Channel> {
        self.queue.lock().channels.clone()
    }

    /// Adds messages of a channel, all or none, and returns whether it gets that channel. If they
    /// do not fit, everything is given up: the healing that follows says it all.
    pub(super) fn add(&self, channel: Channel, messages: &[Bytes], max_bytes: usize) -> bool {
        let mut queue = self.queue.lock();
        if !queue.channels.contains(&channel) {
            return false;
        }
        if queue.overflowed {
            return true;
        }
        if queue.bytes.saturating_add(size_of_all(messages)) > max_bytes {
            let channels = std::mem::take(&mut queue.channels);
            *queue = Queue { channels, overflowed: true, ..Queue::default() };
        } else {
            queue.put(channel, messages, false);
        }
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Adds the messages that heal it, however many they are, and returns whether it gets that
    /// channel. They take the place of those that still wait: a healing says all that one before
    /// it said.
    pub(super) fn heal(&self, channel: Channel, messages: &[Bytes]) -> bool {
        let mut queue = self.queue.lock();
        if !queue.channels.contains(&channel) {
            return false;
        }
        // Otherwise it is healed when it has taken what is there.
        if !queue.overflowed {
            queue.remove(|waiting| waiting.channel == channel && waiting.heals);
            queue.put(channel, messages, true);
        }
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Takes what is next.
    pub(super) fn next(&self) -> Next {
        let mut queue = self.queue.lock();
        match queue.messages.pop_front() {
            Some(Waiting { channel, message, .. }) => {
                queue.bytes -= message.len() + OVERHEAD;
                Next::Message(channel, message)
            }
            None if std::mem::take(&mut queue.overflowed) => Next::Heal,
            None => Next::Nothing,
        }
    }

    /// Waits until something was added since the last time.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }
}

impl Queue {
    fn put(&mut self, channel: Channel, messages: &[Bytes], heals: bool) {
        let waiting = |message: &Bytes| Waiting { channel, message: message.clone(), heals };
        self.messages.extend(messages.iter().map(waiting));
        self.bytes += size_of_all(messages);
    }

    fn remove(&mut self, is_removed: impl Fn(&Waiting) -> bool) {
        self.messages.retain(|waiting| {
            let stays = !is_removed(waiting);
            if !stays {
                self.bytes -= waiting.message.len() + OVERHEAD;
            }
            stays
        });
    }
}

/// Bytes that these messages take while they wait.
fn size_of_all(messages: &[Bytes]) -> usize {
    messages.iter().map(|message| message.len() + OVERHEAD).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_given_up_and_healed_before_anything_new() {
        let subscriber = Subscriber::default();
        subscriber.subscribe(0);
        let message = |byte| Bytes::from(vec![byte; 36]);
        assert!(subscriber.add(0, &[message(1), message(2)], 200));
        assert_eq!(subscriber.next(), Next::Message(0, message(1)));
        subscriber.add(0, &[message(3)], 200);
        subscriber.add(0, &[message(4)], 200);
        subscriber.add(0, &[message(5)], 200);
        assert_eq!(subscriber.next(), Next::Heal);
        assert_eq!(subscriber.next(), Next::Nothing);
        subscriber.add(0, &[message(6)], 200);
        assert_eq!(subscriber.next(), Next::Message(0, message(6)));
        assert_eq!(subscriber.queue.lock().bytes, 0);
    }

    #[test]
    fn a_healing_takes_the_place_of_one_that_still_waits() {
        let subscriber = Subscriber::default();
        subscriber.subscribe(0);
        subscriber.subscribe(1);
        let message = |byte| Bytes::from(vec![byte; 36]);
        assert!(subscriber.heal(0, &[message(1), message(2)]));
        assert!(subscriber.heal(1, &[message(3)]));
        assert!(subscriber.add(0, &[message(4)], 1000));
        assert!(subscriber.heal(0, &[message(5), message(6)]));
        assert!(!subscriber.heal(2, &[message(7)]));
        for (channel, byte) in [(1, 3), (0, 4), (0, 5)] {
            assert_eq!(subscriber.next(), Next::Message(channel, message(byte)));
        }
        // It has taken a part.
        assert!(subscriber.heal(0, &[message(8)]));
        assert_eq!(subscriber.next(), Next::Message(0, message(8)));
        assert_eq!(subscriber.next(), Next::Nothing);
        // One that is to be healed anyway is not healed before.
        subscriber.add(0, &[message(9)], 50);
        assert!(subscriber.heal(0, &[message(8)]));
        assert_eq!(subscriber.next(), Next::Heal);
        assert_eq!(subscriber.queue.lock().bytes, 0);
    }

    #[test]
    fn messages_of_other_channels_are_not_delivered() {
        let subscriber = Subscriber::default();
        subscriber.subscribe(0);
        subscriber.subscribe(2);
        let message = Bytes::from_static(b"x");
        let messages = std::slice::from_ref(&message);
        let delivered = [0, 1, 2].map(|channel| subscriber.add(channel, messages, 500));
        assert_eq!(delivered, [true, false, true]);
        subscriber.unsubscribe(0);
        assert_eq!(subscriber.next(), Next::Message(2, message));
        assert_eq!(subscriber.next(), Next::Nothing);
        assert_eq!(subscriber.queue.lock().bytes, 0);
    }
}
