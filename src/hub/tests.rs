//! The promises of the hub, over a bus with a history and logs of any size.

mod bus;
mod recovery;
mod scripted;
mod updates;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures_util::future::FutureExt;
use proptest::prelude::*;
use prost::Message;

use self::bus::TestBus;
use super::{
    Begin, Hub, ReadOptions,
    cursor::{Cursor, Item, Missing},
    filter::Filter,
    had::Had,
    log::Capacity,
};
use crate::{
    bus::{AppendError, GapReason, Position},
    proto::v1::{self, event::Kind},
};

fn event(id: u64, source: &str, account: &str) -> v1::Event {
    v1::Event {
        event_id: id.to_string(),
        source: source.into(),
        kind: Some(Kind::MailboxChange(v1::MailboxChange {
            account_id: account.into(),
            change_id: id,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn everything(node: &str) -> Filter {
    Filter::new(&v1::Filter::default(), node, &[], false)
}

fn accounts(node: &str, accounts: &[&str]) -> Filter {
    let accounts = accounts.iter().map(|a| (*a).to_owned()).collect();
    Filter::new(&v1::Filter { accounts, ..Default::default() }, node, &[], false)
}

fn ids(chunks: &[Bytes]) -> Vec<u64> {
    let batch = v1::EventBatch::decode(&chunks.concat()[..]).unwrap();
    batch.events.iter().map(|event| event.event_id.parse().unwrap()).collect()
}

/// Polls a cursor until it has an item, or waits for more than what tasks have ready: it may turn
/// many pages that have nothing for it, and waits for each of them.
async fn next_now(cursor: &mut Cursor) -> Option<Result<Item, AppendError>> {
    for _ in 0..100 {
        if let Some(item) = cursor.next().now_or_never() {
            return Some(item);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// All items that the cursor has now.
async fn drain(cursor: &mut Cursor) -> (Vec<u64>, Vec<Missing>) {
    let (mut events, mut gaps) = (vec![], vec![]);
    while let Some(item) = next_now(cursor).await {
        match item.unwrap() {
            Item::Events(batch) => {
                let batch_ids = ids(&batch.chunks);
                assert_eq!(batch_ids.len() as u64, batch.count);
                events.extend(batch_ids);
            }
            Item::Gap(_, gap) => gaps.push(gap),
        }
    }
    (events, gaps)
}

const LARGE: Capacity = Capacity { bytes: 1 << 20, events: 10_000 };

/// After what a stream has had that walked up to a position.
fn after(epoch: u64, offset: u64) -> Begin {
    Begin::After(vec![Had::up_to(Position::new(epoch, offset))])
}

async fn open(hub: &Arc<Hub>, filter: Filter, begin: Begin) -> Cursor {
    hub.open(filter, &begin, ReadOptions::default()).await.unwrap().cursor
}

#[tokio::test]
async fn a_stream_gets_later_events_of_other_nodes_only() {
    let (hub, bus) = TestBus::start(2, 0, LARGE);
    bus.publish(0, &[event(1, "a", "x")]);
    let mut cursor = open(&hub, everything("n"), Begin::Latest).await;
    bus.publish(0, &[event(2, "a", "x"), event(3, "n", "x"), event(4, "a", "x")]);
    bus.publish(1, &[event(5, "a", "y")]);
    let (mut events, gaps) = drain(&mut cursor).await;
    events.sort_unstable();
    assert_eq!((events, gaps), (vec![2, 4, 5], vec![]));
}

#[tokio::test]
async fn a_stream_that_is_overtaken_without_history_gets_a_gap_with_the_exact_count() {
    let capacity = Capacity { bytes: 1 << 20, events: 5 };
    let (hub, bus) = TestBus::start(1, 0, capacity);
    let mut cursor = open(&hub, everything("n"), Begin::Latest).await;
    for id in 1..=12 {
        bus.publish(0, &[event(id, "a", "x")]);
    }
    let (events, gaps) = drain(&mut cursor).await;
    assert_eq!(events, vec![8, 9, 10, 11, 12]);
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].missed, gaps[0].to), (Some(7), Position::new(7, 7)));
}

#[tokio::test]
async fn a_stream_that_is_overtaken_by_events_that_it_excludes_misses_nothing() {
    let capacity = Capacity { bytes: 1 << 20, events: 5 };
    let (hub, bus) = TestBus::start(1, 0, capacity);
    let mut cursor = open(&hub, accounts("n", &["mine"]), Begin::Latest).await;
    for id in 1..=12 {
        bus.publish(0, &[event(id, "a", "others")]);
    }
    bus.publish(0, &[event(13, "a", "mine")]);
    assert_eq!(drain(&mut cursor).await, (vec![13], vec![]));
    assert_eq!(cursor.progress().behind(), 0);
}

#[tokio::test]
async fn a_stream_that_is_overtaken_continues_from_history() {
    let capacity = Capacity { bytes: 1 << 20, events: 4 };
    let (hub, bus) = TestBus::start(1, 100, capacity);
    let mut cursor = open(&hub, everything("n"), Begin::Latest).await;
    for id in 1..=20 {
        bus.publish(0, &[event(id, "a", "x")]);
    }
    assert_eq!(drain(&mut cursor).await, ((1..=20).collect(), vec![]));
    bus.publish(0, &[event(21, "a", "x")]);
    assert_eq!(drain(&mut cursor).await, (vec![21], vec![]));
}

#[tokio::test]
async fn a_stream_that_fell_behind_after_its_first_events_gets_merged_ones() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let options = ReadOptions { merge: true, ..ReadOptions::default() };
    let opened = hub.open(everything("n"), &Begin::Latest, options).await.unwrap();
    let mut cursor = opened.cursor;
    bus.publish(0, &[event(1, "a", "x")]);
    assert_eq!(drain(&mut cursor).await, (vec![1], vec![]));
    let events: Vec<_> = (2..=2501).map(|id| event(id, "a", "x")).collect();
    bus.publish(0, &events);
    assert_eq!(drain(&mut cursor).await, (vec![2501], vec![]));
}

#[tokio::test]
async fn a_stream_resumes_at_a_position_inside_a_frame() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    bus.publish(0, &[event(1, "a", "x"), event(2, "a", "x"), event(3, "a", "x")]);
    let opened = hub.open(everything("n"), &after(7, 2), ReadOptions::default()).await.unwrap();
    assert!(opened.resumed);
    assert_eq!(opened.replayed, 1);
    let mut cursor = opened.cursor;
    assert_eq!(drain(&mut cursor).await, (vec![3], vec![]));
}

#[tokio::test]
async fn a_stream_with_max_events_ends_inside_a_frame_and_its_position_is_exact() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let opened = hub
        .open(
            everything("n"),
            &Begin::Latest,
            ReadOptions { max_events: Some(2), ..ReadOptions::default() },
        )
        .await
        .unwrap();
    let mut cursor = opened.cursor;
    bus.publish(0, &[event(1, "a", "x"), event(2, "a", "x"), event(3, "a", "x")]);
    let Ok(Item::Events(batch)) = cursor.next().await else { panic!("no events") };
    assert_eq!(ids(&batch.chunks), vec![1, 2]);
    assert!(cursor.is_finished());
    assert_eq!(cursor.positions(), vec![Position::new(7, 2)]);
}

#[tokio::test]
async fn a_stream_from_an_unknown_position_gets_a_gap_and_then_new_events() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    bus.publish(0, &[event(1, "a", "x")]);
    for position in [Position::new(3, 9), Position::new(9, 1), Position::new(7, 50)] {
        let opened = hub
            .open(
                everything("n"),
                &Begin::After(vec![Had::up_to(position)]),
                ReadOptions::default(),
            )
            .await
            .unwrap();
        assert!(!opened.resumed, "{position}");
        let mut cursor = opened.cursor;
        let (events, gaps) = drain(&mut cursor).await;
        assert_eq!((events.len(), gaps.len()), (0, 1), "{position}");
        assert_eq!((gaps[0].reason, gaps[0].missed), (GapReason::UnknownEpoch, None));
    }
}

#[tokio::test]
async fn a_token_with_another_number_of_shards_gives_a_gap_on_each_shard() {
    let (hub, _bus) = TestBus::start(2, 0, LARGE);
    let begin = after(7, 0);
    let opened = hub.open(everything("n"), &begin, ReadOptions::default()).await.unwrap();
    assert!(!opened.resumed);
    let mut cursor = opened.cursor;
    assert_eq!(drain(&mut cursor).await.1.len(), 2);
}

/// One step of a random test.
#[derive(Clone, Debug)]
enum Act {
    Publish { shard: usize, count: usize, account: usize },
    Read { node: usize },
    Resume { node: usize },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        5 => (0..2_usize, 1..4_usize, 0..3_usize)
            .prop_map(|(shard, count, account)| Act::Publish { shard, count, account }),
        2 => (0..3_usize).prop_map(|node| Act::Read { node }),
        1 => (0..3_usize).prop_map(|node| Act::Resume { node }),
    ]
}

proptest! {
    /// Whatever is published, read and resumed, over logs and histories of any size: each stream
    /// gets every event that it asked for, in order and once, or a gap that covers it with an exact
    /// count.
    #[test]
    fn every_event_is_delivered_once_in_order_or_lies_in_a_gap(
        acts in proptest::collection::vec(act(), 1..80),
        log in 3..30_usize,
        keep in 0..20_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(check(acts, log, keep));
    }
}

/// The ids of events, and gaps with their shards.
type Seen = (Vec<u64>, Vec<(usize, Missing)>);

async fn check(acts: Vec<Act>, log: usize, keep: usize) {
    tokio::time::pause();
    let (hub, bus) = TestBus::start(2, keep, Capacity { bytes: 1 << 20, events: log });
    let names = ["x", "y", "z"];
    let filters = || [everything("n0"), accounts("n1", &["x"]), accounts("n2", &["y", "z"])];
    let wanted: [&[usize]; 3] = [&[0, 1, 2], &[0], &[1, 2]];
    let mut cursors = Vec::new();
    for filter in filters() {
        cursors.push(open(&hub, filter, Begin::Latest).await);
    }
    // By shard, in order: id and account. The id tells the shard and the offset.
    let mut published: [Vec<(u64, usize)>; 2] = [vec![], vec![]];
    let mut seen: Vec<Seen> = vec![(vec![], vec![]); 3];
    let read = async |cursor: &mut Cursor, seen: &mut Seen| {
        while let Some(item) = next_now(cursor).await {
            match item.unwrap() {
                Item::Events(batch) => seen.0.extend(ids(&batch.chunks)),
                Item::Gap(shard, gap) => seen.1.push((shard.index(), gap)),
            }
        }
    };
    for act in acts {
        match act {
            Act::Publish { shard, count, account } => {
                let first = published[shard].len();
                let events: Vec<_> = (first..first + count)
                    .map(|at| event((shard * 1_000_000 + at + 1) as u64, "p", names[account]))
                    .collect();
                bus.publish(shard, &events);
                let ids = events.iter().map(|e| (e.event_id.parse().unwrap(), account));
                published[shard].extend(ids);
            }
            Act::Read { node } => read(&mut cursors[node], &mut seen[node]).await,
            Act::Resume { node } => {
                let begin = Begin::After(cursors[node].to_had());
                let filter = filters()[node].clone();
                cursors[node] = open(&hub, filter, begin).await;
            }
        }
    }
    for node in 0..3 {
        read(&mut cursors[node], &mut seen[node]).await;
        let (events, gaps) = &seen[node];
        for (shard, published) in published.iter().enumerate() {
            let got: Vec<u64> =
                events.iter().copied().filter(|id| (*id / 1_000_000) as usize == shard).collect();
            assert!(got.is_sorted_by(|a, b| a < b), "order of node {node}: {got:?}");
            let gaps: Vec<&Missing> =
                gaps.iter().filter(|(at, _)| *at == shard).map(|(_, gap)| gap).collect();
            for gap in &gaps {
                let range = gap.from.offset.0..gap.to.offset.0;
                assert_eq!(gap.missed, Some(range.end - range.start), "{gap:?}");
            }
            let offset = |id: u64| id % 1_000_000;
            let covered = |id| {
                gaps.iter().any(|g| offset(id) > g.from.offset.0 && offset(id) <= g.to.offset.0)
            };
            let delivered_ids: BTreeMap<u64, bool> = got.iter().map(|id| (*id, true)).collect();
            for (id, account) in published {
                let delivered = delivered_ids.contains_key(id);
                if wanted[node].contains(account) {
                    assert!(delivered || covered(*id), "node {node} lost {id}; gaps {gaps:?}");
                    assert!(
                        !(delivered && covered(*id)),
                        "node {node}: {id} came and lies in a gap"
                    );
                } else {
                    assert!(!delivered, "node {node} did not ask for {id}");
                }
            }
        }
    }
}
