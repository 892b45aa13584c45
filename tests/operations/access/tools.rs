//! Tools and clients of a gateway with TLS and tokens: doctor, grpcurl, the command line.

use serde_json::{Value, json};
use trunkline_client::Client;

use super::{MX_TOKEN, WEB_TOKEN, files::Files, url};
use crate::support::{Gateway, LIMIT, events, gateway::trunkline, process::Program, tools};

/// Runs doctor: its exit code, and what it prints, one finding in a line.
async fn doctor(gateway: &Gateway, flags: &[&str]) -> (Option<i32>, String) {
    let file = gateway.config_file().display().to_string();
    let args = ["doctor", "--config", &file].into_iter().chain(flags.iter().copied());
    let output = trunkline(args.collect::<Vec<_>>()).run(LIMIT).await;
    (output.status.code(), output.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_checks_a_gateway_over_tls_and_its_files() {
    let files = Files::new().await;
    let name = "spiffe://example.org/mail/mx1";
    files.certificate("mail", "ca", &format!("URI:{name}"), "-days 90").await;
    files.certificate("server", "ca", "DNS:localhost", "-days 90").await;
    files.write("token", format!("{MX_TOKEN}\n"));
    let token = ["--token-file", &files.path("token")];
    let shown = ["--tls-cert", &files.path("mail.pem"), "--tls-key", &files.path("mail.key")];

    let optional = files.start(files.options("optional").set("reloadInterval", "1h")).await;
    let (code, output) = doctor(&optional, &[]).await;
    assert!(code == Some(0) && output.contains("serves\n"), "{output}");
    assert!(output.contains("not shown to this identity (Unauthenticated)"), "{output}");
    let (code, output) = doctor(&optional, &token).await;
    assert!(code == Some(0) && output.contains("serves 0 streams on 1 shards"), "{output}");
    let (code, output) = doctor(&optional, &shown).await;
    assert!(code == Some(0) && output.contains("identity (PermissionDenied)"), "{output}");
    assert!(output.contains("server.pem (localhost) is valid for "), "{output}");

    let required = files.start(files.options("required")).await;
    let (code, output) = doctor(&required, &token).await;
    assert!(code == Some(0) && output.contains("give one with --tls-cert"), "{output}");
    let (code, output) = doctor(&required, &shown).await;
    assert!(code == Some(0) && output.contains("identity (PermissionDenied)"), "{output}");

    // The files are renewed, and the gateway has not reloaded them yet.
    files.certificate("server", "ca", "DNS:localhost", "-days 7").await;
    let (code, output) = doctor(&optional, &token).await;
    assert!(code == Some(1) && output.contains("shows another certificate"), "{output}");
    assert!(output.contains("server.pem (localhost) expires in "), "{output}");
    // Files with which a gateway would not start.
    files.certificate("server", "ca", "DNS:localhost", "-days -1").await;
    let (code, output) = doctor(&optional, &token).await;
    assert!(code == Some(1) && output.contains("server.pem (localhost) expired"), "{output}");
    files.write("server.key", files.read("other.key"));
    let (code, output) = doctor(&optional, &token).await;
    assert!(code == Some(1) && output.contains("do not match"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_the_command_line_and_the_clients_send_a_token() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let ca = files.path("ca.pem");
    let address = format!("localhost:{}", gateway.port());
    let grpcurl = |options: &[&str], asked: &[&str]| {
        let args = ["-cacert", &ca].into_iter().chain(options.iter().copied());
        let args = args.chain([address.as_str()]).chain(asked.iter().copied());
        Program::new(tools::grpcurl(), args).run(LIMIT)
    };
    // The command that the gateway suggests at its start has the flags that its nodes need.
    let tried = "grpcurl -cacert CA.pem -H 'authorization: Bearer TOKEN' 127.0.0.1:";
    assert!(gateway.stderr().contains(tried), "{}", gateway.stderr());
    // Reflection requires an operation.
    let header = |token: &str| format!("authorization: Bearer {token}");
    let listed = grpcurl(&["-H", &header(MX_TOKEN)], &["list"]).await.success();
    assert!(listed.contains("trunkline.v1.CoordinationService"), "{listed}");
    for options in [&["-H", &header(WEB_TOKEN)][..], &[]] {
        let refused = grpcurl(options, &["list"]).await;
        assert!(!refused.status.success(), "{refused:?}");
    }
    files.write("token", format!("{MX_TOKEN}\n"));
    let there = url(&gateway);
    let flags = ["--gateway", &there, "--tls-ca", &ca, "--token-file", &files.path("token")];
    let run = |args: &[&str]| {
        trunkline(args[..1].iter().chain(&flags).chain(&args[1..]).copied().collect::<Vec<_>>())
            .run(LIMIT)
    };
    let publish = ["publish", "--node-id", "mx-1", "queue-refresh"];
    run(&publish).await.success();
    run(&["status"]).await.success();
    let nodes = run(&["top", "--once", "--interval", "0.2"]).await.success();
    assert!(nodes.contains("SERVING"), "{nodes}");
    let loaded =
        run(&["bench", "--for", "1s", "--rate", "50", "--subscribers", "2", "--json"]).await;
    let loaded: Value = serde_json::from_str(&loaded.success()).expect("JSON");
    assert_eq!(loaded["lost"], 0, "{loaded}");
    // Without an authority, those are trusted that the system trusts.
    let of_system = |args: &[&'static str]| {
        let url = format!("https://{address}");
        let program = trunkline(args.iter().copied()).env("TRUNKLINE_GATEWAY", url);
        program.env("TRUNKLINE_TOKEN", MX_TOKEN)
    };
    of_system(&["status"]).env("SSL_CERT_FILE", &ca).run(LIMIT).await.success();
    let refused = of_system(&["status"]).run(LIMIT).await;
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    // An address without a scheme is https where certificates are given.
    let flags = ["--gateway", &address, "--tls-ca", &ca, "--token-file", &files.path("token")];
    trunkline(["status"].iter().chain(&flags).copied()).run(LIMIT).await.success();
    assert!(!run(&["publish", "--node-id", "web", "queue-refresh"]).await.status.success());

    let python = |args: &[&str]| {
        let all = ["--gateway", &address, "--tls-ca", &ca].into_iter();
        tools::python_example("mail_node.py", all.chain(args.iter().copied())).run(LIMIT)
    };
    let event = json!({ "queueRefresh": {} }).to_string();
    let publish = ["--node-id", "mx-1", "publish", &event];
    let refused = python(&publish).await;
    assert!(refused.stderr.contains("UNAUTHENTICATED"), "{refused:?}");
    let token_file = files.path("token");
    let with_token = [&["--token-file", &token_file], &publish[..]].concat();
    assert!(python(&with_token).await.success().contains("position"));
    files.certificate("imap", "ca", "DNS:imap.example.org", "-days 7").await;
    let shown = ["--tls-cert", &files.path("imap.pem"), "--tls-key", &files.path("imap.key")];
    let with_certificate = [&shown[..], &["--node-id", "imap", "publish", &event]].concat();
    assert!(python(&with_certificate).await.success().contains("position"));
    let of_system = ["--gateway", &there, "--token-file", &token_file].into_iter().chain(publish);
    let of_system = tools::python_example("mail_node.py", of_system).env("SSL_CERT_FILE", &ca);
    assert!(of_system.run(LIMIT).await.success().contains("position"));

    let client = Client::builder("mx-7").gateway(&there).credentials(files.token(MX_TOKEN));
    let client = client.build().expect("a client");
    client.publish([events::queue_refresh()]).await.expect("published");
    let denied = Client::builder("web-7").gateway(&there).credentials(files.token(WEB_TOKEN));
    let error = denied.build().expect("a client").publish([events::queue_refresh()]).await;
    assert_eq!(error.expect_err("an error").kind(), trunkline_client::ErrorKind::Denied);
}
