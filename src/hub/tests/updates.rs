//! Changes of the interest of a live stream.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::{LARGE, accounts, after, bus::TestBus, drain, event, everything, ids, next_now, open};
use crate::{
    bus::Position,
    hub::{
        Begin, Hub,
        cursor::{Item, Late},
        filter::{Change, Filter},
        had::Had,
        log::Capacity,
        token::ResumeToken,
    },
    proto::v1,
};

fn names(accounts: &[&str]) -> v1::Filter {
    let accounts = accounts.iter().map(|account| (*account).to_owned()).collect();
    v1::Filter { accounts, ..Default::default() }
}

fn add(accounts: &[&str]) -> Change {
    Change::new(&v1::Filter::default(), &names(accounts))
}

fn remove(accounts: &[&str]) -> Change {
    Change::new(&names(accounts), &v1::Filter::default())
}

/// The token of a stream that had everything up to an offset.
fn since(offset: u64) -> ResumeToken {
    let shards = vec![Had::up_to(Position::new(7, offset))];
    ResumeToken { deployment: 0, shards, behind: None }
}

/// Events that are delivered late, up to the last one.
async fn drain_late(late: Late) -> Vec<u64> {
    let Late { cursor: mut behind, gaps } = late;
    assert_eq!(gaps, vec![]);
    let mut events = vec![];
    while !behind.has_caught_up() {
        match next_now(&mut behind).await {
            Some(Ok(Item::Events(batch))) => events.extend(ids(&batch.chunks)),
            Some(other) => panic!("{other:?}"),
            // Its history is read.
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    events
}

fn custom(id: u64, name: &str) -> v1::Event {
    let custom = v1::CustomEvent { r#type: name.into(), ..Default::default() };
    v1::Event {
        event_id: id.to_string(),
        kind: Some(v1::event::Kind::Custom(custom)),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_update_takes_effect_at_the_end_of_what_the_stream_has_read() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let mut cursor = open(&hub, accounts("n", &["a"]), Begin::Latest).await;
    bus.publish(0, &[event(1, "p", "a"), event(2, "p", "b")]);
    assert_eq!(drain(&mut cursor).await.0, [1]);
    // Nothing of these is read, and nothing of the first concerns the stream.
    bus.publish(0, &[event(3, "p", "b")]);
    cursor.update(vec![add(&["b"])], None);
    assert_eq!(cursor.positions(), [Position::new(7, 3)]);
    bus.publish(0, &[event(4, "p", "b"), event(5, "p", "a"), event(6, "p", "c")]);
    cursor.update(vec![remove(&["a"])], None);
    assert_eq!(cursor.positions(), [Position::new(7, 3)]);
    bus.publish(0, &[event(7, "p", "a"), event(8, "p", "b")]);
    assert_eq!(drain(&mut cursor).await.0, [4, 8]);
}

#[tokio::test]
async fn an_account_that_is_removed_and_added_at_once_is_never_missed() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let mut cursor = open(&hub, accounts("n", &["a", "b"]), Begin::Latest).await;
    bus.publish(0, &[event(1, "p", "a")]);
    cursor.update(vec![remove(&["a"]), add(&["a"])], None);
    let all = Change::new(&v1::Filter::default(), &names(&["a", "c"])).replacing(true);
    cursor.update(vec![all, remove(&["c"]), add(&["d"])], None);
    bus.publish(0, &[event(2, "p", "b"), event(3, "p", "c"), event(4, "p", "a")]);
    bus.publish(0, &[event(5, "p", "d")]);
    assert_eq!(drain(&mut cursor).await.0, [1, 4, 5]);
    // With none left that is named, nothing is included, and not everything.
    cursor.update(vec![remove(&["a", "d"])], None);
    bus.publish(0, &[event(6, "p", "a"), event(7, "p", "x")]);
    assert!(drain(&mut cursor).await.0.is_empty());
    let all = Change::new(&v1::Filter::default(), &v1::Filter::default()).replacing(false);
    cursor.update(vec![all], None);
    bus.publish(0, &[event(8, "p", "x")]);
    assert_eq!(drain(&mut cursor).await.0, [8]);
}

#[tokio::test]
async fn kinds_and_types_change_like_accounts() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let wire = v1::Filter { kinds: vec![20], custom_types: vec!["a".into()], ..Default::default() };
    let mut cursor = open(&hub, Filter::new(&wire, "n", &[], false), Begin::Latest).await;
    let publish = |first: u64| {
        let events = [custom(first, "a"), custom(first + 1, "b.c"), event(first + 2, "p", "x")];
        bus.publish(0, &events);
    };
    publish(1);
    assert_eq!(drain(&mut cursor).await.0, [1]);
    let types = |types: &[&str]| {
        let types = types.iter().map(|name| (*name).to_owned()).collect();
        add(&[]).with_custom_types(Some(types))
    };
    cursor.update(vec![types(&["b.*"])], None);
    publish(11);
    assert_eq!(drain(&mut cursor).await.0, [12]);
    let kinds = |kinds: &[i32]| v1::Filter { kinds: kinds.to_vec(), ..Default::default() };
    cursor.update(vec![Change::new(&kinds(&[20]), &kinds(&[10]))], None);
    publish(21);
    assert_eq!(drain(&mut cursor).await.0, [23]);
    cursor.update(vec![Change::new(&kinds(&[10]), &kinds(&[]))], None);
    publish(31);
    assert!(drain(&mut cursor).await.0.is_empty());
}

/// A number as an index.
fn index(number: u64) -> usize {
    usize::try_from(number).expect("a small number")
}

#[tokio::test]
async fn interest_that_begins_at_a_token_gets_what_the_stream_left_out_since_then() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let mut cursor = open(&hub, accounts("n", &["a"]), Begin::Latest).await;
    let first: Vec<_> = (1..=6).map(|id| event(id, "p", ["c", "a", "b"][index(id % 3)])).collect();
    bus.publish(0, &first);
    assert_eq!(drain(&mut cursor).await.0, [1, 4]);
    bus.publish(0, &[event(7, "p", "b"), event(8, "p", "a")]);
    let since = since(2);
    let late = cursor.update(vec![add(&["b"])], Some(&since)).expect("since then");
    // The stream has not read 7 and 8 yet.
    assert_eq!(drain_late(late).await, [5]);
    assert_eq!(drain(&mut cursor).await.0, [7, 8]);
    // An account that the update removes and adds was delivered.
    let changes = vec![remove(&["a"]), add(&["a", "c"])];
    assert_eq!(drain_late(cursor.update(changes, Some(&since)).unwrap()).await, [3, 6]);
    // So was one that stays when everything is replaced.
    let all = Change::new(&v1::Filter::default(), &names(&["a", "d"])).replacing(true);
    assert!(drain_late(cursor.update(vec![all], Some(&since)).unwrap()).await.is_empty());
}

#[tokio::test]
async fn what_was_removed_and_is_added_again_since_before_repeats_nothing() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let mut cursor = open(&hub, accounts("n", &["a", "b"]), Begin::Latest).await;
    let publish = |first: u64| {
        let of = (first..).zip(["a", "b", "c"]);
        bus.publish(0, &of.map(|(id, account)| event(id, "p", account)).collect::<Vec<_>>());
    };
    publish(1);
    assert_eq!(drain(&mut cursor).await.0, [1, 2]);
    cursor.update(vec![remove(&["a"])], None);
    publish(4);
    assert_eq!(drain(&mut cursor).await.0, [5]);
    // What a new account and one that was here lack is different.
    let late = cursor.update(vec![add(&["a", "c"]), remove(&["b"])], Some(&since(0))).unwrap();
    assert_eq!(drain_late(late).await, [3, 4, 6]);
    publish(7);
    assert_eq!(drain(&mut cursor).await.0, [7, 9]);
    // What was delivered late was delivered, too.
    cursor.update(vec![remove(&["a", "c"])], None);
    publish(10);
    let late = cursor.update(vec![add(&["a", "b", "c"])], Some(&since(0))).unwrap();
    assert_eq!(drain_late(late).await, [8, 10, 11, 12]);
    // The same if everything is replaced, and if it is named no longer.
    let all = Change::new(&v1::Filter::default(), &names(&["d"])).replacing(true);
    cursor.update(vec![all], None);
    publish(13);
    let all = Change::new(&v1::Filter::default(), &names(&["c", "b"])).replacing(true);
    let late = cursor.update(vec![all], Some(&since(3))).unwrap();
    assert_eq!(drain_late(late).await, [14, 15]);
    let all = Change::new(&v1::Filter::default(), &v1::Filter::default()).replacing(false);
    let late = cursor.update(vec![all], Some(&since(0))).unwrap();
    assert_eq!(drain_late(late).await, [13]);
}

#[tokio::test]
async fn kinds_and_types_that_are_added_again_since_before_repeat_nothing() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let wire = v1::Filter { custom_types: vec!["c.*".into()], ..Default::default() };
    let mut cursor = open(&hub, Filter::new(&wire, "n", &[], false), Begin::Latest).await;
    let publish = |first: u64| {
        let events = [custom(first, "c.a"), custom(first + 1, "c.b"), event(first + 2, "p", "x")];
        bus.publish(0, &events);
    };
    let types = |types: &[&str]| {
        let types = types.iter().map(|name| (*name).to_owned()).collect();
        add(&[]).with_custom_types(Some(types))
    };
    let kinds = |kinds: &[i32]| v1::Filter { kinds: kinds.to_vec(), ..Default::default() };
    publish(1);
    assert_eq!(drain(&mut cursor).await.0, [1, 2, 3]);
    // A type is named by its prefix, and then by its name.
    cursor.update(vec![types(&["c.b"]), Change::new(&kinds(&[10]), &kinds(&[]))], None);
    publish(4);
    assert_eq!(drain(&mut cursor).await.0, [5]);
    let late = cursor.update(vec![types(&["c.a", "c.b"])], Some(&since(0))).unwrap();
    assert_eq!(drain_late(late).await, [4]);
    let changes = vec![Change::new(&kinds(&[]), &kinds(&[10]))];
    let late = cursor.update(changes, Some(&since(0))).unwrap();
    assert_eq!(drain_late(late).await, [6]);
}

#[tokio::test]
async fn where_the_past_is_forgotten_a_gap_tells_of_it() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let mut cursor = open(&hub, accounts("n", &["a"]), Begin::Latest).await;
    let mut delivered = 0;
    for id in 1..=2000 {
        bus.publish(0, &[event(id, "p", "a")]);
        delivered += drain(&mut cursor).await.0.len();
        let change = if id % 2 == 0 { add(&["a"]) } else { remove(&["a"]) };
        cursor.update(vec![change], None);
    }
    assert_eq!(delivered, 1000);
    assert!(cursor.past_bytes() <= 128 * 1024, "{} bytes", cursor.past_bytes());
    let late = cursor.update(vec![add(&["b"]), remove(&["a"])], Some(&since(0))).unwrap();
    let [(_, gap)] = &late.gaps[..] else { panic!("{:?}", late.gaps) };
    let forgotten = gap.missed.unwrap();
    assert!((1000..1800).contains(&forgotten), "{forgotten}");
    assert_eq!(gap.to, Position::new(7, forgotten));
    assert!(drain_late(Late { gaps: vec![], ..late }).await.is_empty());
    let late = cursor.update(vec![add(&["a"])], Some(&since(forgotten + 1))).unwrap();
    let left_out: Vec<u64> = (forgotten + 2..=2000).filter(|id| id % 2 == 0).collect();
    assert_eq!(drain_late(late).await, left_out);
}

#[tokio::test]
async fn a_registration_leaves_nothing_behind() {
    let (hub, _bus) = TestBus::start(1, 0, LARGE);
    let many: Vec<String> = (0..2000).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for _ in 0..3 {
        let mut one = open(&hub, accounts("n", &many), Begin::Latest).await;
        let other = open(&hub, accounts("m", &many[1000..]), Begin::Latest).await;
        one.update(vec![remove(&many[..1500]), add(&["x"])], None);
        let all = Change::new(&v1::Filter::default(), &names(&["y"])).replacing(true);
        one.update(vec![all], None);
        drop((one, other));
        while !hub.router.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

/// A step of a stream, or of what happens around it.
#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<usize>),
    Read,
    Update { add: Vec<usize>, remove: Vec<usize> },
    Resume,
    Backfill { add: usize, back: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = || prop::collection::vec(0..4_usize, 0..3);
    let step = prop_oneof![
        4 => prop::collection::vec(0..4_usize, 1..5).prop_map(Step::Publish),
        2 => Just(Step::Read),
        3 => (some(), some()).prop_map(|(add, remove)| Step::Update { add, remove }),
        1 => Just(Step::Resume),
        1 => (0..4_usize, 0..12_u64).prop_map(|(add, back)| Step::Backfill { add, back }),
    ];
    prop::collection::vec(step, 1..40)
}

const ACCOUNTS: [&str; 4] = ["a", "b", "c", "d"];

fn some_accounts(indexes: &[usize]) -> Vec<&'static str> {
    indexes.iter().map(|index| ACCOUNTS[*index]).collect()
}

fn end_of(hub: &Hub) -> u64 {
    hub.logs()[0].extent().end.offset.0
}

proptest! {
    /// InterestExact, Unique and NoSilentLoss, with a model that says for each event whether it is
    /// to be delivered: by the interest where the stream passes it, or by one that begins there.
    #[test]
    fn a_stream_with_updates_delivers_exactly_its_interest(steps in steps(), log in 2..30_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            // The log is short: what it lacks comes from history, which has everything.
            let (hub, bus) = TestBus::start(1, 1000, Capacity { events: log, ..LARGE });
            let mut cursor = open(&hub, accounts("n", &["a"]), Begin::Latest).await;
            let mut interest = BTreeSet::from([0]);
            let (mut published, mut delivered) = (Vec::<usize>::new(), BTreeSet::new());
            // In order, and late. Where the stream goes on with what one before it had.
            let (mut got, mut late): (Vec<u64>, BTreeSet<u64>) = Default::default();
            let mut floor = 0;
            for step in steps {
                match step {
                    Step::Publish(of) => {
                        let first = published.len() as u64 + 1;
                        let numbered = (first..).zip(&of);
                        let events: Vec<_> =
                            numbered.map(|(id, n)| event(id, "p", ACCOUNTS[*n])).collect();
                        published.extend(of);
                        bus.publish(0, &events);
                    }
                    Step::Read => {
                        let (events, gaps) = drain(&mut cursor).await;
                        assert_eq!(gaps, vec![]);
                        got.extend(events);
                    }
                    Step::Update { add: more, remove: less } => {
                        let [out, into] = [&less, &more].map(|of| names(&some_accounts(of)));
                        cursor.update(vec![Change::new(&out, &into)], None);
                        // What lies before the place was passed with the interest before.
                        let passed = cursor.positions()[0].offset.0;
                        for id in 1..=passed {
                            let of = published[index(id - 1)];
                            assert_eq!(
                                interest.contains(&of) && !delivered.contains(&id),
                                got.contains(&id) && !delivered.contains(&id),
                                "event {id}"
                            );
                        }
                        delivered.extend(1..=passed);
                        interest.retain(|n| !less.contains(n));
                        interest.extend(more);
                    }
                    Step::Resume => {
                        let had = cursor.to_had();
                        let named = interest.iter().map(|n| ACCOUNTS[*n].as_bytes()).collect();
                        let filter = accounts("n", &[]).naming(Some(named), false);
                        drop(cursor);
                        cursor = open(&hub, filter, Begin::After(had)).await;
                        floor = cursor.positions()[0].offset.0;
                    }
                    Step::Backfill { add: more, back } => {
                        let new = !interest.contains(&more);
                        let passed = cursor.positions()[0].offset.0;
                        let from = passed.saturating_sub(back);
                        let changes = vec![add(&[ACCOUNTS[more]])];
                        let mut more_of = cursor.update(changes, Some(&since(from))).unwrap();
                        let lost: Vec<_> =
                            more_of.gaps.drain(..).map(|(_, gap)| (gap.from, gap.to)).collect();
                        let reported = (from < floor)
                            .then(|| (Position::new(7, from), Position::new(7, floor)));
                        assert_eq!(lost, Vec::from_iter(reported));
                        let passed = cursor.positions()[0].offset.0;
                        let expected: Vec<u64> = (from.max(floor) + 1..=passed)
                            .filter(|id| new && published[index(*id - 1)] == more)
                            .filter(|id| !got.contains(id) && !late.contains(id))
                            .collect();
                        let events = drain_late(more_of).await;
                        assert_eq!(events, expected);
                        late.extend(events);
                        for id in 1..=passed {
                            let of = published[index(id - 1)];
                            let wanted = interest.contains(&of);
                            assert!(delivered.contains(&id) || wanted == got.contains(&id));
                        }
                        delivered.extend(1..=passed);
                        interest.insert(more);
                    }
                }
            }
            got.extend(drain(&mut cursor).await.0);
            let last = end_of(&hub);
            for id in 1..=last {
                let wanted = interest.contains(&published[index(id - 1)]);
                assert!(delivered.contains(&id) || wanted == got.contains(&id), "event {id}");
            }
            assert!(got.is_sorted_by(|a, b| a < b), "in order, and each once: {got:?}");
            assert!(got.iter().all(|id| !late.contains(id)), "and not late as well: {late:?}");
        });
    }
}

#[tokio::test]
async fn everything_is_resumed_with_the_token_of_an_update() {
    let (hub, bus) = TestBus::start(1, 0, LARGE);
    let mut cursor = open(&hub, accounts("n", &["a"]), after(7, 0)).await;
    bus.publish(0, &[event(1, "p", "b"), event(2, "p", "a"), event(3, "p", "b")]);
    // The place is before events of the new interest that the stream goes on to deliver.
    cursor.update(vec![add(&["b"])], None);
    let had = cursor.to_had();
    assert_eq!(drain(&mut cursor).await.0, [1, 2, 3]);
    let mut next = open(&hub, accounts("n", &["a", "b"]), Begin::After(had)).await;
    assert_eq!(drain(&mut next).await.0, [1, 2, 3]);
    let mut other = open(&hub, everything("n"), Begin::Latest).await;
    assert!(drain(&mut other).await.0.is_empty());
}
