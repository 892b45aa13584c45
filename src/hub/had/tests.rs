use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const E: Epoch = Epoch(7);

fn at(epoch: u64, offset: u64) -> Position {
    Position::new(epoch, offset)
}

fn more(had: &Had, epoch: u64) -> Vec<(u64, u64)> {
    let epoch = had.epoch(Epoch(epoch)).expect("a known epoch");
    epoch.more.iter().map(|(first, last)| (first.0, last.0)).collect()
}

fn add(had: &mut Had, epoch: u64, first: u64, last: u64) {
    had.add(Epoch(epoch), Offset(first), Offset(last));
}

fn lost(epoch: u64, first: u64, last: u64) -> Lost {
    Lost { epoch: Epoch(epoch), first: Offset(first), last: Offset(last) }
}

#[test]
fn ranges_that_touch_are_joined() {
    let mut had = Had::default();
    add(&mut had, 7, 4, 5);
    add(&mut had, 7, 9, 9);
    assert_eq!(more(&had, 7), [(4, 5), (9, 9)]);
    add(&mut had, 7, 6, 7);
    assert_eq!(more(&had, 7), [(4, 7), (9, 9)]);
    add(&mut had, 7, 8, 8);
    assert_eq!(more(&had, 7), [(4, 9)]);
    add(&mut had, 7, 1, 20);
    assert_eq!(more(&had, 7), [(1, 20)]);
}

#[test]
fn names_that_are_had_do_not_move_the_place() {
    let mut had = Had::up_to(at(7, 3));
    add(&mut had, 7, 4, 6);
    assert_eq!((had.walked(E), more(&had, 7)), (Offset(3), vec![(4, 6)]));
    assert!(had.has(at(7, 6)) && !had.has(at(7, 7)));
    had.walk(at(7, 5));
    assert_eq!((had.walked(E), more(&had, 7)), (Offset(5), vec![(6, 6)]));
    had.walk(at(7, 6));
    assert!(!had.has_more(E));
}

#[test]
fn an_epoch_known_by_name_was_not_walked_through() {
    let mut had = Had::default();
    add(&mut had, 7, 1, 5);
    assert!(!had.is_entered(E) && had.walked(E) == Offset(0) && had.has(at(7, 5)));
    had.enter(E);
    assert!(had.is_entered(E) && had.walked(E) == Offset(0));
}

#[test]
fn missing_names_are_found_in_runs() {
    let mut had = Had::up_to(at(7, 3));
    add(&mut had, 7, 6, 7);
    assert_eq!(had.first_missing(lost(7, 1, 9)), Some(lost(7, 4, 5)));
    assert_eq!(had.first_missing(lost(7, 6, 9)), Some(lost(7, 8, 9)));
    assert_eq!(had.first_missing(lost(7, 1, 3)), None);
    assert_eq!(had.first_missing(lost(7, 6, 7)), None);
    assert_eq!(had.first_missing(lost(8, 1, 2)), Some(lost(8, 1, 2)));
    assert_eq!((had.last(E), had.last(Epoch(8))), (Offset(7), Offset(0)));
}

#[test]
fn the_view_of_a_place_is_what_is_had_there() {
    let mut had = Had::default();
    add(&mut had, 5, 1, 2);
    had.walk(at(9, 4));
    for position in [Position::UNKNOWN, at(7, 3), at(9, 6), at(11, 1)] {
        let view = had.at(position);
        let whole = view.to_had();
        let epochs: Vec<_> = whole.epochs().iter().map(EpochHad::view).collect();
        assert_eq!(view.epochs().collect::<Vec<_>>(), epochs);
        assert_eq!(view.len(), epochs.len());
        assert!(!view.has(at(9, 7)) && (!position.is_known() || view.has(position)));
    }
}

#[test]
fn memory_is_bounded_and_the_oldest_is_forgotten_first() {
    let mut had = Had::default();
    for epoch in 1..=100 {
        add(&mut had, epoch, 1, 1);
    }
    assert_eq!(had.epochs().len(), MAX_EPOCHS);
    assert!(!had.has(at(36, 1)) && had.has(at(37, 1)) && had.has(at(100, 1)));
    add(&mut had, 1, 1, 1);
    assert!(!had.has(at(1, 1)) && had.has(at(37, 1)), "an older one is not remembered");
    for name in 1..=100 {
        add(&mut had, 100, 2 * name, 2 * name);
    }
    assert_eq!(more(&had, 100).len(), MAX_RANGES);
    assert!(!had.has(at(100, 4)) && had.has(at(100, 200)) && !had.has(at(100, 199)));
}

#[test]
fn tokens_leave_out_epochs_that_ended_eight_days_before_the_last_one() {
    let ms = |hours: u64| (1_000_000_000_000 + hours * 3_600_000) * EPOCHS_PER_MS;
    let mut had = Had::default();
    for hours in [0, 1, 192] {
        had.walk(at(ms(hours), 1));
    }
    let recent = |had: &Had, here: Position| {
        let recent = had.at(here).recent();
        let epochs = recent.epochs().map(|view| view.epoch.0 / EPOCHS_PER_MS / 3_600_000);
        let epochs: Vec<u64> = epochs.map(|hours| hours - 1_000_000_000_000 / 3_600_000).collect();
        assert_eq!(recent.len(), epochs.len());
        epochs
    };
    assert_eq!(recent(&had, at(ms(192), 1)), [0, 1, 192], "the first one ended 191 hours before");
    assert_eq!(recent(&had, at(ms(194), 0)), [1, 192, 194]);
    assert_eq!(recent(&had, at(ms(500), 0)), [192, 500], "that before the last one may return");
    had.walk(at(ms(194), 1));
    assert_eq!(recent(&had, Position::UNKNOWN), [1, 192, 194]);
    assert_eq!(recent(&had, at(ms(0), 1)), [0, 1, 192, 194], "never the one where it stands");
}

#[test]
fn the_greatest_offsets_do_not_overflow() {
    let mut had = Had::up_to(at(7, u64::MAX - 2));
    add(&mut had, 7, u64::MAX, u64::MAX);
    assert!(had.has(at(7, u64::MAX)) && !had.has(at(7, u64::MAX - 1)));
    add(&mut had, 7, 1, u64::MAX);
    had.walk(at(7, u64::MAX));
    assert!(had.has(at(7, u64::MAX)) && !had.has_more(E));
    assert_eq!(had.first_missing(lost(7, 1, u64::MAX)), None);
}

#[derive(Clone, Debug)]
enum Step {
    Add(u64, u64, u64),
    Walk(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (1..4_u64, 1..40_u64, 0..5_u64);
    prop_oneof![
        3 => range().prop_map(|(epoch, first, more)| Step::Add(epoch, first, first + more)),
        1 => range().prop_map(|(epoch, offset, _)| Step::Walk(epoch, offset)),
    ]
}

proptest! {
    /// Names are had exactly if they were added or walked, whatever the order.
    #[test]
    fn it_is_the_set_of_the_names_that_were_had(steps in prop::collection::vec(step(), 0..30)) {
        let (mut had, mut names) = (Had::default(), BTreeSet::new());
        for step in &steps {
            match *step {
                Step::Add(epoch, first, last) => {
                    add(&mut had, epoch, first, last);
                    names.extend((first..=last).map(|name| (epoch, name)));
                }
                Step::Walk(epoch, offset) => {
                    had.walk(at(epoch, offset));
                    names.extend((1..=offset).map(|name| (epoch, name)));
                }
            }
        }
        for epoch in 1..4 {
            for first in 1..50 {
                prop_assert_eq!(had.has(at(epoch, first)), names.contains(&(epoch, first)));
                for last in first..50 {
                    let run = (first..=last).find(|name| !names.contains(&(epoch, *name)));
                    let run = run.map(|from| {
                        let to = (from..=last).take_while(|name| !names.contains(&(epoch, *name)));
                        lost(epoch, from, to.last().expect("one"))
                    });
                    prop_assert_eq!(had.first_missing(lost(epoch, first, last)), run);
                }
            }
            let last = names.range((epoch, 0)..(epoch + 1, 0)).next_back();
            prop_assert_eq!(had.last(Epoch(epoch)).0, last.map_or(0, |(_, name)| *name));
        }
        let again = Had::from_epochs(had.epochs().to_vec());
        prop_assert_eq!(again.as_ref(), Some(&had), "in order, joined and within the bounds");
    }
}
