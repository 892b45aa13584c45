//! Messages that wait for one program.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

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
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// Messages were given up since the queue was empty.
    overflowed: bool,
}

/// What is next for a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A message.
    Message(Bytes),
    /// Messages were given up, and everything before them was taken: it must be healed.
    Heal,
    /// Nothing waits.
    Nothing,
}

impl Subscriber {
    /// Adds messages, all or none. If they do not fit, everything is given up: the healing that
    /// follows says it all.
    pub(super) fn add(&self, messages: &[Bytes], max_bytes: usize) {
        let mut queue = self.queue.lock();
        if queue.overflowed {
            return;
        }
        if queue.bytes.saturating_add(size_of_all(messages)) > max_bytes {
            *queue = Queue { overflowed: true, ..Queue::default() };
        } else {
            queue.put(messages);
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// Adds the messages that heal it, however many they are.
    pub(super) fn heal(&self, messages: &[Bytes]) {
        self.queue.lock().put(messages);
        self.filled.notify_one();
    }

    /// Takes what is next.
    pub(super) fn next(&self) -> Next {
        let mut queue = self.queue.lock();
        match queue.messages.pop_front() {
            Some(message) => {
                queue.bytes -= message.len() + OVERHEAD;
                Next::Message(message)
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
    fn put(&mut self, messages: &[Bytes]) {
        self.messages.extend(messages.iter().cloned());
        self.bytes += size_of_all(messages);
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
        let message = |byte| Bytes::from(vec![byte; 36]);
        subscriber.add(&[message(1), message(2)], 200);
        assert_eq!(subscriber.next(), Next::Message(message(1)));
        subscriber.add(&[message(3)], 200);
        subscriber.add(&[message(4)], 200);
        subscriber.add(&[message(5)], 200);
        assert_eq!(subscriber.next(), Next::Heal);
        assert_eq!(subscriber.next(), Next::Nothing);
        subscriber.add(&[message(6)], 200);
        assert_eq!(subscriber.next(), Next::Message(message(6)));
        assert_eq!(subscriber.queue.lock().bytes, 0);
    }
}
