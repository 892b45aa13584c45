//! The configuration file of an agent: its flags, as keys of a JSON object.
//!
//! `--state-dir` is the key `stateDir`; a flag that may be given several times is a list. A flag of
//! the command line takes the place of the key.

use std::{ffi::OsString, fs, path::Path};

use clap::Command;
use serde_json::{Map, Value};

use super::super::Failure;

/// The arguments, with those of the file that `--config` names. `command` is that of the program.
pub(in crate::cli) fn with_file(
    command: &Command,
    mut arguments: Vec<OsString>,
) -> Result<Vec<OsString>, Failure> {
    if arguments.first().is_none_or(|first| first != "agent") {
        return Ok(arguments);
    }
    let Some(file) = value_of(&arguments, "--config") else { return Ok(arguments) };
    let Some(agent) = command.find_subcommand("agent") else { return Ok(arguments) };
    let wrong = |why: String| Failure::Configuration(format!("{}: {why}", file.to_string_lossy()));
    let text = fs::read(Path::new(&file)).map_err(|error| wrong(error.to_string()))?;
    let keys: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    for (key, value) in keys {
        let flag = flag_of(&key);
        let found = agent.get_arguments().find(|each| each.get_long() == Some(&flag));
        let Some(found) = found.filter(|_| flag != "config") else {
            return Err(wrong(format!("{key}: there is no such key: keys are flags of the agent")));
        };
        if is_given(&arguments, &flag) {
            continue;
        }
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let text = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                _ => return Err(wrong(format!("{key}: must be a text or a number, or a list"))),
            };
            debug_assert!(found.get_action().takes_values());
            arguments.push(format!("--{flag}={text}").into());
        }
    }
    Ok(arguments)
}

/// `stateDir`: `state-dir`.
fn flag_of(key: &str) -> String {
    let mut flag = String::new();
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            flag.push('-');
        }
        flag.push(c.to_ascii_lowercase());
    }
    flag
}

fn is_given(arguments: &[OsString], flag: &str) -> bool {
    arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        let name = argument.split('=').next().unwrap_or_default();
        name.strip_prefix("--") == Some(flag)
    })
}

fn value_of(arguments: &[OsString], flag: &str) -> Option<OsString> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == flag {
            return arguments.next().cloned();
        }
        if let Some(value) = text.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn read(file: &str, arguments: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.json");
        fs::write(&path, file).unwrap();
        let arguments = arguments.replace("FILE", &path.display().to_string());
        let given = arguments.split_whitespace().map(OsString::from).collect();
        let arguments = with_file(&Cli::command(), given).map_err(|failure| failure.to_string())?;
        let added = arguments.iter().map(|each| each.to_string_lossy().into_owned());
        Ok(added.filter(|each| !each.contains("agent.json")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn keys_are_flags_and_a_flag_takes_the_place_of_a_key() {
        let file = r#"{"listen": ["127.0.0.1:1", "unix:/a"], "nodeId": "a", "socketMode": 600}"#;
        assert_eq!(
            read(file, "agent --config FILE --node-id b").unwrap(),
            "agent --config --node-id b --listen=127.0.0.1:1 --listen=unix:/a --socket-mode=600"
        );
        assert_eq!(
            read(file, "agent --config=FILE --listen=x --node-id=b").unwrap(),
            "agent --listen=x --node-id=b --socket-mode=600"
        );
        // Another command has a configuration of its own.
        assert_eq!(read(file, "serve --config FILE").unwrap(), "serve --config");
    }

    #[test]
    fn a_wrong_file_is_an_error_that_names_it() {
        for (file, why) in [
            (r#"{"listne": "a"}"#, "listne: there is no such key"),
            (r#"{"config": "a"}"#, "config: there is no such key"),
            (r#"{"listen": {}}"#, "listen: must be a text or a number"),
            ("{", "EOF"),
        ] {
            let error = read(file, "agent --config FILE").unwrap_err();
            assert!(error.contains(why) && error.contains("agent.json"), "{error}");
        }
    }
}
