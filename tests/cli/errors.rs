//! What commands say to type next after an error.

use serde_json::{Value, json};

use super::{code, gateway, trunkline, unused_address};
use crate::support::{Gateway, GatewayOptions, LIMIT, Ready, process::Output};

const TOKEN: &str = "token-of-the-nodes-0123456789";

/// A file of tests/tls.
fn pem(name: &str) -> String {
    format!("{}/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A gateway with TLS. `certificates`: whether nodes need one.
async fn with_tls(certificates: bool) -> Gateway {
    let mut tls = json!({ "certificate": pem("server.pem"), "privateKey": pem("server.key") });
    if certificates {
        tls["clientCa"] = pem("ca.pem").into();
        tls["clientCertificates"] = "required".into();
    }
    Gateway::start(
        GatewayOptions::embedded().set("tls", tls).set("auth", auth()).ready(Ready::Started),
    )
    .await
}

/// The rights of one identity.
fn auth() -> Value {
    let tokens = json!([{ "@type": "Value", "secret": TOKEN }]);
    let publish = json!({ "allow": { "kinds": ["queue_refresh"] } });
    let nodes = json!({ "name": "mx", "tokens": tokens, "nodeIds": ["mx*"], "publish": publish });
    json!({ "identities": [nodes] })
}

async fn run(args: &[&str], token: Option<&str>) -> Output {
    let program = trunkline(args.iter().copied());
    match token {
        Some(token) => program.env("TRUNKLINE_TOKEN", token),
        None => program,
    }
    .run(LIMIT)
    .await
}

/// The last line of the error, which says what to type next.
fn next(output: &Output) -> &str {
    let last = output.stderr.lines().last().unwrap_or_default();
    last.strip_prefix("trunkline: next: ").unwrap_or_else(|| panic!("{}", output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_connection_says_what_to_type_next() {
    let (_port, unused) = unused_address();
    let (plain, tls, mutual) = tokio::join!(gateway(), with_tls(false), with_tls(true));
    let with_tls = format!("https://localhost:{}", tls.port());
    let asks = format!("https://localhost:{}", mutual.port());
    let not_there = format!("https://{}", plain.address());
    let (no_tls, admin, ca) = (tls.address(), plain.admin_address(), pem("ca.pem"));
    for (args, expected) in [
        (&["status", "--gateway", &unused][..], "`trunkline serve` starts a gateway"),
        (&["status", "--gateway", &not_there], "--gateway http://"),
        (&["status", "--gateway", &no_tls], "--gateway https://"),
        // Those that reconnect by themselves too, at once.
        (&["subscribe", "--gateway", &no_tls], "--gateway https://"),
        (&["publish", "queue-refresh", "--gateway", &no_tls], "--gateway https://"),
        (&["nodes", "--watch", "--gateway", &no_tls], "--gateway https://"),
        (&["gaps", "--gateway", &no_tls], "--gateway https://"),
        (&["status", "--gateway", &admin], "and not the admin port"),
        (&["status", "--gateway", &with_tls], "--tls-ca FILE"),
        (&["status", "--gateway", &asks, "--tls-ca", &ca], "--tls-cert FILE and --tls-key FILE"),
        (&["subscribe", "--gateway", &asks, "--tls-ca", &ca], "--tls-cert FILE and --tls-key FILE"),
    ] {
        let output = run(args, None).await;
        assert_eq!(code(&output), 69, "{args:?}: {}", output.stderr);
        assert!(next(&output).contains(expected), "{args:?}: {}", output.stderr);
    }
    let output = run(&["status", "--json", "--gateway", &unused], None).await;
    let error: Value = serde_json::from_str(&output.stderr).expect("JSON");
    let next = error["error"]["next"].as_str().expect("what to type next");
    assert!(next.contains("trunkline serve"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_says_what_to_type_next() {
    let (open, closed) = tokio::join!(
        gateway(),
        Gateway::start(GatewayOptions::embedded().set("auth", auth()).ready(Ready::Started))
    );
    let large = "x".repeat(70_000);
    let (anyone, mx) = (open.url(), closed.url());
    let node_event = r#"{"nodeJoined":{"nodeId":"a"}}"#;
    for (args, token, expected) in [
        (&["status", "--gateway", &mx][..], None, "--token-file FILE or TRUNKLINE_TOKEN"),
        (&["status", "--gateway", &mx], Some("wrong-token-0123456789"), "`auth.identities`"),
        (&["nodes", "--gateway", &mx], Some(TOKEN), "`auth.identities[].operations`"),
        (&["publish", "queue-refresh", "--gateway", &mx], Some(TOKEN), "--node-id ID"),
        (
            &["publish", "queue-status", "paused", "--node-id", "mx1", "--gateway", &mx],
            Some(TOKEN),
            "`auth.identities[].publish`",
        ),
        (
            &["subscribe", "--kind", "node-joined", "--current-nodes", "--gateway", &anyone],
            None,
            "trunkline nodes --watch",
        ),
        (
            &["publish", "custom", "com.x", "--payload", &large, "--gateway", &anyone],
            None,
            "limits.maxEventBytes",
        ),
    ] {
        let output = run(args, token).await;
        assert_ne!(code(&output), 0, "{args:?}");
        assert!(next(&output).contains(expected), "{args:?}: {}", output.stderr);
    }
    // What says by itself what is wrong has no next step.
    let output = run(&["publish", "--json", node_event, "--gateway", &anyone], None).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    assert!(!output.stderr.contains("next:"), "{}", output.stderr);
}

#[tokio::test]
async fn a_word_that_is_nearly_one_is_corrected() {
    for (args, expected) in [
        (&["subscribe", "--kind", "mailbox-chang"][..], "did you mean mailbox-change?"),
        (&["publish", "missed-events", "--kinds", "blocked-id"], "did you mean blocked-ip?"),
        (&["publish", "custm", "com.example.x"], "did you mean custom?"),
        (&["publish", "custom", "x", "--paylod", "y"], "'--payload'"),
        (&["nodes", "--wach"], "'--watch'"),
        (&["gapz"], "gaps"),
        (&["gaps", "--interval", "5"], "like 500ms, 10s"),
        (&["nodes", "--pretty"], "--json"),
    ] {
        let output = run(args, None).await;
        assert_eq!(code(&output), 2, "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(expected), "{args:?}: {}", output.stderr);
    }
}
