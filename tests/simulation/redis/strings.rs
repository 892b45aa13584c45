//! Commands on strings.

use super::{Reply, Text, command::number, keyspace::Keyspace, reply::error};

pub fn get(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key] = args else { return Err(error::arguments(args)) };
    Ok(Reply::bulk_or_nil(keys.read(key, Text::clone)?))
}

/// A value of another type is nil here, and no error.
pub fn get_all(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, names @ ..] = args else { return Err(error::arguments(args)) };
    if names.is_empty() {
        return Err(error::arguments(args));
    }
    let values = names.iter().map(|key| keys.read(key, Text::clone).unwrap_or_default());
    Ok(Reply::Array(values.map(Reply::bulk_or_nil).collect()))
}

pub fn set(keys: &mut Keyspace, args: &[Text]) -> Result<Reply, String> {
    let [_, key, value, options @ ..] = args else { return Err(error::arguments(args)) };
    let expires = match options {
        [] => None,
        [unit, ttl] if unit.eq_ignore_ascii_case(b"PX") => {
            let ttl: u64 = number(ttl)?;
            if ttl == 0 {
                return Err("ERR invalid expire time in 'set' command".into());
            }
            Some(keys.millis() + ttl)
        }
        _ => return Err(error::SYNTAX.into()),
    };
    keys.set(key, value.clone(), expires);
    Ok(Reply::ok())
}
