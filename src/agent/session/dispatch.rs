//! Which command is carried out by what, and who may call it.

use bytes::{Bytes, BytesMut};

use super::{Ended, Session, Step};
use crate::agent::resp::{Reply, Version};

/// The longest name of a command, and of a command of a command.
const MAX_NAME: usize = 16;

/// Commands of a client that has not authenticated yet.
const BEFORE_AUTH: &[&str] = &["AUTH", "HELLO", "QUIT", "RESET"];

/// Commands of a subscriber that gets messages among its replies (RESP2).
const OF_SUBSCRIBERS: &[&str] = &[
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "PSUBSCRIBE",
    "PUNSUBSCRIBE",
    "SSUBSCRIBE",
    "SUNSUBSCRIBE",
    "PING",
    "QUIT",
    "RESET",
];

/// The answer to a command; an error is text that begins with its code.
pub(super) type Answer = Result<Step, String>;

impl Session {
    /// Carries out a command and writes its reply.
    pub(super) fn execute(&mut self, command: &[Bytes], out: &mut BytesMut) -> Step {
        let Some((name, arguments)) = command.split_first() else { return Step::Answered };
        let answer = self.dispatch(&upper(name), name, arguments, out);
        answer.unwrap_or_else(|error| {
            Reply::new(out, self.version).error(error);
            Step::Answered
        })
    }

    fn dispatch(
        &mut self,
        name: &str,
        given: &[u8],
        arguments: &[Bytes],
        out: &mut BytesMut,
    ) -> Answer {
        // The first words of a web request, and a line that every one has.
        if matches!(name, "POST" | "HOST:") {
            return Ok(Step::Close(Ended::Http));
        }
        if !self.authenticated && !BEFORE_AUTH.contains(&name) {
            return Err("NOAUTH Authentication required.".into());
        }
        let among_messages = self.version == Version::Resp2 && self.is_subscriber();
        if among_messages && !OF_SUBSCRIBERS.contains(&name) {
            return Err(format!(
                "ERR Can't execute '{}': only SUBSCRIBE / UNSUBSCRIBE / PING / QUIT / RESET are \
                 allowed in this context",
                shown(given)
            ));
        }
        let count = arguments.len();
        let takes = |wanted: bool| {
            let error = || {
                format!("ERR wrong number of arguments for '{}' command", name.to_ascii_lowercase())
            };
            if wanted { Ok(()) } else { Err(error()) }
        };
        let mut reply = Reply::new(out, self.version);
        match name {
            "PING" => {
                takes(count <= 1)?;
                match (among_messages, arguments.first()) {
                    (true, message) => {
                        reply.array(2);
                        reply.bulk("pong");
                        reply.bulk(message.map_or(&[][..], |message| message));
                    }
                    (false, Some(message)) => reply.bulk(message),
                    (false, None) => reply.simple("PONG"),
                }
            }
            "ECHO" => {
                takes(count == 1)?;
                reply.bulk(&arguments[0]);
            }
            "SELECT" => {
                takes(count == 1)?;
                // Channels are the same in every database.
                number::<u16>(&arguments[0]).ok_or("ERR invalid DB index")?;
                reply.simple("OK");
            }
            "QUIT" => {
                reply.simple("OK");
                return Ok(Step::Close(Ended::Quit));
            }
            "COMMAND" => match arguments.first().map(|sub| upper(sub)).as_deref() {
                None | Some("LIST" | "INFO") => reply.array(0),
                Some("DOCS") => reply.map(0),
                Some("COUNT") => reply.integer(0),
                Some(_) => return Err(unknown_subcommand("COMMAND", &arguments[0])),
            },
            "READONLY" | "READWRITE" | "ASKING" => {
                takes(count == 0)?;
                reply.simple("OK");
            }
            "INFO" => reply.bulk(self.info()),
            "HELLO" => return self.hello(arguments, out),
            "AUTH" => {
                takes((1..=2).contains(&count))?;
                return self.auth(arguments, out);
            }
            "RESET" => return Ok(self.reset(out)),
            "CLIENT" => {
                takes(count >= 1)?;
                return self.client_command(arguments, out);
            }
            "CLUSTER" => {
                takes(count >= 1)?;
                return self.cluster(arguments, out);
            }
            "SUBSCRIBE" => {
                takes(count >= 1)?;
                return self.subscribe(arguments, out);
            }
            "UNSUBSCRIBE" => return Ok(self.unsubscribe(arguments, out)),
            "PUNSUBSCRIBE" | "SUNSUBSCRIBE" => self.unsubscribe_patterns(name, arguments, out),
            "PSUBSCRIBE" | "SSUBSCRIBE" => {
                return Err(format!(
                    "ERR {name} is not supported by this agent: subscribe to channels by their \
                     names, with SUBSCRIBE"
                ));
            }
            "PUBLISH" => {
                takes(count == 2)?;
                let channel = self.channel(&arguments[0])?;
                return Ok(Step::Publish { channel, payload: arguments[1].clone() });
            }
            _ => {
                return Err(format!(
                    "ERR unknown command '{}': this is a Trunkline agent, which has the channels \
                     of Redis and stores no data",
                    shown(given)
                ));
            }
        }
        Ok(Step::Answered)
    }
}

/// A name in upper case. One that is longer than any is empty.
pub(super) fn upper(name: &[u8]) -> String {
    let name = if name.len() > MAX_NAME { &[] } else { name };
    String::from_utf8_lossy(name).to_ascii_uppercase()
}

/// The client's own words, in an error.
pub(super) fn shown(words: &[u8]) -> String {
    String::from_utf8_lossy(&words[..words.len().min(64)]).into_owned()
}

/// The error of a subcommand that there is not.
pub(super) fn unknown_subcommand(command: &str, given: &[u8]) -> String {
    format!("ERR unknown subcommand '{}' of {command} on a Trunkline agent", shown(given))
}

/// A decimal number.
pub(super) fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
