//! A gateway: the real binary, on ports of its own.

use std::{
    fs,
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use trunkline_proto::v1::coordination_service_client::CoordinationServiceClient;

use super::{
    folder,
    ports::Port,
    process::{Process, Program},
    wait::{LIMIT, attempt},
};

/// How long one look at a gateway's health may take: a frozen one must not freeze the test.
const LOOK: Duration = Duration::from_secs(2);

/// The largest response that a test's client takes.
const MAX_RESPONSE: usize = 64 << 20;

/// For what `Gateway::start` waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ready {
    /// Health of "" is SERVING.
    #[default]
    Serving,
    /// It answers a health check, whatever it says: for a gateway whose bus is down.
    Listening,
    /// Nothing: for one that is to refuse its configuration.
    Started,
}

/// What a gateway is started with.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The configuration file. `listen` and `admin` are filled in with free ports where they are absent.
    pub config: Value,
    /// Arguments after `serve --config FILE`.
    pub args: Vec<String>,
    /// Environment variables; it sees no other whose name begins with `TRUNKLINE_`.
    pub env: Vec<(String, String)>,
    /// For what to wait.
    pub ready: Ready,
}

impl Default for GatewayOptions {
    fn default() -> GatewayOptions {
        GatewayOptions { config: json!({}), args: vec![], env: vec![], ready: Ready::Serving }
    }
}

impl GatewayOptions {
    /// The embedded bus.
    pub fn embedded() -> GatewayOptions {
        GatewayOptions::default()
    }

    /// A standalone Redis; `prefix` parts its keys and channels from those of others.
    pub fn redis(url: &str, prefix: &str) -> GatewayOptions {
        GatewayOptions::coordinator(json!({ "@type": "Redis", "url": url })).set("prefix", prefix)
    }

    /// A Redis Cluster.
    pub fn redis_cluster(urls: &[String], prefix: &str) -> GatewayOptions {
        GatewayOptions::coordinator(json!({ "@type": "RedisCluster", "urls": urls }))
            .set("prefix", prefix)
    }

    /// A `coordinator` object as it stands.
    pub fn coordinator(coordinator: Value) -> GatewayOptions {
        GatewayOptions::default().set("coordinator", coordinator)
    }

    /// With a setting of the coordinator: `set_bus("protocolVersion", "resp2")`.
    #[must_use]
    pub fn set_bus(mut self, key: &str, value: impl Into<Value>) -> GatewayOptions {
        self.config["coordinator"][key] = value.into();
        self
    }

    /// With a setting at the top.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> GatewayOptions {
        self.config[key] = value.into();
        self
    }

    /// With another thing to wait for.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> GatewayOptions {
        self.ready = ready;
        self
    }
}

/// How a gateway ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// How long it took after it was told.
    pub took: Duration,
}

/// A running gateway. Dropping it kills it, and shows what it wrote if the test is failing.
#[derive(Debug)]
pub struct Gateway {
    options: GatewayOptions,
    process: Mutex<std::sync::Arc<Process>>,
    listen: Port,
    admin: Port,
    // Holds the configuration file.
    folder: TempDir,
}

impl Gateway {
    /// Starts a gateway, and waits for what the options say.
    ///
    /// The binary is the one of this build, or what `TRUNKLINE_TEST_BINARY` names.
    ///
    /// # Panics
    ///
    /// If it is not ready after 15 s, or ends; what it wrote is shown.
    pub async fn start(options: GatewayOptions) -> Gateway {
        let (listen, admin, folder) = (Port::free(), Port::free(), folder::new());
        let mut config = options.config.clone();
        let top: &mut Map<String, Value> = config.as_object_mut().expect("an object");
        for (key, port) in [("listen", &listen), ("admin", &admin)] {
            top.entry(key).or_insert_with(|| format!("127.0.0.1:{}", port.number()).into());
        }
        fs::write(folder.path().join("trunkline.json"), format!("{config:#}")).expect("a file");
        let process = Mutex::new(run(&options, &folder, listen.number()));
        let gateway = Gateway { options, process, listen, admin, folder };
        gateway.ready(gateway.options.ready).await;
        gateway
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    ///
    /// After 15 s, or if it has ended.
    pub async fn ready(&self, ready: Ready) {
        if ready == Ready::Started {
            return;
        }
        let what = format!("the gateway on port {} is ready: {ready:?}", self.port());
        attempt(LIMIT, &what, async || {
            if let Some(status) = self.process().ended() {
                panic!("the gateway on port {} has ended: {status}", self.port());
            }
            match self.health("").await {
                Ok(ServingStatus::Serving) => Ok(()),
                Ok(_) if ready == Ready::Listening => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Waits until the health of a service, or of "", is `status`.
    pub async fn health_is(&self, service: &str, status: ServingStatus, limit: Duration) {
        let what = format!("health {status:?} of {service:?} on port {}", self.port());
        attempt(limit, &what, async || match self.health(service).await {
            Ok(seen) if seen == status => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// The health of a service, or of "".
    pub async fn health(&self, service: &str) -> Result<ServingStatus, Status> {
        let look = async {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = HealthClient::new(self.connect().await?).check(request).await?;
            Ok(answer.into_inner().status())
        };
        tokio::time::timeout(LOOK, look)
            .await
            .unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "no answer")))
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Channel, Status> {
        connect(&self.url()).await
    }

    /// A client on a connection of its own.
    pub async fn client(&self) -> CoordinationServiceClient<Channel> {
        client(&self.url()).await
    }

    /// Its port for gRPC.
    pub fn port(&self) -> u16 {
        self.listen.number()
    }

    /// Its address for gRPC, as grpcurl takes it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Its URL for gRPC.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Its address for `admin`.
    pub fn admin_address(&self) -> String {
        format!("127.0.0.1:{}", self.admin.number())
    }

    /// What its admin port answers to a GET with 200.
    ///
    /// # Panics
    ///
    /// If it answers anything else.
    pub async fn admin(&self, path: &str) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.admin_address()).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        let text =
            tokio::time::timeout(LIMIT, exchange).await.expect("in time").expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").expect("headers and a body");
        assert!(head.starts_with("HTTP/1.1 200 "), "{text}");
        body.to_owned()
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("trunkline.json")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Memory that it holds: the resident set, in bytes.
    pub fn rss_bytes(&self) -> u64 {
        self.process().rss_bytes()
    }

    /// What it has written to standard error since it was last started.
    pub fn stderr(&self) -> String {
        self.process().stderr()
    }

    /// What it has written to standard output since it was last started.
    pub fn stdout(&self) -> String {
        self.process().stdout()
    }

    /// Waits until standard error holds `text`.
    pub async fn stderr_has(&self, text: &str, limit: Duration) {
        self.process().stderr_has(text, limit).await;
    }

    /// Kills it with SIGKILL. Returns when it is gone.
    pub fn kill_9(&self) {
        self.process().kill_9();
    }

    /// Freezes it with SIGSTOP, and returns when it stands still.
    pub async fn pause(&self) {
        self.process().pause().await;
    }

    /// Lets it go on after `pause`.
    pub fn resume(&self) {
        self.process().resume();
    }

    /// Tells it to stop with SIGTERM, and does not wait.
    pub fn signal_term(&self) {
        self.process().signal("TERM");
    }

    /// Tells it to stop with SIGTERM, and waits for its end.
    ///
    /// # Panics
    ///
    /// If it has not ended after `limit`.
    pub async fn terminate(&self, limit: Duration) -> Ended {
        let told = Instant::now();
        self.signal_term();
        let (status, _) = self.process().wait(limit).await;
        Ended { status, took: told.elapsed() }
    }

    /// Waits for an end of its own making.
    ///
    /// # Panics
    ///
    /// If it has not ended after `limit`.
    pub async fn ends(&self, limit: Duration) -> Ended {
        let (status, took) = self.process().wait(limit).await;
        Ended { status, took }
    }

    /// Starts it again with the same configuration and ports, and waits until it is ready; kills it first if it runs.
    pub async fn restart(&self) {
        self.kill_9();
        *self.process.lock() = run(&self.options, &self.folder, self.port());
        self.ready(self.options.ready).await;
    }

    fn process(&self) -> std::sync::Arc<Process> {
        self.process.lock().clone()
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    let named = std::env::var_os("TRUNKLINE_TEST_BINARY");
    named.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_trunkline")), PathBuf::from)
}

/// A `trunkline` command line, to be run or started.
pub fn trunkline<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Program {
    Program::new(binary(), args)
}

/// A new connection to a gateway.
pub async fn connect(url: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
    let connected = endpoint.connect_timeout(LOOK).connect().await;
    connected.map_err(|error| Status::unavailable(error.to_string()))
}

/// A client on a connection of its own.
///
/// # Panics
///
/// If nothing listens there.
pub async fn client(url: &str) -> CoordinationServiceClient<Channel> {
    let channel = connect(url).await.expect("a connection to the gateway");
    CoordinationServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE)
}

fn run(options: &GatewayOptions, folder: &TempDir, port: u16) -> std::sync::Arc<Process> {
    let file = folder.path().join("trunkline.json").display().to_string();
    let mut program = trunkline(["serve", "--config", &file]);
    program.args.extend(options.args.iter().cloned());
    program.env.extend(options.env.iter().cloned());
    std::sync::Arc::new(Process::start(&format!("gateway on port {port}"), program))
}
