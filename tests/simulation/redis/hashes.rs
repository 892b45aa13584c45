//! Commands on hashes.

use std::collections::BTreeMap;

use super::{Reply, Text, keyspace::Keyspace, reply::error};

type Hash = BTreeMap<Text, Text>;

pub fn set(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, pairs @ ..] = args else { return Err(error::arguments(args)) };
    if pairs.is_empty() || pairs.len() % 2 != 0 {
        return Err(error::arguments(args));
    }
    keys.change(key, |hash: &mut Hash| {
        let before = hash.len();
        hash.extend(pairs.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())));
        Ok(Reply::count(hash.len() - before))
    })
}

pub fn set_if_absent(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, field, value] = args else { return Err(error::arguments(args)) };
    keys.change(key, |hash: &mut Hash| {
        let absent = !hash.contains_key(field);
        if absent {
            hash.insert(field.clone(), value.clone());
        }
        Ok(Reply::Integer(absent.into()))
    })
}

pub fn get(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, field] = args else { return Err(error::arguments(args)) };
    let value = keys.read(key, |hash: &Hash| hash.get(field).cloned())?;
    Ok(Reply::bulk_or_nil(value.flatten()))
}

pub fn get_fields(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, fields @ ..] = args else { return Err(error::arguments(args)) };
    if fields.is_empty() {
        return Err(error::arguments(args));
    }
    let values = keys.read(key, |hash: &Hash| {
        fields.iter().map(|field| Reply::bulk_or_nil(hash.get(field).cloned())).collect()
    })?;
    Ok(Reply::Array(values.unwrap_or_else(|| vec![Reply::Nil; fields.len()])))
}

pub fn delete(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, fields @ ..] = args else { return Err(error::arguments(args)) };
    keys.change(key, |hash: &mut Hash| {
        Ok(Reply::count(fields.iter().filter(|field| hash.remove(*field).is_some()).count()))
    })
}

/// In the order of the fields' names; Redis gives them in any order.
pub fn get_all(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key] = args else { return Err(error::arguments(args)) };
    let all = keys.read(key, |hash: &Hash| {
        Reply::bulks(hash.iter().flat_map(|(field, value)| [field.clone(), value.clone()]))
    })?;
    Ok(all.unwrap_or(Reply::Array(vec![])))
}

pub fn len(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key] = args else { return Err(error::arguments(args)) };
    Ok(Reply::count(keys.read(key, Hash::len)?.unwrap_or(0)))
}
