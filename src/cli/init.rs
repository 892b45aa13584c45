//! `trunkline init`.

use std::{
    fs::OpenOptions,
    io::{self, BufRead, IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, ValueEnum};
use rand::{TryRngCore, rngs::OsRng};
use serde_json::{Map, Value, json};
use trunkline::config::{Config, Sources};

use super::{Failure, visible};

/// Random bytes of a token.
const TOKEN: usize = 32;

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline init                                     asks, and writes trunkline.json
  trunkline init --redis redis://10.0.0.1            a gateway over a Redis, with no questions left
  trunkline init --redis redis://10.0.0.1,redis://10.0.0.2 --cluster
  trunkline init --redis redis://10.0.0.1:26379 --sentinel mymaster
  trunkline init --listen 10.0.0.5:7420 --certificate server.pem --key server.key \\
    --identity imap --identity mx /etc/trunkline/trunkline.json

What no flag says is asked where there is a terminal, and is its default where there is none. Each
identity gets a token, in a file beside the configuration that only its owner can read, and every
right: narrow them in the file. Nothing that is there already is overwritten without --force.")]
pub(super) struct Init {
    /// Where to write it
    #[arg(default_value = "trunkline.json")]
    file: PathBuf,
    /// Redis, by URL; several, separated by commas, for a cluster or for sentinels; `none`: one
    /// gateway alone
    #[arg(long, value_name = "URLS")]
    redis: Option<String>,
    /// The URLs are those of a Redis Cluster
    #[arg(long, conflicts_with = "sentinel")]
    cluster: bool,
    /// The URLs are those of sentinels, which know the master under this name
    #[arg(long, value_name = "MASTER")]
    sentinel: Option<String>,
    /// File with the password of Redis
    #[arg(long, value_name = "FILE")]
    redis_secret_file: Option<PathBuf>,
    /// Address for nodes
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Certificate of the gateway: a PEM file
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key: a PEM file
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Who may connect, by a token; may be given several times. Without one, everybody may who
    /// reaches the address
    #[arg(long, value_name = "NAME")]
    identity: Vec<String>,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    /// What to do where a flag is missing
    #[arg(long, value_enum, default_value_t = Ask::Terminal, hide_default_value = true)]
    ask: Ask,
}

/// When to ask for what no flag says.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ask {
    /// On a terminal.
    Terminal,
    /// Always; answers are read from standard input, one a line.
    Always,
    /// Never: defaults.
    Never,
}

/// Asks, one question a line.
struct Questions {
    asks: bool,
}

impl Questions {
    /// The answer, or what was given in its place; `default` where the answer is empty, or nobody
    /// is asked.
    fn ask(&self, given: Option<String>, text: &str, default: &str) -> Result<String, Failure> {
        if let Some(given) = given {
            return Ok(given);
        }
        if !self.asks {
            return Ok(default.to_owned());
        }
        let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
        let mut out = io::stderr();
        write!(out, "{text}{shown}: ")?;
        out.flush()?;
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line)? == 0 {
            return Err(Failure::Input(format!("{text}: there is no answer")));
        }
        let line = line.trim();
        Ok(if line.is_empty() { default.to_owned() } else { line.to_owned() })
    }
}

/// What a configuration is made of.
#[derive(Default)]
struct Answers {
    bus: Value,
    listen: String,
    tls: Option<(String, String)>,
    /// The identities, each with the file of its token.
    identities: Vec<(String, String)>,
}

impl Answers {
    fn config(&self) -> Value {
        let mut config = Map::new();
        config.insert("listen".into(), self.listen.clone().into());
        if let Some((certificate, key)) = &self.tls {
            let tls = json!({ "certificate": certificate, "privateKey": key });
            config.insert("tls".into(), tls);
        } else if !is_loopback(&self.listen) {
            config.insert("insecure".into(), true.into());
        }
        if !self.identities.is_empty() {
            let any = json!({ "allow": { "kinds": ["*"] } });
            let identity = |(name, file): &(String, String)| {
                json!({
                    "name": name,
                    "tokens": [{ "@type": "File", "filePath": file }],
                    "nodeIds": ["*"], "roles": ["*"],
                    "publish": any, "receive": any,
                    "operations": ["listNodes", "getStatus", "reflection", "explain"],
                })
            };
            let all: Vec<Value> = self.identities.iter().map(identity).collect();
            config.insert("auth".into(), json!({ "identities": all }));
        }
        if !self.bus.is_null() {
            config.insert("coordinator".into(), self.bus.clone());
        }
        Value::Object(config)
    }
}

fn is_loopback(listen: &str) -> bool {
    listen.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
}

/// A path as the configuration has it: the gateway may be started in another folder.
fn anywhere(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// The parts of a list with commas.
fn parts(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

impl Init {
    pub(super) fn run(self) -> Result<(), Failure> {
        let on_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        let asks = match self.ask {
            Ask::Terminal => on_terminal,
            Ask::Always => true,
            Ask::Never => false,
        };
        let questions = Questions { asks };
        let answers = self.answers(&questions)?;
        let mut written = Vec::new();
        if let Err(failure) = self.write_all(&answers, &mut written) {
            for path in &written {
                // It was made here, for a configuration that there will not be.
                let _ = std::fs::remove_file(path);
            }
            return Err(failure);
        }
        let mut out = io::stdout();
        for path in &written {
            writeln!(out, "wrote {}", visible(&path.display().to_string()))?;
        }
        if answers.config()["insecure"] == true {
            writeln!(out, "Nodes connect in plain text: set tls before others use the network")?;
        }
        let file = self.file.display().to_string();
        let file = visible(&file);
        writeln!(
            out,
            "Next:\n  trunkline doctor --config {file}\n  trunkline serve --config {file}"
        )?;
        Ok(())
    }

    /// Writes all files; `written` are those that are new.
    fn write_all(&self, answers: &Answers, written: &mut Vec<PathBuf>) -> Result<(), Failure> {
        let text = format!("{:#}\n", answers.config());
        if !self.force && self.file.exists() {
            return Err(exists(&self.file));
        }
        // The tokens first: the configuration names their files, and reading it reads them.
        for (_, file) in &answers.identities {
            written.push(self.write(Path::new(file), &new_token()?, 0o600)?);
        }
        Config::load_text(text.as_bytes(), &Sources::default())
            .map_err(|errors| Failure::Configuration(errors.to_string()))?;
        written.push(self.write(&self.file, &text, 0o644)?);
        Ok(())
    }

    fn answers(&self, questions: &Questions) -> Result<Answers, Failure> {
        let bus = self.bus(questions)?;
        let listen = questions.ask(self.listen.clone(), "Address for nodes", "127.0.0.1:7420")?;
        let listen = match listen.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, 7420).to_string(),
            Err(_) => listen,
        };
        let mut tls = self.certificate.as_ref().zip(self.key.as_ref());
        let mut asked = None;
        if tls.is_none() && questions.asks && !is_loopback(&listen) {
            let text = "Certificate of the gateway, a PEM file (empty: plain text)";
            let certificate = questions.ask(None, text, "")?;
            if !certificate.is_empty() {
                let key = questions.ask(None, "Its private key, a PEM file", "")?;
                asked = Some((PathBuf::from(certificate), PathBuf::from(key)));
            }
            tls = asked.as_ref().map(|(certificate, key)| (certificate, key));
        }
        let tls = tls.map(|(certificate, key)| (anywhere(certificate), anywhere(key)));
        let given = (!self.identity.is_empty()).then(|| self.identity.join(","));
        let text = "Who may connect: names, separated by commas (empty: everybody)";
        let identities = parts(&questions.ask(given, text, "")?);
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let mut files = Vec::new();
        for name in identities {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if !name.chars().all(plain) || name.starts_with('.') {
                return Err(Failure::Usage(format!(
                    "--identity: {name:?} names a file too: letters, digits and - _ . alone"
                )));
            }
            if files.iter().any(|(other, _)| *other == name) {
                return Err(Failure::Usage(format!("--identity: {name} is there twice")));
            }
            let file = anywhere(&folder.join(format!("{name}.token")));
            files.push((name, file));
        }
        Ok(Answers { bus, listen, tls, identities: files })
    }

    fn bus(&self, questions: &Questions) -> Result<Value, Failure> {
        let text = "Redis, by URL (several, with commas, for a cluster or sentinels; \
                    empty: one gateway alone)";
        let urls = questions.ask(self.redis.clone(), text, "")?;
        if urls.is_empty() || urls == "none" {
            if self.cluster || self.sentinel.is_some() {
                return Err(Failure::Usage("--cluster and --sentinel need --redis".into()));
            }
            return Ok(Value::Null);
        }
        if urls.split(',').any(|url| url.contains('@')) {
            return Err(Failure::Usage(
                "--redis: a password does not belong into the configuration: name a file with \
                 --redis-secret-file, and the user in the file's coordinator.authUsername"
                    .into(),
            ));
        }
        let urls = parts(&urls);
        let mut bus = if let Some(master) = &self.sentinel {
            json!({ "@type": "RedisSentinel", "urls": urls, "masterName": master })
        } else if self.cluster || urls.len() > 1 {
            let kind = if self.cluster {
                "cluster".to_owned()
            } else {
                {
                    let text =
                        "Several URLs: `cluster`, or the name of the master if they are sentinels";
                    questions.ask(None, text, "cluster")?
                }
            };
            if kind == "cluster" {
                json!({ "@type": "RedisCluster", "urls": urls })
            } else {
                json!({ "@type": "RedisSentinel", "urls": urls, "masterName": kind })
            }
        } else {
            json!({ "@type": "Redis", "url": urls.first() })
        };
        if let Some(file) = &self.redis_secret_file {
            bus["authSecret"] = json!({ "@type": "File", "filePath": anywhere(file) });
        }
        Ok(bus)
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> Result<PathBuf, Failure> {
        let mut options = OpenOptions::new();
        options.write(true).mode(mode);
        if self.force {
            options.create(true).truncate(true);
        } else {
            options.create_new(true);
        }
        let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Ok(()) => Ok(path.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(path)),
            Err(error) => Err(Failure::Other(format!("{}: {error}", path.display()))),
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::Other(format!("{} exists: --force overwrites it", path.display()))
}

/// A token that nobody guesses.
fn new_token() -> Result<String, Failure> {
    let mut bytes = [0; TOKEN];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| Failure::Other(error.to_string()))?;
    Ok(format!("{}\n", URL_SAFE_NO_PAD.encode(bytes)))
}
