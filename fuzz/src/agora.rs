use bytes::Bytes;
use trunkline::agent::formats::{
    Format,
    agora::{Agora, Message},
};
use trunkline_proto::v1::event::Kind;

/// A message of a mail server: what is passed on can be read by every node of the version, and
/// events of Trunkline say the same again.
///
/// The first byte selects the version.
pub fn agora(bytes: &[u8]) {
    let Some((first, message)) = bytes.split_first() else { return };
    let versions = ["0.15", "0.16", "0.16.19"];
    let name = versions[usize::from(*first) % versions.len()];
    let format = Agora { version: name.parse().expect("a version"), sender: 7 };

    let (messages, error) = format.recode(message);
    assert!(error.iter().all(|error| error.at <= message.len()));
    assert!(messages.iter().map(Bytes::len).sum::<usize>() <= 4 * message.len());
    for message in &messages {
        let events = Message::read(message, format.version.tags).expect("a sender").events();
        let events: Vec<_> = events.map(|event| event.expect("an event")).collect();
        assert!(!events.is_empty());
        assert_eq!(format.recode(message), (vec![message.clone()], None));
    }

    let Ok(decoded) = format.decode(message) else { return };
    let mut failed = false;
    let kinds: Vec<Kind> = decoded
        .events
        .filter_map(|kind| {
            assert!(!failed, "events after an error");
            failed = kind.is_err();
            kind.ok()
        })
        .collect();
    assert_eq!(failed, error.is_some());
    assert!(kinds.len() <= message.len());
    let again = again(format, &kinds);
    // Kinds that may be unknown to a node leave lists of entries, and change their order.
    if name != "0.16" {
        let has_names = |kind: &Kind| match kind {
            Kind::MailboxChange(change) => {
                !change.changed_types.is_empty() && !change.changed_types.contains(&0)
            }
            _ => true,
        };
        if kinds.iter().all(has_names) {
            assert_eq!(again, kinds);
        }
        assert_eq!(self::again(format, &again), again);
    }
}

/// The events, written and read.
fn again(format: Agora, kinds: &[Kind]) -> Vec<Kind> {
    let encoded = format.encode(kinds);
    assert_eq!(encoded.left_out, []);
    let read = |message: &Bytes| -> Vec<Kind> {
        let decoded = format.decode(message).expect("a sender");
        assert_eq!(decoded.sender, Some(7));
        decoded.events.map(|kind| kind.expect("an event")).collect()
    };
    encoded.messages.iter().flat_map(read).collect()
}
