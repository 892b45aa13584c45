use proptest::prelude::*;

use super::*;

const HERE: u32 = 0x0102_0304;

fn token(shards: Vec<Had>) -> ResumeToken {
    ResumeToken { deployment: HERE, shards, behind: None }
}

fn walked(epoch: u64, offset: u64) -> Had {
    Had::up_to(Position::new(epoch, offset))
}

fn with_checksum(body: &[u8]) -> Vec<u8> {
    let mut sum = Fnv32::new();
    sum.write(body);
    [body, &sum.finish().to_be_bytes()].concat()
}

#[test]
fn the_layout_is_fixed() {
    let bytes = token(vec![walked(5, 300), walked(4, 0)]).to_bytes();
    assert_eq!(bytes[..5], [2, 1, 2, 3, 4]);
    assert_eq!(bytes[5..13], [2, 2, 10, 0xac, 0x02, 2, 1, 0], "2 shards; 5-300; 1 back, 0");
    assert_eq!(bytes.len(), 17);

    let mut had = walked(5, 3);
    had.add(Epoch(5), Offset(7), Offset(9));
    had.add(Epoch(6), Offset(2), Offset(2));
    let bytes = token(vec![Had::default(), Had::oldest(), had]).to_bytes();
    assert_eq!(bytes[5..8], [3, 0, 1], "3 shards: unknown, from the oldest");
    assert_eq!(
        bytes[8..14],
        [4, 10, 3, 3, 3, 2],
        "2 epochs; 5, entered, 1 range; 3; 4 to 6, 7 to 9"
    );
    assert_eq!(bytes[14..18], [1, 2, 1, 0], "6, 1 range; 1, 2");
    assert_eq!(bytes.len(), 22);
    assert_eq!(deployment_tag("trunkline"), 0x188b_06ef);
}

#[test]
fn a_token_is_small() {
    let epoch = 1_700_000_000_000 * 4096;
    let shards = (0..16).map(|shard| walked(epoch + shard * 2_500_003 % 4_096_000, 100_000_000));
    let len = token(shards.collect()).encoded_len();
    assert!(len <= 200, "{len}");
}

#[test]
fn a_token_of_the_first_version_is_read_as_positions() {
    let body = [1, 1, 2, 3, 4, 3, 5, 0xac, 0x02, 1, 0, 7, 9];
    let decoded = ResumeToken::decode(&with_checksum(&body), HERE).unwrap();
    assert_eq!(decoded.shards, [walked(5, 300), walked(4, 0), Had::default()]);
    assert!(decoded.shards[2].is_unknown(), "epoch 0 is no epoch");
}

#[test]
fn errors_say_what_is_wrong() {
    let bytes = token(vec![walked(1, 2)]).to_bytes();
    assert_eq!(ResumeToken::decode(&bytes, HERE + 1), Err(TokenError::ForeignDeployment));
    assert_eq!(ResumeToken::decode(b"abc", HERE), Err(TokenError::Malformed("too short")));
    assert_eq!(
        ResumeToken::decode(b"not a token", HERE),
        Err(TokenError::Malformed("wrong checksum"))
    );
    // The checksum is right in all of these.
    let refused = |body: &[u8]| match ResumeToken::decode(&with_checksum(body), HERE) {
        Err(TokenError::Malformed(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&[]), "too short");
    assert_eq!(refused(&[1, 1, 2, 3]), "too short");
    assert_eq!(refused(&[4, 1, 2, 3, 4, 0]), "unknown version");
    for version in [1, 2] {
        assert_eq!(refused(&[version, 1, 2, 3, 4, 0, 0]), "bytes after the end");
        assert_eq!(refused(&[version, 1, 2, 3, 4, 1, 7]), "cut off");
        assert_eq!(refused(&[version, 1, 2, 3, 4, 0x80, 0x80, 0x04]), "too many shards");
    }
    let shard = |numbers: &[u8]| refused(&[&[2, 1, 2, 3, 4, 1], numbers].concat());
    assert_eq!(shard(&[2, 0, 1]), "not in order", "epoch 0");
    assert_eq!(shard(&[4, 10, 1, 3, 0, 1, 3]), "not in order", "the same epoch twice");
    assert_eq!(shard(&[3, 10, 0]), "not in order", "an epoch of which nothing is known");
    assert_eq!(shard(&[3, 10, 4, 0, 0, 0, 0]), "not in order", "ranges that touch");
    assert_eq!(shard(&[67, 10]), "too many epochs");
    assert_eq!(shard(&[3, 10, 0x82, 1]), "too many ranges");
}

/// Epochs near each other, and epochs anywhere.
fn some_shards() -> impl Strategy<Value = Vec<Had>> {
    let epoch = || prop_oneof![1u64..200, 1..=u64::MAX];
    let offset = || prop_oneof![1u64..60, any::<u64>()];
    let walks = prop::collection::vec((epoch(), offset()), 0..3);
    let names = prop::collection::vec((epoch(), offset(), 0u64..4), 0..4);
    let had = (walks, names, any::<bool>()).prop_map(|(walks, names, oldest)| {
        let mut had = if oldest && walks.is_empty() && names.is_empty() {
            Had::oldest()
        } else {
            Had::default()
        };
        for (epoch, offset) in &walks {
            had.walk(Position::new(*epoch, *offset));
        }
        for (epoch, first, more) in &names {
            had.add(Epoch(*epoch), Offset(*first), Offset(first.saturating_add(*more)));
        }
        had
    });
    prop::collection::vec(had, 0..9)
}

proptest! {
    #[test]
    fn a_token_decodes_to_what_was_encoded(
        deployment in any::<u32>(),
        shards in some_shards(),
        behind in prop::option::of(some_shards()),
    ) {
        // Both have the same shards.
        let behind = behind.map(|mut behind| {
            behind.resize(shards.len(), Had::default());
            behind
        });
        let token = ResumeToken { deployment, shards, behind };
        let bytes = token.to_bytes();
        prop_assert_eq!(bytes.len(), token.encoded_len());
        prop_assert_eq!(ResumeToken::decode(&bytes, deployment), Ok(token));
    }

    #[test]
    fn a_place_is_encoded_like_what_was_had_up_to_it(
        shards in some_shards(),
        epoch in 1u64..200,
        offset in 0u64..60,
    ) {
        let position = Position::new(epoch, offset);
        let simple = |had: &Had| !had.has_more(position.epoch);
        let shards: Vec<_> = shards.into_iter().filter(simple).collect();
        let mut bytes = Vec::new();
        encode(HERE, shards.iter().map(|had| had.at(position)), &mut bytes);
        let merged = shards.iter().map(|had| had.at(position).to_had()).collect();
        prop_assert_eq!(bytes, token(merged).to_bytes());
    }

    #[test]
    fn one_wrong_byte_is_detected(shards in some_shards(), flip in 1u8..=255) {
        let bytes = token(shards).to_bytes();
        for at in 0..bytes.len() {
            let mut wrong = bytes.to_vec();
            wrong[at] ^= flip;
            prop_assert!(ResumeToken::decode(&wrong, HERE).is_err(), "byte {}", at);
        }
    }

    #[test]
    fn a_truncated_token_is_detected(shards in some_shards()) {
        let bytes = token(shards).to_bytes();
        for end in 0..bytes.len() {
            prop_assert!(ResumeToken::decode(&bytes[..end], HERE).is_err(), "cut at {}", end);
        }
    }

    #[test]
    fn decoding_any_bytes_does_not_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..64),
        sum in any::<bool>(),
    ) {
        if sum {
            bytes = with_checksum(&bytes);
        }
        if let Ok(token) = ResumeToken::decode(&bytes, HERE) {
            prop_assert_eq!(token.deployment, HERE);
        }
    }

    #[test]
    fn decoding_any_body_does_not_panic(
        mut body in prop::collection::vec(prop_oneof![0u8..12, any::<u8>()], 0..32),
        version in 1u8..=3,
    ) {
        body.splice(..0, [version, 1, 2, 3, 4]);
        if let Ok(token) = ResumeToken::decode(&with_checksum(&body), HERE) {
            prop_assert_eq!(ResumeToken::decode(&token.to_bytes(), HERE), Ok(token));
        }
    }
}
