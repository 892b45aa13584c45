//! The model against real servers: the same calls of the real scripts must give the same answers,
//! messages and keys.
//!
//! The scripts see a clock of the test's own on both sides, so that epochs, ages and trimming can
//! be compared to the digit.

mod members;
mod pair;
mod shards;
mod subscription;

use self::{
    members::members_are_alike,
    pair::{Pair, bytes},
    shards::shards_are_alike,
};
use crate::{
    redis::{Identity, Reply, Server},
    support::{
        cluster::{ClusterOptions, RedisCluster},
        redis::{RedisOptions, RedisServer},
        view::slot,
    },
};

/// Calls of a script that one seed makes.
const CALLS: usize = 400;

/// All keys of the test share this tag, so that a cluster takes them.
const TAG: &str = "simulation:{s}";

/// Options under which `MAXLEN ~` trims exactly: each node of a stream holds one entry.
fn exact_streams() -> RedisOptions {
    let args = ["--stream-node-max-entries", "1"].map(str::to_owned).into();
    RedisOptions { args, ..RedisOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shards_script_does_the_same_on_the_model_and_on_a_server() {
    let redis = RedisServer::start(exact_streams()).await;
    for seed in 0..10 {
        redis.cli(&["FLUSHALL"]).await;
        shards_are_alike(&redis.url(), seed, "PUBLISH").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shards_script_does_the_same_on_the_model_and_on_a_cluster() {
    let cluster = RedisCluster::with(ClusterOptions {
        replicas: 0,
        server: exact_streams(),
        ..Default::default()
    })
    .await;
    let master = cluster.node(cluster.master_of_slot(slot(TAG)).await);
    for seed in 100..104 {
        master.cli(&["FLUSHALL"]).await;
        shards_are_alike(&master.url(), seed, "SPUBLISH").await;
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
