//! Checks the user's rights by running each command of a gateway, under names that no gateway uses.

use redis::{Cmd, RedisResult, Value, aio::MultiplexedConnection};

use super::{Finding, Reached, Settings, ShardNames, error_text};

/// The users as they are documented and tested: their rights are the commands to try.
const STANDALONE: &str = include_str!("../../../../deploy/redis/standalone.acl");
const CLUSTER: &str = include_str!("../../../../deploy/redis/cluster.acl");

/// The time to live of every key that is written, in milliseconds.
const TTL_MS: u64 = 30_000;

/// The commands that a gateway of these settings needs, as ACL rules name them.
fn needed(settings: &Settings) -> Vec<&'static str> {
    let file = if settings.cluster { CLUSTER } else { STANDALONE };
    let classic = settings.cluster && !settings.sharded;
    let commands = file.split_whitespace().filter_map(|word| word.strip_prefix('+'));
    commands
        .filter(|command| *command != "wait" || settings.min_replicas > 0)
        .filter(|command| *command != "readonly" || settings.read_from_replicas)
        .map(|command| match command {
            "ssubscribe" if classic => "subscribe",
            "spublish" if classic => "publish",
            command => command,
        })
        .collect()
}

pub(super) async fn examine(
    reached: &Reached,
    settings: &Settings,
    names: &ShardNames,
) -> Vec<Finding> {
    let address = &reached.address;
    let mut connection = reached.connection.clone();
    let scratch = Scratch::new(names);
    let (mut denied, mut other) = (Vec::new(), Vec::new());
    let needed = needed(settings);
    for right in &needed {
        // The round trip tries to subscribe.
        let Some(commands) = scratch.trial(right) else { continue };
        if let Err(error) = run(&mut connection, &commands).await {
            let text = error_text(&error);
            if text.contains("NOPERM") || text.contains("permission") {
                denied.push((*right, text));
            } else if !text.contains("no such key") {
                // The key may be missing because the right to write it is.
                other.push((*right, text));
            }
        }
    }
    // If this fails, the keys expire.
    let _ = run(&mut connection, &[scratch.clean()]).await;
    let mut found = Vec::new();
    if let Some((right, text)) = denied.first() {
        let rights: Vec<_> = denied.iter().map(|(right, _)| format!("+{right}")).collect();
        let (rights, prefix) = (rights.join(" "), &settings.prefix);
        let (seen, advice) = if text.contains("key") && !text.contains("command") {
            (
                format!("{address} refuses the keys of prefix {prefix:?}: {text}"),
                format!("ACL SETUSER <user> ~{prefix}:*"),
            )
        } else if text.contains("channel") && !text.contains("command") {
            (
                format!("{address} refuses the channels of prefix {prefix:?} ({right}): {text}"),
                format!("ACL SETUSER <user> &{prefix}:*"),
            )
        } else {
            (
                format!("{address} refuses {rights}: {text}"),
                format!("ACL SETUSER <user> {rights}; deploy/redis has all rights that are needed"),
            )
        };
        found.push(Finding::failure("rights", seen, advice));
    }
    if let Some((right, text)) = other.first() {
        let advice = if text.starts_with("OOM") {
            "it is full: raise maxmemory, lower history.maxBytes, or remove other data"
        } else if text.starts_with("READONLY") {
            "it is a replica: name the master"
        } else if text.starts_with("MISCONF") {
            "it cannot write to its disk: look at its log"
        } else {
            "look at the log of Redis"
        };
        found.push(Finding::failure("writes", format!("{address}, {right}: {text}"), advice));
    }
    if found.is_empty() {
        let seen = format!("{address} grants all {} commands on the prefix", needed.len());
        found.push(Finding::ok("rights", seen));
    }
    found
}

async fn run(connection: &mut MultiplexedConnection, commands: &[Cmd]) -> RedisResult<()> {
    for command in commands {
        let _: Value = command.query_async(connection).await?;
    }
    Ok(())
}

/// Names that no gateway uses, in a shard's slot.
struct Scratch {
    text: String,
    hash: String,
    list: String,
    stream: String,
    channel: String,
}

impl Scratch {
    fn new(names: &ShardNames) -> Scratch {
        let name = |kind: &str| names.scratch(&format!("{:016x}:{kind}", rand::random::<u64>()));
        Scratch {
            text: name("text"),
            hash: name("hash"),
            list: name("list"),
            stream: name("stream"),
            channel: name("channel"),
        }
    }

    fn clean(&self) -> Cmd {
        let mut cmd = redis::cmd("DEL");
        cmd.arg(&self.text).arg(&self.hash).arg(&self.list).arg(&self.stream);
        cmd
    }

    /// Commands that fail without the right. Each key that they write has a time to live.
    fn trial(&self, right: &str) -> Option<Vec<Cmd>> {
        let cmd = |words: &[&str]| {
            let mut cmd = redis::cmd(words[0]);
            cmd.arg(&words[1..]);
            cmd
        };
        let (text, hash, list) = (self.text.as_str(), self.hash.as_str(), self.list.as_str());
        let (stream, channel) = (self.stream.as_str(), self.channel.as_str());
        let ttl = TTL_MS.to_string();
        let ends = |key: &str| cmd(&["PEXPIRE", key, &ttl]);
        // SHA-1 of "return 1".
        let known = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";
        Some(match right {
            "ping" => vec![cmd(&["PING"])],
            "info" => vec![cmd(&["INFO", "server"])],
            "multi" | "exec" => vec![cmd(&["MULTI"]), cmd(&["EXEC"])],
            "unwatch" => vec![cmd(&["UNWATCH"])],
            "hsetnx" => vec![cmd(&["HSETNX", hash, "f", "v"]), ends(hash)],
            "hset" => vec![cmd(&["HSET", hash, "f", "v"]), ends(hash)],
            "hmget" => vec![cmd(&["HMGET", hash, "f"])],
            "hgetall" => vec![cmd(&["HGETALL", hash])],
            "hdel" => vec![cmd(&["HDEL", hash, "f"])],
            "script|load" => vec![cmd(&["SCRIPT", "LOAD", "return 1"])],
            "evalsha" => {
                vec![cmd(&["SCRIPT", "LOAD", "return 1"]), cmd(&["EVALSHA", known, "1", text])]
            }
            "time" => vec![cmd(&["TIME"])],
            "set" => vec![cmd(&["SET", text, "v", "PX", &ttl])],
            "mget" => vec![cmd(&["MGET", text])],
            "pexpire" => vec![ends(text)],
            "del" => vec![cmd(&["DEL", text])],
            "xadd" => vec![cmd(&["XADD", stream, "1-1", "f", "v"]), ends(stream)],
            "xrange" => vec![cmd(&["XRANGE", stream, "-", "+", "COUNT", "1"])],
            "xtrim" => vec![cmd(&["XTRIM", stream, "MINID", "1-1"])],
            "xinfo|stream" => vec![cmd(&["XINFO", "STREAM", stream])],
            "rpush" => vec![cmd(&["RPUSH", list, "v"]), ends(list)],
            "lindex" => vec![cmd(&["LINDEX", list, "0"])],
            "lpop" => vec![cmd(&["LPOP", list])],
            "wait" => vec![cmd(&["WAIT", "0", "1"])],
            "publish" => vec![cmd(&["PUBLISH", channel, "v"])],
            "spublish" => vec![cmd(&["SPUBLISH", channel, "v"])],
            "cluster|slots" => vec![cmd(&["CLUSTER", "SLOTS"])],
            "asking" => vec![cmd(&["ASKING"])],
            "readonly" => vec![cmd(&["READONLY"])],
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::ShardId;

    #[test]
    fn every_right_of_the_acl_files_is_tried() {
        let scratch = Scratch::new(&ShardNames::new("p", ShardId(0), 1));
        for right in [STANDALONE, CLUSTER].iter().flat_map(|file| file.split_whitespace()) {
            let Some(right) = right.strip_prefix('+') else { continue };
            let subscribes = right.ends_with("subscribe");
            assert!(subscribes || scratch.trial(right).is_some(), "{right}");
        }
    }
}
