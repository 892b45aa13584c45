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

/// One act on the memory of a shard: a message, an entry of history, an answer, time, an offer.
fn act() -> impl Strategy<Value = Vec<u8>> {
    let head =
        prop::sample::select(vec!["F2 4-1 ", "F2 8-3 ", "E2 8-1 4-9 ", "N2 8-2 4:1-", "P2 8-9 |"]);
    let message =
        (head, some_bytes()).prop_map(|(head, tail)| (0, [head.as_bytes(), &tail].concat()));
    let entry = fields().prop_map(|tail| (3, [b"f", &tail[..]].concat()));
    let answer = resp().prop_map(|answer| (4, answer));
    let other = (5u8..7, vec(0u8..4, 0..4));
    prop_oneof![message, entry, answer, other].prop_map(|(act, mut content): (u8, Vec<u8>)| {
        content.truncate(255);
        let length = u8::try_from(content.len()).unwrap_or_default();
        [&[act, length], &content[..]].concat()
    })
}

/// An answer of Redis: often one that a shard's script gives, or a sentinel.
fn resp() -> impl Strategy<Value = Vec<u8>> {
    let status =
        prop::sample::select(vec!["ok", "dup", "seen", "covered", "recovering", "deployment"]);
    let number =
        prop::sample::select(vec!["0", "1", "4", "8", "4096", "18446744073709551615", "-1"]);
    let ends = prop::sample::select(vec!["0", "2 4:9", "2 4:9 6:1", "9 4:", "x"]);
    let copies = prop::sample::select(vec!["", "1-3", "1-3,7-7", "3-1"]);
    let more = vec(prop::sample::select(vec!["0", "3", "4 1", "1-2", ""]), 0..8);
    let script = (status, number.clone(), number, copies, ends, any::<bool>(), more).prop_map(
        |(status, epoch, offset, copies, ends, recovering, more)| {
            let recovering = if recovering { "1" } else { "0" };
            let head = [status, epoch, offset, copies, ends, recovering];
            let parts: Vec<_> = head.iter().chain(&more).copied().collect();
            let bulks = parts.iter().map(|part| format!("${}\r\n{part}\r\n", part.len()));
            format!("*{}\r\n{}", parts.len(), bulks.collect::<String>()).into_bytes()
        },
    );
    let word = prop::sample::select(vec![
        "ip",
        "port",
        "flags",
        "s_down",
        "master-link-status",
        "ok",
        "config-epoch",
        "7",
        "6379",
        "127.0.0.1",
        "::1",
        "a b",
        "",
        "0",
        "99999",
        "redis-1.example",
    ]);
    let list = |of: BoxedStrategy<String>, most: usize| {
        vec(of, 0..most).prop_map(|all| format!("*{}\r\n{}", all.len(), all.concat())).boxed()
    };
    let word = word.prop_map(|word| format!("${}\r\n{word}\r\n", word.len())).boxed();
    let words = list(word, 9);
    let lists = list(words.clone(), 4);
    let sentinel = (words.clone(), words, lists.clone(), lists).prop_map(
        |(named, master, replicas, others)| {
            format!("*4\r\n{named}{master}{replicas}{others}").into_bytes()
        },
    );
    let odd = "[*$:+_#,(=~>%|0-9a\r\n-]{0,40}".prop_map(String::into_bytes);
    prop_oneof![script, sentinel, odd]
}

/// Bytes that often are commands of Redis' protocol.
fn commands() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "SUBSCRIBE",
        "UNSUBSCRIBE",
        "PUBLISH",
        "c",
        "stwt.agora",
        "HELLO",
        "3",
        "AUTH",
        "default",
        "secret",
        "PING",
        "RESET",
        "CLIENT",
        "SETNAME",
        "LIST",
        "CLUSTER",
        "SLOTS",
        "INFO",
        "QUIT",
    ]);
    let command = vec(word, 1..5).prop_flat_map(|words| {
        let line = words.join(" ") + "\r\n";
        let bulk = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
        let array = format!("*{}\r\n", words.len());
        let array = array + &words.iter().map(bulk).collect::<String>();
        prop_oneof![Just(line.into_bytes()), Just(array.into_bytes())]
    });
    let part = prop_oneof![8 => command, 1 => vec(any::<u8>(), 0..12)];
    vec(part, 0..8).prop_map(|parts| parts.concat())
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
    fn what_a_gateway_knows_of_a_shard_is_bounded_whatever_arrives(
        acts in vec(act(), 0..12),
    ) {
        checks::recovery(&acts.concat());
    }

    #[test]
    fn answers_of_redis_are_read_without_panic(bytes in resp(), odd in vec(any::<u8>(), 0..64)) {
        checks::answers(&bytes);
        checks::answers(&odd);
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

    #[test]
    fn commands_are_answered_alike_however_they_are_cut(first: u8, commands in commands()) {
        checks::resp(&[&[first], &commands[..]].concat());
    }

    #[test]
    fn messages_of_a_mail_server_are_passed_on_only_as_they_are_understood(
        bytes in vec(prop_oneof![0..14u8, any::<u8>()], 0..64),
    ) {
        checks::agora(&bytes);
    }
}

#[test]
fn the_seeds_of_the_fuzz_targets_pass_their_checks() {
    let targets: [(&str, fn(&[u8])); 10] = [
        ("frame", checks::frame),
        ("order", checks::order),
        ("recovery", checks::recovery),
        ("answers", checks::answers),
        ("token", checks::token),
        ("config", checks::config),
        ("event", checks::event),
        ("filter", checks::filter),
        ("resp", checks::resp),
        ("agora", checks::agora),
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
