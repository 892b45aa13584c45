use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const CLOSED: NodeLeftReason = NodeLeftReason::Closed;

fn id(number: u64) -> StreamId {
    StreamId(number.into())
}

fn open(changes: &mut Changes<()>, number: u64) {
    changes.opened(number, id(number), ());
}

fn write(changes: &mut Changes<()>) {
    changes.exchange_begins(|_| true);
    changes.exchange_ended(true);
}

/// The numbers of the streams of the draft that join, and of those that leave.
fn drafted(changes: &mut Changes<()>) -> (Vec<u64>, Vec<u64>) {
    let Some(draft) = changes.draft() else { return (vec![], vec![]) };
    let joined = draft.joined.iter().map(|change| change.number);
    (joined.collect(), draft.left.iter().map(|(change, _)| change.number).collect())
}

#[test]
fn a_stream_joins_once_its_record_is_written_and_its_record_stays_until_it_has_left() {
    let mut changes = Changes::default();
    open(&mut changes, 1);
    assert!(changes.draft().is_none() && !changes.is_current(1));
    write(&mut changes);
    assert!(changes.is_current(1));
    assert_eq!(drafted(&mut changes), (vec![1], vec![]));
    changes.settle(true, &[]);
    assert!(changes.draft().is_none());
    changes.joined_seen(id(1), |returns| returns == 0);
    assert!(!changes.closed(1, CLOSED), "its record stays");
    assert!(!changes.is_current(1));
    assert_eq!(drafted(&mut changes), (vec![], vec![1]));
    changes.settle(true, &[false]);
    assert_eq!(drafted(&mut changes), (vec![], vec![1]), "the same once more");
    changes.settle(true, &[true]);
    assert!(changes.draft().is_none() && changes.waiting() == 0);
    assert_eq!(changes.left_seen(id(1)), LeftSeen::Gone(1));
    assert!(changes.streams.is_empty() && changes.by_id.is_empty() && changes.closed == 0);
}

#[test]
fn a_stream_that_ends_before_its_record_is_written_has_no_events() {
    let mut changes = Changes::default();
    open(&mut changes, 1);
    assert!(changes.closed(1, CLOSED));
    // One that nobody can have, since there is no space for its record.
    open(&mut changes, 2);
    changes.exchange_begins(|_| false);
    changes.exchange_ended(true);
    assert!(changes.closed(2, CLOSED));
    assert!(changes.draft().is_none() && changes.streams.is_empty());
}

#[test]
fn a_stream_that_others_may_have_read_has_both_events() {
    for written in [true, false] {
        let mut changes = Changes::default();
        open(&mut changes, 1);
        changes.exchange_begins(|_| true);
        assert!(!changes.closed(1, CLOSED), "it is being written");
        changes.exchange_ended(written);
        if !written {
            write(&mut changes);
        }
        assert_eq!(drafted(&mut changes), (vec![1], vec![]));
        changes.settle(true, &[]);
        assert_eq!(drafted(&mut changes), (vec![], vec![1]));
    }
}

#[test]
fn a_stream_that_is_taken_for_lost_and_is_open_joins_anew_after_its_record_is_written() {
    let mut changes = Changes::default();
    open(&mut changes, 1);
    write(&mut changes);
    changes.draft();
    changes.settle(true, &[]);
    changes.joined_seen(id(1), |returns| returns == 0);
    assert_eq!(changes.left_seen(id(1)), LeftSeen::Open(1, 1));
    assert!(changes.draft().is_none());
    write(&mut changes);
    let returns = changes.draft().map(|draft| draft.joined[0].returns);
    assert_eq!(returns, Some(1));
    // It is taken for lost again while that is under way: what comes of it is not the last word.
    assert_eq!(changes.left_seen(id(1)), LeftSeen::Open(1, 2));
    changes.settle(true, &[]);
    write(&mut changes);
    assert_eq!(changes.draft().map(|draft| draft.joined[0].returns), Some(2));
    changes.settle(true, &[]);
    // Its own event, or that of another gateway, comes before the answer.
    changes.closed(1, CLOSED);
    changes.draft();
    changes.joined_seen(id(1), |returns| returns == 2);
    assert_eq!(changes.left_seen(id(1)), LeftSeen::Gone(1));
    changes.settle(true, &[true]);
    assert_eq!(changes.left_seen(id(1)), LeftSeen::Nothing);
    assert!(changes.streams.is_empty() && changes.closed == 0);
}

#[test]
fn a_stream_that_was_taken_for_lost_before_it_joined_joins_and_leaves_once_more() {
    let mut changes = Changes::default();
    open(&mut changes, 1);
    write(&mut changes);
    // Another gateway publishes that it left here, and the stream ends.
    changes.closed(1, CLOSED);
    changes.draft();
    changes.settle(true, &[]);
    changes.draft();
    changes.settle(true, &[true]);
    // The bus had its name already: what is read is the event of the other gateway, and then that
    // it joined.
    assert_eq!(changes.left_seen(id(1)), LeftSeen::Open(1, 1));
    changes.joined_seen(id(1), |returns| returns == 0);
    write(&mut changes);
    assert_eq!(drafted(&mut changes), (vec![1], vec![]));
    changes.settle(true, &[]);
    let returns = changes.draft().map(|draft| draft.left[0].0.returns);
    assert_eq!(returns, Some(1), "no other event has this name");
    changes.settle(true, &[true]);
    changes.joined_seen(id(1), |returns| returns == 1);
    assert_eq!(changes.left_seen(id(1)), LeftSeen::Gone(1));
}

#[test]
fn what_waits_is_bounded_and_what_is_given_up_is_noted() {
    let mut changes = Changes::default();
    let count = MAX_CLOSED as u64 + 10;
    (0..count).for_each(|number| open(&mut changes, number));
    write(&mut changes);
    let gone = (0..count).filter(|number| changes.closed(*number, CLOSED)).count();
    assert_eq!((gone, changes.streams.len()), (10, MAX_CLOSED));
    assert!(changes.take_gave_up() && !changes.take_gave_up());
}

/// One step of the world.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open,
    Close(usize),
    Write,
    Fail,
    Publish(bool),
    /// Another gateway takes all that it finds in the records for lost.
    Lost,
    /// The gateway reads events.
    Read,
    /// A subscriber begins with a list.
    List,
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Open),
        3 => any::<usize>().prop_map(Step::Close),
        3 => Just(Step::Write),
        1 => Just(Step::Fail),
        4 => any::<bool>().prop_map(Step::Publish),
        1 => Just(Step::Lost),
        3 => Just(Step::Read),
        2 => Just(Step::List),
    ]
}

/// An event: the stream, its returns, and whether it joined.
type Event = (u64, u32, bool);

/// What a gateway, the store of records and the bus are, and who subscribes.
#[derive(Default)]
struct World {
    changes: Changes<()>,
    open: BTreeSet<u64>,
    opened: u64,
    /// The records: streams, and their returns.
    records: BTreeMap<u64, u32>,
    /// What the gateway wants to have in them.
    wanted: BTreeMap<u64, u32>,
    events: Vec<Event>,
    /// The names of all of them: a second one is left out.
    names: BTreeSet<Event>,
    read: usize,
    /// The map that each subscriber keeps, and how far it has read.
    subscribers: Vec<(BTreeSet<u64>, usize)>,
}

impl World {
    fn append(&mut self, event: Event) {
        if self.names.insert(event) {
            self.events.push(event);
        }
    }

    fn exchange(&mut self, written: bool) {
        self.changes.exchange_begins(|_| true);
        // One without an answer may have been made.
        self.records = self.wanted.clone();
        self.changes.exchange_ended(written);
    }

    fn publish(&mut self, answered: bool) {
        let Some(draft) = self.changes.draft().cloned() else { return };
        let count = draft.left.len();
        for change in draft.joined {
            self.append((change.number, change.returns, true));
        }
        for (change, _) in draft.left {
            self.append((change.number, change.returns, false));
        }
        self.changes.settle(answered, &vec![answered; count]);
    }

    fn read(&mut self) {
        while let Some((number, of, joined)) = self.events.get(self.read).copied() {
            self.read += 1;
            if joined {
                self.changes.joined_seen(id(number), |returns| returns == of);
                continue;
            }
            match self.changes.left_seen(id(number)) {
                LeftSeen::Nothing => {}
                LeftSeen::Gone(number) => {
                    self.wanted.remove(&number);
                }
                LeftSeen::Open(number, returns) => {
                    self.wanted.insert(number, returns);
                }
            }
        }
    }

    /// The list of another gateway: its records, without those that it saw leave.
    fn list(&mut self) {
        let mut list: BTreeSet<u64> = self.records.keys().copied().collect();
        let mut last: BTreeMap<u64, bool> = BTreeMap::new();
        for (number, _, joined) in &self.events {
            last.insert(*number, *joined);
        }
        list.retain(|number| last.get(number) != Some(&false));
        self.subscribers.push((list, self.events.len()));
        // That of this gateway, which has read the events up to there.
        self.read();
        let own = self.open.iter().filter(|number| self.changes.is_current(**number));
        let own = own.copied().collect();
        self.subscribers.push((own, self.events.len()));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open => {
                self.opened += 1;
                open(&mut self.changes, self.opened);
                self.open.insert(self.opened);
                self.wanted.insert(self.opened, 0);
            }
            Step::Close(which) => {
                let Some(&number) = self.open.iter().nth(which % self.open.len().max(1)) else {
                    return;
                };
                self.open.remove(&number);
                if self.changes.closed(number, CLOSED) {
                    self.wanted.remove(&number);
                }
            }
            Step::Write => self.exchange(true),
            Step::Fail => self.exchange(false),
            Step::Publish(answered) => self.publish(answered),
            Step::Lost => {
                for (number, returns) in self.records.clone() {
                    self.append((number, returns, false));
                }
            }
            Step::Read => self.read(),
            Step::List => self.list(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_list_and_the_events_after_it_are_the_truth_at_the_end(
        steps in prop::collection::vec(some_step(), 0..60),
    ) {
        let mut world = World::default();
        world.subscribers.push((BTreeSet::new(), 0));
        for step in steps {
            world.step(step);
        }
        for _ in 0..4 {
            world.exchange(true);
            while world.changes.draft().is_some() {
                world.publish(true);
            }
            world.read();
        }
        for (mut map, from) in world.subscribers {
            for (number, _, joined) in &world.events[from..] {
                if *joined { map.insert(*number); } else { map.remove(number); }
            }
            prop_assert_eq!(&map, &world.open);
        }
        let records: BTreeSet<u64> = world.wanted.keys().copied().collect();
        prop_assert_eq!(records, world.open, "no record stays");
        prop_assert_eq!(world.changes.waiting(), 0);
    }
}
