use proptest::{collection::vec, prelude::*};
use trunkline_proto::v1::{
    BlockedIp, CacheInvalidation, CalendarAlert, CertificateChange, CustomEvent, EmailDelivery,
    MailboxChange, QueueStatus, RegistryChange, cache_invalidation, certificate_change,
    mailbox_change::TypeState, registry_change,
};

use super::*;
use crate::agent::formats::Known;

/// A format of the agent's own messages, for nodes of a version.
fn agora(version: &str) -> Agora {
    Agora { version: version.parse().unwrap(), sender: AGENT }
}

/// The messages of the events, without their sender.
fn encoded(version: &str, events: &[Kind]) -> Vec<Vec<u8>> {
    let Encoded { messages, left_out } = agora(version).encode(events);
    assert_eq!(left_out, []);
    messages.iter().map(|message| message.strip_prefix(b"\xff\xff\x03").unwrap().to_vec()).collect()
}

fn left_out(version: &str, event: impl Into<Kind>) -> String {
    let Encoded { messages, left_out } = agora(version).encode(&[event.into()]);
    assert!(messages.is_empty(), "{messages:?}");
    left_out[0].to_string()
}

/// All events of a message, and the error where it ends.
fn read(message: &[u8], tags: Tags) -> (Vec<Event<'_>>, Option<Undecodable>) {
    let mut events = Vec::new();
    match Message::read(message, tags) {
        Ok(message) => {
            for event in message.events() {
                match event {
                    Ok(event) => events.push(event),
                    Err(error) => return (events, Some(error)),
                }
            }
            (events, None)
        }
        Err(error) => (events, Some(error)),
    }
}

#[test]
fn counts_and_lengths_that_are_not_those_of_what_is_there_are_errors_and_take_no_memory() {
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40];
    let cases: [(Vec<u8>, usize, &str); 12] = [
        (vec![], 0, "the node id is missing"),
        (vec![0x80], 0, "the node id is cut off"),
        (vec![0x80, 0x80, 4], 0, "the node id is 65536: too large"),
        ([&[0, 7][..], &huge, &[0, 1]].concat(), 2, "4611686018427387904 cache entries"),
        (vec![0, 7, 2, 0, 1, 0], 2, "2 cache entries, and there is room for 1"),
        ([&[0, 1, 1, 1, 0][..], &huge, b"uid"].concat(), 5, "the uid has 4611686018427387904"),
        (vec![0, 1, 1, 1, 0, 1, b'u', 2, b'k'], 7, "the alert id has 2 bytes, and 1 are left"),
        (vec![0, 1, 1, 1, 0, 1, 0xff, 0], 5, "the uid is not UTF-8"),
        (vec![0, 6, 0x80, 0x80, 4], 2, "the type of an object is 65536: too large"),
        (vec![0, 3, 0x80, 0x80, 0x80, 0x80, 0x10], 2, "the account is 4294967296: too large"),
        ([&[0, 3][..], &[0xff; 10]].concat(), 2, "the account is a number of more than 64 bits"),
        (vec![0, 8, 13], 2, "tag 13 is unknown in release 0.16"),
    ];
    for (message, at, why) in cases {
        let error = read(&message, Tags::V0_16).1.unwrap();
        assert_eq!(error.at, at, "{message:?}");
        assert!(error.why.starts_with(why), "{error}");
        assert!(error.to_string().starts_with(&format!("byte {at}: ")));
    }
}

#[test]
fn what_stands_before_an_unknown_tag_is_read_and_nothing_behind_it() {
    let message = [42, 0, 0x25, 9, 1, 13, 0, 0x26, 9, 1];
    let (messages, error) = agora("0.16.19").recode(&message);
    assert_eq!((messages, error.unwrap().at), (vec![Bytes::copy_from_slice(&message[..5])], 5));
    let decoded = agora("0.16.19").decode(&message).unwrap();
    assert_eq!(decoded.sender, Some(42));
    let events: Vec<_> = decoded.events.collect();
    assert!(events[0].is_ok() && events[1].is_err() && events.len() == 2);
}

#[test]
fn kinds_that_older_nodes_lack_come_in_messages_of_their_own() {
    // Queue refresh, state change, entries of three caches, an unknown type of object, queue.
    let message =
        [3, 12, 0, 7, 1, 1, 7, 3, 0, 3, 10, 1, 5, 11, 0, 12, 6, 0xa0, 0x1f, 11, 0, 8, 1, 1];
    assert_eq!(
        agora("0.16.19").recode(&message).0,
        [&message[..16], &[3, 6, 0xa0, 0x1f], &[3, 11, 0, 8, 1, 1],]
    );
    let expected: [&[u8]; 6] = [
        // The second one would say nothing new.
        &[3, 12],
        &[3, 0, 7, 1, 1, 7, 1, 0, 3],
        &[3, 7, 1, 10, 1, 5],
        &[3, 7, 1, 11, 0],
        &[3, 6, 0xa0, 0x1f],
        &[3, 11, 0, 8, 1, 1],
    ];
    assert_eq!(agora("0.16").recode(&message).0, expected);
}

#[test]
fn release_0_15_has_other_tags_and_gets_what_it_has() {
    // Access tokens 1 and 12, settings, banned addresses, push subscriptions of 3, spam filter.
    let message = [0, 3, 2, 1, 12, 4, 1, 9, 5, 6, 7, 3, 8];
    let decoded = agora("0.15").decode(&message).unwrap();
    let kinds: Vec<Kind> = decoded.events.map(Result::unwrap).collect();
    let names: Vec<&str> = kinds.iter().map(|kind| kind.row().name).collect();
    let cache = "cache_invalidation";
    let registry = "registry_change";
    let expected = [cache, cache, registry, registry, "push_subscription_change", registry];
    assert_eq!(names, expected);
    assert_eq!(encoded("0.15", &kinds), [&message[1..]]);
    // In 0.16 they are the same events with other tags.
    assert_eq!(
        encoded("0.16", &kinds),
        [[7, 2, 0, 1, 0, 12, 7, 1, 1, 9, 6, 28, 6, 17, 3, 3, 6, 99]]
    );
    // A node of 0.15 has no cache of roles: there is nothing to drop. It cannot be paused.
    let decoded = agora("0.16").decode(&[0, 7, 2, 6, 1, 0, 3]).unwrap();
    let kinds: Vec<Kind> = decoded.events.map(Result::unwrap).collect();
    assert_eq!(encoded("0.15", &kinds), [[3, 1, 3]]);
    let status = QueueStatus::default();
    assert_eq!(left_out("0.15", status), "event 0: the state of the queue is unknown");
    let refresh = trunkline_proto::v1::QueueRefresh {};
    assert_eq!(left_out("0.15", refresh), "event 0: release 0.15 has no such event");
}

#[test]
fn each_state_of_a_merged_change_is_a_change_of_its_own() {
    let share = 343_216_267_687_114_240;
    let change = MailboxChange {
        account_id: "1".into(),
        change_id: 8,
        changed_types: vec![1, 4, 15],
        type_states: vec![TypeState { change_id: share, changed_types: vec![15, 99] }],
    };
    let messages = encoded("0.16", &[change.clone().into()]);
    let message = [&[0][..], &messages[0]].concat();
    let expected = [
        Event::StateChange { account_id: 1, change_id: share, types: Types(1 << 20) },
        Event::StateChange { account_id: 1, change_id: 8, types: Types::EMAIL | Types::MAILBOX },
    ];
    assert_eq!(read(&message, Tags::V0_16).0, expected);
    // Anything may have changed, and Email is known.
    let anything = MailboxChange {
        changed_types: vec![],
        type_states: vec![
            TypeState { change_id: 3, changed_types: vec![] },
            TypeState { change_id: 9, changed_types: vec![1] },
        ],
        ..change
    };
    let messages = encoded("0.16", &[anything.into()]);
    let message = [&[0][..], &messages[0]].concat();
    let expected = [
        Event::StateChange { account_id: 1, change_id: 9, types: Types::EMAIL },
        Event::StateChange { account_id: 1, change_id: 3, types: Types(Types::ALL.0 & !1) },
    ];
    assert_eq!(read(&message, Tags::V0_16).0, expected);
}

#[test]
fn events_of_other_nodes_become_what_the_mail_server_has_for_them() {
    use certificate_change::Action;

    let account_id = || "1".to_owned();
    let delivery = |email_id: &str| EmailDelivery {
        account_id: account_id(),
        email_id: email_id.into(),
        change_id: 4,
    };
    assert_eq!(encoded("0.16", &[delivery("2").into()]), [[2, 1, 2, 4]]);
    // Merged deliveries name no message: the changes that each of them is.
    assert_eq!(encoded("0.16", &[delivery("").into()]), [[0, 4, 27, 1]]);
    let ban = BlockedIp { address: "192.0.2.7".into(), ..Default::default() };
    assert_eq!(encoded("0.16", &[ban.into()]), [[6, 17]]);
    let certificate = |id: &str, action: Action| CertificateChange {
        certificate_id: id.into(),
        action: action.into(),
        ..Default::default()
    };
    let events =
        [certificate("5", Action::Issued).into(), certificate("5", Action::Removed).into()];
    assert_eq!(encoded("0.16", &events), [[4, 23, 5, 6, 23]]);
    assert_eq!(encoded("0.16", &[certificate("x", Action::Renewed).into()]), [[6, 23]]);
    let registry = |object_type: &str, object_id: &str| RegistryChange {
        object_type: object_type.into(),
        object_id: object_id.into(),
        action: registry_change::Action::Insert.into(),
    };
    assert_eq!(encoded("0.16", &[registry("role", "7").into()]), [[4, 83, 7]]);
    assert_eq!(encoded("0.16", &[registry("DataStore", "").into()]), [[6, 28]]);
    let alert = CalendarAlert {
        account_id: account_id(),
        event_id: "3".into(),
        recurrence_id: "19700101T000002".into(),
        uid: "u".into(),
        alert_id: "k".into(),
    };
    assert_eq!(encoded("0.16", &[alert.clone().into()]), [[1, 1, 3, 2, 1, b'u', 1, b'k']]);

    for (event, why) in [
        (Kind::from(MailboxChange { account_id: "a@b".into(), ..Default::default() }), "accounts"),
        (CalendarAlert { event_id: "x".into(), ..alert.clone() }.into(), "the id of a calendar"),
        (CalendarAlert { recurrence_id: "x".into(), ..alert }.into(), "the recurrence"),
        (certificate("5", Action::AcmeChallenge).into(), "challenges go through the store"),
        (registry("listener", "7").into(), "the mail server has no such type of object"),
        (CustomEvent::default().into(), "the mail server has no event for this kind"),
    ] {
        let said = left_out("0.16", event);
        assert!(said.starts_with(&format!("event 0: {why}")), "{said}");
    }
}

#[test]
fn a_cache_entry_that_the_mail_server_cannot_name_drops_the_whole_cache() {
    let invalidation = |entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(cache, id)| cache_invalidation::Entry {
            cache: (*cache).into(),
            id: (*id).into(),
        });
        Kind::from(CacheInvalidation { entries: entries.collect(), ..Default::default() })
    };
    for (entries, expected) in [
        (&[("access_token", "3"), ("Role", "5")][..], &[7, 2, 0, 3, 6, 5][..]),
        (&[("email_negative", "1/5"), ("domain_negative", "0")], &[7, 2, 10, 1, 5, 11, 0]),
        (&[("role", "1"), ("access_token", "")], &[8]),
        (&[("role", "1"), ("access_token", "alice")], &[8]),
        (&[("role", "1"), ("email_negative", "")], &[9, 7, 1, 6, 1]),
        (&[("email_negative", "1")], &[9]),
        (&[("role", "1"), ("thumbnails", "1")], &[7, 1, 6, 1]),
    ] {
        assert_eq!(encoded("0.16.19", &[invalidation(entries)]), [expected], "{entries:?}");
    }
    let said = left_out("0.16", invalidation(&[("thumbnails", "1")]));
    assert_eq!(said, "event 0: the mail server has none of these caches");
}

#[test]
fn a_long_list_of_cache_entries_is_several_events_of_at_most_1000() {
    let entries: Vec<Entry> =
        (0..2500).map(|id| Entry { cache: Cache::Account, id, hash: 0 }).collect();
    let mut writer = Writer::new(1, Version::V0_16_19);
    writer.put(&Event::CacheInvalidate(Entries::new(&entries))).unwrap();
    let message = writer.finish().remove(0);
    let decoded = agora("0.16.19").decode(&message).unwrap();
    let kinds: Vec<Kind> = decoded.events.map(Result::unwrap).collect();
    let lengths: Vec<usize> = kinds
        .iter()
        .map(|kind| match kind {
            Kind::CacheInvalidation(invalidation) => invalidation.entries.len(),
            _ => 0,
        })
        .collect();
    assert_eq!(lengths, [1000, 1000, 500]);
}

#[test]
fn many_events_are_several_messages_in_order() {
    let event = Event::StateChange { account_id: 300, change_id: 1 << 40, types: Types::ALL };
    let mut writer = Writer::new(1, Version::V0_16_19);
    for _ in 0..5000 {
        writer.put(&event).unwrap();
    }
    let messages = writer.finish();
    // 16 KiB and one event.
    assert!(messages.iter().all(|message| message.len() <= (16 << 10) + 13));
    let read: usize = messages.iter().map(|message| read(message, Tags::V0_16).0.len()).sum();
    assert_eq!((messages.len(), read), (4, 5000));
}

fn known(accounts: std::ops::Range<u64>, paused: bool) -> Known {
    let mut known = Known::default();
    for id in accounts {
        let change = MailboxChange {
            account_id: id.to_string(),
            change_id: 100 + id,
            changed_types: vec![1],
            ..Default::default()
        };
        known.note(&change.into());
    }
    if paused {
        known.note(&QueueStatus { state: queue_status::State::Paused.into() }.into());
    }
    known
}

#[test]
fn a_healing_is_the_message_that_healed_a_node_in_the_laboratory() {
    let known = known(1..2, true);
    let mut healing = Healing { known: &known, accounts: None, settings: true };
    let messages = agora("0.16.19").heal(&healing);
    // Caches, negative entries, bans, certificates, settings, queue paused, queue refresh.
    let expected = b"\xff\xff\x03\x08\x09\x06\x11\x06\x17\x06\x1c\x0b\x0c";
    assert_eq!(messages[0], expected[..]);
    let (events, error) = read(&messages[1], Tags::V0_16);
    let change = Event::StateChange { account_id: 1, change_id: 101, types: Types::ALL };
    assert_eq!((events, error, messages.len()), (vec![change], None, 2));
    // To nodes that may not have it, the refresh comes alone.
    assert_eq!(agora("0.16").heal(&healing)[0], expected[..expected.len() - 1]);
    assert_eq!(agora("0.16").heal(&healing)[1], b"\xff\xff\x03\x0c"[..]);
    // What is not known is not said: a queue of unknown state is left as it is.
    healing.settings = false;
    let nothing = Known::default();
    healing.known = &nothing;
    let messages = agora("0.16.19").heal(&healing);
    assert_eq!(messages, [&b"\xff\xff\x03\x08\x09\x06\x11\x06\x17\x0c"[..]]);
}

#[test]
fn the_accounts_of_a_healing_come_in_messages_that_can_be_paced() {
    let known = known(0..600, false);
    let healing = Healing { known: &known, accounts: None, settings: false };
    let messages = agora("0.16.19").heal(&healing);
    let lengths = messages.iter().map(|message| read(message, Tags::V0_16).0.len());
    assert_eq!(lengths.collect::<Vec<_>>(), [5, 250, 250, 100]);
    // Those of the gap, where they are known; what is no account of the mail server is not its.
    let accounts = ["7", "999", "alice", "7"].map(String::from);
    let healing = Healing { accounts: Some(&accounts), ..healing };
    let messages = agora("0.16.19").heal(&healing);
    let change =
        |account_id, change_id| Event::StateChange { account_id, change_id, types: Types::ALL };
    assert_eq!(read(&messages[1], Tags::V0_16).0, [change(7, 107), change(999, 1)]);
    // Release 0.15 cannot drop everything: the access tokens of the accounts.
    let messages = agora("0.15").heal(&healing);
    let first = [3, 2, 7, 0xe7, 7, 4, 2, 7, 0xe7, 7, 6];
    assert_eq!(messages[0], [b"\xff\xff\x03", &first[..]].concat());
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (0..names::CACHES.len(), any::<u32>(), any::<u32>()).prop_map(|(cache, id, hash)| {
        let cache = names::CACHES[cache].0;
        Entry { cache, id, hash: if cache == Cache::EmailNegative { hash } else { 0 } }
    })
}

/// An event, with the texts and entries that it borrows.
#[derive(Debug, Clone)]
struct Owned {
    kind: usize,
    numbers: (u32, u32, u64, i64),
    object_type: u16,
    texts: (String, String),
    entries: Vec<Entry>,
}

impl Owned {
    fn event(&self) -> Event<'_> {
        let (account_id, other, id, recurrence_id) = self.numbers;
        let object_type = self.object_type;
        match self.kind {
            0 => Event::StateChange { account_id, change_id: id, types: Types(id >> 3) },
            1 => Event::CalendarAlert {
                account_id,
                event_id: other,
                recurrence_id,
                uid: &self.texts.0,
                alert_id: &self.texts.1,
            },
            2 => Event::EmailPush { account_id, email_id: other, change_id: id },
            3 => Event::PushServerUpdate { account_id },
            4 => Event::RegistryInsert { object_type, id },
            5 => Event::RegistryDelete { object_type, id },
            6 => Event::RegistryReload { object_type },
            7 => Event::CacheInvalidate(Entries::new(&self.entries)),
            8 => Event::CacheInvalidateAll,
            9 => Event::CacheInvalidateNegative,
            10 => Event::QueueStatus { is_running: object_type.is_multiple_of(2) },
            _ => Event::QueueRefresh,
        }
    }
}

fn any_event() -> impl Strategy<Value = Owned> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u64>(), any::<i64>());
    let texts = ("\\PC{0,9}", "\\PC{0,9}");
    (0..12usize, numbers, any::<u16>(), texts, vec(any_entry(), 0..6)).prop_map(
        |(kind, numbers, object_type, texts, entries)| {
            // Most are of a known type.
            let object_type = if object_type > 60_000 { object_type } else { object_type % 117 };
            Owned { kind, numbers, object_type, texts, entries }
        },
    )
}

/// Bytes that often are a message.
fn some_message() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        vec(any::<u8>(), 0..4),
        (0..14u8).prop_map(|tag| vec![tag]),
        Just(vec![0, 2, 25, 1]),
        Just(vec![7, 2, 0, 3, 10, 1, 5]),
        Just(vec![1, 1, 1, 0, 1, b'u', 1, b'k']),
        Just(vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f]),
    ];
    vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn what_was_written_is_read_again(events in vec(any_event(), 0..12), sender: u16) {
        let mut writer = Writer::new(sender, Version::V0_16_19);
        for event in &events {
            writer.put(&event.event()).unwrap();
        }
        let messages = writer.finish();
        let mut all = Vec::new();
        for message in &messages {
            let (events, error) = read(message, Tags::V0_16);
            prop_assert_eq!(error, None);
            prop_assert_eq!(Message::read(message, Tags::V0_16).unwrap().sender(), sender);
            all.extend(events);
        }
        prop_assert_eq!(all, events.iter().map(Owned::event).collect::<Vec<_>>());
    }

    #[test]
    fn an_event_comes_back_from_the_wire_of_trunkline_as_it_was(owned in any_event()) {
        let event = owned.event();
        // What has no name there comes back as a change of anything.
        if let Event::StateChange { types, .. } = event {
            prop_assume!(types.0 != 0 && types.0 & !Types::ALL.0 == 0);
        }
        let kinds: Vec<Kind> = wire::Kinds::of(&event).collect();
        let Encoded { messages, left_out } = agora("0.16.19").encode(&kinds);
        prop_assert_eq!(left_out, []);
        let all: Vec<Event<'_>> =
            messages.iter().flat_map(|message| read(message, Tags::V0_16).0).collect();
        if event == Event::CacheInvalidate(Entries::new(&[])) {
            prop_assert_eq!(all, []);
        } else {
            prop_assert_eq!(all, [event]);
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic_and_what_is_passed_on_can_be_read(
        bytes in some_message(),
        version in prop::sample::select(vec!["0.15", "0.16", "0.16.19"]),
    ) {
        let format = agora(version);
        let tags = format.version.tags;
        let (events, error) = read(&bytes, tags);
        prop_assert!(events.len() <= bytes.len());
        let (messages, again) = format.recode(&bytes);
        // It may say more: that another release reads the message.
        prop_assert_eq!(again.map(|error| error.at), error.map(|error| error.at));
        for message in &messages {
            prop_assert_eq!(read(message, tags).1, None);
            prop_assert_eq!(format.recode(message), (vec![message.clone()], None));
        }
        let length: usize = messages.iter().map(Bytes::len).sum();
        // Three bytes of a sender for each event at most.
        prop_assert!(length <= 4 * bytes.len());
    }
}

#[test]
fn the_error_of_a_message_of_another_release_names_that_release() {
    // Settings are to be read again in 0.15; in 0.16 the rest is missing.
    let why = |version, message: &[u8]| {
        let (_, error) = agora(version).recode(message);
        let mut events = agora(version).decode(message).unwrap().events;
        assert_eq!(events.find_map(Result::err), error);
        error.unwrap().why
    };
    let other = why("0.16", &[0, 5]);
    assert!(other.ends_with("; it can be read as of release 0.15, and release 0.16 is set"));
    assert!(why("0.15", &[0, 11]).contains("release 0.16, and release 0.15 is set"));
    assert!(!why("0.16", &[0, 99]).contains("is set"));
}
