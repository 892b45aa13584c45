//! The query of a request, made into the message of gRPC: `?node_id=n1&filter.kinds=blocked_ip`.
//! The name of a parameter is the path of a field, as the wire API or its JSON names it; a repeated
//! field is a parameter that is repeated.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::{
    errors::Error,
    json::{descriptor, from_json},
};

/// The bytes of the message of this name that a query says. `change` sees it as JSON before.
pub fn message(name: &str, query: &str, change: impl FnOnce(&mut Value)) -> Result<Vec<u8>, Error> {
    let message = descriptor(name);
    let mut json = Map::new();
    for (parameter, value) in form_urlencoded::parse(query.as_bytes()) {
        add(&mut json, &message, &parameter, &parameter, &value)?;
    }
    let mut json = Value::Object(json);
    change(&mut json);
    from_json(name, json).map_err(|error| Error::field("query", error))
}

/// Adds the value of the field at `path` below `message`.
fn add(
    json: &mut Map<String, Value>,
    message: &MessageDescriptor,
    parameter: &str,
    path: &str,
    value: &str,
) -> Result<(), Error> {
    let (name, rest) = match path.split_once('.') {
        Some((name, rest)) => (name, Some(rest)),
        None => (path, None),
    };
    let known = message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name));
    let Some(field) = known else {
        let names: Vec<_> = message.fields().map(|field| field.name().to_owned()).collect();
        let known = format!("is not known; known here: {}", names.join(", "));
        return Err(Error::field(parameter, known));
    };
    let key = field.json_name().to_owned();
    let kind = field.kind();
    if let (Some(inner), Some(rest)) = (object_of(&field), rest) {
        let slot = json.entry(key).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(inside) = slot else {
            return Err(Error::field(parameter, "is there twice"));
        };
        return add(inside, &inner, parameter, rest, value);
    }
    if rest.is_some() || object_of(&field).is_some() {
        let problem = match object_of(&field) {
            Some(_) => "is an object: name one of its fields",
            None => "is no object: it has no fields",
        };
        return Err(Error::field(parameter, problem));
    }
    let value = value_of(&kind, value).map_err(|problem| Error::field(parameter, problem))?;
    if field.is_list() {
        match json.entry(key).or_insert_with(|| Value::Array(vec![])) {
            Value::Array(values) => values.push(value),
            _ => return Err(Error::field(parameter, "is there twice")),
        }
    } else if json.insert(key, value).is_some() {
        return Err(Error::field(parameter, "is there twice"));
    }
    Ok(())
}

/// The message of a field that has fields of its own; none for one that JSON has as a text, such as
/// a duration.
fn object_of(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(message) if !message.full_name().starts_with("google.protobuf.") => {
            Some(message)
        }
        _ => None,
    }
}

/// The value of a parameter as JSON has it. Numbers may be texts there.
fn value_of(kind: &Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Bool => match text {
            "true" => Ok(true.into()),
            "false" => Ok(false.into()),
            _ => Err("must be true or false".to_owned()),
        },
        Kind::Enum(of) => word(of, text).map(Value::String),
        _ => Ok(text.into()),
    }
}

/// The name of a value of an enum, which may be given without the prefix and in lower case:
/// `mailbox_change` or `mailbox-change` for `EVENT_KIND_MAILBOX_CHANGE`.
fn word(of: &EnumDescriptor, text: &str) -> Result<String, String> {
    let asked = text.to_ascii_uppercase().replace('-', "_");
    // The names of values begin with that of their type.
    let zero = of.default_value().name().to_owned();
    let prefix = zero.strip_suffix("UNSPECIFIED").unwrap_or_default();
    let names = || of.values().map(|value| value.name().to_owned());
    let found = names().find(|name| *name == asked || name.strip_prefix(prefix) == Some(&asked));
    found.ok_or_else(|| {
        let known: Vec<_> = names()
            .filter(|name| *name != zero)
            .map(|name| name.strip_prefix(prefix).unwrap_or(&name).to_ascii_lowercase())
            .collect();
        format!("must be one of {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tonic::Status;

    use super::*;
    use crate::proto::v1::{EventKind, Filter, Start, SubscribeRequest};

    fn read(query: &str) -> Result<SubscribeRequest, String> {
        let bytes = message("SubscribeRequest", query, |_| ())
            .map_err(|error| Status::from(error).message().to_owned())?;
        Ok(SubscribeRequest::decode(&bytes[..]).unwrap())
    }

    #[test]
    fn a_query_says_what_the_message_would() {
        let query = "node_id=n%201&roles=imap&roles=mta&filter.kinds=blocked_ip\
            &filter.kinds=EVENT_KIND_CUSTOM&filter.customTypes=a.*&start=oldest\
            &heartbeat_interval=5s&max_events=7&includeOwnEvents=true&resume_token=AQI%3D";
        let expected = SubscribeRequest {
            node_id: "n 1".into(),
            roles: vec!["imap".into(), "mta".into()],
            filter: Some(Filter {
                kinds: vec![EventKind::BlockedIp.into(), EventKind::Custom.into()],
                custom_types: vec!["a.*".into()],
                ..Filter::default()
            }),
            start: Start::Oldest.into(),
            heartbeat_interval: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
            max_events: 7,
            include_own_events: true,
            resume_token: vec![1, 2],
            ..SubscribeRequest::default()
        };
        assert_eq!(read(query), Ok(expected));
        assert_eq!(read(""), Ok(SubscribeRequest::default()));
    }

    #[test]
    fn what_is_wrong_names_its_parameter() {
        for (query, problem) in [
            ("nodeid=n", "nodeid: is not known; known here: node_id, incarnation, roles,"),
            ("filter.kind=custom", "filter.kind: is not known; known here: kinds, accounts,"),
            ("filter=custom", "filter: is an object: name one of its fields"),
            ("node_id.x=1", "node_id.x: is no object"),
            ("node_id=a&node_id=b", "node_id: is there twice"),
            ("node_id=a&nodeId=b", "node_id: is there twice"),
            ("explain=yes", "explain: must be true or false"),
            ("filter.kinds=mailbox", "filter.kinds: must be one of mailbox_change,"),
            ("max_events=many", "query: "),
            ("heartbeat_interval=5", "query: "),
            ("heartbeat_interval.seconds=5", "heartbeat_interval.seconds: is no object"),
            ("resume_token=%21", "query: "),
        ] {
            let error = read(query).expect_err(query).replace("nodeId", "node_id");
            assert!(error.starts_with(problem), "{query}: {error}");
        }
    }
}
