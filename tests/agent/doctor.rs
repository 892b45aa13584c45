//! `trunkline doctor --agent`, on the mail server's host.

use serde_json::Value;
use trunkline::{agent::serve::Options, agent::session::Credentials};

use super::relay::Host;
use crate::support::{
    Gateway, GatewayOptions, LIMIT, folder, gateway::trunkline, process::Process,
};

/// The findings: check and level of each, and what was seen.
async fn doctor(host: &Host, gateway: &str, more: &[&str]) -> Vec<(String, String, String)> {
    let address = host.address.to_string();
    let arguments = ["doctor", "--json", "--agent", &address, "--gateway", gateway];
    let arguments = arguments.iter().chain(more).copied();
    // It waits for what does not come, a while in each direction.
    let output = trunkline(arguments).run(2 * LIMIT).await;
    let report: Value = serde_json::from_str(&output.stdout).expect(&output.stderr);
    let text = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
    let findings = report["findings"].as_array().expect("findings").iter();
    findings.map(|f| (text(f, "check"), text(f, "level"), text(f, "seen"))).collect()
}

fn levels(findings: &[(String, String, String)]) -> Vec<(&str, &str)> {
    findings.iter().map(|(check, level, _)| (check.as_str(), level.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_checks_the_way_through_an_agent_and_back() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::start("host-1", &gateway.url()).await;
    host.is_connected().await;
    let findings = doctor(&host, &gateway.url(), &[]).await;
    let expected = ["agent password", "agent", "agent, up", "agent, down", "agent state"];
    assert_eq!(levels(&findings), expected.map(|check| (check, "ok")), "{findings:?}");
    assert!(findings[2].2.ends_with("of host-1"), "{findings:?}");
    assert!(findings[4].2.starts_with("host-1 on this-host: "), "{findings:?}");
    // The agent's gateway and that of doctor are two deployments.
    let other = Gateway::start(GatewayOptions::embedded()).await;
    let findings = doctor(&host, &other.url(), &[]).await;
    assert_eq!(
        levels(&findings)[2..],
        [("agent, up", "failure"), ("agent, down", "failure"), ("agent state", "not checked")],
        "{findings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_checks_an_agent_at_a_unix_socket() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let folder = folder::new();
    let address = format!("unix:{}", folder.path().join("agent.sock").display());
    let (url, listen) = (gateway.url(), ["agent", "--listen", &address]);
    let agent = Process::start("agent", trunkline(listen).env("TRUNKLINE_GATEWAY", url.clone()));
    agent.stderr_has("the agent listens", LIMIT).await;
    let arguments = ["doctor", "--agent", &address, "--gateway", &url];
    let found = trunkline(arguments).run(2 * LIMIT).await.success();
    assert!(found.contains("is an agent, version"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_a_wrong_password_and_an_agent_that_is_not_there() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let credentials = Credentials { user: "mail".into(), password: "secret".into() };
    let options = |options| Options { credentials: Some(credentials), ..options };
    let host = Host::with("host-1", &gateway.url(), options).await;
    host.is_connected().await;
    let findings = doctor(&host, &gateway.url(), &[]).await;
    assert_eq!(levels(&findings)[..2], [("agent", "ok"), ("agent password", "failure")]);
    let folder = folder::new();
    let path = folder.path().join("password");
    let file = path.display().to_string();
    let given = ["--agent-user", "mail", "--agent-password-file", &file];
    std::fs::write(&path, "wrong\n").expect("a file");
    let findings = doctor(&host, &gateway.url(), &given).await;
    assert_eq!(levels(&findings)[0], ("agent password", "failure"));
    std::fs::write(&path, "secret\n").expect("a file");
    let findings = doctor(&host, &gateway.url(), &given).await;
    assert!(levels(&findings).iter().all(|(_, level)| *level == "ok"), "{findings:?}");

    let mut gone = host;
    gone.address = "127.0.0.1:1".parse().expect("an address");
    let findings = doctor(&gone, &gateway.url(), &[]).await;
    assert_eq!(levels(&findings)[0], ("agent", "failure"));
    assert!(levels(&findings)[1..].iter().all(|(_, level)| *level == "not checked"));
}
