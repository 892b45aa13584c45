//! Which function executes which command, and what their arguments have in common.

use super::{Reply, Server, Text, hashes, lists, reply::error, streams, strings};

/// Executes a command that is not about scripts: from a connection, or from within one.
pub fn execute(server: &mut Server, name: &[u8], args: &[Text]) -> Result<Reply, String> {
    let keys = &mut server.keys;
    match name {
        b"PING" => Ok(Reply::Status("PONG".into())),
        b"TIME" => {
            let parts = [keys.micros / 1_000_000, keys.micros % 1_000_000];
            Ok(Reply::bulks(parts.map(|part| part.to_string().into_bytes())))
        }
        b"INFO" => Ok(server.info(args.get(1).map(|section| &**section))),
        b"FLUSHALL" | b"FLUSHDB" => {
            keys.clear();
            Ok(Reply::ok())
        }
        b"PUBLISH" => server.publish(args, false),
        b"SPUBLISH" => server.publish(args, true),
        b"DEL" => count(args, |key| keys.remove(key)),
        b"EXISTS" => count(args, |key| keys.has(key)),
        b"PEXPIRE" => {
            let [_, key, ttl] = args else { return Err(error::arguments(args)) };
            let expires = keys.millis() + number::<u64>(ttl)?;
            Ok(Reply::Integer(keys.set_expiry(key, expires).into()))
        }
        b"PTTL" => {
            let [_, key] = args else { return Err(error::arguments(args)) };
            Ok(Reply::Integer(keys.time_to_live(key)))
        }
        b"GET" => strings::get(keys, args),
        b"MGET" => strings::get_all(keys, args),
        b"SET" => strings::set(keys, args),
        b"HSET" => hashes::set(keys, args),
        b"HSETNX" => hashes::set_if_absent(keys, args),
        b"HGET" => hashes::get(keys, args),
        b"HMGET" => hashes::get_fields(keys, args),
        b"HDEL" => hashes::delete(keys, args),
        b"HGETALL" => hashes::get_all(keys, args),
        b"HLEN" => hashes::len(keys, args),
        b"RPUSH" => lists::push_back(keys, args),
        b"LPOP" => lists::pop_front(keys, args),
        b"LINDEX" => lists::index(keys, args),
        b"LLEN" => lists::len(keys, args),
        b"LRANGE" => lists::range(keys, args),
        b"XADD" => streams::add(keys, args),
        b"XTRIM" => streams::trim(keys, args),
        b"XLEN" => streams::len(keys, args),
        b"XRANGE" => streams::range(keys, args, false),
        b"XREVRANGE" => streams::range(keys, args, true),
        b"XINFO" => streams::info(keys, args),
        _ => Err(error::unknown(name)),
    }
}

/// A number of an argument.
pub fn number<N: std::str::FromStr>(arg: &[u8]) -> Result<N, String> {
    let text = std::str::from_utf8(arg).map_err(|_| error::NOT_AN_INTEGER)?;
    text.parse().map_err(|_| error::NOT_AN_INTEGER.into())
}

/// A list index as Redis counts: negative ones from the end.
pub fn index(arg: &[u8], len: usize) -> Result<i64, String> {
    let at: i64 = number(arg)?;
    let len = i64::try_from(len).expect("fewer than 2^63");
    Ok(if at < 0 { at + len } else { at })
}

fn count(args: &[Text], mut one: impl FnMut(&[u8]) -> bool) -> Result<Reply, String> {
    let [_, keys @ ..] = args else { return Err(error::arguments(args)) };
    if keys.is_empty() {
        return Err(error::arguments(args));
    }
    Ok(Reply::count(keys.iter().filter(|key| one(key)).count()))
}
