//! A document as a [`Config`]: every key, its range and its default.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use super::{
    Auth, BusConfig, Config, Drain, History, Log, LogFormat, Secret, ServerTls, access, bus,
    error::{Problem, shown},
    fields::Fields,
    limits::{decode_keepalive, decode_limits},
    nearest::nearest,
    otlp, secret,
    units::format_duration,
};

const ZERO: Duration = Duration::ZERO;
const TENTH: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const WEEK: Duration = Duration::from_hours(7 * 24);

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// Ids are opaque strings of at most this many bytes, everywhere.
const LONGEST_ID: usize = 128;

/// The prefix stands in each name in Redis.
const LONGEST_PREFIX: usize = 64;

const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A key that is shorter than the code that it makes can be guessed.
const SHORTEST_KEY: usize = 32;

/// The keys with which frames in Redis are sealed.
fn decode_frame_key(top: &mut Fields<'_>, bus: &BusConfig) -> Option<Secret> {
    let redis = *bus != BusConfig::Embedded;
    let mut set = false;
    let key = top.optional_group("frameKey", |fields| {
        set = ["secret", "variableName", "filePath"].iter().any(|key| fields.has(key));
        let secret = secret::decode(fields, redis)?;
        let short = secret.expose().split_whitespace().find(|key| key.len() < SHORTEST_KEY);
        if let Some(short) = short {
            let (is, least) = (short.len(), SHORTEST_KEY);
            let problem = format!("holds a key of {is} bytes; each has at least {least}");
            fields.fail("@type", Problem::Invalid(problem));
            return None;
        }
        Some(secret)
    });
    let key = key.flatten();
    if set && !redis && top.sound(&["coordinator"]) {
        let problem = "has no effect: the bus is embedded, and nothing lies in Redis";
        top.fail("frameKey", Problem::Invalid(problem.to_owned()));
    }
    key
}

/// Reads a whole document. What is broken becomes its default, and a violation.
pub(super) fn decode(top: &mut Fields<'_>) -> Config {
    let default = Config::default();
    let listen = top.optional_address("listen").unwrap_or(default.listen);
    let admin = top.nullable_address("admin", default.admin);
    if top.sound(&["listen", "admin"]) {
        check_addresses(top, listen, admin);
    }
    let tls = access::decode_tls(top);
    let auth = access::decode_auth(top);
    let insecure = top.boolean("insecure", default.insecure);
    check_access(top, listen, tls.as_ref(), auth.as_ref(), insecure);
    let gateway_id = top.checked_text("gatewayId", check_id);
    let bus = bus::decode(top);
    let frame_key = decode_frame_key(top, &bus);
    Config {
        listen,
        admin,
        tls,
        auth,
        insecure,
        reload_interval: top.duration("reloadInterval", TENTH..=HOUR, default.reload_interval),
        gateway_id_is_random: gateway_id.is_none(),
        gateway_id: gateway_id.unwrap_or(default.gateway_id),
        bus,
        frame_key,
        prefix: top.checked_text("prefix", check_prefix).unwrap_or(default.prefix),
        shards: top.optional_number("shards", 1..=256),
        history: top.group("history", |fields| decode_history(fields, &default.history)),
        log: top.group("log", |fields| decode_log(fields, &default.log)),
        heartbeat: top.duration("heartbeat", SECOND..=HOUR, default.heartbeat),
        limits: top.group("limits", |fields| decode_limits(fields, &default.limits)),
        keepalive: top.group("keepalive", |fields| decode_keepalive(fields, &default.keepalive)),
        drain: top.group("drain", |fields| decode_drain(fields, &default.drain)),
        request_id_window: top.duration(
            "requestIdWindow",
            SECOND..=HOUR,
            default.request_id_window,
        ),
        otlp: top.group("otlp", otlp::decode),
        log_format: top
            .choice("logFormat", &LogFormat::ALL.map(LogFormat::as_str))
            .map_or(default.log_format, LogFormat::of),
        log_level: top.checked_text("logLevel", check_log_level).unwrap_or(default.log_level),
    }
}

fn decode_history(fields: &mut Fields<'_>, default: &History) -> History {
    History {
        max_age: fields.duration("maxAge", SECOND..=WEEK, default.max_age),
        max_bytes: fields.size("maxBytes", KIB..=64 * GIB, default.max_bytes),
        max_frames: fields.number("maxFrames", 1..=1_000_000_000, default.max_frames),
    }
}

fn decode_log(fields: &mut Fields<'_>, default: &Log) -> Log {
    Log {
        max_bytes: size(fields, "maxBytes", KIB..=16 * GIB, default.max_bytes),
        max_events: fields.number("maxEvents", 1..=100_000_000, default.max_events),
    }
}

fn decode_drain(fields: &mut Fields<'_>, default: &Drain) -> Drain {
    let delay = fields.duration("delay", ZERO..=5 * MINUTE, default.delay);
    let timeout = fields.duration("timeout", SECOND..=HOUR, default.timeout);
    let spread = fields.optional_duration("spread", ZERO..=5 * MINUTE);
    // The default makes room for a short limit.
    let spread_or_default = spread.unwrap_or(default.spread.min(timeout));
    if fields.sound(&["spread", "timeout"]) && spread_or_default > timeout {
        let limit = format_duration(timeout);
        let spread = format_duration(spread_or_default);
        let problem = format!("{spread} is more than drain.timeout, which is {limit}");
        fields.fail("spread", Problem::Invalid(problem));
    }
    Drain { delay, spread: spread_or_default, timeout }
}

/// A size that is kept in memory.
pub(super) fn size(
    fields: &mut Fields<'_>,
    key: &'static str,
    range: RangeInclusive<u64>,
    default: usize,
) -> usize {
    let bytes = fields.size(key, range, default as u64);
    // Every range above fits where memory is addressed with 64 bits, and where it is not, no more is to be had.
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Two listeners cannot have one port of one address; a wildcard is every address.
fn check_addresses(top: &Fields<'_>, listen: SocketAddr, admin: Option<SocketAddr>) {
    let Some(admin) = admin else { return };
    let covers = |one: SocketAddr, other: SocketAddr| {
        // A wildcard of IPv6 takes in IPv4 as well.
        one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4())
    };
    let clash = listen.ip() == admin.ip() || covers(listen, admin) || covers(admin, listen);
    // Port 0 is a different one each time.
    if clash && listen.port() == admin.port() && listen.port() != 0 {
        let problem = format!("{admin} is taken by listen, which is {listen}");
        top.fail("admin", Problem::Invalid(problem));
    }
}

/// Whoever can reach the port is either known, or on this machine, or let in with open eyes.
fn check_access(
    top: &Fields<'_>,
    listen: SocketAddr,
    tls: Option<&ServerTls>,
    auth: Option<&Auth>,
    insecure: bool,
) {
    let plain_text = tls.is_none() && !top.has("tls");
    if top.sound(&["listen"]) && plain_text && !insecure && !listen.ip().is_loopback() {
        let who = if top.has("auth") {
            "tokens would travel in plain text"
        } else {
            "anybody who reaches it could read and publish everything, in plain text"
        };
        let problem = format!(
            "{listen} is not only of this machine: {who}. Set tls, listen on 127.0.0.1, or say \"insecure\": true"
        );
        top.fail("listen", Problem::Invalid(problem));
    }
    let asks = tls.is_some_and(|tls| tls.client_ca.is_some());
    if asks && !top.has("auth") {
        let expected = "tls.clientCa says who nodes are, and this what each of them may do";
        top.fail("auth", Problem::Missing { expected: expected.to_owned() });
    }
    let with_token = |auth: &Auth| auth.identities.iter().any(|i| !i.tokens.is_empty());
    if auth.is_some_and(|auth| !auth.identities.is_empty() && !with_token(auth)) && !asks {
        let problem = "nobody can prove to be any of them: set tokens, or tls.clientCa";
        top.fail_at("auth.identities", Problem::Invalid(problem.to_owned()));
    }
}

fn check_id(id: &str) -> Result<(), Problem> {
    if id.is_empty() || id.len() > LONGEST_ID {
        return Err(length_problem(id, LONGEST_ID));
    }
    if id.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let problem = format!("{} holds white space or a control character", shown(id));
        return Err(Problem::Invalid(problem));
    }
    Ok(())
}

fn check_prefix(prefix: &str) -> Result<(), Problem> {
    if prefix.is_empty() || prefix.len() > LONGEST_PREFIX {
        return Err(length_problem(prefix, LONGEST_PREFIX));
    }
    // Braces would choose the hash slot; that is the shards' business.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
    if prefix.chars().all(plain) {
        Ok(())
    } else {
        let problem = format!("{} may hold letters, digits and . _ - : / alone", shown(prefix));
        Err(Problem::Invalid(problem))
    }
}

fn length_problem(text: &str, most: usize) -> Problem {
    Problem::Range {
        found: format!("its length of {}", text.len()),
        least: "1 byte".to_owned(),
        most: format!("{most} bytes"),
    }
}

/// Levels and `target=level`, with commas between. A misspelt level would otherwise be taken for a target, and everything else
/// go silent.
fn check_log_level(directives: &str) -> Result<(), Problem> {
    for directive in directives.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level).trim();
        let known = LOG_LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level));
        let target = directive.rsplit_once('=').map(|(target, _)| target.trim());
        if target == Some("") {
            let problem = format!("{} names no target before a level", shown(directives));
            return Err(Problem::Invalid(problem));
        }
        if !known {
            // A part of a URL would not look like one.
            let whole = directives.contains("://");
            return Err(Problem::Choice {
                found: shown(if whole { directives } else { level }),
                allowed: LOG_LEVELS.map(str::to_owned).to_vec(),
                nearest: nearest(level, LOG_LEVELS).map(str::to_owned),
            });
        }
    }
    Ok(())
}
