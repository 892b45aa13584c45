//! `trunkline nodes --watch`: the list, then the nodes that join and leave.
//!
//! It follows the events about nodes, where gateways publish them, and else lists the nodes again
//! and again.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use prost_types::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Code;
use tonic_types::StatusExt;
use trunkline::json;
use trunkline_client::{Error, Notification, SubscribeOptions, Subscription};
use trunkline_proto::v1::{
    Event, EventKind, Filter, NodeJoined, NodeLeft, NodeLeftReason, event::Kind,
};

use super::{
    Nodes,
    changes::{Change, Streams, entry},
};
use crate::cli::{
    Failure, NodeArgs,
    connection::Client as Connection,
    duration::{second, since},
    json_text,
    remarks::Remarks,
    table::Table,
    visible,
};

/// Time limit of one list.
const LIMIT: Duration = Duration::from_secs(10);

/// How long the reason is waited for for which a node has left that a later list lacks.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// Watches until it fails.
pub async fn watch(nodes: &Nodes) -> Result<(), Failure> {
    // A wrong address fails at once; a gateway that goes away later is waited for.
    let connection = nodes.gateway.connect().await?;
    let mut watch = Watch { nodes, streams: Streams::default(), remarks: Remarks::new(nodes.json) };
    let why = if nodes.agents {
        "events about nodes do not say which ones are agents".to_owned()
    } else {
        watch.follow().await?
    };
    let interval = nodes.interval;
    let text = format!("{why}: listing the nodes every {interval:?}");
    let object = json!({ "reason": why, "interval": format!("{}s", interval.as_secs_f64()) });
    watch.remarks.say("polling", &object, &text)?;
    watch.poll(connection).await
}

struct Watch<'a> {
    nodes: &'a Nodes,
    streams: Streams,
    remarks: Remarks,
}

impl Watch<'_> {
    /// Follows events about nodes. Returns why they cannot be followed.
    async fn follow(&mut self) -> Result<String, Failure> {
        // Not a node that anybody looks for: this incarnation is left out.
        let own = uuid::Uuid::new_v4().to_string();
        let client = self.nodes.gateway.client(&NodeArgs::default())?;
        let client = client
            .incarnation(&own)
            .client_version(concat!("trunkline nodes ", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::Usage(error.to_string()))?;
        loop {
            let mut subscription = client.subscribe(about_nodes());
            match self.follow_one(&mut subscription, &own).await? {
                Ended::Missed => {}
                Ended::NotPossible(why) => return Ok(why),
            }
        }
    }

    async fn follow_one(
        &mut self,
        subscription: &mut Subscription,
        own: &str,
    ) -> Result<Ended, Failure> {
        let mut listed_at = Instant::now();
        loop {
            let next = if self.streams.has_missing() {
                let next = timeout_at(listed_at + SETTLED_AFTER, subscription.next()).await;
                let Ok(next) = next else {
                    let changes = self.streams.settle();
                    self.print(changes, SystemTime::now().into())?;
                    continue;
                };
                next
            } else {
                subscription.next().await
            };
            let notification = match next {
                None => return Err(Failure::Other("the stream has ended".into())),
                Some(Err(error)) => return why_not(&error).map(Ended::NotPossible),
                Some(Ok(notification)) => notification,
            };
            match notification {
                Notification::Subscribed(_) => {
                    self.remarks.answers(None)?;
                    self.streams.begin_list();
                }
                Notification::CurrentNodes(_) => {
                    listed_at = Instant::now();
                    let changes = self.streams.list_is_complete();
                    self.print(changes, SystemTime::now().into())?;
                }
                Notification::Event(event) => {
                    let time = event.publish_time.unwrap_or_else(|| SystemTime::now().into());
                    let change = match event.kind {
                        Some(Kind::NodeJoined(stream)) if self.includes(&stream, own) => {
                            self.streams.joined(stream)
                        }
                        Some(Kind::NodeLeft(left)) => self.streams.left(left),
                        _ => None,
                    };
                    self.print(change.into_iter().collect(), time)?;
                }
                Notification::Gap(gap) => {
                    let reason = gap.reason().as_str_name();
                    let text = "events about nodes were missed: listing the nodes again";
                    self.remarks.say("gap", &json!({ "reason": reason }), text)?;
                    return Ok(Ended::Missed);
                }
                Notification::Reconnecting { reason, .. } => {
                    self.remarks.lost(None, &reason)?;
                }
                _ => {}
            }
        }
    }

    /// Lists the nodes again and again.
    async fn poll(&mut self, connection: Connection) -> Result<(), Failure> {
        let address = self.nodes.gateway.address();
        let mut connection = Some(connection);
        loop {
            let list = async {
                let mut client = match connection.take() {
                    Some(client) => client,
                    None => self.nodes.gateway.connect().await?,
                };
                let list = self.nodes.list(&mut client).await?;
                Ok::<_, Failure>((client, list))
            };
            let late = || Failure::Unavailable {
                address: address.clone(),
                why: format!("no list within {LIMIT:?}"),
            };
            match timeout(LIMIT, list).await.unwrap_or_else(|_| Err(late())) {
                Ok((client, (list, _))) => {
                    self.remarks.answers(Some(&address))?;
                    connection = Some(client);
                    let changes = self.streams.polled(list.into_iter().map(entry).collect());
                    self.print(changes, SystemTime::now().into())?;
                }
                Err(failure) if failure.is_unavailable() => {
                    self.remarks.lost(Some(&address), &failure.reason())?;
                }
                Err(failure) => return Err(failure),
            }
            sleep(self.nodes.interval).await;
        }
    }

    /// True if the flags ask for this stream. `own`: the incarnation of this command.
    fn includes(&self, stream: &NodeJoined, own: &str) -> bool {
        let Nodes { of, node_id, .. } = self.nodes;
        stream.incarnation != own
            && of.as_ref().is_none_or(|of| *of == stream.gateway_id)
            && node_id.as_ref().is_none_or(|id| *id == stream.node_id)
    }

    fn print(&self, changes: Vec<Change>, time: Timestamp) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        for change in changes {
            if self.nodes.json {
                for json in as_json(change, time) {
                    writeln!(out, "{}", json_text(&json, self.nodes.pretty))?;
                }
            } else {
                write!(out, "{}", as_text(&change, time))?;
            }
        }
        Ok(out.flush()?)
    }
}

enum Ended {
    /// Events were missed: a list is needed.
    Missed,
    /// The gateway does not give these events, for this reason.
    NotPossible(String),
}

/// The list of the nodes that are there, then all events about nodes.
fn about_nodes() -> SubscribeOptions {
    let kinds = [EventKind::NodeJoined, EventKind::NodeLeft].map(i32::from).to_vec();
    let filter = Filter { kinds, ..Filter::default() };
    SubscribeOptions::new().filter(filter).current_nodes()
}

/// Why a gateway does not give events about nodes, although it may list them.
fn why_not(error: &Error) -> Result<String, Failure> {
    let Some(status) = error.status() else { return Err(Failure::Other(error.to_string())) };
    let reason = status.get_details_error_info().map(|info| info.reason);
    match (reason.as_deref(), status.code()) {
        (Some("NOT_ENABLED"), _) => {
            let cure = "set nodeEvents to true on all of them to follow nodes as they come and go";
            Ok(format!("gateways do not publish events about nodes ({cure})"))
        }
        (_, Code::PermissionDenied) => {
            Ok(format!("events about nodes cannot be followed ({})", status.message()))
        }
        _ => Err(Failure::Gateway(status.clone())),
    }
}

/// Events, as `subscribe` prints them; after the list its number.
fn as_json(change: Change, time: Timestamp) -> Vec<Value> {
    let event = |kind, time| {
        let event = Event { publish_time: time, kind: Some(kind), ..Event::default() };
        json::event_to_json(&event)
    };
    match change {
        Change::Listed(streams) => {
            let nodes = streams.len();
            let streams = streams.into_iter().map(|stream| {
                event(Kind::NodeJoined(NodeJoined { current: true, ..stream }), None)
            });
            let number = json!({ "currentNodes": { "nodes": nodes.to_string() } });
            streams.chain([number]).collect()
        }
        Change::Joined(stream) => {
            let stream = NodeJoined { current: false, ..stream };
            vec![event(Kind::NodeJoined(stream), Some(time))]
        }
        Change::Left(left) => vec![event(Kind::NodeLeft(left), Some(time))],
    }
}

/// The list as a table, a change as a line.
fn as_text(change: &Change, time: Timestamp) -> String {
    let roles = |roles: &[String]| {
        if roles.is_empty() { String::new() } else { format!(" ({})", roles.join(",")) }
    };
    match change {
        Change::Listed(streams) => {
            let mut table = Table::new(["NODE", "ROLES", "GATEWAY", "PEER", "UP FOR"]);
            for stream in streams {
                table.add([
                    stream.node_id.clone(),
                    stream.roles.join(","),
                    stream.gateway_id.clone(),
                    stream.peer.clone(),
                    since(stream.connect_time),
                ]);
            }
            table.to_string()
        }
        Change::Joined(NodeJoined { node_id, roles: of, gateway_id, peer, .. }) => {
            let text = format!("{node_id}{} at {gateway_id}, from {peer}", roles(of));
            format!("{} joined {}\n", second(time), visible(&text))
        }
        Change::Left(left) => {
            let NodeLeft { node_id, roles: of, gateway_id, .. } = left;
            let reason = match left.reason() {
                NodeLeftReason::Unspecified => "",
                NodeLeftReason::Closed => ": its stream was closed",
                NodeLeftReason::Drained => ": it was asked to go elsewhere",
                NodeLeftReason::Lost => ": its gateway is gone",
            };
            let text = format!("{node_id}{} at {gateway_id}{reason}", roles(of));
            format!("{} left   {}\n", second(time), visible(&text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_line_that_names_node_gateway_and_reason() {
        let time = Timestamp { seconds: 1_796_000_000, nanos: 999_999_999 };
        let stream = NodeJoined {
            node_id: "mx\u{1b}1".into(),
            roles: vec!["imap".into(), "mta".into()],
            gateway_id: "gw-a".into(),
            peer: "10.0.0.1:4000".into(),
            ..NodeJoined::default()
        };
        let joined = as_text(&Change::Joined(stream), time);
        let expected = "2026-11-30T00:53:20Z joined mx\\u{1b}1 (imap,mta) at gw-a, from \
                        10.0.0.1:4000\n";
        assert_eq!(joined, expected);
        for (reason, expected) in [
            (NodeLeftReason::Unspecified, "left   mx1 at gw-a\n"),
            (NodeLeftReason::Closed, "left   mx1 at gw-a: its stream was closed\n"),
            (NodeLeftReason::Drained, "left   mx1 at gw-a: it was asked to go elsewhere\n"),
            (NodeLeftReason::Lost, "left   mx1 at gw-a: its gateway is gone\n"),
        ] {
            let left = NodeLeft {
                node_id: "mx1".into(),
                gateway_id: "gw-a".into(),
                reason: reason.into(),
                ..NodeLeft::default()
            };
            let line = as_text(&Change::Left(left), time);
            assert_eq!(line.split_once(' ').unwrap().1, expected);
        }
    }
}
