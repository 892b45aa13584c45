//! What agents report of themselves, as text.

use std::time::Duration;

use tonic::{Code, Status};
use trunkline_proto::v1::{
    AgentChannel, AgentHealing, AgentProgram, AgentReport, ListNodesRequest, Node,
};

use super::{
    Client,
    duration::{since, two_units},
    visible,
};

/// The agents that are connected to any gateway. None for a caller that may not list nodes.
pub(super) async fn list(client: &mut Client) -> Result<Vec<Node>, Status> {
    let (mut agents, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            ListNodesRequest { page_size: 1000, page_token, agents: true, ..Default::default() };
        let page = match client.list_nodes(request).await {
            Ok(page) => page.into_inner(),
            Err(status) if status.code() == Code::PermissionDenied => return Ok(agents),
            Err(status) => return Err(status),
        };
        // A gateway of an earlier release lists all nodes.
        agents.extend(page.nodes.into_iter().filter(|node| node.agent.is_some()));
        if page.next_page_token.is_empty() {
            return Ok(agents);
        }
        page_token = page.next_page_token;
    }
}

/// The lines of an agent: what each is about, and its text.
pub(super) fn lines(node: &Node, agent: &AgentReport) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("agent", format!("{} on {}", visible(&node.node_id), visible(&agent.host))),
        (
            "",
            format!(
                "{} messages ({} events) published, {} events received, {} messages delivered to \
                 {} subscribers",
                agent.published_messages,
                agent.published_events,
                agent.received_events,
                agent.delivered_messages,
                agent.subscribers
            ),
        ),
        (
            "",
            format!(
                "{} messages undecodable, {} events left out, {} rejected, {} given up, {}",
                agent.undecodable_messages,
                agent.left_out_events,
                agent.rejected_events,
                agent.lost_events,
                waiting(agent)
            ),
        ),
    ];
    lines.extend(agent.joined_channel.iter().map(|of| ("channel", channel(of))));
    lines.extend(agent.programs.iter().map(|of| ("program", program(of, &agent.format))));
    lines.extend(agent.last_healings.iter().map(|of| ("healing", healing(of))));
    lines
}

/// The events that wait for a gateway, and for how long.
pub(super) fn waiting(agent: &AgentReport) -> String {
    let age = agent.waiting_age.and_then(|age| Duration::try_from(age).ok());
    match age {
        Some(age) => format!("{} waiting for {}", agent.waiting_events, two_units(age)),
        None => format!("{} waiting", agent.waiting_events),
    }
}

fn program(program: &AgentProgram, format: &str) -> String {
    format!(
        "{} at {}, {} {}, {} messages in {}{}",
        visible(&program.program_id),
        visible(&program.peer),
        visible(format),
        visible(&program.version),
        program.published_messages,
        since(program.since_time),
        if program.duplicate { ", DUPLICATE: two processes use this id" } else { "" }
    )
}

/// A channel of Redis that the agent has joined.
pub(super) fn channel(channel: &AgentChannel) -> String {
    format!(
        "{} at {}, {}, {} messages published",
        visible(&channel.channel),
        visible(&channel.server),
        if channel.carried { "carried" } else { "NOT CARRIED: another agent does, or it is away" },
        channel.published_messages
    )
}

/// A healing, and its age.
pub(super) fn healing(healing: &AgentHealing) -> String {
    let of = match (healing.others, healing.programs) {
        (true, _) => "all programs of other hosts".to_owned(),
        (false, 1) => "1 program".to_owned(),
        (false, programs) => format!("{programs} programs"),
    };
    let (reason, ago) = (visible(&healing.reason), since(healing.heal_time));
    format!("{ago} ago, {reason}: {of}, with {} accounts", healing.accounts)
}
