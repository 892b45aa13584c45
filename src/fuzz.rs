//! What must hold for any bytes, whoever wrote them: the decoders do not panic, what they read comes back from what it is
//! encoded to, and they agree with a second reading of the same bytes.
//!
//! Each function takes bytes and panics if something does not hold. The fuzz targets in `fuzz/` call them, and so do the tests
//! below. No part of the library's interface.

mod event;

use prost::Message;

pub use event::event;

use crate::{
    bus,
    config::{Config, Sources},
    hub::{
        event::EventView,
        filter::Filter,
        token::{self, ResumeToken, TokenError},
    },
    proto::v1,
};

/// What came from Redis: `src/bus/redis/envelope.rs`.
pub fn frame(bytes: &[u8]) {
    bus::redis::check::frame(bytes);
}

/// What came from Redis, in any sequence: `src/bus/redis/order.rs`.
pub fn order(bytes: &[u8]) {
    bus::redis::check::order(bytes);
}

/// What a node sends as its resume token.
pub fn token(bytes: &[u8]) {
    const HERE: u32 = 0x0102_0304;
    // As it came, and with the checksum and the head that let it in.
    let body = [&[1, 1, 2, 3, 4], bytes].concat();
    for token in [bytes.to_vec(), token::with_checksum(bytes), token::with_checksum(&body)] {
        match ResumeToken::decode(&token, HERE) {
            Ok(read) => {
                let again = read.to_bytes();
                assert_eq!(again.len(), read.encoded_len());
                assert_eq!(ResumeToken::decode(&again, HERE).as_ref(), Ok(&read));
                assert_eq!(
                    ResumeToken::decode(&again, HERE + 1),
                    Err(TokenError::ForeignDeployment)
                );
                // Two places take two bytes at least: nobody makes a gateway hold more than was sent.
                assert!(read.positions.len() * 2 <= token.len());
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// A configuration: the file's text and then, each behind a byte 0, `NAME=VALUE` of the environment or `path=value` of a flag.
pub fn config(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0);
    let text = parts.next().unwrap_or_default();
    let mut sources = Sources::default();
    for part in parts {
        let part = String::from_utf8_lossy(part);
        let Some((name, value)) = part.split_once('=') else { continue };
        if name.starts_with("TRUNKLINE_") {
            sources.env.push((name.to_owned(), value.to_owned()));
        } else {
            sources.set(name, value);
        }
    }
    match Config::load_text(text, &sources) {
        Ok(config) => {
            // What is in force can be loaded again, with something in place of the masked secrets.
            let unmasked = |config: &Config| config.effective().to_string().replace("***", "x");
            let effective = unmasked(&config);
            match Config::load_text(effective.as_bytes(), &Sources::default()) {
                Ok(again) => assert_eq!(unmasked(&again), effective),
                Err(errors) => assert!(lies_elsewhere(&effective), "{errors}"),
            }
        }
        Err(errors) => {
            let lines = errors.to_string();
            assert!(!errors.violations().is_empty());
            assert_eq!(lines.lines().count(), errors.violations().len(), "{lines}");
        }
    }
}

/// Whether a configuration names a secret in a variable, which the environment of the first loading held alone.
fn lies_elsewhere(effective: &str) -> bool {
    effective.contains("EnvironmentVariable")
}

/// A request to subscribe (its length in the first byte) and an event: the filter says what the decoded messages say.
pub fn filter(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first() else { return };
    let Some((request, event)) = rest.split_at_checked(usize::from(*length)) else { return };
    let Ok(request) = v1::SubscribeRequest::decode(request) else { return };
    let wire = request.filter.unwrap_or_default();
    let filter = Filter::new(&wire, &request.node_id, &request.roles, request.include_own_events);
    let Ok(view) = EventView::peek(event) else { return };
    let included = filter.matches(&view);
    if let Ok(decoded) = v1::Event::decode(event)
        && event::known_kinds(event)
    {
        let who = (request.node_id.as_str(), &request.roles[..], request.include_own_events);
        assert_eq!(included, event::included(&wire, who, &decoded));
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Bytes that look like protobuf now and then: short fields with numbers that exist.
    fn fields() -> impl Strategy<Value = Vec<u8>> {
        let key = prop_oneof![
            prop::sample::select(vec![0x0a, 0x12, 0x1a, 0x22, 0x28, 0x08, 0x10, 0x18])
                .prop_map(|key| vec![key]),
            (10u16..24, 0u16..6).prop_map(|(number, wire)| {
                let key = number << 3 | wire;
                let [low, high] = [key & 0x7f | 0x80, key >> 7].map(u16::to_le_bytes);
                vec![low[0], high[0]]
            }),
        ];
        let leaf =
            prop_oneof![vec(any::<u8>(), 0..6), "[ab]{0,3}".prop_map(String::into_bytes)].boxed();
        let field = move |inner: BoxedStrategy<Vec<u8>>| {
            (key.clone(), inner).prop_map(|(key, content)| {
                let length = u8::try_from(content.len().min(127)).unwrap_or_default();
                [&key[..], &[length], &content[..usize::from(length)]].concat()
            })
        };
        let inner = vec(field(leaf), 0..4).prop_map(|fields| fields.concat()).boxed();
        vec(field(inner), 0..5).prop_map(|fields| fields.concat())
    }

    fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![vec(any::<u8>(), 0..96), fields()]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn frames(bytes in some_bytes(), head in prop::sample::select(vec!["", "T1 9-9 ", "E1 9-9 "])) {
            frame(&[head.as_bytes(), &bytes].concat());
        }

        #[test]
        fn orders(bytes in vec(any::<u8>(), 0..256)) {
            order(&bytes);
        }

        #[test]
        fn tokens(bytes in vec(any::<u8>(), 0..64)) {
            token(&bytes);
        }

        #[test]
        fn events(bytes in some_bytes()) {
            event(&bytes);
        }

        #[test]
        fn filters(request in some_bytes(), event in fields()) {
            let length = u8::try_from(request.len()).unwrap_or(0);
            filter(&[&[length], &request[..usize::from(length)], &event].concat());
        }
    }

    /// The seeds of the fuzz targets hold, each in its target.
    #[test]
    fn seeds() {
        let targets: [(&str, fn(&[u8])); 6] = [
            ("frame", frame),
            ("order", order),
            ("token", token),
            ("config", config),
            ("event", event),
            ("filter", filter),
        ];
        for (name, check) in targets {
            let folder = format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
            let mut seeds = 0;
            for seed in std::fs::read_dir(folder).unwrap() {
                check(&std::fs::read(seed.unwrap().path()).unwrap());
                seeds += 1;
            }
            assert!(seeds > 0, "{name} has seeds");
        }
    }

    proptest! {
        #[test]
        fn configurations(text in "\\{?(\"(listen|shards|coordinator|url|@type|drain)\":(1|\"Redis\"|\\{|\\}|,| )){0,8}\\}?", pair in "[a-z.]{0,12}=\\PC{0,8}") {
            config(&[text.as_bytes(), &[0], pair.as_bytes()].concat());
        }
    }
}
