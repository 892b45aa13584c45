//! `trunkline serve`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::Args;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use trunkline::{
    bus::Registry,
    config::{Config, Key, Sources},
    gateway::{self, ServeError},
};

use super::{Failure, Form, log::Log, signals::Signals};

/// The help of a flag that sets the key at `path`.
fn help(path: &str) -> String {
    Key::at(path).map(Key::help).unwrap_or_default()
}

/// The sources of a configuration.
#[derive(Args, Clone)]
pub(super) struct ConfigArgs {
    /// Configuration file (JSON); docs/configuration.md lists its keys
    #[arg(long, env = "TRUNKLINE_CONFIG")]
    config: Option<PathBuf>,
    #[arg(long, help = help("listen"))]
    listen: Option<String>,
    #[arg(long, help = help("admin"))]
    admin: Option<String>,
    /// URL of a standalone Redis, in place of the file's coordinator; one with a password is given
    /// in the variable `TRUNKLINE_REDIS`, or in a file
    #[arg(long, conflicts_with = "redis_file")]
    redis: Option<String>,
    /// File with the URL of a standalone Redis
    #[arg(long, value_name = "FILE")]
    redis_file: Option<PathBuf>,
    /// Any other setting; overrides the file and the environment: --set coordinator.timeout=5s
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline serve
  trunkline serve --redis redis://redis.example.com:6379
  trunkline serve --listen 127.0.0.1:7430 --admin 127.0.0.1:7431
  trunkline serve --config trunkline.json --set drain.delay=5s
  TRUNKLINE_COORDINATOR__TYPE=Redis TRUNKLINE_COORDINATOR__URL=redis://127.0.0.1 trunkline serve")]
pub(super) struct Serve {
    #[command(flatten)]
    config: ConfigArgs,
}

impl ConfigArgs {
    /// Loads the configuration: the file, then the environment, then the flags; the last one wins.
    pub(super) fn load(&self) -> Result<Config, Failure> {
        let mut sources = Sources {
            file: self.config.clone(),
            env: Sources::process_environment(),
            ..Sources::default()
        };
        for (key, value) in [("listen", &self.listen), ("admin", &self.admin)] {
            if let Some(value) = value {
                sources.set(key, value);
            }
        }
        if let Some(url) = self.redis_url()? {
            sources.set("coordinator.@type", "Redis");
            sources.set("coordinator.url", url);
        }
        for pair in &self.set {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Failure::Usage("--set: must be KEY=VALUE".to_owned()))?;
            if holds_secret(key, value) {
                let advice = "give it in a file, or in the environment";
                return Err(seen_by_all(&format!("--set {key}"), advice));
            }
            sources.set(key, value);
        }
        Config::load(&sources).map_err(|errors| Failure::Configuration(errors.to_string()))
    }

    /// `logFormat`, as the last of the sources has it.
    fn log_format(&self) -> Option<String> {
        let set = self.set.iter().rev().find_map(|pair| pair.strip_prefix("logFormat="));
        let set = set.map(str::to_owned);
        set.or_else(|| std::env::var("TRUNKLINE_LOG_FORMAT").ok().filter(|text| !text.is_empty()))
            .or_else(|| {
                let text = std::fs::read_to_string(self.config.as_ref()?).ok()?;
                let json: serde_json::Value = serde_json::from_str(&text).ok()?;
                json["logFormat"].as_str().map(str::to_owned)
            })
    }

    /// The URL of a standalone Redis.
    fn redis_url(&self) -> Result<Option<String>, Failure> {
        let flags = ("--redis", "--redis-file", "TRUNKLINE_REDIS");
        secret_url(flags, self.redis.as_deref(), self.redis_file.as_deref())
    }
}

/// A URL that may have a password: that of the flag, of the file or of the variable, whose names
/// are `flags`.
pub(super) fn secret_url(
    flags: (&str, &str, &str),
    url: Option<&str>,
    file: Option<&Path>,
) -> Result<Option<String>, Failure> {
    let (flag, file_flag, variable) = flags;
    if let Some(url) = url {
        if holds_secret("", url) {
            let advice =
                format!("give the URL in the variable {variable}, or in a file with {file_flag}");
            return Err(seen_by_all(flag, &advice));
        }
        return Ok(Some(url.to_owned()));
    }
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("{file_flag} {}: {error}", path.display())))?;
        return Ok(Some(text.trim_end().to_owned()));
    }
    Ok(std::env::var(variable).ok().filter(|url| !url.is_empty()))
}

/// True if a value is a secret, or a URL with a user or a password: also one that cannot be parsed.
fn holds_secret(key: &str, value: &str) -> bool {
    let key = key.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let in_url = value.contains("://") && (value.contains('@') || value.contains("pass="));
    in_url || key == "secret"
}

/// The error for a secret on the command line. It repeats nothing of the secret.
fn seen_by_all(flag: &str, advice: &str) -> Failure {
    Failure::Usage(format!(
        "{flag}: a password on the command line is seen by everybody on this machine, in the list \
         of processes: {advice}"
    ))
}

impl Serve {
    /// The form of the lines of the log, where it is known: a configuration with errors names it
    /// too.
    pub(super) fn form(&self) -> Form {
        if self.config.log_format().as_deref() == Some("json") { Form::Log } else { Form::Text }
    }

    pub(super) async fn run(&self) -> Result<(), Failure> {
        let config = self.config.load()?;
        let log = Log::start(&config)?;
        let result = self.serve(config, &log).await;
        log.flush();
        result
    }

    async fn serve(&self, config: Config, log: &Log) -> Result<(), Failure> {
        let signals = Signals::new()?;
        let (reload, reloads) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let sources = self.config.clone();
        let load = move || sources.load();
        tokio::spawn(signals.follow(load, log.clone(), reload, stop.clone()));
        let (tls, auth) = (config.tls.is_some(), config.auth.is_some());
        let listens = move |address| log.print(hints(address, tls, auth));
        let registry = Registry::default();
        let bus = registry
            .get(config.bus.type_name())
            .map_err(|error| Failure::Configuration(error.to_string()))?;
        let serving = gateway::serve(config, bus, listens, stop.cancelled(), reloads);
        serving.await.map_err(|error| match error {
            ServeError::Bus(_) => Failure::Configuration(error.to_string()),
            _ => Failure::Other(error.to_string()),
        })
    }
}

/// Commands to try with this gateway.
fn hints(address: SocketAddr, tls: bool, auth: bool) -> String {
    // The path that started this process: after `cargo run` there is no `trunkline` in PATH.
    let program = std::env::args().next().unwrap_or_default();
    let program = if program.contains('/') { program.as_str() } else { "trunkline" };
    let listens = address;
    let address = reachable(address);
    let (scheme, mut grpcurl, mut flags) = if tls {
        ("https", "-cacert CA.pem".to_owned(), " --tls-ca CA.pem".to_owned())
    } else {
        ("http", "-plaintext".to_owned(), String::new())
    };
    if auth {
        grpcurl.push_str(" -H 'authorization: Bearer TOKEN'");
        flags.push_str(" --token-file TOKEN-FILE");
    }
    let gateway = format!("--gateway {scheme}://{address}{flags}");
    format!(
        "Trunkline {} listens on {listens}. Try:\n  \
         grpcurl {grpcurl} {address} list\n  \
         {program} subscribe {gateway}\n  \
         {program} publish {gateway} mailbox-change --account a1 --change-id 7 --types email",
        env!("CARGO_PKG_VERSION")
    )
}

/// The address at which a client on this machine reaches a server that listens on `address`.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
