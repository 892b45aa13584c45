//! Who may connect, and what they may do: every rule, and somebody who tries to get past it. Real sockets, real certificates.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{
    Gateway, GatewayOptions, LIMIT, Ready, events, folder,
    process::Program,
    tools,
    wait::{attempt, until},
};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::TcpStream};
use tonic::{
    Code, Status, Streaming,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use trunkline::{
    client::{Bearer, Client, Credentials},
    proto::v1::{
        Event, EventKind, Filter, GetStatusRequest, ListNodesRequest, PublishRequest, Start,
        SubscribeRequest, SubscribeResponse,
        coordination_service_client::CoordinationServiceClient, event::Kind,
        subscribe_response::Response,
    },
};

const MX_TOKEN: &str = "token-of-the-mail-exchangers";
const WEB_TOKEN: &str = "token-of-the-web-servers";
const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

type Node = CoordinationServiceClient<InterceptedService<Channel, Bearer>>;

/// Certificates and token files.
struct Files(TempDir);

impl Files {
    async fn new() -> Files {
        let files = Files(folder::new());
        for authority in ["ca", "other"] {
            files.authority(authority).await;
        }
        files.certificate("server", "ca", "DNS:localhost", "-days 7").await;
        std::fs::write(files.path("web.tokens"), format!("{WEB_TOKEN}\n")).expect("a file");
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file")
    }

    async fn authority(&self, name: &str) {
        let args =
            format!("req -x509 {KEY} -keyout {name}.key -out {name}.pem -days 7 -subj /CN={name}");
        openssl(self.0.path(), &args).await;
    }

    /// Makes `<file>.pem` and `<file>.key`, for a name such as `DNS:localhost`.
    async fn certificate(&self, file: &str, authority: &str, name: &str, dates: &str) {
        std::fs::write(self.path(&format!("{file}.ext")), format!("subjectAltName={name}\n"))
            .expect("a file");
        let request = format!("req {KEY} -keyout {file}.key -out {file}.csr -subj /CN={file}");
        openssl(self.0.path(), &request).await;
        let sign = format!(
            "x509 -req -in {file}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -out {file}.pem {dates} -extfile {file}.ext"
        );
        openssl(self.0.path(), &sign).await;
    }

    fn options(&self, certificates: &str) -> GatewayOptions {
        let any = json!({ "allow": { "kinds": ["*"] } });
        let identities = json!([
            { "name": "mx", "tokens": [{ "@type": "Value", "secret": MX_TOKEN }], "nodeIds": ["mx-*"],
              "publish": any, "receive": any, "operations": ["listNodes", "getStatus", "reflection"] },
            { "name": "web", "tokens": [{ "@type": "File", "filePath": self.path("web.tokens") }],
              "nodeIds": ["{identity}"],
              "publish": { "allow": { "kinds": ["custom"], "customTypes": ["org.web.*"] } },
              "receive": {
                  "allow": { "kinds": ["mailbox_change", "queue_refresh", "custom"], "customTypes": ["org.*"] },
                  "deny": { "accounts": ["vip*"], "customTypes": ["org.secret"] } } },
            { "name": "spiffe://example.org/mail/*", "nodeIds": ["{identity}"], "publish": any, "receive": any },
        ]);
        GatewayOptions::embedded()
            .set(
                "tls",
                json!({
                "certificate": self.path("server.pem"), "privateKey": self.path("server.key"),
                "clientCa": self.path("ca.pem"), "clientCertificates": certificates }),
            )
            .set("auth", json!({ "identities": identities }))
            .set("reloadInterval", "100ms")
            .ready(Ready::Started)
    }

    async fn start(&self, options: GatewayOptions) -> Gateway {
        let gateway = Gateway::start(options).await;
        gateway.stderr_has("listens on", LIMIT).await;
        gateway
    }

    fn trusting(&self) -> Credentials {
        Credentials::new().ca_certificate(self.read("ca.pem"))
    }

    fn token(&self, token: &str) -> Credentials {
        self.trusting().token(token).expect("a token")
    }

    fn shows(&self, file: &str) -> Credentials {
        let key = self.read(&format!("{file}.key"));
        self.trusting().client_certificate(self.read(&format!("{file}.pem")), key)
    }
}

async fn openssl(folder: &Path, args: &str) {
    let there = format!("cd \"$0\" && exec \"$1\" {args}");
    let (folder, openssl) = (folder.display().to_string(), tools::openssl().display().to_string());
    Program::new("sh", ["-c", &there, &folder, &openssl]).run(LIMIT).await.success();
}

fn url(gateway: &Gateway) -> String {
    format!("https://localhost:{}", gateway.port())
}

async fn try_connect(gateway: &Gateway, credentials: &Credentials) -> Result<Node, String> {
    let endpoint = Endpoint::from_shared(url(gateway)).expect("a URL");
    let endpoint = credentials.apply(endpoint).expect("certificates");
    let channel = tokio::time::timeout(LIMIT, endpoint.connect()).await.expect("in time");
    let channel = channel.map_err(|error| format!("{error:?}"))?;
    Ok(CoordinationServiceClient::with_interceptor(channel, credentials.bearer()))
}

async fn connect(gateway: &Gateway, credentials: &Credentials) -> Node {
    try_connect(gateway, credentials).await.expect("a connection")
}

async fn publish(node: &Node, node_id: &str, events: Vec<Event>) -> Result<(), Status> {
    let request = PublishRequest { node_id: node_id.into(), events, ..Default::default() };
    node.clone().publish(request).await.map(|_| ())
}

fn asks(node_id: &str, filter: Filter) -> SubscribeRequest {
    SubscribeRequest { node_id: node_id.into(), filter: Some(filter), ..Default::default() }
}

/// Opens a stream, and takes its first message.
async fn subscribe(
    node: &Node,
    request: SubscribeRequest,
) -> Result<Streaming<SubscribeResponse>, Status> {
    let mut stream = node.clone().subscribe(request).await?.into_inner();
    let first = tokio::time::timeout(LIMIT, stream.message()).await.expect("in time")?;
    assert!(matches!(first.expect("a message").response, Some(Response::Subscribed(_))));
    Ok(stream)
}

/// The next events.
async fn next(stream: &mut Streaming<SubscribeResponse>) -> Result<Vec<Event>, Status> {
    loop {
        let message = tokio::time::timeout(LIMIT, stream.message()).await.expect("in time")?;
        if let Some(Response::Events(batch)) = message.expect("a message").response {
            return Ok(batch.events);
        }
    }
}

/// All events until that of this custom type.
async fn until_type(stream: &mut Streaming<SubscribeResponse>, last: &str) -> Vec<Event> {
    let mut seen = vec![];
    loop {
        for event in next(stream).await.expect("events") {
            let end = matches!(&event.kind, Some(Kind::Custom(custom)) if custom.r#type == last);
            if end {
                return seen;
            }
            seen.push(event);
        }
    }
}

#[track_caller]
fn refused<T>(result: Result<T, Status>, code: Code, reason: &str) -> Vec<String> {
    let Err(status) = result else { panic!("it was allowed") };
    let details = status.get_error_details();
    let found = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    assert_eq!((status.code(), found.as_str()), (code, reason), "{status:?}");
    let violations = details.bad_request().map(|bad| bad.field_violations.clone());
    violations.unwrap_or_default().into_iter().map(|violation| violation.field).collect()
}

#[track_caller]
fn not_allowed<T>(result: Result<T, Status>) -> Vec<String> {
    refused(result, Code::PermissionDenied, "NOT_ALLOWED")
}

#[track_caller]
fn unauthenticated<T>(result: Result<T, Status>, reason: &str) {
    refused(result, Code::Unauthenticated, reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_right_token() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    for (credentials, reason) in [
        (files.trusting(), "CREDENTIALS_MISSING"),
        (files.token("token-of-somebody-else-here"), "CREDENTIALS_WRONG"),
        (files.token(&MX_TOKEN[..MX_TOKEN.len() - 1]), "CREDENTIALS_WRONG"),
    ] {
        let node = connect(&gateway, &credentials).await;
        unauthenticated(publish(&node, "mx-1", vec![events::queue_refresh()]).await, reason);
        unauthenticated(subscribe(&node, asks("mx-1", Filter::default())).await, reason);
        unauthenticated(node.clone().get_status(GetStatusRequest {}).await, reason);
        unauthenticated(node.clone().list_nodes(ListNodesRequest::default()).await, reason);
    }
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    publish(&mx, "mx-1", vec![events::queue_refresh()]).await.expect("published");
    mx.clone().get_status(GetStatusRequest {}).await.expect("a status");
    // Nothing of any token is told anywhere.
    for text in [gateway.stderr(), gateway.stdout()] {
        assert!(!text.contains("token-of"), "{text}");
    }
    assert!(gateway.stderr().contains("refused"), "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_speaks_for_its_own_nodes_and_does_what_it_may() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    // Another's node id.
    let fields = not_allowed(publish(&web, "mx-1", vec![events::custom("org.web.a")]).await);
    assert_eq!(fields, ["node_id"]);
    let fields = not_allowed(subscribe(&web, asks("mx-1", Filter::default())).await);
    assert_eq!(fields, ["node_id"]);
    // Events that are not its to publish: all of them are named, and none is published.
    let some = vec![
        events::mailbox_change("a", 1),
        events::custom("org.web.a"),
        events::queue_refresh(),
        events::custom("org.other"),
    ];
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    let mut everything = subscribe(&mx, asks("mx-1", Filter::default())).await.expect("a stream");
    let fields = not_allowed(publish(&web, "web", some).await);
    assert_eq!(fields, ["events[0]", "events[2]", "events[3]"]);
    publish(&web, "web", vec![events::custom("org.web.last")]).await.expect("published");
    assert!(until_type(&mut everything, "org.web.last").await.is_empty());
    // What needs a right of its own.
    assert_eq!(not_allowed(web.clone().get_status(GetStatusRequest {}).await), ["method"]);
    assert_eq!(not_allowed(web.clone().list_nodes(ListNodesRequest::default()).await), ["method"]);
    mx.clone().list_nodes(ListNodesRequest::default()).await.expect("a list");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_forbidden_is_delivered_however_it_is_asked_for() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    // By name.
    let fields = not_allowed(
        subscribe(
            &web,
            asks(
                "web",
                Filter {
                    kinds: vec![
                        EventKind::MailboxChange.into(),
                        EventKind::RegistryChange.into(),
                        42,
                    ],
                    accounts: vec!["a".into(), "vip1".into()],
                    custom_types: vec![
                        "org.*".into(),
                        "com.a".into(),
                        "org.secret".into(),
                        "net.*".into(),
                    ],
                },
            ),
        )
        .await,
    );
    assert_eq!(
        fields,
        [
            "filter.kinds[1]",
            "filter.kinds[2]",
            "filter.accounts[1]",
            "filter.custom_types[1]",
            "filter.custom_types[2]",
            "filter.custom_types[3]",
        ]
    );
    // In silence: live, and from history, where all of it lies already; a last value and a newer kind are among it.
    let mut live = subscribe(&web, asks("web", Filter::default())).await.expect("a stream");
    let batch = vec![
        events::mailbox_change("vip1", 1),
        events::mailbox_change("a", 2),
        events::queue_status(),
        events::email_delivery("a", "e"),
        events::custom("org.secret"),
        events::custom("org.fine"),
        events::custom("com.example"),
        events::queue_refresh(),
        events::custom("org.last"),
    ];
    publish(&mx, "mx-1", batch).await.expect("published");
    let mut oldest = asks("web", Filter::default());
    oldest.start = Start::Oldest.into();
    let mut again = subscribe(&web, oldest).await.expect("a stream");
    for stream in [&mut live, &mut again] {
        let seen = until_type(stream, "org.last").await;
        let kinds: Vec<_> = seen.iter().map(|event| event.kind.clone().expect("a kind")).collect();
        assert!(
            matches!(&kinds[..], [Kind::MailboxChange(change), Kind::Custom(custom), Kind::QueueRefresh(_)]
                if change.account_id == "a" && custom.r#type == "org.fine"),
            "{kinds:?}"
        );
    }
    // A pattern that is wider than what is allowed is narrowed too.
    let filter = Filter { custom_types: vec!["*".into()], ..Filter::default() };
    let mut wide = subscribe(&web, asks("web", filter)).await.expect("a stream");
    let batch = ["com.a", "org.secret", "org.a", "org.last"].map(events::custom).to_vec();
    publish(&mx, "mx-1", batch).await.expect("published");
    assert_eq!(until_type(&mut wide, "org.last").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_say_who_a_node_is() {
    let files = Files::new().await;
    let spiffe = "URI:spiffe://example.org/mail/mx1,DNS:mx";
    files.certificate("mail", "ca", spiffe, "-days 7").await;
    files.certificate("stranger", "other", spiffe, "-days 7").await;
    files.certificate("expired", "ca", spiffe, "-days -1").await;
    files.certificate("nobody", "ca", "DNS:nobody", "-days 7").await;
    let gateway = files.start(files.options("required")).await;
    let own = "spiffe://example.org/mail/mx1";
    let mail = connect(&gateway, &files.shows("mail")).await;
    publish(&mail, own, vec![events::queue_refresh()]).await.expect("published");
    assert_eq!(
        not_allowed(publish(&mail, "mx-1", vec![events::queue_refresh()]).await),
        ["node_id"]
    );
    let nobody = connect(&gateway, &files.shows("nobody")).await;
    unauthenticated(
        publish(&nobody, "nobody", vec![events::queue_refresh()]).await,
        "CREDENTIALS_WRONG",
    );
    // In TLS 1.3 a client hears of it with its first request.
    for credentials in
        [files.shows("stranger"), files.shows("expired"), files.trusting(), files.token(MX_TOKEN)]
    {
        let Ok(node) = try_connect(&gateway, &credentials).await else { continue };
        let result = publish(&node, own, vec![events::queue_refresh()]).await;
        let status = result.expect_err("an error");
        assert!(!matches!(status.code(), Code::Ok | Code::PermissionDenied), "{status:?}");
    }
    // Plain text to a TLS port gets nothing.
    let plain = Endpoint::from_shared(gateway.url()).expect("a URL").connect_lazy();
    let mut plain = CoordinationServiceClient::new(plain);
    let answer = tokio::time::timeout(LIMIT, plain.get_status(GetStatusRequest {})).await;
    answer.expect("in time").expect_err("an error");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_handshakes_hold_up_nobody() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let mut idle = vec![];
    for _ in 0..20 {
        idle.push(TcpStream::connect(gateway.address()).await.expect("a connection"));
    }
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    publish(&mx, "mx-1", vec![events::queue_refresh()]).await.expect("published");

    let limits = json!({ "handshakeTimeout": "1s" });
    let gateway = files.start(files.options("optional").set("limits", limits)).await;
    let mut idle = TcpStream::connect(gateway.address()).await.expect("a connection");
    let ended = tokio::time::timeout(LIMIT, idle.read(&mut [0; 1])).await.expect("in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_exchanged_under_open_streams() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let old = files.token(MX_TOKEN);
    let mx = connect(&gateway, &old).await;
    let mut stream = subscribe(&mx, asks("mx-1", Filter::default())).await.expect("a stream");
    // A pair that does not go together changes nothing, and is told.
    let key = files.read("server.key");
    std::fs::write(files.path("server.key"), files.read("other.key")).expect("a file");
    gateway.stderr_has("stay in force", LIMIT).await;
    connect(&gateway, &old).await;
    std::fs::write(files.path("server.key"), key).expect("a file");
    // Another authority signs: who trusts the old one alone comes in no more.
    files.certificate("server", "other", "DNS:localhost", "-days 7").await;
    gateway.stderr_has("new connections see the new ones", LIMIT).await;
    let other = Credentials::new().ca_certificate(files.read("other.pem"));
    let other = other.token(MX_TOKEN).expect("a token");
    let new =
        attempt(LIMIT, "the new certificate", async || try_connect(&gateway, &other).await).await;
    try_connect(&gateway, &old).await.expect_err("the old authority");
    // The stream did not notice.
    publish(&new, "mx-2", vec![events::queue_refresh()]).await.expect("published");
    assert_eq!(next(&mut stream).await.expect("events").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_exchanged_and_taken_back() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let old = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mut stream = subscribe(&old, asks("web", Filter::default())).await.expect("a stream");
    let event = || vec![events::custom("org.web.a")];
    let next_token = "the-next-token-of-web";
    // A broken line changes nothing.
    std::fs::write(files.path("web.tokens"), "short\n").expect("a file");
    gateway.stderr_has("stay valid", LIMIT).await;
    publish(&old, "web", event()).await.expect("published");
    // Both are valid.
    std::fs::write(files.path("web.tokens"), format!("{WEB_TOKEN}\n{next_token}\n"))
        .expect("a file");
    let new = connect(&gateway, &files.token(next_token)).await;
    until(LIMIT, "the new token", async || publish(&new, "web", event()).await.is_ok()).await;
    publish(&old, "web", event()).await.expect("published");
    // The old one is taken back: its stream ends, that of the new one goes on.
    let mut kept = subscribe(&new, asks("web", Filter::default())).await.expect("a stream");
    std::fs::write(files.path("web.tokens"), format!("{next_token}\n")).expect("a file");
    let ended = loop {
        match next(&mut stream).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    unauthenticated(Err::<(), _>(ended), "CREDENTIALS_REVOKED");
    unauthenticated(publish(&old, "web", event()).await, "CREDENTIALS_WRONG");
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    publish(&mx, "mx-1", vec![events::custom("org.last")]).await.expect("published");
    until_type(&mut kept, "org.last").await;
    // A file that is gone takes all of them back.
    std::fs::remove_file(files.path("web.tokens")).expect("removed");
    let ended = next(&mut kept).await.map(|_| ());
    unauthenticated(ended, "CREDENTIALS_REVOKED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_an_authority_that_is_gone_ends_its_streams() {
    let files = Files::new().await;
    let name = "spiffe://example.org/mail/mx1";
    files.certificate("mail", "ca", &format!("URI:{name}"), "-days 7").await;
    let gateway = files.start(files.options("optional")).await;
    let mail = connect(&gateway, &files.shows("mail")).await;
    let mut stream = subscribe(&mail, asks(name, Filter::default())).await.expect("a stream");
    std::fs::write(files.path("ca.pem"), files.read("other.pem")).expect("a file");
    unauthenticated(next(&mut stream).await.map(|_| ()), "CREDENTIALS_REVOKED");
    unauthenticated(publish(&mail, name, vec![events::queue_refresh()]).await, "CREDENTIALS_WRONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_is_for_loopback_unless_somebody_says_otherwise() {
    let everywhere = |config: Value| GatewayOptions {
        config,
        ready: Ready::Started,
        ..GatewayOptions::embedded()
    };
    let token = json!({ "@type": "Value", "secret": MX_TOKEN });
    let auth = json!({ "identities": [{ "name": "mx", "tokens": [token] }] });
    for (config, why) in [
        (json!({ "listen": "0.0.0.0:0" }), "anybody who reaches it"),
        (json!({ "listen": "0.0.0.0:0", "auth": auth }), "tokens would travel in plain text"),
    ] {
        let gateway = Gateway::start(everywhere(config)).await;
        let ended = gateway.ends(LIMIT).await;
        assert_eq!(ended.status.code(), Some(78));
        assert!(gateway.stderr().contains(why), "{}", gateway.stderr());
    }
    let gateway =
        Gateway::start(everywhere(json!({ "listen": "0.0.0.0:0", "insecure": true }))).await;
    gateway.stderr_has("nobody is asked who he is", LIMIT).await;
    gateway.stderr_has("insecure: nodes connect in plain text", LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_the_command_line_and_the_client_bring_a_token() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let ca = files.path("ca.pem");
    let address = format!("localhost:{}", gateway.port());
    let grpcurl = |options: &[&str], asked: &[&str]| {
        let args = ["-cacert", &ca].into_iter().chain(options.iter().copied());
        let args = args.chain([address.as_str()]).chain(asked.iter().copied());
        Program::new(tools::grpcurl(), args).run(LIMIT)
    };
    // Load balancers need no credentials; reflection is a right of its own.
    let header = |token: &str| format!("authorization: Bearer {token}");
    let listed = grpcurl(&["-H", &header(MX_TOKEN)], &["list"]).await.success();
    assert!(listed.contains("trunkline.v1.CoordinationService"), "{listed}");
    for options in [&["-H", &header(WEB_TOKEN)][..], &[]] {
        let refused = grpcurl(options, &["list"]).await;
        assert!(!refused.status.success(), "{refused:?}");
    }
    std::fs::write(files.path("token"), format!("{MX_TOKEN}\n")).expect("a file");
    let there = url(&gateway);
    let flags = ["--gateway", &there, "--tls-ca", &ca, "--token-file", &files.path("token")];
    let run = |args: &[&str]| {
        support::gateway::trunkline(
            args[..1].iter().chain(&flags).chain(&args[1..]).copied().collect::<Vec<_>>(),
        )
        .run(LIMIT)
    };
    let publish = ["publish", "--node-id", "mx-1", "queue-refresh"];
    run(&publish).await.success();
    run(&["status"]).await.success();
    assert!(!run(&["publish", "--node-id", "web", "queue-refresh"]).await.status.success());

    let client = Client::builder("mx-7").gateway(&there).credentials(files.token(MX_TOKEN));
    let client = client.build().expect("a client");
    client.publish([events::queue_refresh()]).await.expect("published");
    let stranger = Client::builder("web-7").gateway(&there).credentials(files.token(WEB_TOKEN));
    let error = stranger.build().expect("a client").publish([events::queue_refresh()]).await;
    assert_eq!(error.expect_err("an error").kind(), trunkline::client::ErrorKind::Denied);
}
