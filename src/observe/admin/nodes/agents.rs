//! The row of one agent.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::super::values::{milliseconds, whole};
use crate::proto::v1;

/// The row of one agent. Durations are in milliseconds, times in milliseconds since 1970.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentRow {
    node_id: String,
    host: String,
    format: String,
    programs: Vec<Program>,
    subscribers: u32,
    published_messages: u64,
    published_events: u64,
    received_events: u64,
    undecodable: u64,
    given_up: u64,
    waiting: u64,
    /// Of the oldest event that waits; `None` if none does.
    waiting_age: Option<u64>,
    healings: u64,
    last_healing: Option<Healing>,
    channel: Option<Channel>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Program {
    id: String,
    version: String,
    peer: String,
    since: Option<u64>,
    messages: u64,
    duplicate: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Healing {
    at: Option<u64>,
    reason: String,
    programs: u32,
    others: bool,
    accounts: u32,
}

/// A channel of Redis that it has joined.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Channel {
    name: String,
    server: String,
    carried: bool,
    messages: u64,
}

impl AgentRow {
    /// The row of what an agent reports.
    pub(super) fn new(node_id: &str, report: &v1::AgentReport) -> AgentRow {
        let age = report.waiting_age.and_then(|age| Duration::try_from(age).ok());
        AgentRow {
            node_id: node_id.to_owned(),
            host: report.host.clone(),
            format: report.format.clone(),
            programs: report.programs.iter().map(Program::from).collect(),
            subscribers: report.subscribers,
            published_messages: report.published_messages,
            published_events: report.published_events,
            received_events: report.received_events,
            undecodable: report.undecodable_messages,
            given_up: report.lost_events,
            waiting: report.waiting_events,
            waiting_age: age.map(whole),
            healings: report.healings,
            last_healing: report.last_healings.first().map(Healing::from),
            channel: report.joined_channel.as_ref().map(|channel| Channel {
                name: channel.channel.clone(),
                server: channel.server.clone(),
                carried: channel.carried,
                messages: channel.published_messages,
            }),
        }
    }
}

impl From<&v1::AgentProgram> for Program {
    fn from(program: &v1::AgentProgram) -> Program {
        Program {
            id: program.program_id.clone(),
            version: program.version.clone(),
            peer: program.peer.clone(),
            since: time(program.since_time),
            messages: program.published_messages,
            duplicate: program.duplicate,
        }
    }
}

impl From<&v1::AgentHealing> for Healing {
    fn from(healing: &v1::AgentHealing) -> Healing {
        Healing {
            at: time(healing.heal_time),
            reason: healing.reason.clone(),
            programs: healing.programs,
            others: healing.others,
            accounts: healing.accounts,
        }
    }
}

fn time(time: Option<prost_types::Timestamp>) -> Option<u64> {
    time.and_then(|time| SystemTime::try_from(time).ok()).map(milliseconds)
}
