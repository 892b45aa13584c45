//! Single situations of recovery: what a stream gets that had this, when the bus brings that.

use std::time::Duration;

use super::{
    bus::{TestBus, ends, frame, lost, note, start},
    *,
};
use crate::bus::{Delivery, Epoch, EpochStart, Frame, Gap, Name, Offset, Provenance};

const ALL: usize = usize::MAX;

fn events(ids: std::ops::RangeInclusive<u64>) -> Vec<v1::Event> {
    ids.map(|id| event(id, "p", "x")).collect()
}

fn position(epoch: u64, offset: u64) -> Position {
    Position::new(epoch, offset)
}

/// A frame at its own name.
fn plain(epoch: u64, first: u64, ids: std::ops::RangeInclusive<u64>) -> Frame {
    frame(epoch, first, &events(ids))
}

/// The same events at another place.
fn copy(of: &Frame, at: Position) -> Frame {
    let name = Name { epoch: of.epoch, first: of.first, count: of.count, left: vec![] };
    let provenance = of.provenance.clone().map_or_else(Provenance::default, |before| *before);
    let name = provenance.name.clone().or(Some(name));
    Frame {
        epoch: at.epoch,
        first: at.offset,
        provenance: Some(Provenance { name, ..provenance }.into()),
        ..of.clone()
    }
}

fn with_alias(frame: Frame, index: u64, alias: Position) -> Frame {
    let mut provenance = frame.provenance.clone().map_or_else(Provenance::default, |p| *p);
    provenance.aliases.push((index, alias));
    Frame { provenance: Some(provenance.into()), ..frame }
}

fn in_doubt(frame: Frame, end: Position) -> Frame {
    let provenance = Provenance { doubts: vec![end], ..Provenance::default() };
    Frame { provenance: Some(provenance.into()), ..frame }
}

fn epoch(epoch: u64, previous: Position, ends: &[Position]) -> Delivery {
    Delivery::Epoch(start(position(epoch, 0), previous, ends))
}

/// A gateway with this line, which it has read from its beginning.
fn gateway(line: &[Delivery]) -> (Arc<Hub>, Arc<TestBus>) {
    let (hub, bus) = TestBus::without_start(1, ALL, LARGE);
    let Some(Delivery::Epoch(first)) = line.first() else { panic!("a line begins with an epoch") };
    bus.set_line(0, line[..1].to_vec());
    bus.deliver(0, Delivery::Start(EpochStart { previous: Position::UNKNOWN, ..first.clone() }));
    line[1..].iter().for_each(|delivery| bus.append(0, delivery.clone()));
    (hub, bus)
}

/// A gateway that started when the line was this long.
fn young_gateway(line: &[Delivery]) -> (Arc<Hub>, Arc<TestBus>) {
    let (hub, bus) = TestBus::without_start(1, ALL, LARGE);
    let end = line.last().map_or(Position::UNKNOWN, bus::end);
    bus.set_line(0, line.to_vec());
    bus.deliver(0, Delivery::Start(start(end, Position::UNKNOWN, &ends(line))));
    (hub, bus)
}

fn first_epoch(number: u64) -> Delivery {
    epoch(number, Position::UNKNOWN, &[])
}

/// What a stream gets that has had this.
async fn resume(hub: &Arc<Hub>, had: Had) -> (Cursor, Vec<u64>, Vec<Missing>) {
    let mut cursor = open(hub, everything("n"), Begin::After(vec![had])).await;
    let (events, gaps) = drain(&mut cursor).await;
    (cursor, events, gaps)
}

fn had(walked: &[(u64, u64)]) -> Had {
    let mut had = Had::default();
    for (epoch, offset) in walked {
        had.walk(position(*epoch, *offset));
    }
    had
}

fn gap_of(gaps: &[Missing]) -> Vec<(Position, Position, Option<u64>)> {
    gaps.iter().map(|gap| (gap.from, gap.to, gap.missed)).collect()
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_goes_on_on_another_line_is_continued() {
    // The stream walked through 1 and 2. The failover that began 2 was undone: 1 went on, and 3
    // has the events of 2 as copies.
    let second = plain(2, 1, 21..=25);
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=10)),
        Delivery::Frame(plain(1, 11, 11..=11)),
        epoch(3, position(1, 11), &[position(1, 11)]),
        Delivery::Frame(copy(&second, position(3, 1))),
        Delivery::Frame(plain(3, 6, 31..=31)),
    ];
    let (hub, _bus) = gateway(&line);
    let (cursor, events, gaps) = resume(&hub, had(&[(1, 10), (2, 5)])).await;
    assert_eq!((events, gaps), (vec![11, 31], vec![]));
    let (_, events, gaps) = resume(&hub, cursor.to_had().remove(0)).await;
    assert_eq!((events, gaps), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_behind_the_token_forgets_nothing_of_it() {
    let line = [first_epoch(1), Delivery::Frame(plain(1, 1, 1..=3))];
    let (hub, bus) = gateway(&line);
    let (cursor, events, gaps) = resume(&hub, had(&[(1, 2), (2, 2)])).await;
    assert_eq!((events, gaps), (vec![3], vec![]));
    let token = cursor.to_had().remove(0);
    assert!(token.has(position(2, 2)));
    let (mut cursor, ..) = resume(&hub, token).await;
    bus.append(0, epoch(2, position(1, 3), &[position(1, 3)]));
    bus.append(0, Delivery::Frame(plain(2, 1, 21..=21)));
    bus.append(0, Delivery::Frame(plain(2, 2, 22..=23)));
    assert_eq!(drain(&mut cursor).await, (vec![23], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_knows_nothing_of_the_token_yet_catches_up_first() {
    let line = [first_epoch(1), Delivery::Frame(plain(1, 1, 1..=3))];
    let (hub, bus) = gateway(&line);
    let rest = [
        epoch(2, position(1, 3), &[position(1, 3)]),
        Delivery::Frame(plain(2, 1, 21..=22)),
        Delivery::Frame(plain(2, 3, 23..=23)),
    ];
    bus.set_line(0, [&line[..], &rest[..]].concat());
    let (mut cursor, events, gaps) = resume(&hub, had(&[(2, 2)])).await;
    assert_eq!((events, gaps), (vec![], vec![]), "it is behind: nothing is lost");
    for delivery in &rest {
        bus.deliver(0, delivery.clone());
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(drain(&mut cursor).await, (vec![23], vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_up_to_date_gateway_that_knows_no_epoch_of_the_token_says_so_and_keeps_it() {
    let line = [first_epoch(5), Delivery::Frame(plain(5, 1, 1..=3))];
    let (hub, bus) = gateway(&line);
    let begin = Begin::After(vec![had(&[(9, 4)])]);
    let opened = hub.open(everything("n"), &begin, ReadOptions::default()).await.unwrap();
    assert!(!opened.resumed);
    let mut cursor = opened.cursor;
    assert!(!cursor.to_had()[0].has(position(5, 1)), "not before it was told");
    let (events, gaps) = drain(&mut cursor).await;
    assert!(events.is_empty());
    assert_eq!(gaps[0].reason, GapReason::UnknownEpoch);
    assert_eq!(gap_of(&gaps), [(position(9, 4), position(5, 3), None)]);
    let token = cursor.to_had().remove(0);
    assert!(token.has(position(5, 3)) && token.has(position(9, 4)));
    bus.append(0, Delivery::Frame(plain(5, 4, 4..=4)));
    assert_eq!(drain(&mut cursor).await, (vec![4], vec![]));
    let (_, events, gaps) = resume(&hub, cursor.to_had().remove(0)).await;
    assert_eq!((events, gaps), (vec![], vec![]), "it is told once");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_accepted_twice_is_delivered_once() {
    let retried = with_alias(plain(2, 1, 1..=1), 0, position(1, 1));
    let first = plain(1, 1, 1..=1);
    let line = [
        first_epoch(1),
        epoch(2, position(1, 0), &[]),
        Delivery::Frame(retried.clone()),
        Delivery::Frame(plain(2, 2, 2..=2)),
    ];
    let (hub, _) = gateway(&line);
    let (_, events, gaps) = resume(&hub, had(&[(1, 1)])).await;
    assert_eq!((events, gaps), (vec![2], vec![]), "it had the first one");
    let (cursor, events, _) = resume(&hub, had(&[(1, 0)])).await;
    assert_eq!(events, [1, 2]);
    // The next line has a copy of the first one, and of the second one under both names.
    let line = [
        first_epoch(1),
        epoch(3, position(1, 0), &[]),
        Delivery::Frame(copy(&first, position(3, 1))),
        Delivery::Frame(copy(&retried, position(3, 2))),
    ];
    let (hub, _) = gateway(&line);
    let (_, events, gaps) = resume(&hub, cursor.to_had().remove(0)).await;
    assert_eq!((events, gaps), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_event_in_doubt_is_a_gap_for_who_may_have_had_it() {
    // Sent behind (1,0), without an answer. The stream had (1,1); this gateway never received it.
    let line = [
        first_epoch(1),
        epoch(2, position(1, 0), &[]),
        Delivery::Frame(in_doubt(plain(2, 1, 1..=2), position(1, 0))),
        Delivery::Frame(plain(2, 3, 3..=3)),
    ];
    let (hub, _) = gateway(&line);
    let (cursor, events, gaps) = resume(&hub, had(&[(1, 1)])).await;
    assert_eq!(events, [3]);
    let told =
        [(position(2, 0), position(2, 1), Some(1)), (position(2, 1), position(2, 2), Some(1))];
    assert_eq!(gap_of(&gaps), told);
    assert_eq!(gaps[0].reason, GapReason::EpochChanged);
    assert!(cursor.to_had()[0].has(position(2, 2)));
    let (_, events, gaps) = resume(&hub, had(&[(1, 0)])).await;
    assert_eq!((events, gaps), (vec![1, 2, 3], vec![]), "it had nothing behind the doubt");
}

#[tokio::test(start_paused = true)]
async fn an_event_in_doubt_is_a_gap_for_who_had_what_was_noted_as_lost() {
    let line = [
        first_epoch(1),
        epoch(2, position(1, 0), &[]),
        note(position(2, 1), lost(1, 1, 1)),
        Delivery::Frame(in_doubt(plain(2, 2, 1..=1), position(1, 0))),
    ];
    let (hub, _) = gateway(&line);
    let (_, events, gaps) = resume(&hub, had(&[(1, 1)])).await;
    assert_eq!((events, gap_of(&gaps)), (vec![], vec![(position(2, 1), position(2, 2), Some(1))]));
    let (_, events, gaps) = resume(&hub, had(&[(1, 0)])).await;
    let told = vec![(position(1, 0), position(1, 1), Some(1))];
    assert_eq!((events, gap_of(&gaps)), (vec![1], told), "it was told that (1,1) is lost");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_had_does_not_hide_lower_ones() {
    let tail = plain(1, 2, 2..=3);
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=1)),
        epoch(2, position(1, 1), &[position(1, 1)]),
        Delivery::Frame(with_alias(plain(2, 1, 3..=3), 0, position(1, 3))),
        Delivery::Frame(copy(&tail, position(2, 2))),
    ];
    let (hub, _) = gateway(&line);
    let (_, events, gaps) = resume(&hub, had(&[(1, 1)])).await;
    assert_eq!((events, gaps), (vec![3, 2], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_note_is_a_gap_of_what_was_not_had_in_runs() {
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=2)),
        epoch(2, position(1, 2), &[position(1, 2)]),
        note(position(2, 1), lost(1, 3, 9)),
        Delivery::Frame(plain(2, 2, 22..=22)),
    ];
    let (hub, _) = gateway(&line);
    let mut some = had(&[(1, 2)]);
    some.add(Epoch(1), Offset(5), Offset(6));
    let (cursor, events, gaps) = resume(&hub, some).await;
    assert_eq!(events, [22]);
    let told =
        [(position(1, 2), position(1, 4), Some(2)), (position(1, 6), position(1, 9), Some(3))];
    assert_eq!(gap_of(&gaps), told);
    let (_, events, gaps) = resume(&hub, cursor.to_had().remove(0)).await;
    assert_eq!((events, gaps), (vec![], vec![]));
    let (_, events, gaps) = resume(&hub, had(&[(1, 9)])).await;
    assert_eq!((events, gaps), (vec![22], vec![]), "it had all of them");
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_copy_is_not_its_name() {
    // On one line a note told (3,1..2) as lost; on the next, (3,2) is a copy of (1,2).
    let mut told = had(&[(1, 1)]);
    told.add(Epoch(3), Offset(1), Offset(2));
    let lower = plain(1, 2, 2..=2);
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=1)),
        epoch(3, position(1, 1), &[position(1, 1)]),
        Delivery::Frame(plain(3, 1, 31..=31)),
        Delivery::Frame(copy(&lower, position(3, 2))),
    ];
    let (hub, _) = gateway(&line);
    let (_, events, gaps) = resume(&hub, told).await;
    assert_eq!((events, gaps), (vec![2], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_copy_under_a_second_name_is_passed_over() {
    let twice = with_alias(plain(3, 1, 1..=1), 0, position(2, 1));
    let line = [first_epoch(1), epoch(3, position(1, 0), &[]), Delivery::Frame(twice)];
    let (hub, _) = gateway(&line);
    let (cursor, events, _) = resume(&hub, had(&[(1, 0)])).await;
    assert_eq!(events, [1]);
    let line = [
        first_epoch(1),
        epoch(4, position(1, 0), &[]),
        Delivery::Frame(copy(&plain(2, 1, 1..=1), position(4, 1))),
    ];
    let (hub, _) = gateway(&line);
    let (_, events, gaps) = resume(&hub, cursor.to_had().remove(0)).await;
    assert_eq!((events, gaps), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_knows_an_epoch_by_name_only_reads_the_whole_line() {
    // It walked through 5, on a line that is gone, and knows the names of 1 that it had before.
    let mut known = had(&[(5, 1)]);
    known.add(Epoch(1), Offset(1), Offset(2));
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=2)),
        Delivery::Frame(plain(1, 3, 3..=3)),
        epoch(6, position(1, 3), &[position(1, 3)]),
        Delivery::Frame(copy(&plain(5, 1, 51..=51), position(6, 1))),
        Delivery::Frame(plain(6, 2, 61..=61)),
    ];
    for (hub, _bus) in [gateway(&line), young_gateway(&line)] {
        let (cursor, events, gaps) = resume(&hub, known.clone()).await;
        assert_eq!((events, gaps), (vec![3, 61], vec![]));
        assert!(cursor.to_had()[0].is_entered(Epoch(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_epoch_on_another_line_is_not_where_reading_begins() {
    // The stream walked through 1 and 5. This gateway is young: it knows 5 by name, and cannot know
    // that 1 went on on its line.
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=2)),
        Delivery::Frame(plain(1, 3, 3..=3)),
        epoch(6, position(1, 3), &[position(1, 3)]),
        Delivery::Frame(copy(&plain(5, 1, 51..=51), position(6, 1))),
        Delivery::Frame(plain(6, 2, 61..=61)),
    ];
    let (hub, _bus) = young_gateway(&line);
    let mut names = had(&[(5, 1)]);
    names.add(Epoch(1), Offset(1), Offset(2));
    for known in [had(&[(1, 2), (5, 1)]), names, had(&[(1, 2)])] {
        let ahead = if known.has(position(5, 1)) { vec![3, 61] } else { vec![3, 51, 61] };
        let (_, events, gaps) = resume(&hub, known).await;
        assert_eq!((events, gaps), (ahead, vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_begins_on_another_line_is_read_if_history_has_nothing() {
    // The log begins in 2, which the bus no longer knows: its state and its history were lost.
    let (hub, bus) = TestBus::without_start(1, ALL, LARGE);
    bus.deliver(0, Delivery::Start(start(position(2, 1), Position::UNKNOWN, &[position(1, 1)])));
    bus.append(0, first_epoch(4));
    bus.append(0, Delivery::Frame(plain(4, 1, 41..=42)));
    bus.lose_history();
    let (mut cursor, mut events, mut gaps) = resume(&hub, had(&[(1, 1)])).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (more_events, more_gaps) = drain(&mut cursor).await;
    events.extend(more_events);
    gaps.extend(more_gaps);
    assert_eq!(events, [41, 42]);
    assert_eq!(gap_of(&gaps), [(position(2, 0), position(2, 1), Some(1))]);
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_a_log_that_changed_its_line_comes_before_what_the_log_begins_with() {
    // The gateway began after 3-1. Then Redis lost everything; 5 has copies of 2 and 3, and history
    // has lost its first entries.
    let (hub, bus) = TestBus::without_start(1, ALL, LARGE);
    let known = [position(1, 1), position(2, 3)];
    bus.deliver(0, Delivery::Start(start(position(3, 1), Position::UNKNOWN, &known)));
    let third = plain(3, 2, 32..=33);
    bus.deliver(0, Delivery::Frame(third.clone()));
    bus.deliver(0, first_epoch(5));
    bus.deliver(0, Delivery::Frame(copy(&plain(2, 1, 21..=21), position(5, 1))));
    let copies = [
        copy(&plain(2, 2, 22..=23), position(5, 2)),
        copy(&plain(3, 1, 31..=31), position(5, 4)),
        copy(&third, position(5, 5)),
    ];
    let Delivery::Gap(gap) = note(position(5, 1), lost(2, 1, 1)) else { unreachable!() };
    let expired = Delivery::Gap(Gap { reason: GapReason::HistoryExpired, ..gap });
    bus.set_line(0, vec![expired]);
    for copy in copies {
        bus.append(0, Delivery::Frame(copy));
    }
    let (_, events, gaps) = resume(&hub, had(&[(1, 1)])).await;
    assert_eq!(events, [22, 23, 31, 32, 33]);
    assert_eq!(gap_of(&gaps), [(position(2, 0), position(2, 1), Some(1))]);
}

#[tokio::test(start_paused = true)]
async fn what_only_the_state_knows_of_an_epoch_is_told_as_missing() {
    // When 9 began, nothing of 1 was known; its events were handled since, and history dropped
    // them. The stream had one of them, and reads the whole line.
    let (hub, bus) = young_gateway(&[epoch(9, position(7, 0), &[position(1, 0)])]);
    bus.set_past(&[position(1, 9), position(7, 0)]);
    let mut known = had(&[(5, 1)]);
    known.add(Epoch(1), Offset(3), Offset(3));
    let (_, events, gaps) = resume(&hub, known).await;
    assert_eq!(events, Vec::<u64>::new());
    let missing =
        [(position(1, 0), position(1, 2), Some(2)), (position(1, 3), position(1, 9), Some(6))];
    assert_eq!(gap_of(&gaps), missing);
}

#[tokio::test(start_paused = true)]
async fn a_token_inside_a_frame_that_is_lost_and_restored_continues_with_the_rest() {
    let tail = plain(1, 2, 2..=5);
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=1)),
        epoch(2, position(1, 1), &[position(1, 1)]),
        Delivery::Frame(copy(&tail, position(2, 1))),
    ];
    let (hub, _) = gateway(&line);
    let (_, events, gaps) = resume(&hub, had(&[(1, 3)])).await;
    assert_eq!((events, gaps), (vec![4, 5], vec![]));
    // And inside the copy.
    let limit = ReadOptions { max_events: Some(2), ..ReadOptions::default() };
    let begin = Begin::After(vec![had(&[(1, 2)])]);
    let mut cursor = hub.open(everything("n"), &begin, limit).await.unwrap().cursor;
    assert_eq!(drain(&mut cursor).await.0, [3, 4]);
    let token = cursor.to_had().remove(0);
    assert_eq!((token.walked(Epoch(2)), token.has(position(1, 4))), (Offset(3), true));
    let (_, events, gaps) = resume(&hub, token).await;
    assert_eq!((events, gaps), (vec![5], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_which_a_part_was_left_out_keeps_the_names_of_the_rest() {
    let cut = Frame {
        provenance: Some(
            Provenance {
                name: Some(Name { epoch: Epoch(1), first: Offset(2), count: 4, left: vec![1, 3] }),
                ..Provenance::default()
            }
            .into(),
        ),
        ..plain(2, 1, 3..=4)
    };
    let line = [first_epoch(1), epoch(2, position(1, 0), &[]), Delivery::Frame(cut)];
    let (hub, _) = gateway(&line);
    let (cursor, events, gaps) = resume(&hub, had(&[(1, 3)])).await;
    assert_eq!((events, gaps), (vec![4], vec![]));
    assert!(cursor.to_had()[0].has(position(1, 5)) && !cursor.to_had()[0].has(position(1, 4)));
}

#[tokio::test(start_paused = true)]
async fn what_was_skipped_since_it_was_not_wanted_is_had() {
    let tail = plain(1, 3, 3..=4);
    let (hub, bus) = gateway(&[first_epoch(1)]);
    let mut cursor = open(&hub, accounts("n", &["other"]), Begin::Latest).await;
    assert_eq!(drain(&mut cursor).await, (vec![], vec![]));
    bus.append(0, Delivery::Frame(plain(1, 1, 1..=2)));
    bus.append(0, Delivery::Frame(tail));
    bus.append(0, epoch(2, position(1, 2), &[position(1, 2)]));
    bus.append(0, note(position(2, 1), lost(1, 3, 4)));
    assert_eq!(drain(&mut cursor).await, (vec![], vec![]), "it passed them before they were lost");
    assert!(cursor.to_had()[0].has(position(1, 4)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_from_the_oldest_event_resumes_so_before_it_has_read_anything() {
    let line = [first_epoch(1), Delivery::Frame(plain(1, 1, 1..=2))];
    let (hub, bus) = young_gateway(&line);
    let cursor = open(&hub, everything("n"), Begin::Oldest).await;
    let token = cursor.to_had().remove(0);
    assert!(token.is_oldest());
    let (cursor, events, gaps) = resume(&hub, token).await;
    assert_eq!((events, gaps), (vec![1, 2], vec![]));
    assert!(!cursor.to_had()[0].is_oldest());
    bus.append(0, Delivery::Frame(plain(1, 3, 3..=3)));
    let (_, events, gaps) = resume(&hub, cursor.to_had().remove(0)).await;
    assert_eq!((events, gaps), (vec![3], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_begins_with_the_next_event_gets_no_copy_of_earlier_ones() {
    let tail = plain(1, 2, 2..=3);
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=1)),
        epoch(2, position(1, 1), &[position(1, 1)]),
        Delivery::Frame(copy(&tail, position(2, 1))),
    ];
    let (hub, _) = gateway(&line);
    let cursor = open(&hub, everything("n"), Begin::Latest).await;
    // The failover is undone, and epoch 1 has its tail again.
    let line = [
        first_epoch(1),
        Delivery::Frame(plain(1, 1, 1..=1)),
        Delivery::Frame(tail),
        epoch(3, position(1, 3), &[position(1, 3)]),
        Delivery::Frame(plain(3, 1, 31..=31)),
    ];
    let (hub, _) = gateway(&line);
    let (_, events, gaps) = resume(&hub, cursor.to_had().remove(0)).await;
    assert_eq!((events, gaps), (vec![31], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_reads_an_older_epoch_after_a_younger_one_repeats_nothing() {
    let common = [first_epoch(1), Delivery::Frame(plain(1, 1, 1..=2))];
    let (hub, bus) = gateway(&common);
    let mut cursor = open(&hub, everything("n"), Begin::Latest).await;
    let side = plain(2, 1, 21..=22);
    // It is on the losing side at first.
    let lost = [epoch(2, position(1, 2), &[position(1, 2)]), Delivery::Frame(side.clone())];
    let line = [
        Delivery::Frame(plain(1, 3, 3..=4)),
        epoch(3, position(1, 4), &[position(1, 4)]),
        Delivery::Frame(copy(&side, position(3, 1))),
        Delivery::Frame(plain(3, 3, 33..=33)),
    ];
    bus.set_line(0, [&common[..], &line[..]].concat());
    lost.iter().chain(&line).for_each(|delivery| bus.deliver(0, delivery.clone()));
    assert_eq!(drain(&mut cursor).await, (vec![21, 22, 3, 4, 33], vec![]));
    let mut with_copies = had(&[(1, 4), (3, 2)]);
    with_copies.add(Epoch(2), Offset(1), Offset(2));
    let others: [&[(u64, u64)]; 3] = [&[(1, 2)], &[(1, 3), (2, 1)], &[(1, 2), (2, 2)]];
    for begin in others.map(had).into_iter().chain([with_copies]) {
        let names =
            [(1, 3), (1, 4), (2, 1), (2, 2), (3, 3)].map(|(epoch, name)| position(epoch, name));
        let owed = names.into_iter().zip([3, 4, 21, 22, 33]);
        let owed: Vec<u64> = owed.filter(|(name, _)| !begin.has(*name)).map(|(_, id)| id).collect();
        let (_, mut events, gaps) = resume(&hub, begin).await;
        events.sort_unstable();
        assert_eq!((events, gaps), (owed, vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_last_value_is_not_replaced_by_a_copy_of_an_older_one() {
    let status = |id: u64| v1::Event {
        event_id: id.to_string(),
        source: "p".into(),
        kind: Some(Kind::QueueStatus(v1::QueueStatus::default())),
        ..Default::default()
    };
    let (hub, bus) = gateway(&[first_epoch(1)]);
    let older = frame(1, 1, &[status(1)]);
    bus.append(0, epoch(2, position(1, 0), &[]));
    bus.append(0, Delivery::Frame(frame(2, 1, &[status(2)])));
    bus.append(0, epoch(3, position(2, 1), &[position(2, 1)]));
    bus.append(0, Delivery::Frame(copy(&older, position(3, 1))));
    let mut cursor = open(&hub, everything("n"), Begin::Latest).await;
    assert_eq!(drain(&mut cursor).await, (vec![2], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_shard_whose_history_is_slow_holds_up_no_other() {
    let (hub, bus) = TestBus::start(2, ALL, LARGE);
    bus.publish(0, &events(1..=1));
    bus.publish(1, &events(2..=2));
    bus.stall(0);
    let begin = Begin::After(vec![Had::oldest(), Had::up_to(position(7, 0))]);
    let cursor = open(&hub, everything("n"), begin);
    let mut cursor = tokio::time::timeout(std::time::Duration::from_mins(1), cursor).await.unwrap();
    assert_eq!(drain(&mut cursor).await, (vec![2], vec![]));
    bus.publish(0, &events(3..=3));
    bus.publish(1, &events(4..=4));
    assert_eq!(drain(&mut cursor).await, (vec![4], vec![]));
    bus.go_on();
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    assert_eq!(drain(&mut cursor).await, (vec![1, 3], vec![]));
}
