//! The rights of the gateway's user in Redis, and how they are tried.
//!
//! Each command that a gateway uses is queued in a transaction, under the names that the gateway
//! uses, and the transaction is never executed: Redis checks the rights of a command when it is
//! queued, and refuses the whole when one of them is wrong, which the last one always is. So
//! nothing is changed, whatever the user may do.

use redis::{Cmd, RedisError, RedisResult, Value, aio::MultiplexedConnection};

use super::{
    causes::{About, error_text},
    names::ShardNames,
    settings::Settings,
};

/// The users as they are documented and tested: their rights are the commands to try.
const STANDALONE: &str = include_str!("../../../deploy/redis/standalone.acl");
const CLUSTER: &str = include_str!("../../../deploy/redis/cluster.acl");

/// The commands that a gateway of these settings needs, as ACL rules name them.
pub(super) fn needed(settings: &Settings) -> Vec<&'static str> {
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

/// What a server refuses to the user.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Commands, as ACL rules name them, each with the key or channel that it was tried on.
    commands: Vec<(&'static str, String)>,
    /// A key that the user may not use, and the command that was refused.
    key: Option<(&'static str, String)>,
    /// The same of a channel.
    channel: Option<(&'static str, String)>,
    /// A command that was refused for another reason than rights, and that reason.
    pub other: Option<(&'static str, String)>,
}

impl Refusals {
    /// False if the user may not run transactions, without which no other right can be tried.
    pub(super) fn all_were_tried(&self) -> bool {
        !self.commands.iter().any(|(right, _)| ["multi", "exec"].contains(right))
    }

    /// The rights that are missing, and the line that gives them. None: no right is missing.
    pub(super) fn missing(&self, about: &About) -> Option<(String, String)> {
        let user = &about.user;
        let on = |name: &str| if name.is_empty() { String::new() } else { format!(" on {name}") };
        if !self.commands.is_empty() {
            let commands = self.commands.iter();
            let seen: Vec<_> = commands
                .map(|(right, name)| {
                    format!("{}{}", right.to_uppercase().replace('|', " "), on(name))
                })
                .collect();
            let rights: Vec<_> =
                self.commands.iter().map(|(right, _)| format!("+{right}")).collect();
            let seen = format!("NOPERM: the user {user:?} may not run {}", seen.join(", "));
            return Some((seen, about.acl_line(&rights.join(" "))));
        }
        let named = |what: &str, sign: &str, (right, name): &(&str, String)| {
            let seen = format!(
                "NOPERM: the user {user:?} may not use the {what} {name} ({})",
                right.to_uppercase()
            );
            (seen, about.acl_line(&format!("{sign}{}:*", about.prefix)))
        };
        let key = self.key.as_ref().map(|found| named("key", "~", found));
        key.or_else(|| self.channel.as_ref().map(|found| named("channel", "&", found)))
    }

    fn add(&mut self, right: &'static str, name: &str, error: &RedisError) {
        let text = error_text(error);
        let found = || Some((right, name.to_owned()));
        if !text.contains("NOPERM") {
            self.other = self.other.take().or(Some((right, text)));
        } else if text.contains("command") {
            self.commands.push((right, name.to_owned()));
        } else if text.contains("channel") {
            self.channel = self.channel.take().or_else(found);
        } else {
            self.key = self.key.take().or_else(found);
        }
    }
}

/// Tries the rights to a transaction, without which nothing could be tried without being done. The
/// connection is not to be used any more after a refusal of `exec`.
pub(super) async fn try_transaction(
    connection: &mut MultiplexedConnection,
) -> RedisResult<Refusals> {
    let mut refusals = Refusals::default();
    let mut empty = redis::pipe();
    empty.cmd("MULTI").cmd("EXEC").ignore_errors();
    let answers: Vec<RedisResult<Value>> = empty.query_async(connection).await?;
    for (right, answer) in ["multi", "exec"].into_iter().zip(&answers) {
        if let Err(error) = answer
            && error_text(error).contains("NOPERM")
        {
            refusals.add(right, "", error);
            break;
        }
    }
    Ok(refusals)
}

/// Tries the rights on the names of a shard. The connection is not to be used any more if it fails,
/// and after a refusal of `exec`.
pub(super) async fn try_on(
    connection: &mut MultiplexedConnection,
    settings: &Settings,
    names: &ShardNames,
) -> RedisResult<Refusals> {
    let mut refusals = try_transaction(connection).await?;
    if !refusals.commands.is_empty() {
        return Ok(refusals);
    }
    let trials: Vec<_> = needed(settings)
        .into_iter()
        .filter_map(|right| trial(right, names).map(|(cmd, name)| (right, name, cmd)))
        .collect();
    let mut all = redis::pipe();
    all.cmd("MULTI");
    for (_, _, cmd) in &trials {
        all.add_command(cmd.clone());
    }
    // It lacks its argument: the transaction is given up, whatever the others are.
    all.cmd("ECHO").cmd("EXEC").ignore_errors();
    let answers: Vec<RedisResult<Value>> = all.query_async(connection).await?;
    for ((right, name, _), answer) in trials.iter().zip(answers.iter().skip(1)) {
        if let Err(error) = answer {
            refusals.add(right, name, error);
        }
    }
    Ok(refusals)
}

/// A command that needs the right, and the key or channel that it names. It would fail, or change
/// nothing, even if it were executed, wherever a command can be of that kind.
fn trial(right: &str, names: &ShardNames) -> Option<(Cmd, String)> {
    let request = names.request(&rand::random());
    let cmd = |words: &[&str]| {
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(&words[1..]);
        cmd
    };
    let on = |name: &str, words: &[&str]| {
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(name).arg(&words[1..]);
        Some((cmd, name.to_owned()))
    };
    let plain = |words: &[&str]| Some((cmd(words), String::new()));
    let (state, history, index) = (&*names.state, &*names.history, &*names.trim_index);
    match right {
        "ping" => plain(&["PING"]),
        "info" => plain(&["INFO", "replication"]),
        "unwatch" => plain(&["UNWATCH"]),
        "time" => plain(&["TIME"]),
        "script|load" => plain(&["SCRIPT", "LOAD", "return 1"]),
        "cluster|slots" => plain(&["CLUSTER", "SLOTS"]),
        "asking" => plain(&["ASKING"]),
        "readonly" => plain(&["READONLY"]),
        "wait" => plain(&["WAIT", "0", "1"]),
        // No script has this hash.
        "evalsha" => {
            let mut cmd = redis::cmd("EVALSHA");
            cmd.arg("0".repeat(40)).arg(1).arg(state);
            Some((cmd, state.to_owned()))
        }
        "hsetnx" => on(state, &["HSETNX", "epoch", ""]),
        // A field without a value, an id that is none, a number that is none.
        "hset" => on(state, &["HSET", "epoch", "", "epoch"]),
        "xadd" => on(history, &["XADD", "none", "f", ""]),
        "xtrim" => on(history, &["XTRIM", "MINID", "none"]),
        "lpop" => on(index, &["LPOP", "-1"]),
        "set" => on(&request, &["SET", "", "PX"]),
        "pexpire" => on(&request, &["PEXPIRE", "none"]),
        "hmget" => on(state, &["HMGET", "epoch"]),
        "hgetall" => on(state, &["HGETALL"]),
        "hdel" => on(state, &["HDEL", "none"]),
        "mget" => on(&request, &["MGET"]),
        "del" => on(&request, &["DEL"]),
        "xrange" => on(history, &["XRANGE", "-", "-"]),
        "xinfo|stream" => {
            let mut cmd = redis::cmd("XINFO");
            cmd.arg("STREAM").arg(history);
            Some((cmd, history.to_owned()))
        }
        "lindex" => on(index, &["LINDEX", "0"]),
        // The state is no list.
        "rpush" => on(state, &["RPUSH", ""]),
        "publish" | "spublish" => on(&names.channel, &[&right.to_uppercase(), ""]),
        "subscribe" | "ssubscribe" => on(&names.channel, &[&right.to_uppercase()]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::ShardId;

    #[test]
    fn every_right_of_the_acl_files_is_tried() {
        let names = ShardNames::new("p", ShardId(0), 1);
        for right in [STANDALONE, CLUSTER].iter().flat_map(|file| file.split_whitespace()) {
            let Some(right) = right.strip_prefix('+') else { continue };
            let known = ["multi", "exec"].contains(&right) || trial(right, &names).is_some();
            assert!(known, "{right}");
        }
    }
}
