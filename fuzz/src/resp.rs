use std::sync::Arc;

use bytes::BytesMut;
use trunkline::agent::{
    resp::Limits,
    session::{Credentials, Session, Settings, Step},
};

/// What a client of the agent sends: how it is cut changes nothing, replies are well-formed and
/// bounded, and no more is held than arrived.
///
/// The first byte is the size of the pieces; its highest bit says whether a password is needed.
pub fn resp(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let credentials = Credentials { user: "default".to_owned(), password: "secret".to_owned() };
    let limits = Limits { arguments: 20, command_bytes: 200, inline_bytes: 100 };
    let settings = Arc::new(Settings {
        channels: vec!["c".into(), "stwt.agora".into()],
        credentials: (*first >= 0x80).then_some(credentials),
        limits,
        wrong_passwords: 3,
        run_id: [0; 20],
    });
    let run = |piece: usize| {
        let mut session = Session::new(settings.clone(), 1, ("127.0.0.1".to_owned(), 6380));
        let (mut out, mut steps) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            session.receive(piece);
            loop {
                let step = session.next(&mut out);
                match &step {
                    Step::Receive => break,
                    Step::Publish { channel, payload } => {
                        assert!(*channel < 2 && payload.len() <= limits.command_bytes);
                        session.published(1, &mut out);
                    }
                    _ => {}
                }
                let ended = matches!(step, Step::Close(_));
                steps.push(step);
                if ended {
                    return (out, steps);
                }
            }
            // Its arguments, and the lines between them.
            let whole = limits.command_bytes + 40 * (limits.arguments + 1);
            assert!(session.buffered() <= whole.max(limits.inline_bytes + 2));
            assert_eq!(session.is_within_command(), session.buffered() > 0);
        }
        (out, steps)
    };
    let (out, steps) = run(bytes.len().max(1));
    assert!(out.len() <= 1024 * steps.len() + 80 * bytes.len());
    let mut rest = &out[..];
    while !rest.is_empty() {
        rest = after_reply(rest);
    }
    assert_eq!(run(usize::from(*first & 0x7f) + 1), (out, steps));
}

/// What follows a reply, which must be well-formed.
fn after_reply(bytes: &[u8]) -> &[u8] {
    let end = bytes.windows(2).position(|two| two == b"\r\n").expect("the end of a line");
    let line = std::str::from_utf8(&bytes[1..end]).expect("a line of text");
    let rest = &bytes[end + 2..];
    assert!(!line.chars().any(char::is_control));
    let number = || line.parse::<usize>().expect("a length");
    let elements = match bytes[0] {
        b'+' | b'-' | b':' | b'_' => return rest,
        b'$' if line == "-1" => return rest,
        b'$' => {
            let (_, rest) = rest.split_at(number());
            return rest.strip_prefix(b"\r\n").expect("the end of a bulk string");
        }
        b'*' | b'>' => number(),
        b'%' => 2 * number(),
        other => panic!("a reply begins with {other}"),
    };
    (0..elements).fold(rest, |rest, _| after_reply(rest))
}
