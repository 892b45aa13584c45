//! What agents report of themselves is listed on all gateways.

use std::time::Duration;

use trunkline_proto::v1::{
    Acknowledge, AgentProgram, AgentReport, Filter, ListNodesRequest, Node, watch_request::Request,
};

use super::{
    nodes, page, redis,
    support::{Gateway, LIMIT, TestNode, until, watch::Watch},
    two,
};

/// In which a duplicate is noticed: reports take seconds to reach other gateways.
const NOTICED: Duration = Duration::from_secs(30);

/// An agent that serves program 3.
async fn agent(gateway: &Gateway, host: &str) -> Watch {
    let node = TestNode::connect(gateway, &format!("agent-{host}")).await;
    let watch = node.watch(node.open(Filter::default())).await;
    report(&watch, host, "3").await;
    watch
}

async fn report(watch: &Watch, host: &str, program: &str) {
    let program = AgentProgram { program_id: program.into(), ..Default::default() };
    let report = AgentReport {
        host: host.into(),
        format: "agora".into(),
        programs: vec![program],
        published_messages: 71,
        ..Default::default()
    };
    let resume_token = watch.last_token();
    watch.send(Request::Acknowledge(Acknowledge { resume_token, agent: Some(report) })).await;
}

async fn agents(gateway: &Gateway) -> Vec<Node> {
    page(gateway, ListNodesRequest { agents: true, ..Default::default() }).await.nodes
}

async fn duplicates(gateway: &Gateway) -> Vec<bool> {
    let agents = agents(gateway).await.into_iter().filter_map(|node| node.agent);
    agents.flat_map(|agent| agent.programs).map(|program| program.duplicate).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_listed_on_all_gateways_and_one_id_at_two_agents_is_told() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let plain = TestNode::connect(&a, "plain").await;
    let _plain = plain.subscribe(plain.request()).await;
    let _one = agent(&a, "mx1").await;
    for gateway in [&a, &b] {
        until(LIMIT, "the agent", async || agents(gateway).await.len() == 1).await;
        let agent = agents(gateway).await.remove(0);
        assert_eq!(agent.node_id, "agent-mx1");
        let report = agent.agent.expect("a report");
        assert_eq!((report.host.as_str(), report.published_messages), ("mx1", 71));
        assert_eq!(report.programs[0].program_id, "3");
        until(LIMIT, "both nodes", async || nodes(gateway).await.len() == 2).await;
    }
    let two = agent(&b, "mx2").await;
    for gateway in [&a, &b] {
        until(NOTICED, "duplicates", async || duplicates(gateway).await == [true, true]).await;
        gateway.stderr_has("two programs of two agents use one id", LIMIT).await;
    }
    report(&two, "mx2", "4").await;
    for gateway in [&a, &b] {
        until(LIMIT, "two ids", async || duplicates(gateway).await == [false, false]).await;
        gateway.stderr_has("the id belongs to one program again", LIMIT).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_too_large_ends_its_stream_and_is_not_listed() {
    let redis = redis().await;
    let (a, _) = two(&redis).await;
    let node = TestNode::connect(&a, "agent").await;
    let watch = node.watch(node.open(Filter::default())).await;
    report(&watch, &"x".repeat(129), "3").await;
    let end = watch.end(LIMIT).await.expect_err("an error");
    assert!(end.message().contains("acknowledge.agent: a text has 129 bytes"), "{end:?}");
    assert_eq!(agents(&a).await, []);
}
