//! The checks of the fuzz targets, with random bytes and with the seeds: see `fuzz/src/lib.rs`.

#[path = "../../fuzz/src/lib.rs"]
mod checks;

use proptest::{collection::vec, prelude::*};

/// Bytes that often are protobuf: short fields with numbers that exist.
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
    fn envelopes_from_redis_decode_without_panic_and_reencode_the_same(
        bytes in some_bytes(),
        head in prop::sample::select(vec!["", "F2 9-9 ", "E2 9-9 ", "N2 9-9 ", "P2 9-9 |0|"]),
    ) {
        checks::frame(&[head.as_bytes(), &bytes].concat());
    }

    #[test]
    fn a_shards_order_only_rises_whatever_arrives(bytes in vec(any::<u8>(), 0..256)) {
        checks::order(&bytes);
    }

    #[test]
    fn resume_tokens_decode_without_panic_and_reencode_the_same(bytes in vec(any::<u8>(), 0..64)) {
        checks::token(&bytes);
    }

    #[test]
    fn the_peek_reads_what_prost_reads(bytes in some_bytes()) {
        checks::event(&bytes);
    }

    #[test]
    fn the_filter_decides_as_the_decoded_messages_demand(
        request in some_bytes(),
        event in fields(),
    ) {
        let length = u8::try_from(request.len()).unwrap_or(0);
        checks::filter(&[&[length], &request[..usize::from(length)], &event].concat());
    }
}

#[test]
fn the_seeds_of_the_fuzz_targets_pass_their_checks() {
    let targets: [(&str, fn(&[u8])); 6] = [
        ("frame", checks::frame),
        ("order", checks::order),
        ("token", checks::token),
        ("config", checks::config),
        ("event", checks::event),
        ("filter", checks::filter),
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
    fn a_configuration_that_loads_loads_again_from_its_effective_form(
        text in concat!(
            "\\{?(\"(listen|shards|coordinator|url|@type|drain)\":",
            "(1|\"Redis\"|\\{|\\}|,| )){0,8}\\}?",
        ),
        pair in "[a-z.]{0,12}=\\PC{0,8}",
    ) {
        checks::config(&[text.as_bytes(), &[0], pair.as_bytes()].concat());
    }
}
