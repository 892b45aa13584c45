//! The shard's script: random calls, with faults between them.

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::timeout;

use super::{
    CALLS, TAG,
    pair::{Pair, START_MS, bytes},
    subscription::subscription,
};
use trunkline::bus::redis::script::SHARD;

use crate::{redis::Reply, support::LIMIT};

/// Random calls of the script, each with what the answers before it taught the caller, or with
/// something older.
struct Calls {
    random: StdRng,
    publish: &'static str,
    /// Each writer's last sequence.
    writers: [u64; 3],
    /// Positions that answers named; the last is the newest.
    known: Vec<(u64, u64)>,
}

impl Calls {
    fn new(seed: u64, publish: &'static str) -> Calls {
        let random = StdRng::seed_from_u64(seed);
        Calls { random, publish, writers: [0; 3], known: vec![(0, 0)] }
    }

    /// A position that is known, as a rule the newest.
    fn position(&mut self) -> (u64, u64) {
        let random = &mut self.random;
        match random.random_range(0..12) {
            0 => self.known[random.random_range(0..self.known.len())],
            1 => {
                let (epoch, offset) = *self.known.last().expect("never empty");
                (epoch + random.random_range(0..2), offset + random.random_range(0..3))
            }
            _ => *self.known.last().expect("never empty"),
        }
    }

    /// What a caller reports.
    fn reported(&mut self) -> String {
        let mut reported = BTreeMap::new();
        for _ in 0..self.random.random_range(0..3) {
            let (epoch, offset) = self.position();
            let copies = match self.random.random_range(0..4) {
                0 if offset > 2 => format!(":1-1.3-{offset}"),
                1 if offset > 0 => format!(":1-{offset}"),
                _ => String::new(),
            };
            if epoch > 0 {
                reported.insert(epoch, format!("{epoch}:{offset}{copies}"));
            }
        }
        reported.into_values().collect::<Vec<_>>().join(" ")
    }

    /// The keys and the arguments of the next call.
    fn next(&mut self) -> (Vec<String>, Vec<Vec<u8>>) {
        let op = match self.random.random_range(0..10) {
            0 => "probe",
            1 => "release",
            2 | 3 => "again",
            4 => "number",
            _ => "append",
        };
        let (epoch, offset) = self.position();
        let reported = self.reported();
        let random = &mut self.random;
        let exact = match random.random_range(0..10) {
            0 => "=",
            1 => "!",
            _ => "",
        };
        let deployment = if random.random_bool(0.01) { "another" } else { "ours" };
        let mut keys: Vec<String> =
            ["state", "history", "marks", "retained"].map(|name| format!("{TAG}:{name}")).into();
        let entropy = random.random_range(0..1 << 18).to_string();
        let channel = format!("{TAG}:channel");
        let mut argv = bytes(&[
            op,
            &channel,
            self.publish,
            deployment,
            &entropy,
            &reported,
            "20",
            "3000",
            "5000",
        ]);
        argv.extend(bytes(&[&epoch.to_string(), &format!("{exact}{offset}")]));
        match op {
            "probe" => {
                let (gateway, number) = (random.random_range(0..3), random.random_range(1..9));
                let unless_within = ["", "0", "50"][random.random_range(0..3)];
                let gateway = format!("w{gateway}");
                argv.extend(bytes(&["probe", &gateway, &number.to_string(), unless_within]));
            }
            "release" => {
                let knows_all = if random.random_bool(0.5) { "all" } else { "" };
                argv.extend(bytes(&[&format!("w{}", random.random_range(0..3)), knows_all]));
            }
            "number" => argv.extend(bytes(&[&random.random_range(1..4).to_string()])),
            _ => self.frame(op, &mut keys, &mut argv),
        }
        (keys, argv)
    }

    fn frame(&mut self, op: &str, keys: &mut Vec<String>, argv: &mut Vec<Vec<u8>>) {
        let writer = self.random.random_range(0..self.writers.len());
        let sequence = match self.random.random_range(0..10) {
            1 => self.writers[writer].max(1),
            2 => self.writers[writer].saturating_sub(1).max(1),
            _ => self.writers[writer] + 1,
        };
        self.writers[writer] = self.writers[writer].max(sequence);
        let (epoch, offset) = self.known[self.random.random_range(0..self.known.len())];
        let random = &mut self.random;
        let count: u64 = random.random_range(u64::from(op == "append")..6);
        let frame: Vec<u8> =
            (0..random.random_range(1..200)).map(|_| random.random_range(0..=255)).collect();
        let first = offset.saturating_sub(random.random_range(0..4)).max(1);
        let name = match op {
            "again" => format!("{epoch}:{first}-{}", first + count.max(1) - 1),
            // The frame that must be there before it.
            _ if random.random_bool(0.3) => {
                sequence.saturating_sub(random.random_range(1..3)).to_string()
            }
            _ => String::new(),
        };
        let requests: Vec<(u32, u64)> = (0..random.random_range(0..3))
            .map(|_| (random.random_range(0..20), random.random_range(0..count.max(1))))
            .collect();
        let retain: Vec<(u32, u64)> = (0..random.random_range(0..2))
            .map(|_| (random.random_range(10..13), random.random_range(0..count.max(1))))
            .collect();
        keys.extend(requests.iter().map(|(id, _)| format!("{TAG}:request:{id}")));
        let mut add = |value: String| argv.push(value.into_bytes());
        add(format!("w{writer}"));
        add(sequence.to_string());
        add(count.to_string());
        argv.push(frame);
        let mut add = |value: String| argv.push(value.into_bytes());
        add(name);
        add(300_000.to_string());
        add(retain.len().to_string());
        for (key, index) in &retain {
            add(key.to_string());
            add(index.to_string());
            add(format!("event {key} {index}"));
        }
        for (_, index) in &requests {
            add(index.to_string());
        }
        for _ in 0..self.random.random_range(0..3) {
            let first = self.random.random_range(1..60_u64);
            // The bytes that name the publisher, and the number of its stream.
            let stream = match self.random.random_range(0..12) {
                0 => String::new(),
                number => number.to_string(),
            };
            let publisher = self.random.random_range(0..3);
            add(format!("publisher name {publisher}{stream}"));
            add(first.to_string());
            add((first + self.random.random_range(0..4)).to_string());
        }
    }

    fn learn(&mut self, answer: &Reply) {
        let Reply::Array(parts) = answer else { return };
        let number = |index: usize| match parts.get(index) {
            Some(Reply::Bulk(text)) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
            _ => None,
        };
        if let (Some(epoch), Some(offset)) = (number(1), number(2)) {
            self.known.push((epoch, offset));
        }
    }
}

/// One seed: random calls with faults between them, and all that they left is compared.
pub async fn shards_are_alike(url: &str, seed: u64, publish: &'static str) {
    let mut messages = subscription(url, publish == "SPUBLISH").await;
    let mut pair = Pair::with(url).await;
    let mut calls = Calls::new(seed, publish);
    for nth in 0..CALLS {
        let what = format!("seed {seed}, call {nth}");
        pair.now_ms += match calls.random.random_range(0..20) {
            // Long enough to be forgotten.
            0 if calls.random.random_bool(0.1) => calls.random.random_range(400_000..900_000),
            0 => calls.random.random_range(1000..8000),
            1 => 0,
            _ => calls.random.random_range(0..300),
        };
        match calls.random.random_range(0..100) {
            0 => drop(pair.same(&what, &bytes(&["FLUSHALL"])).await),
            1..=3 => {
                let names = ["state", "history", "marks", "retained", "request:3"];
                let name = names[calls.random.random_range(0..names.len())];
                drop(pair.same(&what, &bytes(&["DEL", &format!("{TAG}:{name}")])).await);
            }
            4 => {
                // Somebody else's entry, which leaves no room for the next one.
                let id = format!("{}-7", START_MS * 2 + calls.random.random_range(0..5));
                let history = format!("{TAG}:history");
                drop(pair.same(&what, &bytes(&["XADD", &history, &id, "x", "y"])).await);
            }
            5 => {
                drop(pair.same(&what, &bytes(&["SET", &format!("{TAG}:retained"), "x"])).await);
            }
            6 => drop(pair.same(&what, &bytes(&["DEL", &format!("{TAG}:retained")])).await),
            // The server starts anew, or a replica is promoted.
            7..=9 => pair.replication_id = format!("a{}", calls.random.random_range(0..1000)),
            _ => {}
        }
        let (keys, argv) = calls.next();
        let answer = pair.script(&what, SHARD, &keys, &argv).await;
        calls.learn(&answer);
    }
    assert!(calls.known.len() > CALLS / 4, "seed {seed}: most calls are answered");
    everything_is_alike(&mut pair, seed).await;
    let expected = pair.model.take_published();
    assert!(expected.len() > CALLS / 4, "seed {seed}: most calls publish");
    for (nth, message) in expected.iter().enumerate() {
        let real = timeout(LIMIT, messages.recv()).await.expect("a message").expect("connected");
        assert_eq!(&real, message, "seed {seed}, message {nth}");
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(messages.try_recv().is_err(), "seed {seed}: the server published more");
}

/// Compares all keys of the test.
async fn everything_is_alike(pair: &mut Pair, seed: u64) {
    let history = format!("{TAG}:history");
    let what = |name: &str| format!("seed {seed}, {name}");
    for command in ["XRANGE", "XREVRANGE"] {
        let (from, to) = if command == "XRANGE" { ("-", "+") } else { ("+", "-") };
        pair.same(&what(command), &bytes(&[command, &history, from, to])).await;
        pair.same(&what(command), &bytes(&[command, &history, from, to, "COUNT", "3"])).await;
    }
    pair.same(&what("XLEN"), &bytes(&["XLEN", &history])).await;
    let fields = [
        "epoch",
        "offset",
        "run",
        "deployment",
        "copies",
        "ends",
        "past",
        "recovery",
        "reported",
        "done",
        "since",
        "bytes",
        "mark_at",
        "mark_bytes",
        "w:w0",
        "w:w1",
        "w:w2",
        "none",
    ];
    let state = format!("{TAG}:state");
    pair.same(&what("state"), &bytes(&[&["HMGET", &state][..], &fields].concat())).await;
    pair.same(&what("state"), &bytes(&["HLEN", &state])).await;
    pair.same(&what("marks"), &bytes(&["LRANGE", &format!("{TAG}:marks"), "0", "-1"])).await;
    let retained = format!("{TAG}:retained");
    pair.same(&what("retained"), &bytes(&["HMGET", &retained, "10", "11", "12"])).await;
    for nth in 0..20 {
        let request = format!("{TAG}:request:{nth}");
        pair.same(&what("request"), &bytes(&["GET", &request])).await;
    }
}
