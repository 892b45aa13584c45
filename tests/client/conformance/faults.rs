//! The faults of docs/reliability.md, seen by the clients of all languages at once: each publishes
//! and subscribes through the same fault, and what each has seen stands side by side.
//!
//! Single faults lose nothing while a gateway that has the events lives, so each client gets every
//! event of all once, those of an account in their order, and no gap.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Language, changes, driver::Driver, python, rust};
use crate::{
    Pair,
    support::{Data, LIMIT, RedisOptions, proxy::Proxy, wait::attempt},
};

/// The languages, as the table names them.
const LANGUAGES: [(&str, Language); 2] = [("Rust", rust), ("Python", python)];

/// Events that a client gives to its publisher at a time, and how often.
const BATCH: usize = 10;
const PACE: Duration = Duration::from_millis(20);

/// Batches before a fault, and after its end.
const AROUND: usize = 15;

/// How long a fault lasts that has an end.
const LASTS: Duration = Duration::from_millis(1500);

/// What a fault concerns. Each gateway is behind a proxy, and all clients prefer the first.
struct Stage {
    pair: Pair,
    proxies: [Proxy; 2],
}

/// A fault, from its beginning to its end.
type Fault = fn(&Stage) -> futures_util::future::LocalBoxFuture<'_, ()>;

macro_rules! faults {
    ($($name:ident $what:literal: |$stage:ident| $fault:block)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            fn fault($stage: &Stage) -> futures_util::future::LocalBoxFuture<'_, ()> {
                Box::pin(async move { $fault })
            }
            every_client_gets_everything_once($what, fault).await;
        }
    )*};
}

faults! {
    a_gateway_is_killed "gateway killed (kill -9), and started again": |stage| {
        stage.pair.first.kill_9();
        tokio::time::sleep(LASTS).await;
        stage.pair.first.restart().await;
    }
    a_gateway_drains "gateway drained (SIGTERM), and started again": |stage| {
        stage.pair.first.signal_term();
        stage.pair.first.ends(LIMIT).await;
        stage.pair.first.restart().await;
    }
    a_gateway_is_frozen "gateway frozen (SIGSTOP), then resumed": |stage| {
        stage.pair.first.pause().await;
        tokio::time::sleep(4 * LASTS).await;
        stage.pair.first.resume();
    }
    connections_to_gateways_are_cut "connections to gateways cut, again and again": |stage| {
        for _ in 0..8 {
            for proxy in &stage.proxies {
                proxy.cut();
            }
            tokio::time::sleep(LASTS / 4).await;
        }
    }
    connections_to_the_gateway_are_half_open "half-open connections to the gateway": |stage| {
        stage.proxies[0].drop_bytes();
        tokio::time::sleep(4 * LASTS).await;
        stage.proxies[0].cut();
        stage.proxies[0].forward();
    }
    answers_of_the_gateway_are_lost "answers of the gateway lost": |stage| {
        stage.proxies[0].drop_answers();
        tokio::time::sleep(4 * LASTS).await;
        stage.proxies[0].cut();
        stage.proxies[0].forward();
    }
    redis_is_killed_and_has_its_data "Redis killed, back with its append-only file": |stage| {
        stage.pair.redis.kill_9();
        tokio::time::sleep(LASTS).await;
        stage.pair.redis.restart(Data::Kept).await;
    }
    redis_is_killed_and_comes_back_empty "Redis killed, back empty": |stage| {
        stage.pair.redis.kill_9();
        tokio::time::sleep(LASTS).await;
        stage.pair.redis.restart(Data::Wiped).await;
    }
    redis_is_flushed "FLUSHALL": |stage| {
        stage.pair.redis.command::<()>(&["FLUSHALL"]).await.expect("flushed");
    }
    redis_is_frozen "Redis frozen (SIGSTOP), then resumed": |stage| {
        stage.pair.redis.pause().await;
        tokio::time::sleep(2 * LASTS).await;
        stage.pair.redis.resume();
    }
    subscriptions_of_gateways_are_closed "CLIENT KILL TYPE pubsub, again and again": |stage| {
        for _ in 0..6 {
            let kill = ["CLIENT", "KILL", "TYPE", "pubsub"];
            stage.pair.redis.command::<i64>(&kill).await.expect("killed");
            tokio::time::sleep(LASTS / 5).await;
        }
    }
    commands_of_gateways_are_cut_off "CLIENT KILL TYPE normal, again and again": |stage| {
        for _ in 0..6 {
            let kill = ["CLIENT", "KILL", "TYPE", "normal"];
            stage.pair.redis.command::<i64>(&kill).await.expect("killed");
            tokio::time::sleep(LASTS / 5).await;
        }
    }
    a_gateway_dies_while_redis_is_away "gateway and Redis killed, Redis back empty": |stage| {
        stage.pair.redis.kill_9();
        // What Redis had sent has arrived: the second gateway has it.
        tokio::time::sleep(LASTS / 5).await;
        stage.pair.first.kill_9();
        tokio::time::sleep(LASTS).await;
        stage.pair.redis.restart(Data::Wiped).await;
        stage.pair.first.restart().await;
    }
}

/// What one client has seen.
struct Seen {
    language: &'static str,
    accepted: BTreeSet<String>,
    streams: usize,
    received: Vec<String>,
    gaps: Vec<Value>,
}

async fn every_client_gets_everything_once(what: &str, fault: Fault) {
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let pair = Pair::on(options, |options| options).await;
    let [first, second] = [&pair.first, &pair.second].map(|gateway| Proxy::start(gateway.port()));
    let stage = Stage { pair, proxies: [first.await, second.await] };
    let gateways = stage.proxies.each_ref().map(Proxy::gateway_url);
    let start = |(name, language): (&'static str, Language)| {
        let publisher = Driver::start_at(language, &format!("{name}-publisher"), &gateways);
        publisher.say("open_publisher", json!({}));
        let subscriber = Driver::start_at(language, &format!("{name}-subscriber"), &gateways);
        subscriber.say("subscribe", json!({"heartbeat_interval": 1.0}));
        (name, publisher, subscriber)
    };
    let clients = LANGUAGES.map(start);
    for (_, _, subscriber) in &clients {
        subscriber.streams(1).await;
    }

    let mut batches = 0;
    let mut publish = || {
        for (name, publisher, _) in &clients {
            let events = changes(&format!("{name}-{batches}"), BATCH);
            publisher.say("publish_stream", json!({"id": batches, "events": events}));
        }
        batches += 1;
    };
    let mut pace = tokio::time::interval(PACE);
    for _ in 0..AROUND {
        pace.tick().await;
        publish();
    }
    let mut fault = fault(&stage);
    let began = Instant::now();
    loop {
        tokio::select! {
            () = &mut fault => break,
            _ = pace.tick() => publish(),
        }
    }
    let lasted = began.elapsed();
    drop(fault);
    for _ in 0..AROUND {
        pace.tick().await;
        publish();
    }
    let expected: BTreeSet<String> = LANGUAGES
        .iter()
        .flat_map(|(name, _)| {
            let of_a_batch = move |batch| super::ids(&format!("{name}-{batch}"), BATCH);
            (0..batches).flat_map(of_a_batch)
        })
        .collect();
    let mut all = vec![];
    for (language, publisher, subscriber) in clients {
        publisher.say("flush", json!({"id": "flushed"}));
        publisher.done("flushed").await.expect("everything has an answer");
        attempt(LIMIT, &format!("{what}: {language} has everything"), async || {
            let (events, gaps) = (subscriber.count("event"), subscriber.count("gap"));
            if events >= expected.len() || gaps > 0 {
                Ok(())
            } else {
                Err(format!("{events} of {}", expected.len()))
            }
        })
        .await;
        assert_eq!(publisher.all("failed"), Vec::<Value>::new(), "{what}: {language}");
        let id = |done: &Value| {
            Some(format!("{language}-{}-{}", done["id"].as_u64()?, done["index"].as_u64()?))
        };
        let events = subscriber.all("event");
        let received = events.iter().filter_map(|event| event["eventId"].as_str());
        all.push(Seen {
            language,
            accepted: publisher.all("done").iter().filter_map(id).collect(),
            streams: subscriber.count("subscribed"),
            received: received.map(str::to_owned).collect(),
            gaps: subscriber.all("gap"),
        });
        publisher.end().await;
        subscriber.end().await;
    }
    report(what, lasted, &all);
    for seen in &all {
        let Seen { language, accepted, received, gaps, .. } = seen;
        let own: BTreeSet<&String> =
            expected.iter().filter(|id| id.starts_with(language)).collect();
        assert!(own.iter().all(|id| accepted.contains(*id)), "{what}: {language}: accepted");
        assert_eq!(gaps, &Vec::<Value>::new(), "{what}: {language}");
        let once: BTreeSet<&String> = received.iter().collect();
        assert_eq!(once.len(), received.len(), "{what}: {language} got an event twice");
        let lost: Vec<&String> = expected.iter().filter(|id| !once.contains(id)).collect();
        assert!(lost.is_empty(), "{what}: {language} lacks {lost:?}");
        in_order(received);
    }
}

/// Each publisher's events of an account came in the order in which they were published.
fn in_order(received: &[String]) {
    let mut last: BTreeMap<(&str, usize), (usize, usize)> = BTreeMap::new();
    for id in received {
        let parts: Vec<&str> = id.split('-').collect();
        let [publisher, batch, index] = parts[..] else { panic!("{id}") };
        let number = |text: &str| text.parse::<usize>().expect("a number");
        let (batch, index) = (number(batch), number(index));
        let before = last.insert((publisher, index % 7), (batch, index));
        assert!(before < Some((batch, index)), "{id} came after {before:?}");
    }
}

/// Prints the line of the table, and leaves it for the end of the run.
fn report(what: &str, lasted: Duration, all: &[Seen]) {
    let side_by_side =
        |cell: &dyn Fn(&Seen) -> String| all.iter().map(cell).collect::<Vec<_>>().join(" / ");
    let repeated = |seen: &Seen| {
        let once: BTreeSet<&String> = seen.received.iter().collect();
        (seen.received.len() - once.len()).to_string()
    };
    let line = format!(
        "| {what} | {:.1} s | {} | {} | {} | {} | {} |",
        lasted.as_secs_f64(),
        side_by_side(&|seen| seen.accepted.len().to_string()),
        side_by_side(&|seen| seen.received.len().to_string()),
        side_by_side(&|seen| seen.gaps.len().to_string()),
        side_by_side(&repeated),
        side_by_side(&|seen| seen.streams.to_string()),
    );
    println!("{line}");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("conformance");
    let file: String =
        what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    fs::create_dir_all(&folder).expect("the folder of this build");
    fs::write(folder.join(file), format!("{line}\n")).expect("the folder of this build");
}
