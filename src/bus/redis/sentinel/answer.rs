//! What sentinels answer. All of it is checked: they may be anybody.

use std::collections::HashMap;

use redis::{FromRedisValue, Value};

use crate::bus::redis::causes::error_text;

/// Sentinels that are asked, whatever they name.
pub const MAX_SENTINELS: usize = 32;

/// Replicas that are used, whatever sentinels name.
pub const MAX_REPLICAS: usize = 64;

/// Host and port.
pub type Address = (String, u16);

/// What a sentinel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The master.
    pub master: Address,
    /// The number of the configuration that names this master: a later one is higher.
    pub epoch: u64,
    /// The replicas that the sentinel believes to be in sync.
    pub replicas: Vec<Address>,
    /// The other sentinels.
    pub sentinels: Vec<Address>,
}

/// The sentinels that were asked, and what each says, or why there is no answer.
pub type Answers = Vec<(String, Result<Answer, String>)>;

/// Reads the answers to the four questions about a master: its address, itself, its replicas, and
/// the other sentinels. Only the first must have an answer that can be used.
///
/// # Errors
///
/// Says why the master's address is not known.
pub fn read(answers: Vec<Value>) -> Result<Answer, String> {
    let Ok([named, master, replicas, sentinels]) = <[Value; 4]>::try_from(answers) else {
        return Err("an unknown form of SENTINEL".to_owned());
    };
    let named = named.extract_error().map_err(|error| error_text(&error))?;
    let address: Option<(String, String)> =
        FromRedisValue::from_redis_value(named).map_err(|error| error.to_string())?;
    let master_address = match address {
        None => return Err("it does not know a master of this name".to_owned()),
        Some((host, port)) => checked(&host, &port)
            .ok_or_else(|| "the address of its master cannot be used".to_owned())?,
    };
    let master: Instance = instances(Value::Array(vec![master])).pop().unwrap_or_default();
    let in_sync = |replica: &Instance| {
        let flags = replica.get("flags").map_or("", String::as_str);
        let down =
            flags.split(',').any(|flag| ["s_down", "o_down", "disconnected"].contains(&flag));
        !down && replica.get("master-link-status").is_some_and(|status| status == "ok")
    };
    let addresses = |list: Vec<Instance>, limit: usize| -> Vec<Address> {
        let address = |one: &Instance| checked(one.get("ip")?, one.get("port")?);
        list.iter().filter_map(address).take(limit).collect()
    };
    let replicas = instances(replicas).into_iter().filter(in_sync).collect();
    Ok(Answer {
        master: master_address,
        epoch: master.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0),
        replicas: addresses(replicas, MAX_REPLICAS),
        sentinels: addresses(instances(sentinels), MAX_SENTINELS),
    })
}

/// What a sentinel says of one server or sentinel.
type Instance = HashMap<String, String>;

/// Those of an answer that can be read. None where it is an error.
fn instances(value: Value) -> Vec<Instance> {
    let Value::Array(list) = value else { return vec![] };
    list.into_iter().filter_map(|one| FromRedisValue::from_redis_value(one).ok()).collect()
}

/// An address as it can be connected to.
fn checked(host: &str, port: &str) -> Option<Address> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    let usable = (1..=253).contains(&host.len())
        && host.chars().all(plain)
        && !["0.0.0.0", "::"].contains(&host);
    let port = port.parse().ok().filter(|port| *port != 0)?;
    usable.then(|| (host.to_owned(), port))
}

/// What was answered, by those that did.
pub(super) fn given(answers: &Answers) -> impl Iterator<Item = &Answer> {
    answers.iter().filter_map(|(_, answer)| answer.as_ref().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn list(words: &[&str]) -> Value {
        Value::Array(words.iter().map(|word| bulk(word)).collect())
    }

    #[test]
    fn an_answer_is_read_as_far_as_it_can_be_used() {
        let replica = |host: &str, port: &str, flags: &str, link: &str| {
            list(&["ip", host, "port", port, "flags", flags, "master-link-status", link])
        };
        let sentinel = |host: &str, port: &str| list(&["ip", host, "port", port, "name", "x"]);
        let answers = |master: Value| {
            vec![
                master,
                list(&["name", "m", "config-epoch", "7"]),
                Value::Array(vec![
                    replica("10.0.0.2", "6379", "slave", "ok"),
                    replica("10.0.0.3", "6379", "slave", "err"),
                    replica("10.0.0.4", "6379", "s_down,slave", "ok"),
                    replica("0.0.0.0", "6379", "slave", "ok"),
                    bulk("rubbish"),
                ]),
                Value::Array(vec![
                    sentinel("10.0.0.5", "26379"),
                    sentinel("::1", "26379"),
                    sentinel("a b", "26379"),
                    sentinel("/tmp/socket", "26379"),
                    sentinel("10.0.0.6", "0"),
                    sentinel("10.0.0.6", "70000"),
                    sentinel(&"x".repeat(300), "1"),
                ]),
            ]
        };
        let answer = read(answers(list(&["10.0.0.1", "6379"]))).unwrap();
        let address = |host: &str, port| (host.to_owned(), port);
        assert_eq!((answer.epoch, answer.master), (7, address("10.0.0.1", 6379)));
        assert_eq!(answer.replicas, [address("10.0.0.2", 6379)]);
        assert_eq!(answer.sentinels, [address("10.0.0.5", 26379), address("::1", 26379)]);
        assert!(read(answers(Value::Nil)).unwrap_err().contains("master of this name"));
        assert!(read(answers(list(&["", "6379"]))).unwrap_err().contains("cannot be used"));
        assert!(read(vec![Value::Nil]).unwrap_err().contains("unknown form"));

        let many: Vec<_> = (1..=200).map(|n| sentinel("10.0.0.9", &n.to_string())).collect();
        let mut flood = answers(list(&["10.0.0.1", "6379"]));
        flood[3] = Value::Array(many);
        assert_eq!(read(flood).unwrap().sentinels.len(), MAX_SENTINELS);
    }
}
