//! Commands on lists.

use std::collections::VecDeque;

use super::{
    Reply, Text,
    command::{index as position, number},
    keyspace::Keyspace,
    reply::error,
};

type List = VecDeque<Text>;

pub fn push_back(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, values @ ..] = args else { return Err(error::arguments(args)) };
    if values.is_empty() {
        return Err(error::arguments(args));
    }
    keys.change(key, |list: &mut List| {
        list.extend(values.iter().cloned());
        Ok(Reply::count(list.len()))
    })
}

pub fn pop_front(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key] = args else { return Err(error::arguments(args)) };
    keys.change(key, |list: &mut List| Ok(Reply::bulk_or_nil(list.pop_front())))
}

pub fn index(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, at] = args else { return Err(error::arguments(args)) };
    number::<i64>(at)?;
    let value = keys.read(key, |list: &List| {
        let at = position(at, list.len()).ok()?;
        list.get(usize::try_from(at).ok()?).cloned()
    })?;
    Ok(Reply::bulk_or_nil(value.flatten()))
}

pub fn len(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key] = args else { return Err(error::arguments(args)) };
    Ok(Reply::count(keys.read(key, List::len)?.unwrap_or(0)))
}

pub fn range(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, from, to] = args else { return Err(error::arguments(args)) };
    let values = keys.read(key, |list: &List| {
        let from = position(from, list.len())?.max(0);
        let to = position(to, list.len())?;
        let within = list.iter().zip(0..).filter(|(_, at)| (from..=to).contains(at));
        Ok::<_, String>(Reply::bulks(within.map(|(value, _)| value.clone())))
    })?;
    values.unwrap_or(Ok(Reply::Array(vec![])))
}
