//! A gateway: the real binary, on its own ports.

use std::{
    fs,
    path::{Path, PathBuf},
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

/// How long one health check may take: a frozen gateway must not freeze the test.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of the largest response that a client in a test accepts.
const MAX_RESPONSE: usize = 64 << 20;

/// A key of frames.
pub const FRAME_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// What `Gateway::start` waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ready {
    /// Health of "" is SERVING.
    #[default]
    Serving,
    /// It answers a health check with any status: for a gateway whose bus is down.
    Listening,
    /// Nothing: for a gateway that refuses its configuration.
    Started,
}

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The configuration file. Missing `listen` and `admin` get free ports.
    pub config: Value,
    /// Arguments after `serve --config FILE`.
    pub args: Vec<String>,
    /// The binary; None for that of this build.
    pub binary: Option<PathBuf>,
    /// Environment variables; it sees no other whose name begins with `TRUNKLINE_`.
    pub env: Vec<(String, String)>,
    /// What `Gateway::start` waits for.
    pub ready: Ready,
}

impl Default for GatewayOptions {
    fn default() -> GatewayOptions {
        GatewayOptions {
            config: json!({}),
            args: vec![],
            binary: None,
            env: vec![],
            ready: Ready::Serving,
        }
    }
}

impl GatewayOptions {
    /// The embedded bus.
    pub fn embedded() -> GatewayOptions {
        GatewayOptions::default()
    }

    /// A standalone Redis; `prefix` separates its keys and channels from those of other tests.
    pub fn redis(url: &str, prefix: &str) -> GatewayOptions {
        GatewayOptions::coordinator(json!({ "@type": "Redis", "url": url })).set("prefix", prefix)
    }

    /// A Redis Cluster.
    pub fn redis_cluster(urls: &[String], prefix: &str) -> GatewayOptions {
        GatewayOptions::coordinator(json!({ "@type": "RedisCluster", "urls": urls }))
            .set("prefix", prefix)
    }

    /// The master that sentinels name.
    pub fn redis_sentinel(urls: &[String], prefix: &str) -> GatewayOptions {
        GatewayOptions::coordinator(json!({ "@type": "RedisSentinel", "urls": urls }))
            .set("prefix", prefix)
    }

    /// This `coordinator` object.
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

    /// With a key of frames, or several.
    #[must_use]
    pub fn frame_keys(self, keys: &str) -> GatewayOptions {
        self.set("frameKey", json!({"@type": "Value", "secret": keys}))
    }

    /// With another binary.
    #[must_use]
    pub fn binary(mut self, binary: &Path) -> GatewayOptions {
        self.binary = Some(binary.to_owned());
        self
    }

    /// With another thing to wait for.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> GatewayOptions {
        self.ready = ready;
        self
    }
}

/// The end of a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// The time from the signal, or from its start where there was none.
    pub took: Duration,
}

/// A running gateway. Dropping it kills it, and shows its output if the test has failed.
#[derive(Debug)]
pub struct Gateway {
    options: GatewayOptions,
    process: Mutex<std::sync::Arc<Process>>,
    listen: Port,
    admin: Port,
    // Contains the configuration file.
    folder: TempDir,
}

impl Gateway {
    /// Starts a gateway, and waits as the options say.
    ///
    /// The binary is that of this build, or the one that `TRUNKLINE_TEST_BINARY` names.
    ///
    /// # Panics
    ///
    /// If it ends, or is not ready after 15 s; its output is shown.
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
        tokio::time::timeout(HEALTH_TIMEOUT, look)
            .await
            .unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "no answer")))
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Channel, Status> {
        connect(&self.url()).await
    }

    /// A client on a new connection.
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

    /// The body of the admin port's answer to a GET.
    ///
    /// # Panics
    ///
    /// If the status is not 200.
    pub async fn admin(&self, path: &str) -> String {
        let (status, body) = self.admin_answer(path).await.expect("an answer");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The status and the body of the admin port's answer to a GET.
    pub async fn admin_answer(&self, path: &str) -> std::io::Result<(u16, String)> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.admin_address()).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        let text = tokio::time::timeout(LIMIT, exchange).await.expect("in time")?;
        let (head, body) = text.split_once("\r\n\r\n").expect("headers and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.expect("a status"), body.to_owned()))
    }

    /// Waits until `/readyz` answers 503 with all these words; returns its body.
    pub async fn is_not_ready(&self, words: &[&str], limit: Duration) -> String {
        attempt(limit, &format!("not ready: {words:?}"), async || {
            let answer = self.admin_answer("/readyz").await.map_err(|error| error.to_string())?;
            let (status, body) = answer;
            let all = words.iter().all(|word| body.contains(word));
            if status == 503 && all { Ok(body) } else { Err(format!("{status} {body}")) }
        })
        .await
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("trunkline.json")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Its resident memory, in bytes.
    pub fn rss_bytes(&self) -> u64 {
        self.process().rss_bytes()
    }

    /// Its standard error since the last start.
    pub fn stderr(&self) -> String {
        self.process().stderr()
    }

    /// Its standard output since the last start.
    pub fn stdout(&self) -> String {
        self.process().stdout()
    }

    /// Waits until standard error contains `text`.
    pub async fn stderr_has(&self, text: &str, limit: Duration) {
        self.process().stderr_has(text, limit).await;
    }

    /// Kills it with SIGKILL, and returns when it has ended.
    pub fn kill_9(&self) {
        self.process().kill_9();
    }

    /// Freezes it with SIGSTOP, and returns when it has stopped.
    pub async fn pause(&self) {
        self.process().pause().await;
    }

    /// Continues it after `pause`.
    pub fn resume(&self) {
        self.process().resume();
    }

    /// Sends a signal by name, "HUP", and does not wait.
    pub fn signal(&self, signal: &str) {
        self.process().signal(signal);
    }

    /// Sends SIGTERM, and does not wait.
    pub fn signal_term(&self) {
        self.process().signal("TERM");
    }

    /// Sends SIGTERM, and waits for its end.
    ///
    /// # Panics
    ///
    /// If it has not ended after `limit`.
    pub async fn terminate(&self, limit: Duration) -> Ended {
        let signalled = Instant::now();
        self.signal_term();
        let (status, _) = self.process().wait(limit).await;
        Ended { status, took: signalled.elapsed() }
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    ///
    /// If it has not ended after `limit`.
    pub async fn ends(&self, limit: Duration) -> Ended {
        let (status, took) = self.process().wait(limit).await;
        Ended { status, took }
    }

    /// Restarts it with the same configuration and ports, and waits until it is ready. Kills it
    /// first if it runs.
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

/// A `trunkline` command line.
pub fn trunkline<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Program {
    Program::new(binary(), args)
}

/// A new connection to a gateway.
pub async fn connect(url: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
    let connected = endpoint.connect_timeout(HEALTH_TIMEOUT).connect().await;
    connected.map_err(|error| Status::unavailable(error.to_string()))
}

/// A client on a new connection.
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
    if let Some(binary) = &options.binary {
        program.path.clone_from(binary);
    }
    program.args.extend(options.args.iter().cloned());
    program.env.extend(options.env.iter().cloned());
    std::sync::Arc::new(Process::start(&format!("gateway on port {port}"), program))
}
