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

/// The reason for which a gateway is not reached, since it was lost, and when that was printed.
#[derive(Default)]
pub(super) struct Loss(Option<(String, Instant)>);

/// The remarks of a command.
pub(super) struct Remarks {
    as_json: bool,
    loss: Loss,
}

impl Loss {
    /// It is not reached, for this reason. True if that is to be printed, and not a repetition.
    pub(super) fn is_news(&mut self, reason: &str) -> bool {
        let is_repeated =
            |(before, at): &(String, Instant)| before == reason && at.elapsed() < REPEATED;
        if self.0.as_ref().is_some_and(is_repeated) {
            return false;
        }
        self.0 = Some((reason.to_owned(), Instant::now()));
        true
    }

    /// It is reached. True if it was not.
    pub(super) fn ends(&mut self) -> bool {
        self.0.take().is_some()
    }
}

impl Remarks {
    /// `as_json`: each is an object, else a line of text.
    pub(super) fn new(as_json: bool) -> Remarks {
        Remarks { as_json, loss: Loss::default() }
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
        if !self.loss.is_news(reason) {
            return Ok(());
        }
        let text = format!("{}{reason}; trying again", prefix(address));
        self.say("reconnecting", &about(address, Some(reason)), &text)
    }

    /// A gateway answers.
    pub(super) fn answers(&mut self, address: Option<&str>) -> Result<(), Failure> {
        if !self.loss.ends() {
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
