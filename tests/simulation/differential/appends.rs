//! The append script: random calls, with faults between them.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::timeout;

use super::{
    CALLS, TAG,
    pair::{Pair, START_MS, bytes},
    subscription::subscription,
};
use crate::{redis::Reply, support::LIMIT};

const APPEND: &str = include_str!("../../../src/bus/redis/append.lua");

/// Random calls of the append script, each with what the answers before it taught the caller, or
/// with something older.
struct Appends {
    random: StdRng,
    publish: &'static str,
    /// Each writer's last sequence.
    writers: [u64; 3],
    /// Positions that answers named; the last is the newest.
    known: Vec<(u64, u64)>,
}

impl Appends {
    fn new(seed: u64, publish: &'static str) -> Appends {
        let random = StdRng::seed_from_u64(seed);
        Appends { random, publish, writers: [0; 3], known: vec![(0, 0)] }
    }

    /// The keys and the arguments of the next call.
    fn next(&mut self) -> (Vec<String>, Vec<Vec<u8>>) {
        let random = &mut self.random;
        let writer = random.random_range(0..self.writers.len());
        let sequence = match random.random_range(0..10) {
            0 => 0,
            1 => self.writers[writer],
            2 => self.writers[writer].saturating_sub(1),
            _ => self.writers[writer] + 1,
        };
        self.writers[writer] = self.writers[writer].max(sequence);
        let (epoch, offset) = match random.random_range(0..12) {
            0 => self.known[random.random_range(0..self.known.len())],
            1 => {
                let (epoch, offset) = *self.known.last().expect("never empty");
                (epoch + random.random_range(0..2), offset + random.random_range(0..3))
            }
            _ => *self.known.last().expect("never empty"),
        };
        let exact = if random.random_bool(0.2) { "=" } else { "" };
        let run = if random.random_bool(0.03) { "other" } else { "run" };
        let count: u64 = random.random_range(1..6);
        let frame: Vec<u8> =
            (0..random.random_range(1..200)).map(|_| random.random_range(0..=255)).collect();
        let requests: Vec<(u32, u64)> = (0..random.random_range(0..3))
            .map(|_| (random.random_range(0..20), random.random_range(0..count)))
            .collect();
        let retain: Vec<(u32, u64)> = (0..random.random_range(0..2))
            .map(|_| (random.random_range(10..13), random.random_range(0..count)))
            .collect();
        let mut keys: Vec<String> =
            ["state", "history", "marks"].map(|name| format!("{TAG}:{name}")).into();
        keys.push(format!("{TAG}:writer:{writer}"));
        keys.push(format!("{TAG}:retained"));
        keys.extend(requests.iter().map(|(id, _)| format!("{TAG}:request:{id}")));
        let mut argv = bytes(&[&format!("{TAG}:channel"), self.publish, run]);
        let mut add = |value: String| argv.push(value.into_bytes());
        add(epoch.to_string());
        add(format!("{exact}{offset}"));
        add(sequence.to_string());
        add(if sequence == 0 { 0 } else { count }.to_string());
        argv.push(frame);
        let mut add = |value: String| argv.push(value.into_bytes());
        for limit in [20, 3000, 5000, 600_000, 300_000] {
            add(limit.to_string());
        }
        add(retain.len().to_string());
        for (key, index) in &retain {
            add(key.to_string());
            add(index.to_string());
            add(format!("event {key} {index}"));
        }
        for (_, index) in &requests {
            add(index.to_string());
        }
        (keys, argv)
    }

    fn learn(&mut self, answer: &Reply) {
        let Reply::Array(parts) = answer else { return };
        let text = |index: usize| match parts.get(index) {
            Some(Reply::Bulk(text)) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
            _ => None,
        };
        if let (Some(Reply::Bulk(name)), Some(epoch), Some(offset)) =
            (parts.first(), text(1), text(2))
            && ["ok", "tip", "epoch"].iter().any(|known| known.as_bytes() == name)
        {
            self.known.push((epoch, offset));
        }
    }
}

/// One seed: random calls with faults between them, and all that they left is compared.
pub async fn appends_are_alike(url: &str, seed: u64, publish: &'static str) {
    let mut messages = subscription(url, publish == "SPUBLISH").await;
    let mut pair = Pair::with(url).await;
    let mut appends = Appends::new(seed, publish);
    for nth in 0..CALLS {
        let what = format!("seed {seed}, call {nth}");
        pair.now_ms += match appends.random.random_range(0..20) {
            0 => appends.random.random_range(1000..8000),
            1 => 0,
            _ => appends.random.random_range(0..300),
        };
        match appends.random.random_range(0..100) {
            0 => drop(pair.same(&what, &bytes(&["FLUSHALL"])).await),
            1..=3 => {
                let names = ["state", "history", "marks", "writer:0", "retained", "request:3"];
                let name = names[appends.random.random_range(0..names.len())];
                drop(pair.same(&what, &bytes(&["DEL", &format!("{TAG}:{name}")])).await);
            }
            4 => {
                // Somebody else's entry, which leaves no room for the next one.
                let id = format!("{}-7", START_MS * 2 + appends.random.random_range(0..5));
                let history = format!("{TAG}:history");
                drop(pair.same(&what, &bytes(&["XADD", &history, &id, "x", "y"])).await);
            }
            5 => {
                drop(pair.same(&what, &bytes(&["SET", &format!("{TAG}:retained"), "x"])).await);
            }
            6 => drop(pair.same(&what, &bytes(&["DEL", &format!("{TAG}:retained")])).await),
            _ => {}
        }
        let (keys, argv) = appends.next();
        let answer = pair.script(&what, APPEND, &keys, &argv).await;
        appends.learn(&answer);
    }
    assert!(appends.known.len() > CALLS / 4, "seed {seed}: most calls are answered");
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
    let fields = ["epoch", "offset", "run", "bytes", "mark_at", "mark_bytes", "none"];
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
    for nth in 0..3 {
        pair.same(&what("writer"), &bytes(&["GET", &format!("{TAG}:writer:{nth}")])).await;
    }
}
