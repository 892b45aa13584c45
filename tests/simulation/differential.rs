//! The model against real servers: the same calls of the real scripts must give the same answers,
//! messages and keys.
//!
//! The scripts see a clock of the test's own on both sides, so that epochs, ages and trimming can
//! be compared to the digit.

use std::time::Duration;

use ::redis::{AsyncConnectionConfig, Client, Value, aio::MultiplexedConnection, cmd};
use futures_util::StreamExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::timeout;

use crate::{
    redis::{Identity, Message, Reply, Server},
    support::{
        LIMIT,
        cluster::RedisCluster,
        redis::{RedisOptions, RedisServer},
        view::slot,
    },
};

const APPEND: &str = include_str!("../../src/bus/redis/append.lua");
const MEMBERS: &str = include_str!("../../src/bus/redis/members.lua");

/// Calls of the append script that one seed makes.
const CALLS: usize = 400;

/// The test's clock begins here, in milliseconds since 1970.
const START_MS: u64 = 1_700_000_000_000;

/// All keys of the test share this tag, so that a cluster takes them.
const TAG: &str = "simulation:{s}";

/// The model and a real server that get the same calls.
struct Pair {
    model: Server,
    real: MultiplexedConnection,
    now_ms: u64,
}

impl Pair {
    /// Uses the server at `url`, whose keys of this test are removed first.
    async fn with(url: &str) -> Pair {
        let client = Client::open(url).expect("a URL");
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(LIMIT));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let identity = Identity { run_id: "a".into(), replication_id: "b".into() };
        let mut model = Server::new(identity);
        // As the servers are started: then `MAXLEN ~` is exact on both sides.
        model.set_stream_node_entries(1);
        Pair { model, real: connection.expect("a connection"), now_ms: START_MS }
    }

    /// Sends one command to both; both answers must be equal.
    async fn same(&mut self, what: &str, args: &[Vec<u8>]) -> Reply {
        let real = self.real(args).await;
        let model = self.model.call(args);
        let alike = match (&real, &model) {
            // The texts name lines of scripts; the code is what a client acts on.
            (Reply::Error(_), Reply::Error(_)) => real.error_code() == model.error_code(),
            _ => real == model,
        };
        assert!(alike, "{what}: the server answers {real:?}, the model {model:?}");
        model
    }

    /// Runs a script on both sides, with the test's clock in place of TIME.
    async fn script(&mut self, what: &str, code: &str, keys: &[String], argv: &[Vec<u8>]) -> Reply {
        let (seconds, micros) = (self.now_ms / 1000, self.now_ms % 1000 * 1000);
        let clock = format!(
            "local redis = (function(real) local function call(name, ...) \
             if name == 'TIME' then return {{'{seconds}', '{micros}'}} end \
             return real.call(name, ...) end \
             return {{call = call, pcall = real.pcall}} end)(redis)\n"
        );
        let mut args = vec![b"EVAL".to_vec(), (clock + code).into_bytes()];
        args.push(keys.len().to_string().into_bytes());
        args.extend(keys.iter().map(|key| key.clone().into_bytes()));
        args.extend(argv.iter().cloned());
        self.same(what, &args).await
    }

    async fn real(&mut self, args: &[Vec<u8>]) -> Reply {
        let mut command = cmd(std::str::from_utf8(&args[0]).expect("a name"));
        for arg in &args[1..] {
            command.arg(&arg[..]);
        }
        match command.query_async::<Value>(&mut self.real).await {
            Ok(value) => reply(value),
            Err(error) => {
                assert!(error.code().is_some(), "{error}");
                let (code, detail) = (error.code(), error.detail());
                Reply::Error(format!("{} {}", code.unwrap_or_default(), detail.unwrap_or_default()))
            }
        }
    }
}

fn reply(value: Value) -> Reply {
    match value {
        Value::Nil => Reply::Nil,
        Value::Int(number) => Reply::Integer(number),
        Value::BulkString(bytes) => Reply::Bulk(bytes),
        Value::SimpleString(text) => Reply::Status(text),
        Value::Okay => Reply::ok(),
        Value::Array(parts) => Reply::Array(parts.into_iter().map(reply).collect()),
        Value::ServerError(error) => {
            let detail = error.details().unwrap_or_default();
            Reply::Error(format!("{} {detail}", error.code()))
        }
        other => panic!("not RESP2: {other:?}"),
    }
}

fn bytes(parts: &[&str]) -> Vec<Vec<u8>> {
    parts.iter().map(|part| part.as_bytes().to_vec()).collect()
}

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
async fn appends_are_alike(url: &str, seed: u64, publish: &'static str) {
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

/// The messages on the test's channel, from now on.
async fn subscription(url: &str, sharded: bool) -> tokio::sync::mpsc::Receiver<Message> {
    let client = Client::open(url).expect("a URL");
    let channel = format!("{TAG}:channel");
    let (send, received) = tokio::sync::mpsc::channel(4 * CALLS);
    if sharded {
        let (pushes, mut pushed) = tokio::sync::mpsc::unbounded_channel();
        let config = AsyncConnectionConfig::new().set_push_sender(pushes);
        let resp3 = format!("{url}/?protocol=resp3");
        let client = Client::open(resp3).expect("a URL");
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .expect("a connection");
        cmd("SSUBSCRIBE").arg(&channel).exec_async(&mut connection).await.expect("subscribed");
        tokio::spawn(async move {
            // The subscription ends with its connection.
            let _connection = connection;
            while let Some(push) = pushed.recv().await {
                if push.kind != ::redis::PushKind::SMessage {
                    continue;
                }
                let [Value::BulkString(channel), Value::BulkString(payload)] = &push.data[..]
                else {
                    panic!("not a message: {push:?}")
                };
                let (channel, payload) = (channel.clone(), payload.clone());
                if send.send(Message { channel, payload, sharded }).await.is_err() {
                    return;
                }
            }
        });
    } else {
        let mut pubsub = client.get_async_pubsub().await.expect("a connection");
        pubsub.subscribe(&channel).await.expect("subscribed");
        tokio::spawn(async move {
            let mut stream = pubsub.into_on_message();
            while let Some(message) = stream.next().await {
                let channel = message.get_channel_name().as_bytes().to_vec();
                let payload = message.get_payload_bytes().to_vec();
                if send.send(Message { channel, payload, sharded }).await.is_err() {
                    return;
                }
            }
        });
    }
    received
}

/// Options under which `MAXLEN ~` trims exactly: each node of a stream holds one entry.
fn exact_streams() -> RedisOptions {
    let args = ["--stream-node-max-entries", "1"].map(str::to_owned).into();
    RedisOptions { args, ..RedisOptions::default() }
}

/// Random exchanges of the members script.
async fn members_are_alike(url: &str, seed: u64) {
    let mut pair = Pair::with(url).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut numbers = [0_u64; 4];
    for nth in 0..CALLS {
        let member = random.random_range(0..numbers.len());
        pair.now_ms += random.random_range(0..3000);
        let after = match random.random_range(0..6) {
            0 => 0,
            1 => numbers[member].saturating_sub(1),
            _ => numbers[member],
        };
        numbers[member] += 1;
        let mut argv = bytes(&[&format!("gateway-{member}"), "10000"]);
        let mut add = |value: String| argv.push(value.into_bytes());
        add(numbers[member].to_string());
        add(after.to_string());
        add(u8::from(random.random_bool(0.8)).to_string());
        add(format!("head {nth}"));
        for _ in 0..random.random_range(0..4) {
            add(random.random_range(0..8).to_string());
            add(if random.random_bool(0.3) { String::new() } else { format!("page {nth}") });
        }
        let keys = [format!("{TAG}:heads"), format!("{TAG}:pages:{member}")];
        // Redis lists a hash in any order, so members are compared as a set.
        let args = {
            let mut args = bytes(&["EVAL"]);
            let code = MEMBERS.replacen(
                "redis.call('TIME')",
                &format!("{{'{}', '{}'}}", pair.now_ms / 1000, pair.now_ms % 1000 * 1000),
                1,
            );
            args.push(code.into_bytes());
            args.push(b"2".to_vec());
            args.extend(keys.iter().map(|key| key.clone().into_bytes()));
            args.extend(argv);
            args
        };
        let real = sorted_members(pair.real(&args).await);
        let model = sorted_members(pair.model.call(&args));
        assert_eq!(real, model, "seed {seed}, call {nth}");
    }
}

fn sorted_members(reply: Reply) -> (Reply, Vec<Vec<Reply>>) {
    let Reply::Array(parts) = reply else { panic!("not an array: {reply:?}") };
    let (taken, members) = parts.split_first().expect("never empty");
    let mut members: Vec<Vec<Reply>> = members.chunks(3).map(<[Reply]>::to_vec).collect();
    members.sort_by_key(|member| format!("{:?}", member[0]));
    (taken.clone(), members)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_append_script_does_the_same_on_the_model_and_on_a_server() {
    let redis = RedisServer::start(exact_streams()).await;
    for seed in 0..10 {
        redis.cli(&["FLUSHALL"]).await;
        appends_are_alike(&redis.url(), seed, "PUBLISH").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_append_script_does_the_same_on_the_model_and_on_a_cluster() {
    let cluster = RedisCluster::with(crate::support::cluster::ClusterOptions {
        replicas: 0,
        server: exact_streams(),
        ..Default::default()
    })
    .await;
    let master = cluster.node(cluster.master_of_slot(slot(TAG)).await);
    for seed in 100..104 {
        master.cli(&["FLUSHALL"]).await;
        appends_are_alike(&master.url(), seed, "SPUBLISH").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_script_does_the_same_on_the_model_and_on_a_server() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    for seed in 0..5 {
        redis.cli(&["FLUSHALL"]).await;
        members_are_alike(&redis.url(), seed).await;
    }
}

/// Every command of the model by itself, with wrong types and bounds: what scripts and gateways
/// could meet.
#[tokio::test(flavor = "multi_thread")]
async fn commands_do_the_same_on_the_model_and_on_a_server() {
    let redis = RedisServer::start(exact_streams()).await;
    let mut pair = Pair::with(&redis.url()).await;
    let commands = "
        SET a 1|SET a 1 PX 60000|SET a 1 PX 0|SET a 1 PX x|GET a|GET none|MGET a none h|PTTL none
        HSET h f 1 g 2|HSET h f 3|HSET h f|HGET h f|HGET h none|HMGET h f none g|HMGET none f
        HSETNX h f 9|HSETNX h k 9|HLEN h|HGET a f|HSET a f 1|GET h|MGET h a|HDEL h none f|HLEN h
        RPUSH l a b c|LINDEX l 0|LINDEX l -1|LINDEX l 7|LINDEX l x|LINDEX none 0|LLEN l|LPOP l
        LRANGE l 0 -1|LRANGE l -1 -1|LRANGE l 5 9|LPOP none|RPUSH h x|LPOP l|LPOP l|EXISTS l
        XADD s 5-1 f v|XADD s 5-1 f v|XADD s 4-9 f v|XADD s 0-0 f v|XADD s x f v|XADD s 5 f v
        XADD s 6-0 f v g w|XADD s MAXLEN 2 7-0 f v|XADD s MAXLEN ~ 2 8-0 f v|XADD s 9-0 f
        XLEN s|XRANGE s - +|XRANGE s (7-0 +|XRANGE s 7 7|XRANGE s - (8-0|XRANGE s - + COUNT 1
        XREVRANGE s + -|XREVRANGE s + - COUNT 1|XREVRANGE s (8-0 -|XRANGE none - +|XRANGE s x +
        XTRIM s MINID 8-0|XTRIM s MAXLEN 0|XLEN s|XADD s 7-9 f v|XTRIM none MINID 1|XLEN h
        XADD h 1-1 f v
        XINFO STREAM none|XINFO STREAM h|EXISTS a s none|DEL a s none|EXISTS a s|PEXPIRE none 5
        EVALSHA abc 0|FLUSHALL|EXISTS a s l h";
    for command in commands.split(['|', '\n']).map(str::trim).filter(|line| !line.is_empty()) {
        let args: Vec<&str> = command.split(' ').collect();
        pair.same(command, &bytes(&args)).await;
    }
    // A script, its number of keys, and the rest.
    let scripts: [(&str, &[&str]); 20] = [
        ("nonsense(", &["0"]),
        ("return {1, 2, false, 3}", &["0"]),
        ("return {1, 2, nil, 3}", &["0"]),
        ("return {err = 'WRONG'}", &["0"]),
        ("return {ok = 'FINE'}", &["0"]),
        ("return 3.99", &["0"]),
        ("return true", &["0"]),
        ("return false", &["0"]),
        ("return {}", &["0"]),
        ("return {{}, {'a', {'b'}}}", &["0"]),
        ("redis.call('HSET', 'h', 'f', '1') return redis.call('GET', 'h')", &["0"]),
        ("return redis.pcall('GET', 'h')", &["0"]),
        ("return redis.call('SET', 'n', 7)", &["0"]),
        ("return redis.call('GET', 'n') + 1", &["0"]),
        ("redis.call('SET', 'm', '1') error('x')", &["0"]),
        ("return redis.call('GET', 'm')", &["0"]),
        ("return KEYS[2] .. ARGV[1]", &["2", "a", "b", "c"]),
        ("return #KEYS", &["5", "a"]),
        ("return redis.call('NONSENSE')", &["0"]),
        ("return redis.call('SET', KEYS[1], {})", &["1", "k"]),
    ];
    for (code, args) in scripts {
        pair.same(code, &bytes(&[&["EVAL", code], args].concat())).await;
    }
}

/// A copy is a snapshot: what is written afterwards is not in it, and time ends what expires.
#[test]
fn a_snapshot_is_what_a_failover_goes_back_to() {
    let identity = |name: &str| Identity { run_id: name.into(), replication_id: name.into() };
    let mut server = Server::new(identity("one"));
    server.set_time(5_000_000);
    server.call(&["SET", "kept", "1", "PX", "1000"]);
    let mut older = server.clone();
    server.call(&["SET", "lost", "1"]);
    assert_eq!(server.key_names(), [b"kept".to_vec(), b"lost".to_vec()]);
    older.set_identity(identity("two"));
    assert_eq!(older.call(&["GET", "lost"]), Reply::Nil);
    let Reply::Bulk(info) = older.call(&["INFO", "replication"]) else { panic!("INFO") };
    assert!(String::from_utf8_lossy(&info).contains("master_replid:two\r\n"));
    assert_eq!(older.call(&["PTTL", "kept"]), Reply::Integer(1000));
    older.set_time(6_000_000);
    assert_eq!(older.call(&["GET", "kept"]), Reply::Nil);
    assert!(server.evict(b"lost") && !server.evict(b"lost"));
}
