//! The rules of `Bus` and `Members`, one function for each.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use trunkline::bus::{
    AppendError, Appended, Batch, Health, LastChange, MemberId, MemberUpdate, Members, Position,
    Run, ShardId,
};
use uuid::Uuid;

use super::{LIMIT, Member, batch, events, last, request_id, until};
use crate::memory::{Fault, MemoryFactory};

/// **Start.**
pub fn start_is_delivered_before_health_is_ready(member: &Member) {
    assert!(member.bus.shards() >= 1);
    for shard in member.shards() {
        assert!(member.sink.shard(shard).at.is_some(), "shard {shard} has its start");
    }
}

/// **Order**, **Contiguous** and **Delivered**; the recorder checks each delivery.
pub async fn concurrent_appends_are_delivered_in_one_order(one: &Member, two: &Member) {
    const CALLERS: usize = 8;
    const BATCHES: usize = 40;
    let shards = usize::from(one.bus.shards());
    let callers = (0..CALLERS).map(async |caller| {
        let gateway = if caller % 2 == 0 { one } else { two };
        let shard = ShardId(u16::try_from(caller / 2 % shards).expect("small"));
        let mut accepted: Vec<(Position, Bytes)> = Vec::new();
        for number in 0..BATCHES {
            let events = events(1 + number % 4);
            let appended = gateway.append(shard, &events).await.expect("appended");
            let offsets = appended.first.0..;
            let positions = offsets.map(|offset| Position::new(appended.epoch.0, offset));
            let before = accepted.last().map(|(position, _)| *position);
            accepted.extend(positions.zip(events));
            let first = Position { epoch: appended.epoch, offset: appended.first };
            assert!(before.is_none_or(|before| before < first), "a caller's batches keep order");
        }
        (shard, accepted)
    });
    let mut accepted: HashMap<ShardId, Vec<(Position, Bytes)>> = HashMap::new();
    for (shard, events) in join_all(callers).await {
        accepted.entry(shard).or_default().extend(events);
    }
    for (shard, mut events) in accepted {
        events.sort_by_key(|(position, _)| *position);
        let (end, _) = events.last().expect("an event").clone();
        let begin = events[0].0;
        for member in [one, two] {
            member.reaches(shard, end).await;
            let delivered = member.sink.shard(shard).events;
            let delivered: Vec<_> =
                delivered.into_iter().filter(|(at, _)| (begin..=end).contains(at)).collect();
            assert_eq!(delivered, events, "every event once, at the position of its answer");
        }
    }
}

/// **Idempotent.**
pub async fn a_request_id_is_appended_once(one: &Member, two: &Member) {
    let shard = ShardId(0);
    let (id, events) = (request_id(), events(3));
    let attempts = [one, two, one, two].map(|member| {
        let batch = batch(&events, Some(id));
        async move { member.bus.append(shard, batch).await.expect("appended") }
    });
    let answers: Vec<Appended> = join_all(attempts).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    // Other events between, and then once more.
    one.append(shard, &super::events(2)).await.expect("appended");
    let later = two.bus.append(shard, batch(&events, Some(id))).await.expect("appended");
    assert_eq!(later, answers[0]);
    let after = super::events(1);
    let end = last(one.append(shard, &after).await.expect("appended"), &after);
    for member in [one, two] {
        member.reaches(shard, end).await;
        let recording = member.sink.shard(shard);
        for (event, offset) in events.iter().zip(answers[0].first.0..) {
            let once = [Position::new(answers[0].epoch.0, offset)];
            assert_eq!(recording.positions_of(event), once);
        }
    }
}

/// **Numbered.**
pub async fn numbered_events_are_appended_once_however_they_are_cut(one: &Member, two: &Member) {
    let shard = ShardId(0);
    let events = events(9);
    let publisher = *Uuid::new_v4().as_bytes();
    // Sequence 10 is that of the first event; those between go to other shards.
    let sequence = |nth: usize| 10 + 2 * nth as u64;
    let run = |nths: Range<usize>, from: u64| {
        let sequences = nths.clone().map(sequence).collect();
        let runs = vec![Run { publisher, stream: 0, from, sequences }];
        Batch { runs, ..batch(&events[nths], None) }
    };
    // The same again, a part with what follows, what lies between, and all together.
    for (member, nths, from, news) in [
        (one, 0..3, 10, 3),
        (two, 0..3, 1, 0),
        (two, 2..5, 13, 2),
        (one, 7..8, 23, 1),
        (two, 4..7, 17, 2),
        (one, 0..9, 1, 1),
    ] {
        let whole = news == nths.len();
        let appended = member.bus.append(shard, run(nths, from)).await.expect("appended");
        assert_eq!(appended == Appended::UNKNOWN, !whole, "{from}: {appended:?}");
    }
    // Another publisher's sequences are others.
    let publisher = *Uuid::new_v4().as_bytes();
    let other = Run { publisher, stream: 0, from: 1, sequences: vec![10] };
    let theirs = super::events(1);
    let theirs_batch = Batch { runs: vec![other], ..batch(&theirs, None) };
    let appended = one.bus.append(shard, theirs_batch).await.expect("appended");
    let end = last(appended, &theirs);
    for member in [one, two] {
        member.reaches(shard, end).await;
        let recording = member.sink.shard(shard);
        for event in &events {
            assert_eq!(recording.positions_of(event).len(), 1);
        }
    }
}

/// **Streams.**
pub async fn a_later_stream_takes_over_where_it_has_published(one: &Member, two: &Member) {
    let shard = ShardId(0);
    let publishers = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()];
    let mut numbers = Vec::new();
    for (member, publisher) in [(one, 0), (two, 0), (one, 1), (one, 0), (two, 0)] {
        numbers.push(member.bus.number_stream(publishers[publisher]).await.expect("a number"));
    }
    let of_the_first = [0, numbers[0], numbers[1], numbers[3], numbers[4]];
    assert!(of_the_first.is_sorted_by(|one, next| one < next), "{of_the_first:?}");
    let append = async |member: &Member, publisher: usize, stream: u64, sequences: Range<u64>| {
        let events = events(sequences.clone().count());
        let (from, sequences) = (sequences.start, sequences.collect());
        let runs = vec![Run { publisher: publishers[publisher], stream, from, sequences }];
        let batch = Batch { runs, ..batch(&events, None) };
        member.bus.append(shard, batch).await.map(|appended| (appended, events))
    };
    append(two, 0, numbers[1], 1..4).await.expect("the first to publish");
    // It sends some of these again, and has published before with its second event.
    let (appended, _) = append(one, 0, numbers[3], 2..5).await.expect("the next one");
    assert_eq!(appended, Appended::UNKNOWN);
    let mut refused = Vec::new();
    for (member, stream, sequences) in [
        (two, numbers[1], 4..6),
        // The shard has them, of others: they are not acknowledged to this one.
        (two, numbers[1], 3..5),
        (one, numbers[0], 1..2),
    ] {
        refused.push(append(member, 0, stream, sequences).await.map(|(appended, _)| appended));
    }
    let is_refused = |answer: &Result<_, _>| matches!(answer, Err(AppendError::TakenOver));
    assert!(refused.iter().all(is_refused), "{refused:?}");
    // A stream that has sent again what is there, and nothing else, has taken over too.
    append(two, 0, numbers[4], 3..5).await.expect("what is there");
    let refused = append(one, 0, numbers[3], 5..6).await;
    assert!(refused.as_ref().is_err_and(|error| matches!(error, AppendError::TakenOver)));
    // Neither has another publisher been taken over, nor who has no number.
    append(one, 1, numbers[2], 1..2).await.expect("another publisher");
    let (appended, events) = append(one, 0, 0, 5..6).await.expect("without a number");
    let end = last(appended, &events);
    for member in [one, two] {
        member.reaches(shard, end).await;
        until(LIMIT, "the streams are told", async || {
            let streams = |publisher| {
                let mut streams = member.sink.streams(&publishers[publisher]);
                streams.retain(|stream| *stream > 0);
                streams.sort_unstable();
                streams.dedup();
                streams
            };
            streams(0) == [numbers[1], numbers[3]] && streams(1) == [numbers[2]]
        })
        .await;
    }
}

/// **Cancellation.**
pub async fn a_dropped_append_is_made_in_full_or_not_at_all(one: &Member, two: &Member) {
    let shard = ShardId(0);
    let mut dropped = Vec::new();
    for round in 0..40_u64 {
        let events = events(3);
        let append = one.append(shard, &events);
        let _ = tokio::time::timeout(Duration::from_micros(round * 25), append).await;
        dropped.push(events);
    }
    let after = events(1);
    let end = last(one.append(shard, &after).await.expect("appended"), &after);
    for member in [one, two] {
        member.reaches(shard, end).await;
        let recording = member.sink.shard(shard);
        for events in &dropped {
            let positions: Vec<_> =
                events.iter().flat_map(|event| recording.positions_of(event)).collect();
            let contiguous = positions.windows(2).all(|two| two[0].offset.plus(1) == two[1].offset);
            assert!(contiguous && [0, events.len()].contains(&positions.len()), "{positions:?}");
        }
    }
}

/// **Health.**
pub async fn an_idle_bus_stays_verified(member: &Member) {
    let mut health = member.bus.health();
    health.mark_unchanged();
    let broke = tokio::time::timeout(Duration::from_secs(4), health.changed()).await;
    assert!(broke.is_err(), "without appends: {:?}", *health.borrow());
    let status = member.bus.status();
    assert_eq!(status.shards.len(), usize::from(member.bus.shards()));
    for (shard, state) in member.shards().zip(&status.shards) {
        assert!(state.verified && state.verified_age.is_some(), "{state:?}");
        assert_eq!(Some(state.position), member.sink.shard(shard).at);
    }
    assert!(status.links.iter().all(|link| link.connected), "{:?}", status.links);
    assert_eq!((status.unreadable, status.forged), (0, 0));
}

/// **Close.**
pub async fn close_answers_every_append(closing: &Member, other: &Member, several: bool) {
    let shard = ShardId(0);
    let batches: Vec<_> = (0..40).map(|_| events(2)).collect();
    let appends = batches.iter().map(|events| closing.append(shard, events));
    let close = async {
        tokio::task::yield_now().await;
        closing.bus.close().await;
    };
    let (answers, ()) =
        tokio::time::timeout(LIMIT, async { tokio::join!(join_all(appends), close) })
            .await
            .expect("closed in time");
    let refused = closing.append(shard, &events(1)).await;
    assert!(matches!(refused, Err(AppendError::Closed)), "{refused:?}");
    for (answer, events) in answers.into_iter().zip(&batches) {
        match answer {
            Ok(appended) if several => {
                other.reaches(shard, last(appended, events)).await;
                let found = other.sink.shard(shard).positions_of(&events[0]);
                assert_eq!(found, [Position { epoch: appended.epoch, offset: appended.first }]);
            }
            Ok(_) | Err(AppendError::Closed) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    closing.sink.assert_rules_kept();
}

/// **Epochs** and **Copies**.
pub async fn a_loss_begins_a_new_epoch(one: &Member, two: &Member, lose: impl AsyncFn()) {
    let shards: Vec<_> = one.shards().collect();
    let mut before = Vec::new();
    for shard in &shards {
        for _ in 0..5 {
            let events = events(2);
            let appended = one.append(*shard, &events).await.expect("appended");
            before.push((*shard, appended, events));
        }
    }
    for (shard, appended, events) in &before {
        one.reaches(*shard, last(*appended, events)).await;
        two.reaches(*shard, last(*appended, events)).await;
    }
    lose().await;
    for shard in shards {
        let mut after = Vec::new();
        for gateway in [one, two, one] {
            let events = events(2);
            let appended = gateway.appended(shard, &events).await;
            after.push((appended, events));
        }
        let (_, old, _) = before.iter().rfind(|(of, ..)| *of == shard).expect("an append");
        for member in [one, two] {
            let (end, events) = after.last().expect("an append");
            assert!(end.epoch > old.epoch, "a new epoch is higher");
            member.reaches(shard, last(*end, events)).await;
            let recording = member.sink.shard(shard);
            for (appended, events) in &after {
                let at = Position { epoch: appended.epoch, offset: appended.first };
                let found = recording.positions_of(&events[0]);
                assert!(found == [at] || recording.is_missing(at), "{at}: {found:?}");
            }
            for (_, _, events) in before.iter().filter(|(of, ..)| *of == shard) {
                let times = recording.positions_of(&events[0]).len();
                assert_eq!(times, 1, "delivered events are repeated only as copies");
            }
        }
    }
}

/// **Health** and **Errors**, while the servers are away.
pub async fn an_outage_is_noticed_and_appends_nothing(member: &Member, memory: &MemoryFactory) {
    let shard = ShardId(0);
    memory.inject(Fault::Unavailable);
    let lost = events(1);
    let refused = member.append(shard, &lost).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
    let mut health = member.bus.health();
    let noticed = health.wait_for(|health| matches!(health, Health::NotReady(_)));
    tokio::time::timeout(LIMIT, noticed).await.expect("in time").expect("a running bus");
    memory.heal();
    member.is_ready().await;
    let after = events(1);
    let end = last(member.append(shard, &after).await.expect("appended"), &after);
    member.reaches(shard, end).await;
    assert!(member.sink.shard(shard).positions_of(&lost[0]).is_empty());
    member.sink.assert_rules_kept();
}

/// **Errors** and **Idempotent**, when an answer is lost.
pub async fn a_retry_after_a_lost_answer_is_safe(member: &Member, memory: &MemoryFactory) {
    let shard = ShardId(0);
    let (id, events) = (request_id(), events(2));
    memory.inject(Fault::LostAnswer);
    let unknown = member.bus.append(shard, batch(&events, Some(id))).await;
    assert!(matches!(unknown, Err(AppendError::OutcomeUnknown(_))), "{unknown:?}");
    memory.heal();
    let appended = member.bus.append(shard, batch(&events, Some(id))).await.expect("appended");
    let after = super::events(1);
    let end = last(member.append(shard, &after).await.expect("appended"), &after);
    member.reaches(shard, end).await;
    let once = [Position { epoch: appended.epoch, offset: appended.first }];
    assert_eq!(member.sink.shard(shard).positions_of(&events[0]), once);
    member.sink.assert_rules_kept();
}

/// What a caller of `Members` knows of the others: the rules hold for stores that answer with all
/// members and for stores that answer with those that changed.
#[derive(Default)]
struct Seen {
    number: u64,
    known: Option<LastChange>,
    records: BTreeMap<MemberId, Bytes>,
}

impl Seen {
    /// The next update of a member.
    fn update(&mut self, member: MemberId, follows: bool, record: &'static str) -> MemberUpdate {
        self.number += 1;
        let number = u32::try_from(self.number).expect("small");
        MemberUpdate {
            member,
            ttl: Duration::from_secs(30),
            number: self.number,
            follows: follows.then(|| self.number - 1),
            has_shards: follows,
            record: Bytes::from(record),
            shards: vec![(number, Some(Bytes::from(format!("shard {number}"))))],
            known: self.known.clone(),
            silent_after: Duration::from_secs(10),
        }
    }

    /// Makes the exchange, and applies what it brings. Returns true if it was taken, and the number
    /// of records that it brought.
    async fn exchange(&mut self, members: &dyn Members, update: MemberUpdate) -> (bool, usize) {
        let exchange = members.exchange(update).await.expect("an exchange");
        if exchange.all {
            self.records.clear();
        }
        let brought = exchange.members.len();
        for found in exchange.members {
            assert!(found.age < LIMIT);
            self.records.insert(found.member, found.record);
        }
        for gone in &exchange.gone {
            self.records.remove(gone);
        }
        self.known = exchange.known;
        (exchange.taken, brought)
    }
}

/// The rules of `Members`.
pub async fn members_find_one_another(members: &dyn Members) {
    let ids = [MemberId(rand::random()), MemberId(rand::random())];
    let [mut one, mut two] = [Seen::default(), Seen::default()];
    for (seen, id) in [(&mut one, ids[0]), (&mut two, ids[1])] {
        let update = seen.update(id, false, "first");
        assert!(seen.exchange(members, update).await.0);
    }
    let update = one.update(ids[0], true, "second");
    assert!(one.exchange(members, update).await.0);
    assert_eq!(one.records.get(&ids[0]).expect("the caller"), "second");
    assert_eq!(one.records.get(&ids[1]).expect("the other"), "first");
    let shards = members.member_shards(ids[0], vec![2, 9, 1]).await.expect("shards");
    let text = |shard: &Option<Bytes>| {
        shard.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let shards: Vec<_> = shards.iter().map(text).collect();
    assert_eq!(shards, [Some("shard 2".into()), None, Some("shard 1".into())]);

    // Each change is brought once, if the store brings changes at all.
    for (record, changes) in [("second", 1), ("third", 1), ("third", 0)] {
        let update = two.update(ids[1], true, record);
        two.exchange(members, update).await;
        let update = one.update(ids[0], true, "second");
        let (taken, brought) = one.exchange(members, update).await;
        assert!(taken);
        assert!(one.known.is_none() || brought <= changes, "{record}: {brought}");
        assert_eq!(one.records.get(&ids[1]).expect("the other"), record);
    }

    // Messages for a member are taken once, in their order, by nobody else.
    let message = |text: &'static str| vec![Bytes::from(text)];
    members.leave_messages(ids[1], message("a")).await.expect("left");
    members.leave_messages(ids[1], vec!["b".into(), "c".into()]).await.expect("left");
    assert!(members.take_messages(ids[0]).await.expect("taken").is_empty());
    assert_eq!(members.take_messages(ids[1]).await.expect("taken"), ["a", "b", "c"]);
    assert!(members.take_messages(ids[1]).await.expect("taken").is_empty());

    // An exchange that does not follow the last one is not taken, and changes nothing.
    let wrong = MemberUpdate { follows: Some(1), ..one.update(ids[0], true, "wrong") };
    let number = wrong.number;
    assert!(!one.exchange(members, wrong).await.0);
    // To begin anew removes the member shards of before.
    let anew = one.update(ids[0], false, "anew");
    assert!(one.exchange(members, anew).await.0);
    assert_eq!(one.records.get(&ids[0]).expect("the caller"), "anew");
    let numbers = [1, 2, number + 1].map(|number| u32::try_from(number).expect("small"));
    let shards = members.member_shards(ids[0], numbers.to_vec()).await.expect("shards");
    assert_eq!(shards.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true]);

    // A member that is not renewed is removed, for who knew it and for who comes anew.
    let brief =
        MemberUpdate { ttl: Duration::from_millis(50), ..two.update(ids[1], true, "brief") };
    assert!(two.exchange(members, brief).await.0);
    until(LIMIT, "a member expires", async || {
        let update = one.update(ids[0], true, "renewed");
        one.exchange(members, update).await;
        !one.records.contains_key(&ids[1])
    })
    .await;
    one.known = None;
    let update = one.update(ids[0], true, "renewed");
    one.exchange(members, update).await;
    assert_eq!(one.records.keys().filter(|id| ids.contains(id)).count(), 1);
}
