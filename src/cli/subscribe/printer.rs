//! What `trunkline subscribe` prints: events to standard output, everything else to standard error.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Value, json};
use trunkline::json;
use trunkline_client::Notification;
use trunkline_proto::v1::{Event, EventBatch, SubscribeResponse, subscribe_response::Response};

use super::Subscribe;
use crate::cli::{Failure, explain, json_text, remarks::Loss, visible_json};

/// Prints notifications.
pub(super) struct Printer<'a> {
    command: &'a Subscribe,
    /// Events that were received and not printed yet, and the token after the last of them.
    events: Vec<Event>,
    token: Vec<u8>,
    loss: Loss,
}

impl Printer<'_> {
    pub(super) fn new(command: &Subscribe) -> Printer<'_> {
        Printer { command, events: vec![], token: vec![], loss: Loss::default() }
    }

    /// Takes a notification, and the resume token after it. Events are printed by [`Self::flush`].
    pub(super) fn take(&mut self, notification: Notification, token: &[u8]) -> Result<(), Failure> {
        if let Notification::Event(event) = notification {
            self.events.push(*event);
            if self.token != token {
                // It covers a whole batch, as the gateway sent it.
                self.token = token.to_vec();
                return self.flush();
            }
            return Ok(());
        }
        self.flush()?;
        token.clone_into(&mut self.token);
        let response = match notification {
            Notification::Reconnecting { reason, wait } => return self.print_loss(&reason, wait),
            Notification::Subscribed(subscribed) => Response::Subscribed(subscribed),
            Notification::Gap(gap) => Response::Gap(gap),
            Notification::Heartbeat(heartbeat) => Response::Heartbeat(heartbeat),
            Notification::CurrentNodes(current) => Response::CurrentNodes(current),
            Notification::Draining(draining) => Response::Draining(draining),
            Notification::Notice(notice) => Response::Notice(notice),
            Notification::Explanation(explanation) if !self.command.all => {
                return explain::print_all(&explanation, self.command.json);
            }
            Notification::Explanation(explanation) => Response::Explanation(explanation),
            _ => return Ok(()),
        };
        let resumed = matches!(response, Response::Subscribed(_)) && self.loss.ends();
        let routine = matches!(response, Response::Subscribed(_) | Response::Heartbeat(_));
        let response = SubscribeResponse { response: Some(response) };
        let json = json::response_to_json(&response).map_err(Failure::Other)?;
        if self.command.all {
            self.print(&json)
        } else if !routine || resumed || self.command.heartbeats {
            print(&mut io::stderr().lock(), &json)
        } else {
            Ok(())
        }
    }

    /// Prints the events that were taken.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() {
            return Ok(());
        }
        if self.command.all {
            let batch = EventBatch { events, resume_token: self.token.clone() };
            let response = SubscribeResponse { response: Some(Response::Events(batch)) };
            return self.print(&json::response_to_json(&response).map_err(Failure::Other)?);
        }
        let mut out = io::stdout().lock();
        for event in &events {
            if event.kind.is_none() {
                // Its content is lost here, which must not go without a word.
                let unknown = json!({ "eventId": event.event_id, "source": event.source });
                print(&mut io::stderr().lock(), &json!({ "unknownKind": unknown }))?;
            }
            // The explanation covers them.
            if !self.command.explain {
                let json = json::event_to_json(event);
                writeln!(out, "{}", json_text(&json, self.command.pretty))?;
            }
        }
        // The reader of a pipe gets each event when it arrives.
        Ok(out.flush()?)
    }

    /// Prints a response to standard output.
    fn print(&self, response: &Value) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", json_text(response, self.command.pretty))?;
        Ok(out.flush()?)
    }

    /// Prints that another stream will be opened.
    fn print_loss(&mut self, reason: &str, wait: Duration) -> Result<(), Failure> {
        if !self.loss.is_news(reason) {
            return Ok(());
        }
        let wait = format!("{:.3}s", wait.as_secs_f64());
        let loss = json!({ "reconnecting": { "reason": reason, "wait": wait } });
        print(&mut io::stderr().lock(), &loss)
    }
}

fn print(out: &mut impl Write, json: &Value) -> Result<(), Failure> {
    writeln!(out, "{}", visible_json(&json.to_string()))?;
    Ok(out.flush()?)
}
