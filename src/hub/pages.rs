//! Pages of history that streams share: many resume at once at about the same place.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::log::{Content, Entry};
use crate::bus::{AppendError, HistoryPage, Position};

/// The most pages of a shard that are kept, and how long.
const MAX_KEPT: usize = 4;
const KEPT_FOR: Duration = Duration::from_secs(1);

/// The page that a stream wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// What follows this position.
    pub after: Position,
    /// About so many bytes of events.
    pub max_bytes: usize,
    /// One that was read later than this: the stream has had that page, and it led nowhere.
    pub newer_than: Option<Instant>,
}

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
    /// When it was read.
    pub read: Instant,
}

impl Page {
    /// A page without entries, up to here.
    pub fn empty(next: Position) -> Page {
        Page { entries: vec![], next, at_end: true, ends: vec![], read: Instant::now() }
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
        Page { entries: entries.collect(), next, at_end, ends, read: Instant::now() }
    }
}

/// The pages of one shard that were read lately.
#[derive(Debug, Default)]
pub(super) struct Pages {
    kept: Mutex<Kept>,
    /// One page is read at a time: whoever waited for it may need no other.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The newest last.
    pages: Vec<KeptPage>,
    /// How often the shard went on in another way than with events.
    changes: u64,
    /// The last read that failed.
    failed: Option<(Instant, AppendError)>,
}

#[derive(Debug)]
struct KeptPage {
    /// What was asked for.
    after: Position,
    max_bytes: usize,
    page: Page,
}

impl Pages {
    /// A page of what a place asks for: one that was read in the last second, or the one that
    /// `read` reads.
    ///
    /// # Errors
    ///
    /// The page could not be read, or one for which this waited.
    pub async fn get(
        &self,
        wanted: Wanted,
        read: impl Future<Output = Result<HistoryPage, AppendError>>,
    ) -> Result<Page, AppendError> {
        let began = Instant::now();
        let _turn = self.turn.lock().await;
        let changes = {
            let kept = self.kept.lock();
            if let Some((_, error)) = kept.failed.as_ref().filter(|(at, _)| *at > began) {
                return Err(error.clone());
            }
            kept.changes
        };
        if let Some(page) = self.find(wanted) {
            return Ok(page);
        }
        let read = read.await;
        let mut kept = self.kept.lock();
        let page = match read {
            Ok(page) => Page::from(page),
            Err(error) => {
                kept.failed = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        // A larger one has one large frame, which is not worth its memory.
        let is_kept = !page.entries.is_empty() && page.bytes() <= 2 * wanted.max_bytes;
        if is_kept && kept.changes == changes {
            if kept.pages.len() >= MAX_KEPT {
                kept.pages.remove(0);
            }
            let Wanted { after, max_bytes, .. } = wanted;
            kept.pages.push(KeptPage { after, max_bytes, page: page.clone() });
        }
        Ok(page)
    }

    /// The same, if there is one without reading.
    pub fn find(&self, wanted: Wanted) -> Option<Page> {
        let mut kept = self.kept.lock();
        kept.pages.retain(|page| page.page.read.elapsed() < KEPT_FOR);
        kept.pages.iter().rev().find_map(|page| page.get(wanted))
    }

    /// Forgets all pages: the shard may have gone on on another line.
    pub fn clear(&self) {
        let mut kept = self.kept.lock();
        kept.pages.clear();
        kept.changes += 1;
    }
}

impl KeptPage {
    /// What is wanted of it. In the middle of the page only where nothing but
    /// events of the same epoch follows: what comes with another one depends on where the reader
    /// stands.
    fn get(&self, wanted: Wanted) -> Option<Page> {
        let Wanted { after: place, max_bytes, newer_than } = wanted;
        if self.max_bytes > max_bytes || newer_than.is_some_and(|than| self.page.read <= than) {
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
    use bytes::Bytes;

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
        let next = deliveries.last().map(|last| Entry::new(last.clone()).position);
        HistoryPage { deliveries, next: next.unwrap(), at_end: true, ends: vec![] }
    }

    fn wanted(after: Position) -> Wanted {
        Wanted { after, max_bytes: BYTES, newer_than: None }
    }

    async fn get(pages: &Pages, after: Position, read: Vec<Delivery>) -> Vec<Position> {
        let page = pages.get(wanted(after), async { Ok(page(read)) }).await.unwrap();
        page.entries.iter().map(|entry| entry.position).collect()
    }

    fn found(pages: &Pages, after: Position) -> Option<Vec<Position>> {
        let page = pages.find(wanted(after))?;
        Some(page.entries.iter().map(|entry| entry.position).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_is_for_all_who_stand_in_it_for_a_second() {
        let pages = Pages::default();
        let read = vec![frame(5, 1), frame(5, 2), frame(5, 3)];
        assert_eq!(get(&pages, at(5, 0), read).await, [at(5, 1), at(5, 2), at(5, 3)]);
        // Nothing is read for these.
        assert_eq!(get(&pages, at(5, 0), vec![]).await.len(), 3);
        assert_eq!(found(&pages, at(5, 1)), Some(vec![at(5, 2), at(5, 3)]));
        assert_eq!(found(&pages, at(5, 3)), None, "nothing follows in it");
        assert_eq!(found(&pages, at(4, 1)), None);
        let again = Wanted { newer_than: Some(Instant::now()), ..wanted(at(5, 0)) };
        assert!(pages.find(again).is_none(), "it has had it");
        assert!(
            pages.find(Wanted { max_bytes: BYTES - 1, ..wanted(at(5, 0)) }).is_none(),
            "it may be too large"
        );
        tokio::time::advance(KEPT_FOR).await;
        assert_eq!(found(&pages, at(5, 0)), None);
    }

    #[tokio::test]
    async fn where_another_epoch_follows_only_the_whole_page_is_shared() {
        let pages = Pages::default();
        let read = vec![frame(5, 1), epoch(9, at(5, 1)), frame(9, 1), frame(9, 2)];
        get(&pages, at(5, 0), read).await;
        assert_eq!(found(&pages, at(5, 0)).map(|page| page.len()), Some(4));
        assert_eq!(found(&pages, at(5, 1)), None);
        assert_eq!(found(&pages, at(9, 0)), None);
        assert_eq!(found(&pages, at(9, 1)), Some(vec![at(9, 2)]));
    }

    #[tokio::test]
    async fn no_page_of_before_a_change_is_kept() {
        let pages = Pages::default();
        get(&pages, at(5, 0), vec![frame(5, 1)]).await;
        pages.clear();
        assert_eq!(found(&pages, at(5, 0)), None);
        // Nor one that was being read.
        let read = async {
            pages.clear();
            Ok(page(vec![frame(5, 1)]))
        };
        pages.get(wanted(at(5, 0)), read).await.unwrap();
        assert_eq!(found(&pages, at(5, 0)), None);
    }

    #[tokio::test]
    async fn large_and_empty_pages_are_not_kept_and_few_of_the_others() {
        let pages = Pages::default();
        let page = |deliveries| {
            let (next, ends) = (at(5, 1), vec![]);
            async move { Ok(HistoryPage { deliveries, next, at_end: true, ends }) }
        };
        pages
            .get(Wanted { max_bytes: 1, ..wanted(at(5, 0)) }, page(vec![frame(5, 1)]))
            .await
            .unwrap();
        pages.get(wanted(at(5, 0)), page(vec![])).await.unwrap();
        assert!(pages.kept.lock().pages.is_empty());
        for place in 0..10 {
            pages.get(wanted(at(6, place)), page(vec![frame(5, 1)])).await.unwrap();
        }
        assert_eq!(pages.kept.lock().pages.len(), MAX_KEPT);
        assert!(found(&pages, at(6, 9)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_for_a_read_that_failed_does_not_wait_for_another_one() {
        let pages = Pages::default();
        let slow = async {
            tokio::time::sleep(KEPT_FOR).await;
            Err(AppendError::Unavailable("frozen".into()))
        };
        let never = async { panic!("read again") };
        let (one, other) =
            tokio::join!(pages.get(wanted(at(5, 0)), slow), pages.get(wanted(at(5, 7)), never));
        assert!(one.is_err());
        assert!(matches!(other, Err(AppendError::Unavailable(why)) if why == "frozen"));
        tokio::time::advance(KEPT_FOR).await;
        get(&pages, at(5, 0), vec![frame(5, 1)]).await;
    }
}
