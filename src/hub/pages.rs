//! Pages of history that streams share: many resume at once at about the same place.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::log::{Content, Entry};
use crate::bus::{AppendError, HistoryPage, Position};

/// The most pages of a shard that are kept, and how long.
const MAX_KEPT: usize = 4;
const KEPT_FOR: Duration = Duration::from_secs(1);

/// A part of a shard's history.
#[derive(Clone, Debug)]
pub(super) struct Page {
    /// What follows the position asked for.
    pub entries: Vec<Arc<Entry>>,
    /// The position after the last entry: the next page is asked for from here.
    pub next: Position,
    /// True if `next` was the end of the shard when the page was read.
    pub at_end: bool,
    /// How far the shard's earlier epochs went, as far as it remembers them.
    pub ends: Vec<Position>,
}

impl Page {
    /// A page without entries, up to here.
    pub fn empty(next: Position) -> Page {
        Page { entries: vec![], next, at_end: true, ends: vec![] }
    }

    /// Bytes of the events in it.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.wire_bytes()).sum()
    }
}

impl From<HistoryPage> for Page {
    fn from(page: HistoryPage) -> Page {
        let HistoryPage { deliveries, next, at_end, ends } = page;
        let entries = deliveries.into_iter().map(|delivery| Arc::new(Entry::new(delivery)));
        Page { entries: entries.collect(), next, at_end, ends }
    }
}

/// The page that a stream wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// What follows this position.
    pub after: Position,
    /// About so many bytes of events.
    pub max_bytes: usize,
    /// One that is as new as the request: another one may show what history has dropped since, or
    /// lead the stream to where it was.
    pub fresh: bool,
}

/// The pages of one shard that were read lately.
#[derive(Debug, Default)]
pub(super) struct Pages {
    shared: Mutex<Shared>,
    /// One page is read at a time: whoever waited for it may need no other.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Numbers what happens: requests, and reads that begin.
    sequence: u64,
    /// The newest last.
    read: Vec<Read>,
    /// How often the shard went on in another way than with events.
    changes: u64,
    /// When the last read that failed began, and why it did.
    failed: Option<(u64, AppendError)>,
}

#[derive(Debug)]
struct Read {
    /// When it began.
    began: u64,
    at: Instant,
    /// What was asked for.
    after: Position,
    max_bytes: usize,
    page: Page,
}

impl Shared {
    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

impl Pages {
    /// A page that is wanted now: one that was read in the last second, or while this waited, or
    /// the one that `read` reads.
    ///
    /// # Errors
    ///
    /// The page could not be read, or one for which this waited.
    pub async fn get(
        &self,
        wanted: Wanted,
        read: impl Future<Output = Result<HistoryPage, AppendError>>,
    ) -> Result<Page, AppendError> {
        let asked = self.shared.lock().next();
        let _turn = self.turn.lock().await;
        let (began, at, changes) = {
            let mut shared = self.shared.lock();
            if let Some((_, error)) = shared.failed.as_ref().filter(|(began, _)| *began > asked) {
                return Err(error.clone());
            }
            shared.read.retain(|read| read.at.elapsed() < KEPT_FOR);
            let newest_first = shared.read.iter().rev();
            let mut new = newest_first.filter(|read| !wanted.fresh || read.began > asked);
            if let Some(page) = new.find_map(|read| read.part(wanted)) {
                return Ok(page);
            }
            (shared.next(), Instant::now(), shared.changes)
        };
        let result = read.await.map(Page::from);
        let mut shared = self.shared.lock();
        match &result {
            Ok(page) => {
                let Wanted { after, max_bytes, .. } = wanted;
                // A larger one has one large frame, which is not worth its memory.
                let is_kept = !page.entries.is_empty() && page.bytes() <= 2 * max_bytes;
                if is_kept && shared.changes == changes {
                    if shared.read.len() >= MAX_KEPT {
                        shared.read.remove(0);
                    }
                    shared.read.push(Read { began, at, after, max_bytes, page: page.clone() });
                }
            }
            Err(error) => shared.failed = Some((began, error.clone())),
        }
        drop(shared);
        result
    }

    /// Forgets all pages: the shard may have gone on on another line.
    pub fn clear(&self) {
        let mut shared = self.shared.lock();
        shared.read.clear();
        shared.changes += 1;
    }
}

impl Read {
    /// What is wanted of the page. In the middle of it only where nothing but events of the same
    /// epoch follows: what comes with another one depends on where the reader stands.
    fn part(&self, wanted: Wanted) -> Option<Page> {
        let Wanted { after: place, max_bytes, .. } = wanted;
        if self.max_bytes > max_bytes {
            return None;
        }
        if self.after == place {
            return Some(self.page.clone());
        }
        let entries = &self.page.entries;
        let nth = entries.iter().rposition(|entry| entry.position == place)?;
        let goes_on = |entry: &Arc<Entry>| {
            matches!(entry.content, Content::Frame(_)) && entry.position.epoch == place.epoch
        };
        let (of_place, rest) = entries[nth..].split_first()?;
        let shared = !rest.is_empty() && goes_on(of_place) && rest.iter().all(goes_on);
        shared.then(|| Page { entries: rest.to_vec(), ..self.page.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::ready, task::Poll};

    use bytes::Bytes;
    use futures_util::poll;

    use super::*;
    use crate::bus::{Delivery, Epoch, EpochStart, Frame, Offset, put_event};

    const BYTES: usize = 1000;

    fn at(epoch: u64, offset: u64) -> Position {
        Position::new(epoch, offset)
    }

    fn frame(epoch: u64, offset: u64) -> Delivery {
        let mut events = vec![];
        put_event(&mut events, b"\x0a\x01a");
        Delivery::Frame(Frame {
            epoch: Epoch(epoch),
            first: Offset(offset),
            count: 1,
            events: Bytes::from(events),
            time_ms: 0,
            provenance: None,
        })
    }

    fn epoch(epoch: u64, previous: Position) -> Delivery {
        Delivery::Epoch(EpochStart { position: at(epoch, 0), previous, ends: vec![] })
    }

    fn page(deliveries: Vec<Delivery>) -> HistoryPage {
        let last = deliveries.last().map(|last| Entry::new(last.clone()).position);
        HistoryPage { deliveries, next: last.unwrap_or(at(5, 0)), at_end: true, ends: vec![] }
    }

    fn wanted(after: Position) -> Wanted {
        Wanted { after, max_bytes: BYTES, fresh: false }
    }

    fn positions(page: &Page) -> Vec<Position> {
        page.entries.iter().map(|entry| entry.position).collect()
    }

    /// What is there without reading.
    async fn found(pages: &Pages, wanted: Wanted) -> Option<Vec<Position>> {
        let page = pages.get(wanted, ready(Err(AppendError::Closed))).await.ok()?;
        Some(positions(&page))
    }

    async fn read(pages: &Pages, wanted: Wanted, deliveries: Vec<Delivery>) {
        pages.get(wanted, async { Ok(page(deliveries)) }).await.unwrap();
    }

    fn kept(pages: &Pages) -> usize {
        pages.shared.lock().read.len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_is_for_all_who_stand_in_it_for_a_second() {
        let pages = Pages::default();
        let place = |offset| wanted(at(5, offset));
        read(&pages, place(0), vec![frame(5, 1), frame(5, 2), frame(5, 3)]).await;
        let all = Some(vec![at(5, 1), at(5, 2), at(5, 3)]);
        assert_eq!(found(&pages, place(0)).await, all);
        assert_eq!(found(&pages, place(1)).await, Some(vec![at(5, 2), at(5, 3)]));
        assert_eq!(found(&pages, place(3)).await, None, "nothing follows in it");
        assert_eq!(found(&pages, wanted(at(4, 1))).await, None);
        let smaller = Wanted { max_bytes: BYTES - 1, ..place(0) };
        assert_eq!(found(&pages, smaller).await, None, "it may be too large");
        tokio::time::advance(KEPT_FOR).await;
        assert_eq!(found(&pages, place(0)).await, None);
    }

    #[tokio::test]
    async fn who_wants_a_fresh_page_gets_one_that_others_began_to_read_after_it_was_wanted() {
        let pages = Pages::default();
        let fresh = Wanted { fresh: true, ..wanted(at(5, 0)) };
        let (sender, answer) = tokio::sync::oneshot::channel();
        let mut first = Box::pin(pages.get(fresh, async { Ok(page(answer.await.unwrap())) }));
        assert!(poll!(&mut first).is_pending());
        // Two who ask while it is read: it may lack what was there already when they asked.
        let second = pages.get(fresh, async { Ok(page(vec![frame(5, 1), frame(5, 2)])) });
        let third = pages.get(fresh, async { panic!("read again") });
        let (mut second, mut third) = (Box::pin(second), Box::pin(third));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        sender.send(vec![frame(5, 1)]).unwrap();
        let Poll::Ready(Ok(had)) = poll!(&mut first) else { panic!("not read") };
        drop(first);
        assert_eq!(positions(&had), [at(5, 1)]);
        assert_eq!(positions(&second.await.unwrap()), [at(5, 1), at(5, 2)]);
        assert_eq!(positions(&third.await.unwrap()), [at(5, 1), at(5, 2)]);
    }

    #[tokio::test]
    async fn where_another_epoch_follows_only_the_whole_page_is_shared() {
        let pages = Pages::default();
        let place = |epoch, offset| wanted(at(epoch, offset));
        let entries = vec![frame(5, 1), epoch(9, at(5, 1)), frame(9, 1), frame(9, 2)];
        read(&pages, place(5, 0), entries).await;
        assert_eq!(found(&pages, place(5, 0)).await.map(|page| page.len()), Some(4));
        assert_eq!(found(&pages, place(5, 1)).await, None);
        assert_eq!(found(&pages, place(9, 0)).await, None);
        assert_eq!(found(&pages, place(9, 1)).await, Some(vec![at(9, 2)]));
    }

    #[tokio::test]
    async fn no_page_of_before_a_change_is_kept() {
        let pages = Pages::default();
        let place = wanted(at(5, 0));
        read(&pages, place, vec![frame(5, 1)]).await;
        pages.clear();
        assert_eq!(found(&pages, place).await, None);
        // Nor one that was being read.
        let entries = async {
            pages.clear();
            Ok(page(vec![frame(5, 1)]))
        };
        pages.get(place, entries).await.unwrap();
        assert_eq!(found(&pages, place).await, None);
    }

    #[tokio::test]
    async fn large_and_empty_pages_are_not_kept_and_few_of_the_others() {
        let pages = Pages::default();
        read(&pages, Wanted { max_bytes: 1, ..wanted(at(5, 0)) }, vec![frame(5, 1)]).await;
        read(&pages, wanted(at(5, 0)), vec![]).await;
        assert_eq!(kept(&pages), 0);
        for place in 0..10 {
            read(&pages, wanted(at(6, place)), vec![frame(5, 1)]).await;
        }
        assert_eq!(kept(&pages), MAX_KEPT);
        assert!(found(&pages, wanted(at(6, 9))).await.is_some());
    }

    #[tokio::test]
    async fn who_waited_for_a_read_that_failed_does_not_wait_for_another_one() {
        let pages = Pages::default();
        let slow = async {
            tokio::task::yield_now().await;
            Err(AppendError::Unavailable("frozen".into()))
        };
        let never = async { panic!("read again") };
        let (place, other) = (wanted(at(5, 0)), wanted(at(5, 7)));
        let mut first = Box::pin(pages.get(place, slow));
        assert!(poll!(&mut first).is_pending());
        // They wait for their turn behind the first, whose read began before.
        let second = pages.get(other, ready(Err(AppendError::Unavailable("twice".into()))));
        let (mut second, mut third) = (Box::pin(second), Box::pin(pages.get(other, never)));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        let (first, second, third) = tokio::join!(first, second, third);
        assert!(first.is_err() && second.is_err());
        assert!(matches!(third, Err(AppendError::Unavailable(why)) if why == "twice"));
        read(&pages, place, vec![frame(5, 1)]).await;
    }
}
