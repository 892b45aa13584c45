//! What a command that goes on says on standard error about its way: that a gateway is gone, that
//! it is back.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Failure, visible, visible_json};

/// While no gateway is reached, the same reason is printed once in this time.
const REPEATED: Duration = Duration::from_secs(10);

/// The remarks of a command.
pub(super) struct Remarks {
    as_json: bool,
    /// The reason for which a gateway is not reached, and when it was printed last.
    lost: Option<(String, Instant)>,
}

impl Remarks {
    /// `as_json`: each is an object, else a line of text.
    pub(super) fn new(as_json: bool) -> Remarks {
        Remarks { as_json, lost: None }
    }

    /// A remark: the name of its object and what that holds, or the text.
    pub(super) fn say(&self, name: &str, object: &Value, text: &str) -> Result<(), Failure> {
        let line = if self.as_json {
            visible_json(&json!({ name: object }).to_string()).into_owned()
        } else {
            format!("trunkline: {}", visible(text))
        };
        Ok(writeln!(std::io::stderr(), "{line}")?)
    }

    /// A gateway is not reached, and is tried again. Without an address, the reason has it.
    pub(super) fn lost(&mut self, address: Option<&str>, reason: &str) -> Result<(), Failure> {
        let is_repeated = self
            .lost
            .as_ref()
            .is_some_and(|(before, at)| before == reason && at.elapsed() < REPEATED);
        if is_repeated {
            return Ok(());
        }
        self.lost = Some((reason.to_owned(), Instant::now()));
        let text = format!("{}{reason}; trying again", prefix(address));
        self.say("reconnecting", &about(address, Some(reason)), &text)
    }

    /// A gateway answers.
    pub(super) fn answers(&mut self, address: Option<&str>) -> Result<(), Failure> {
        if self.lost.take().is_none() {
            return Ok(());
        }
        self.say("connected", &about(address, None), &format!("{}connected again", prefix(address)))
    }
}

fn prefix(address: Option<&str>) -> String {
    address.map(|address| format!("{address}: ")).unwrap_or_default()
}

fn about(gateway: Option<&str>, reason: Option<&str>) -> Value {
    let mut object = json!({});
    for (name, value) in [("gateway", gateway), ("reason", reason)] {
        if let Some(value) = value {
            object[name] = value.into();
        }
    }
    object
}
