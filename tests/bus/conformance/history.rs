//! The rules of `History`, one function for each.

use bytes::Bytes;
use trunkline::bus::{Delivery, GapReason, History, HistoryPage, Position, ShardId};

use super::{
    Member, batch, events, last,
    recorder::{ShardRecording, events_of},
};

const ALL_BYTES: usize = 64 << 20;

async fn page(kept: &dyn History, after: Position, max_bytes: usize) -> HistoryPage {
    kept.page(ShardId(0), after, max_bytes).await.expect("a page")
}

/// Reads from `after` to the end, in small pages.
async fn read_all(kept: &dyn History, after: Position) -> Vec<Delivery> {
    let (mut deliveries, mut next) = (Vec::new(), after);
    loop {
        let page = page(kept, next, 64).await;
        deliveries.extend(page.deliveries);
        assert!(page.at_end || page.next > next, "pages go on");
        next = page.next;
        if page.at_end {
            return deliveries;
        }
    }
}

fn delivered(deliveries: &[Delivery]) -> Vec<(Position, Bytes)> {
    let frames = deliveries.iter().filter_map(|delivery| match delivery {
        Delivery::Frame(frame) => Some(frame),
        _ => None,
    });
    frames.flat_map(|frame| events_of(frame).expect("a frame")).collect()
}

pub async fn pages_continue_after_any_position(member: &Member, kept: &dyn History) {
    let shard = ShardId(0);
    let mut appended = Vec::new();
    for _ in 0..20 {
        let events = events(4);
        let at = member.append(shard, &events).await.expect("appended");
        let positions = (at.first.0..).map(|offset| Position::new(at.epoch.0, offset));
        appended.extend(positions.zip(events));
    }
    let (end, _) = appended.last().expect("an event").clone();
    member.reaches(shard, end).await;

    // Every event, from each position on; a position within a frame brings the whole frame.
    for (index, (after, _)) in appended.iter().enumerate() {
        let deliveries = read_all(kept, *after).await;
        let whole = (index + 1) / 4 * 4;
        assert_eq!(delivered(&deliveries), appended[whole..], "after {after}");
        if (index + 1) % 4 == 0 {
            let mut recording = ShardRecording::after(*after);
            for delivery in &deliveries {
                recording.take(delivery).expect("contiguous");
            }
            assert!(recording.gaps.is_empty(), "{:?}", recording.gaps);
        }
    }
    let nothing = page(kept, end, ALL_BYTES).await;
    assert!(nothing.deliveries.is_empty() && nothing.at_end && nothing.next == end);

    // The oldest events that are kept, without a gap before them.
    let oldest = read_all(kept, Position::UNKNOWN).await;
    assert!(!oldest.iter().any(|delivery| matches!(delivery, Delivery::Gap(_))), "{oldest:?}");
    assert!(delivered(&oldest).ends_with(&appended));

    // A position of which nothing is known: a gap, and then everything that is kept.
    let unknown = Position::new(1, 5);
    let deliveries = page(kept, unknown, ALL_BYTES).await.deliveries;
    let Some(Delivery::Gap(gap)) = deliveries.first() else { panic!("no gap: {deliveries:?}") };
    assert!(gap.more, "{gap:?}");
    assert_eq!(delivered(&deliveries), delivered(&oldest));
}

pub async fn the_tip_is_the_last_append(member: &Member, kept: &dyn History) {
    let shard = ShardId(0);
    let events = events(3);
    let appended = member.append(shard, &events).await.expect("appended");
    assert_eq!(kept.tip(shard).await.expect("a tip").0, last(appended, &events));
}

/// The deployments of this test keep about a hundred frames.
pub async fn expired_events_are_a_gap_with_a_count(member: &Member, kept: &dyn History) {
    let shard = ShardId(0);
    let before = events(1);
    let after = last(member.append(shard, &before).await.expect("appended"), &before);
    let mut appended = Vec::new();
    for _ in 0..400 {
        let event = events(1);
        let position = last(member.append(shard, &event).await.expect("appended"), &event);
        appended.push((position, event[0].clone()));
    }
    let deliveries = read_all(kept, after).await;
    let mut recording = ShardRecording::after(after);
    for delivery in &deliveries {
        recording.take(delivery).expect("contiguous");
    }
    let Some(Delivery::Gap(gap)) = deliveries.first() else { panic!("no gap: {deliveries:?}") };
    assert_eq!((recording.gaps.len(), gap.reason), (1, GapReason::HistoryExpired));
    let missed = usize::try_from(gap.missed().expect("a count")).expect("small");
    assert_eq!(recording.events, appended[missed..]);
    assert!((100..400).contains(&recording.events.len()), "{}", recording.events.len());
}

pub async fn the_last_value_of_a_key_is_kept(member: &Member, kept: &dyn History) {
    const KEY: u8 = 42;
    let shard = ShardId(0);
    let mut expected = None;
    for _ in 0..3 {
        let events = events(3);
        let mut batch = batch(&events, None);
        batch.retain = vec![(1, KEY)];
        let appended = member.bus.append(shard, batch).await.expect("appended");
        let position = Position { epoch: appended.epoch, offset: appended.first.plus(1) };
        expected = Some((position, events[1].clone()));
    }
    // Beyond the limits of history.
    for _ in 0..300 {
        member.append(shard, &events(1)).await.expect("appended");
    }
    let retained = kept.retained(shard).await.expect("last values");
    let found = retained.into_iter().find(|retained| retained.key == KEY);
    assert_eq!(found.map(|retained| (retained.position, retained.event)), expected);
}
