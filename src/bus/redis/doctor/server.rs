//! Checks of one server: version, role, memory, persistence, settings and clock.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use redis::{RedisResult, aio::MultiplexedConnection};

use super::{Finding, Progress, Reached, Settings, error_text, step};
use crate::bus::{redis::server::Server, unix_ms};

/// A clock that is further off than this is not synchronized.
const CLOCK_OFF: Duration = Duration::from_secs(1);

/// With a clock that is further off than this, ages and epochs mean nothing.
const CLOCK_WRONG: Duration = Duration::from_secs(30);

const MIB: u64 = 1 << 20;

/// The answer of INFO.
pub(super) struct Info(HashMap<String, String>);

impl Info {
    pub(super) fn parse(text: &str) -> Info {
        let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Info(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.known_number(name).unwrap_or(0)
    }

    fn known_number(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }

    fn replicas_online(&self) -> usize {
        let replica = |(name, value): &(&String, &String)| {
            name.strip_prefix("slave").is_some_and(|rest| rest.parse::<u32>().is_ok())
                && value.contains("state=online")
        };
        self.0.iter().filter(replica).count()
    }
}

/// Checks that the server is of the configured mode and of a supported version.
pub(super) fn mode(address: &str, info: &Info, cluster: bool) -> Finding {
    let mode = info.text("redis_mode");
    match (mode, cluster) {
        ("cluster", false) => {
            return Finding::failure(
                "mode",
                format!("{address} belongs to a cluster, and the coordinator is one server"),
                "set coordinator.@type to RedisCluster, and urls in place of url",
            );
        }
        ("standalone", true) => {
            return Finding::failure(
                "mode",
                format!("{address} is a standalone server, and the coordinator is a cluster"),
                "set coordinator.@type to Redis, and url in place of urls; or name the servers of \
                 the cluster",
            );
        }
        ("sentinel", _) => {
            return Finding::failure(
                "mode",
                format!("{address} is a sentinel, which keeps no data"),
                "set coordinator.@type to RedisSentinel, and urls in place of url",
            );
        }
        _ => {}
    }
    let (name, version) = match info.text("valkey_version") {
        "" => ("Redis", info.text("redis_version")),
        version => ("Valkey", version),
    };
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let least = if cluster { (7, 0) } else { (6, 2) };
    if found < least {
        let seen = format!("{address} is {name} {version}");
        let advice = format!("upgrade it: {}.{} is the oldest that works", least.0, least.1);
        return Finding::failure("mode", seen, advice);
    }
    Finding::ok("mode", format!("{address} is {name} {version}, {mode}"))
}

/// Examines a master that takes frames.
pub(super) async fn examine(
    reached: &mut Reached,
    settings: &Settings,
    max_frame: u64,
    shards: usize,
    report: &mut (dyn FnMut(Progress) + Send),
) {
    let Reached { address, info, connection, .. } = reached;
    let mut found = vec![
        role(address, info, settings.min_replicas),
        eviction(address, info),
        memory(address, info, settings.history.max_bytes * shards as u64),
    ];
    found.extend(disk(address, info));
    for finding in found {
        report(Progress::Begins(finding.check));
        report(Progress::Found(finding));
    }
    step("configuration of Redis", report, set(address, info, connection, max_frame)).await;
    step("clock", report, clock(address, connection)).await;
}

fn role(address: &str, info: &Info, min_replicas: u32) -> Finding {
    if info.text("role").is_empty() {
        return unseen("role", address, "INFO names no role");
    }
    if info.text("role") == "slave" {
        let master = format!("{}:{}", info.text("master_host"), info.text("master_port"));
        return Finding::failure(
            "role",
            format!("{address} is a replica, which takes no writes; its master is {master}"),
            format!("set coordinator.url to the master, {master}"),
        );
    }
    let online = info.replicas_online();
    if online < min_replicas as usize {
        return Finding::failure(
            "role",
            format!(
                "{address} is a master with {online} replicas online, and minReplicas is \
                 {min_replicas}"
            ),
            "add replicas, see why they are not in sync (INFO replication), or lower \
             coordinator.minReplicas",
        );
    }
    Finding::ok("role", format!("{address} is a master with {online} replicas online"))
}

/// The finding for what a server does not show, such as a managed one.
fn unseen(check: &'static str, address: &str, why: &str) -> Finding {
    let advice = "look at the server's settings where it is managed; or run doctor with an \
                  administrator's URL (TRUNKLINE_REDIS): the gateway does not need that right";
    Finding::not_checked(check, format!("{address}: {why}"), advice)
}

fn eviction(address: &str, info: &Info) -> Finding {
    let policy = info.text("maxmemory_policy");
    let seen = format!("{address} has maxmemory-policy {policy}");
    let advice = "CONFIG SET maxmemory-policy noeviction (and the same in redis.conf): evicted \
                  events are lost to every node, at best with a gap";
    match policy {
        "" => unseen("eviction", address, "INFO names no maxmemory_policy"),
        "noeviction" => Finding::ok("eviction", seen),
        _ if info.number("maxmemory") == 0 => {
            let seen = format!("{seen}, and no maxmemory at which it would evict");
            Finding::warning("eviction", seen, advice)
        }
        policy if policy.starts_with("allkeys") => Finding::failure("eviction", seen, advice),
        _ => {
            let seen = format!("{seen}: request ids, which make retries safe, can be evicted");
            Finding::warning("eviction", seen, advice)
        }
    }
}

fn memory(address: &str, info: &Info, history: u64) -> Finding {
    let known = info.known_number("used_memory").zip(info.known_number("maxmemory"));
    let Some((used, most)) = known else {
        return unseen("memory", address, "INFO does not say how much it uses");
    };
    if most == 0 {
        let seen = format!("{address} uses {} MiB, without a limit of its own", used / MIB);
        return Finding::ok("memory", seen);
    }
    let seen = format!("{address} uses {} of {} MiB", used / MIB, most / MIB);
    let advice = format!(
        "raise maxmemory, or lower history.maxBytes: the shards here may keep {} MiB of history",
        history / MIB
    );
    let left = most.saturating_sub(used);
    if left < most / 20 {
        Finding::failure("memory", format!("{seen}: it is about to refuse writes"), advice)
    } else if left < history {
        // A part of the used memory is history already, so a half empty server gets no warning.
        Finding::warning("memory", format!("{seen}, which history alone may need"), advice)
    } else {
        Finding::ok("memory", seen)
    }
}

fn disk(address: &str, info: &Info) -> Vec<Finding> {
    let failed = |what: &str| info.text(what) == "err";
    if failed("rdb_last_bgsave_status") || failed("aof_last_write_status") {
        return vec![Finding::failure(
            "persistence",
            format!("{address} could not write to its disk, and may refuse writes (MISCONF)"),
            "look at the server's log, its disk and its dir setting",
        )];
    }
    vec![]
}

/// Checks settings that only CONFIG GET shows; a gateway's user does not need that right.
async fn set(
    address: &str,
    info: &Info,
    connection: &mut MultiplexedConnection,
    max_frame: u64,
) -> Vec<Finding> {
    let (mut config, mut refused) = (HashMap::new(), None);
    // One at a time: servers before 7.0 take only one.
    for name in ["save", "client-output-buffer-limit", "timeout"] {
        let mut asked = redis::cmd("CONFIG");
        asked.arg("GET").arg(name);
        let answer: RedisResult<HashMap<String, String>> = asked.query_async(connection).await;
        match answer {
            Ok(found) => config.extend(found),
            Err(error) => refused = Some(error_text(&error)),
        }
    }
    let why = refused.unwrap_or_else(|| "CONFIG GET does not show it".to_owned());
    let value = |name: &str| config.get(name).map(String::as_str);
    let appends = info.text("aof_enabled") == "1";
    let saves = value("save").map(|save| !save.is_empty());
    vec![
        match saves {
            Some(saves) => persistence(address, appends || saves, info.replicas_online()),
            None if appends => persistence(address, true, info.replicas_online()),
            None => unseen("persistence", address, &why),
        },
        match value("client-output-buffer-limit") {
            Some(classes) => output_buffer(address, classes, max_frame),
            None => unseen("output buffer", address, &why),
        },
        match value("timeout").and_then(|seconds| seconds.parse().ok()) {
            Some(seconds) => timeout(address, seconds),
            None => unseen("timeout", address, &why),
        },
    ]
}

fn persistence(address: &str, saves: bool, replicas: usize) -> Finding {
    if saves {
        return Finding::ok("persistence", format!("{address} writes to disk"));
    }
    Finding::warning(
        "persistence",
        format!("{address} writes nothing to disk, and has {replicas} replicas online"),
        "a restart loses history: nodes that resume get a gap. Set appendonly yes, or save",
    )
}

/// `classes`: as CONFIG GET shows them,
/// `normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60`.
fn output_buffer(address: &str, classes: &str, max_frame: u64) -> Finding {
    let words: Vec<&str> = classes.split_whitespace().collect();
    let limits = words.iter().position(|word| *word == "pubsub").map(|at| {
        let number = |n: usize| words.get(at + n).and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
        (number(1), number(2), number(3))
    });
    let Some((hard, soft, seconds)) = limits else {
        let seen =
            format!("{address} has the output buffer limits {classes:?}, of an unknown form");
        return Finding::warning("output buffer", seen, "CONFIG GET client-output-buffer-limit");
    };
    let seen = format!(
        "{address} cuts subscribers off at {hard} bytes, or {soft} for {seconds} s (0: never)"
    );
    let advice = format!(
        "CONFIG SET client-output-buffer-limit \"pubsub 32mb 8mb 60\": one frame may have \
         {max_frame} bytes, and a subscription that is cut off has to be repaired from history"
    );
    let below = |limit: u64, least: u64| limit != 0 && limit < least;
    if below(hard, max_frame + max_frame / 4) {
        Finding::failure("output buffer", seen, advice)
    } else if below(hard, 16 * MIB) || below(soft, 2 * MIB) {
        Finding::warning("output buffer", seen, advice)
    } else {
        Finding::ok("output buffer", seen)
    }
}

fn timeout(address: &str, seconds: u64) -> Finding {
    let seen = format!("{address} closes idle connections after {seconds} s (0: never)");
    if (1..10).contains(&seconds) {
        let advice = "CONFIG SET timeout 0, or 60 and more, so that connections stay open";
        Finding::warning("timeout", seen, advice)
    } else {
        Finding::ok("timeout", seen)
    }
}

/// Tries whether the server takes a command with the largest event that a gateway may be given.
pub(super) async fn sizes(server: &Server, settings: &Settings) -> Vec<Finding> {
    let (event, address) = (settings.max_event_bytes, server.shown());
    let limit = server.largest_frame().await.map_err(|error| error.to_string());
    let finding = match limit {
        Ok(None) => {
            let seen = format!("{address} takes an event of {event} bytes (limits.maxEventBytes)");
            Finding::ok("sizes", seen)
        }
        Ok(Some(limit)) => Finding::warning(
            "sizes",
            format!("{address} takes {limit} bytes at once, and limits.maxEventBytes is {event}"),
            "raise proto-max-bulk-len and client-query-buffer-limit of the server, or lower \
             limits.maxEventBytes: larger events are refused with INVALID_ARGUMENT",
        ),
        Err(why) => {
            let advice = "see the log of Redis";
            Finding::failure("sizes", format!("{address}: {why}"), advice)
        }
    };
    vec![finding]
}

/// Compares the server's clock with this machine's.
async fn clock(address: &str, connection: &mut MultiplexedConnection) -> Vec<Finding> {
    let started = Instant::now();
    let before = unix_ms();
    let time: RedisResult<(u64, u64)> = redis::cmd("TIME").query_async(connection).await;
    match time {
        Ok((seconds, micros)) => {
            let trip = started.elapsed();
            let middle = before + u64::try_from(trip.as_millis() / 2).unwrap_or(0);
            let there = seconds * 1000 + micros / 1000;
            vec![clock_is(address, there, middle, trip)]
        }
        Err(error) => {
            let advice = "give the user the right to TIME";
            vec![Finding::failure("clock", format!("{address}: {}", error_text(&error)), advice)]
        }
    }
}

fn clock_is(address: &str, there: u64, here: u64, trip: Duration) -> Finding {
    let off = Duration::from_millis(there.abs_diff(here)).saturating_sub(trip / 2);
    if off.is_zero() {
        let seen = format!("the clocks of {address} and of this machine agree within {trip:.1?}");
        return Finding::ok("clock", seen);
    }
    let direction = if there > here { "ahead of" } else { "behind" };
    let seen = format!("the clock of {address} is {off:?} {direction} this machine's");
    let advice =
        "synchronize the clocks of all machines by NTP: ages, lags and epochs depend on them";
    if off > CLOCK_WRONG {
        Finding::failure("clock", seen, advice)
    } else if off > CLOCK_OFF {
        Finding::warning("clock", seen, advice)
    } else {
        Finding::ok("clock", seen)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn servers_below_the_minimum_version_fail() {
        let info = |version: &str, mode: &str| {
            Info::parse(&format!("redis_version:{version}\r\nredis_mode:{mode}\r\n"))
        };
        for (version, cluster, level) in [
            ("6.0.16", false, Level::Failure),
            ("6.2.0", false, Level::Ok),
            ("6.2.14", true, Level::Failure),
            ("7.0.0", true, Level::Ok),
            ("10.1.0", true, Level::Ok),
        ] {
            let mode_of = if cluster { "cluster" } else { "standalone" };
            let finding = mode("r:1", &info(version, mode_of), cluster);
            assert_eq!(finding.level, level, "{finding:?}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_reported_with_its_direction() {
        let found = |there, here| clock_is("r:1", there, here, Duration::from_millis(10));
        assert_eq!(found(1_000_500, 1_000_000).level, Level::Ok);
        let ahead = found(1_002_000, 1_000_000);
        assert!(ahead.level == Level::Warning && ahead.seen.contains("ahead"), "{ahead:?}");
        let behind = found(1_000_000, 1_060_000);
        assert!(behind.level == Level::Failure && behind.seen.contains("behind"), "{behind:?}");
    }

    #[test]
    fn the_limit_of_subscribers_is_read_from_the_classes() {
        let level = |pubsub: &str| {
            let classes = format!("normal 0 0 0 slave 268435456 67108864 60 pubsub {pubsub}");
            output_buffer("r:1", &classes, 4 * MIB).level
        };
        assert_eq!(level("33554432 8388608 60"), Level::Ok);
        assert_eq!(level("0 0 0"), Level::Ok);
        assert_eq!(level("1048576 0 0"), Level::Failure);
        assert_eq!(level("33554432 65536 60"), Level::Warning);
    }

    #[test]
    fn what_a_server_does_not_show_is_not_said_to_be_right() {
        let info = Info::parse("redis_version:7.2.0\r\n");
        for finding in
            [role("r:1", &info, 0), eviction("r:1", &info), memory("r:1", &info, 64 * MIB)]
        {
            assert_eq!(finding.level, Level::NotChecked, "{finding:?}");
            assert!(!finding.advice.is_empty(), "{finding:?}");
        }
    }
}
