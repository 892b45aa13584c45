//! Limits of what streams read and hold of history.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bus::AppendError;

/// The most pages of history that are read at once, so that many streams that resume together do
/// not overload the bus.
const MAX_READERS: usize = 8;

/// The same of one identity, so that the streams of others do not wait for all of its own.
const MAX_READERS_OF_ONE: usize = 2;

/// Bytes that a page may have, whatever is asked for: a large request is one frame, and is not
/// divided.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// The longest turn. A read that takes longer waits for a server that is slow or gone, and holds up
/// no stream that reads other shards; it ends by the time limit of the bus.
const MAX_TURN: Duration = Duration::from_millis(100);

/// The pages of history that a gateway reads.
#[derive(Debug)]
pub struct Readers(Semaphore);

/// The pages of history that the streams of one identity read and hold. A stream waits for its
/// turn, and no stream fails for it.
#[derive(Clone, Debug)]
pub struct HistoryQuota {
    readers: Arc<Semaphore>,
    /// A permit for each KiB.
    held: Arc<Semaphore>,
    max: u32,
}

/// Counts a page of history as held until it is dropped.
#[derive(Debug)]
pub struct HeldPage(#[allow(dead_code)] Option<OwnedSemaphorePermit>);

impl Default for Readers {
    fn default() -> Readers {
        Readers(Semaphore::new(MAX_READERS))
    }
}

impl Readers {
    /// Reads in turn with all others of the gateway, and with those of the identity.
    pub async fn take_turn<T>(
        &self,
        quota: Option<&HistoryQuota>,
        read: impl Future<Output = Result<T, AppendError>>,
    ) -> Result<T, AppendError> {
        let closed = |_| AppendError::Closed;
        let of_one = match quota {
            Some(quota) => Some(quota.readers.acquire().await.map_err(closed)?),
            None => None,
        };
        let of_all = self.0.acquire().await.map_err(closed)?;
        let mut read = std::pin::pin!(read);
        if let Ok(result) = tokio::time::timeout(MAX_TURN, &mut read).await {
            return result;
        }
        drop((of_one, of_all));
        read.await
    }
}

impl HistoryQuota {
    /// The streams may hold this many bytes.
    pub fn new(max_bytes: usize) -> HistoryQuota {
        HistoryQuota {
            readers: Arc::new(Semaphore::new(MAX_READERS_OF_ONE)),
            held: Arc::new(Semaphore::new(max_bytes / 1024)),
            max: kib(max_bytes),
        }
    }

    /// Waits until a page may be held. It counts as the largest one until its size is known.
    pub async fn hold(&self) -> Result<HeldPage, AppendError> {
        let largest = kib(MAX_PAGE_BYTES).min(self.max);
        let permit = self.held.clone().acquire_many_owned(largest).await;
        permit.map(|permit| HeldPage(Some(permit))).map_err(|_| AppendError::Closed)
    }
}

impl HeldPage {
    /// A page that counts against nobody.
    pub fn uncounted() -> HeldPage {
        HeldPage(None)
    }

    /// Counts the bytes that the page really has. If it has more than the largest one, they count
    /// as far as others are free.
    pub fn resize(&mut self, bytes: usize) {
        let Some(permit) = &mut self.0 else { return };
        let (held, needed) = (permit.num_permits(), kib(bytes) as usize);
        if needed < held {
            drop(permit.split(held - needed));
        } else {
            let more = u32::try_from(needed - held).unwrap_or(u32::MAX);
            let semaphore = permit.semaphore().clone();
            let more = more.min(u32::try_from(semaphore.available_permits()).unwrap_or(u32::MAX));
            if let Ok(more) = semaphore.try_acquire_many_owned(more) {
                permit.merge(more);
            }
        }
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn pages_count_with_their_bytes_until_they_are_dropped() {
        let quota = HistoryQuota::new(5 << 20);
        let mut first = quota.hold().await.unwrap();
        assert!(quota.hold().now_or_never().is_none());
        first.resize(10_000);
        let mut second = quota.hold().await.unwrap();
        second.resize(100 << 20);
        assert_eq!(quota.held.available_permits(), 0);
        drop(second);
        assert_eq!(quota.held.available_permits(), 5 * 1024 - 10);
        drop(first);
        assert_eq!(quota.held.available_permits(), 5 * 1024);
        // One that is smaller than a page serves one stream after the other.
        let quota = HistoryQuota::new(1 << 20);
        let only = quota.hold().await.unwrap();
        assert!(quota.hold().now_or_never().is_none());
        drop(only);
        quota.hold().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_does_not_end_holds_up_no_other() {
        let (readers, quota) = (Readers::default(), HistoryQuota::new(1 << 20));
        let never = || std::future::pending::<Result<(), AppendError>>();
        let stuck: Vec<_> = (0..20).map(|_| readers.take_turn(Some(&quota), never())).collect();
        let others = async {
            tokio::time::sleep(MAX_TURN * 12).await;
            readers.take_turn(Some(&quota), async { Ok(7) }).await
        };
        tokio::select! {
            _ = futures_util::future::join_all(stuck) => panic!("they never end"),
            read = others => assert_eq!(read.unwrap(), 7),
        }
    }

    #[tokio::test]
    async fn the_streams_of_one_identity_leave_turns_to_others() {
        let readers = Readers::default();
        let [one, other] = [(); 2].map(|()| HistoryQuota::new(1 << 20));
        let never = || std::future::pending::<Result<(), AppendError>>();
        let mut reading: Vec<_> =
            (0..100).map(|_| Box::pin(readers.take_turn(Some(&one), never()))).collect();
        for read in &mut reading {
            assert!(read.now_or_never().is_none());
        }
        let read = readers.take_turn(Some(&other), async { Ok(7) });
        assert_eq!(read.now_or_never().unwrap().unwrap(), 7);
    }
}
