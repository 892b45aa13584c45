//! Who may connect, and what they may do: every rule, and somebody who tries to get past it. Real sockets, real certificates.

use std::path::Path;

use super::support::{
    self, Gateway, GatewayOptions, LIMIT, Ready, events, folder,
    process::Program,
    tools,
    wait::{attempt, until},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::TcpStream};
use tonic::{
    Code, Status, Streaming,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use trunkline_client::{Bearer, Client, Credentials};
use trunkline_proto::v1::{
    Event, EventKind, Exclusion, Filter, GetStatusRequest, ListNodesRequest, PublishRequest, Start,
    SubscribeRequest, SubscribeResponse, Target,
    coordination_service_client::CoordinationServiceClient, event::Kind,
    subscribe_response::Response,
};

const MX_TOKEN: &str = "token-of-the-mail-exchangers";
const WEB_TOKEN: &str = "token-of-the-web-servers";
const SUPPORT_TOKEN: &str = "token-of-those-who-look-for-events";
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

    /// The same, from the authority `ca`, with this subject, these alternative names (if any) and only so many seconds to live.
    async fn passing(&self, file: &str, subject: &str, names: &str, seconds: u32) {
        let names =
            if names.is_empty() { String::new() } else { format!("subjectAltName={names}\n") };
        let authority = "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nnew_certs_dir=.\nserial=serial\n\
                         default_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n";
        for (name, text) in [
            (format!("{file}.ext"), &*format!("basicConstraints=CA:FALSE\n{names}")),
            ("ca.conf".to_owned(), authority),
            ("index.txt".to_owned(), ""),
            ("serial".to_owned(), "1000\n"),
        ] {
            std::fs::write(self.path(&name), text).expect("a file");
        }
        let request = format!("req {KEY} -keyout {file}.key -out {file}.csr -subj /CN={subject}");
        openssl(self.0.path(), &request).await;
        let sign = format!(
            "ca -batch -notext -config ca.conf -in {file}.csr -cert ca.pem -keyfile ca.key -out {file}.pem \
             -extfile {file}.ext -enddate $(date -u -d '+{seconds} seconds' +%Y%m%d%H%M%SZ)"
        );
        openssl(self.0.path(), &sign).await;
    }

    fn options(&self, certificates: &str) -> GatewayOptions {
        let any = json!({ "allow": { "kinds": ["*"] } });
        let identities = json!([
            { "name": "mx", "tokens": [{ "@type": "Value", "secret": MX_TOKEN }], "nodeIds": ["mx-*", "bench-*"],
              "roles": ["mta", "imap-*"], "publish": any, "receive": any, "operations": ["listNodes", "getStatus", "reflection"] },
            { "name": "web", "tokens": [{ "@type": "File", "filePath": self.path("web.tokens") }],
              "nodeIds": ["{identity}"], "roles": ["{identity}"],
              "publish": { "allow": { "kinds": ["custom"], "customTypes": ["org.web.*"] } },
              "receive": {
                  "allow": { "kinds": ["mailbox_change", "queue_refresh", "custom"], "customTypes": ["org.*"] },
                  "deny": { "accounts": ["vip*"], "customTypes": ["org.secret"] } } },
            { "name": "support", "tokens": [{ "@type": "Value", "secret": SUPPORT_TOKEN }], "nodeIds": ["*"],
              "receive": { "allow": { "kinds": ["custom", "queue_refresh"] }, "deny": { "customTypes": ["org.secret"] } },
              "operations": ["explain"] },
            { "name": "imap.example.org", "nodeIds": ["imap"], "publish": any, "receive": any },
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

/// The type of a custom event; of another one there is none.
fn custom_type(event: &Event) -> String {
    match &event.kind {
        Some(Kind::Custom(custom)) => custom.r#type.clone(),
        _ => String::new(),
    }
}

/// All events until that of this custom type.
async fn until_type(stream: &mut Streaming<SubscribeResponse>, last: &str) -> Vec<Event> {
    let mut seen = vec![];
    loop {
        for event in next(stream).await.expect("events") {
            if custom_type(&event) == last {
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
async fn a_node_has_the_roles_of_its_identity_alone() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    let with = |node_id: &str, roles: &[&str]| SubscribeRequest {
        roles: roles.iter().map(|&role| role.to_owned()).collect(),
        ..asks(node_id, Filter::default())
    };
    let asked = ["web", "mta", "imap-1", "{identity}", "*"];
    let fields = not_allowed(subscribe(&web, with("web", &asked)).await);
    assert_eq!(fields, ["roles[1]", "roles[2]", "roles[3]", "roles[4]"]);
    let mut web_stream = subscribe(&web, with("web", &["web"])).await.expect("a stream");
    let mut mx_stream = subscribe(&mx, with("mx-1", &["mta", "imap-1"])).await.expect("a stream");
    // What is for one role alone reaches nobody else.
    let to = |roles: &[&str], name: &str| {
        let roles = roles.iter().map(|&role| role.to_owned()).collect();
        Event { target: Some(Target { node_ids: vec![], roles }), ..events::custom(name) }
    };
    let batch = vec![
        to(&["mta"], "org.for.mta"),
        to(&["web"], "org.for.web"),
        to(&["imap-1"], "org.for.imap"),
        events::custom("org.last"),
    ];
    publish(&mx, "mx-2", batch).await.expect("published");
    for (stream, own) in [(&mut web_stream, &["web"][..]), (&mut mx_stream, &["mta", "imap"])] {
        let seen = until_type(stream, "org.last").await;
        let types: Vec<_> = seen.iter().map(custom_type).collect();
        assert_eq!(types, own.iter().map(|role| format!("org.for.{role}")).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn to_see_why_an_event_is_left_out_is_a_right_of_its_own() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let explaining = |node_id: &str, filter| SubscribeRequest {
        explain: true,
        max_events: 2,
        ..asks(node_id, filter)
    };
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    for (node, node_id) in [(&web, "web"), (&mx, "mx-1")] {
        let refused = subscribe(node, explaining(node_id, Filter::default())).await;
        assert_eq!(not_allowed(refused), ["explain"]);
    }
    // The right shows what the rules and the filter leave out, each under its own name, and delivers no more.
    let support = connect(&gateway, &files.token(SUPPORT_TOKEN)).await;
    let filter = Filter { custom_types: vec!["org.*".into()], ..Filter::default() };
    let mut stream = subscribe(&support, explaining("web", filter)).await.expect("a stream");
    let batch = vec![
        events::mailbox_change("a", 1),
        events::custom("org.secret"),
        events::custom("com.other"),
        events::custom("org.fine"),
        events::queue_refresh(),
    ];
    publish(&mx, "mx-2", batch).await.expect("published");
    let (mut delivered, mut verdicts) = (vec![], vec![]);
    while let Some(message) =
        tokio::time::timeout(LIMIT, stream.message()).await.expect("in time").expect("a message")
    {
        match message.response {
            Some(Response::Events(batch)) => delivered.extend(batch.events),
            Some(Response::Explanation(explanation)) => verdicts.extend(explanation.verdicts),
            _ => {}
        }
    }
    assert_eq!(delivered.len(), 2, "{delivered:?}");
    assert_eq!(custom_type(&delivered[0]), "org.fine");
    let why: Vec<Vec<Exclusion>> =
        verdicts.iter().map(|verdict| verdict.exclusions().collect()).collect();
    let (rule, own_type) = (vec![Exclusion::Rule], vec![Exclusion::CustomType]);
    assert_eq!(why, [rule.clone(), rule, own_type, vec![], vec![]], "{verdicts:?}");
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
async fn a_certificate_without_a_uri_is_known_by_its_dns_name_or_else_its_common_name() {
    let files = Files::new().await;
    let gateway = files.start(files.options("required")).await;
    for (file, subject, names) in [
        ("by-dns", "somebody", "DNS:imap.example.org,DNS:mx"),
        ("by-common-name", "imap.example.org", ""),
    ] {
        files.passing(file, subject, names, 3600).await;
        let node = connect(&gateway, &files.shows(file)).await;
        publish(&node, "imap", vec![events::queue_refresh()]).await.expect(file);
        let event = vec![events::queue_refresh()];
        assert_eq!(not_allowed(publish(&node, "mx-1", event).await), ["node_id"], "{file}");
    }
    // A name that goes before it is somebody else's: the common name counts for nothing then.
    for (file, names) in
        [("other-dns", "DNS:other.example.org"), ("other-uri", "URI:urn:x,DNS:imap.example.org")]
    {
        files.passing(file, "imap.example.org", names, 3600).await;
        let node = connect(&gateway, &files.shows(file)).await;
        let result = publish(&node, "imap", vec![events::queue_refresh()]).await;
        unauthenticated(result, "CREDENTIALS_WRONG");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_certificate_expires() {
    let files = Files::new().await;
    let gateway = files.start(files.options("required")).await;
    files.passing("brief", "imap.example.org", "", 8).await;
    let node = connect(&gateway, &files.shows("brief")).await;
    let mut stream = subscribe(&node, asks("imap", Filter::default())).await.expect("a stream");
    publish(&node, "imap", vec![events::queue_refresh()]).await.expect("it holds");
    unauthenticated(next(&mut stream).await.map(|_| ()), "CREDENTIALS_REVOKED");
    unauthenticated(
        publish(&node, "imap", vec![events::queue_refresh()]).await,
        "CREDENTIALS_WRONG",
    );
    // An operator sees how it ended, and who was refused.
    let metrics = gateway.admin("/metrics").await;
    let errors = |method: &str, reason: &str| {
        let series =
            format!("trunkline_errors_total{{method=\"{method}\",reason=\"{reason}\"}} 1\n");
        assert!(metrics.contains(&series), "{series} in {metrics}");
    };
    errors("Subscribe", "credentials_revoked");
    errors("Publish", "credentials_wrong");
    let page: Value = serde_json::from_str(&gateway.admin("/api/status").await).expect("JSON");
    assert_eq!(page["ended"][0]["why"], "credentials_revoked", "{page:#}");
    assert_eq!(page["refused"][0]["reason"], "credentials_wrong", "{page:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_stream_is_kept_within_the_rules_too() {
    let files = Files::new().await;
    let gateway = files.start(files.options("optional")).await;
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    // The token is that of a node which may receive everything.
    let mut everything = subscribe(&mx, asks("mx-1", Filter::default())).await.expect("a stream");
    publish(&mx, "mx-2", vec![events::queue_refresh()]).await.expect("published");
    let resume_token = loop {
        let message = tokio::time::timeout(LIMIT, everything.message()).await.expect("in time");
        if let Some(Response::Events(batch)) = message.expect("a message").expect("one").response {
            break batch.resume_token;
        }
    };
    let batch = ["org.secret", "com.example", "org.fine", "org.last"].map(events::custom);
    publish(&mx, "mx-2", batch.to_vec()).await.expect("published");
    publish(&mx, "mx-2", vec![events::mailbox_change("vip1", 1)]).await.expect("published");
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let request = SubscribeRequest { resume_token, ..asks("web", Filter::default()) };
    let mut stream = subscribe(&web, request).await.expect("a stream");
    let seen = until_type(&mut stream, "org.last").await;
    assert_eq!(seen.iter().map(custom_type).collect::<Vec<_>>(), ["org.fine"]);
    publish(&mx, "mx-2", vec![events::custom("org.end")]).await.expect("published");
    assert!(until_type(&mut stream, "org.end").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_those_of_an_identity_whatever_its_connections_and_address() {
    let files = Files::new().await;
    let limits = json!({ "maxStreamsPerIdentity": 2, "eventsPerSecond": 1, "eventBurst": 20 });
    let gateway = files.start(files.options("optional").set("limits", limits)).await;
    let mut open = vec![];
    for _ in 0..2 {
        // A connection each.
        let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
        open.push(subscribe(&web, asks("web", Filter::default())).await.expect("a stream"));
    }
    let web = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let third = subscribe(&web, asks("web", Filter::default())).await;
    refused(third, Code::ResourceExhausted, "LIMIT_REACHED");
    let batch = |count| vec![events::custom("org.web.a"); count];
    publish(&web, "web", batch(20)).await.expect("a burst");
    let beyond = publish(&web, "web", batch(10)).await;
    refused(beyond, Code::ResourceExhausted, "LIMIT_REACHED");
    // Another identity at the same address has its own share, on one connection for two node ids.
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    for node_id in ["mx-1", "mx-2"] {
        let stream = subscribe(&mx, asks(node_id, Filter::default())).await;
        open.push(stream.expect("a stream of its own share"));
    }
    publish(&mx, "mx-1", batch(20)).await.expect("a burst of its own");
    // What one gives back is that one's.
    open.truncate(1);
    until(LIMIT, "room again", async || {
        subscribe(&web, asks("web", Filter::default())).await.is_ok()
    })
    .await;
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

/// What doctor prints, each finding in a line, and its exit code.
async fn doctor(gateway: &Gateway, flags: &[&str]) -> (Option<i32>, String) {
    let file = gateway.config_file().display().to_string();
    let args = ["doctor", "--config", &file].into_iter().chain(flags.iter().copied());
    let output = support::gateway::trunkline(args.collect::<Vec<_>>()).run(LIMIT).await;
    (output.status.code(), output.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_asks_a_gateway_over_tls_and_looks_at_its_files() {
    let files = Files::new().await;
    let name = "spiffe://example.org/mail/mx1";
    files.certificate("mail", "ca", &format!("URI:{name}"), "-days 90").await;
    files.certificate("server", "ca", "DNS:localhost", "-days 90").await;
    std::fs::write(files.path("token"), format!("{MX_TOKEN}\n")).expect("a file");
    let token = ["--token-file", &files.path("token")];
    let shown = ["--tls-cert", &files.path("mail.pem"), "--tls-key", &files.path("mail.key")];

    let optional = files.start(files.options("optional").set("reloadInterval", "1h")).await;
    let (code, said) = doctor(&optional, &[]).await;
    assert!(code == Some(0) && said.contains("serves (Unauthenticated"), "{said}");
    let (code, said) = doctor(&optional, &token).await;
    assert!(code == Some(0) && said.contains("serves 0 streams on 1 shards"), "{said}");
    let (code, said) = doctor(&optional, &shown).await;
    assert!(code == Some(0) && said.contains("serves (PermissionDenied"), "{said}");
    assert!(said.contains("server.pem (localhost) is valid for "), "{said}");

    let required = files.start(files.options("required")).await;
    let (code, said) = doctor(&required, &token).await;
    assert!(code == Some(0) && said.contains("give one with --tls-cert"), "{said}");
    let (code, said) = doctor(&required, &shown).await;
    assert!(code == Some(0) && said.contains("serves (PermissionDenied"), "{said}");

    // The files are renewed, and the gateway does not follow them.
    files.certificate("server", "ca", "DNS:localhost", "-days 7").await;
    let (code, said) = doctor(&optional, &token).await;
    assert!(code == Some(1) && said.contains("shows another certificate"), "{said}");
    assert!(said.contains("server.pem (localhost) expires in "), "{said}");
    // Files that a gateway would not start with.
    files.certificate("server", "ca", "DNS:localhost", "-days -1").await;
    let (code, said) = doctor(&optional, &token).await;
    assert!(code == Some(1) && said.contains("server.pem (localhost) expired"), "{said}");
    std::fs::write(files.path("server.key"), files.read("other.key")).expect("a file");
    let (code, said) = doctor(&optional, &token).await;
    assert!(code == Some(1) && said.contains("do not match"), "{said}");
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
    // What it says to try is what a node of such a gateway needs.
    let tried = "grpcurl -cacert CA.pem -H 'authorization: Bearer TOKEN' 127.0.0.1:";
    assert!(gateway.stderr().contains(tried), "{}", gateway.stderr());
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
    let nodes = run(&["top", "--once", "--interval", "0.2"]).await.success();
    assert!(nodes.contains("SERVING"), "{nodes}");
    let loaded =
        run(&["bench", "--for", "1s", "--rate", "50", "--subscribers", "2", "--json"]).await;
    let loaded: Value = serde_json::from_str(&loaded.success()).expect("JSON");
    assert_eq!(loaded["lost"], 0, "{loaded}");
    assert!(!run(&["publish", "--node-id", "web", "queue-refresh"]).await.status.success());

    let python = |args: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/mail_node.py");
        let script = script.display().to_string();
        let all = [&script, "--gateway", &address, "--tls-ca", &ca].into_iter();
        let program = Program::new(tools::python(), all.chain(args.iter().copied()));
        program.env("PYTHONDONTWRITEBYTECODE", "1").run(LIMIT)
    };
    let event = json!({ "queueRefresh": {} }).to_string();
    let publish = ["--node-id", "mx-1", "publish", &event];
    let refused = python(&publish).await;
    assert!(refused.stderr.contains("UNAUTHENTICATED"), "{refused:?}");
    let token_file = files.path("token");
    let with_token = [&["--token-file", &token_file], &publish[..]].concat();
    assert!(python(&with_token).await.success().contains("position"));

    let client = Client::builder("mx-7").gateway(&there).credentials(files.token(MX_TOKEN));
    let client = client.build().expect("a client");
    client.publish([events::queue_refresh()]).await.expect("published");
    let stranger = Client::builder("web-7").gateway(&there).credentials(files.token(WEB_TOKEN));
    let error = stranger.build().expect("a client").publish([events::queue_refresh()]).await;
    assert_eq!(error.expect_err("an error").kind(), trunkline_client::ErrorKind::Denied);
}
