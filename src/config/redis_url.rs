//! URLs of Redis servers.

use std::{borrow::Cow, fmt, path::PathBuf};

use percent_encoding::percent_decode_str;
use url::{Host, Url, form_urlencoded};

use super::{
    protocol::Protocol,
    secret::{MASK, Secret, is_mask},
};

/// The port of a URL that names none.
const DEFAULT_PORT: u16 = 6379;

/// A validated URL of a Redis or Valkey server, in its parts:
/// `redis://[user][:password]@host[:port][/database][?protocol=resp3]`, `rediss://...[#insecure]`,
/// `unix:///path[?db=1]`.
///
/// `Debug` and `Display` mask the password, and a user without one.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    text: String,
    masked: String,
    endpoint: Endpoint,
    names_port: bool,
    database: u32,
    username: Option<String>,
    password: Option<Secret>,
    protocol: Option<Protocol>,
}

/// The address of a Redis server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Tcp {
        /// A name or an address; that of IPv6 without brackets.
        host: String,
        /// 1 to 65535.
        port: u16,
        /// None is plain TCP.
        tls: Option<TlsMode>,
    },
    /// A Unix socket.
    Unix {
        /// Absolute.
        path: PathBuf,
    },
}

/// The checks of a TLS server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Certificate and name are checked.
    Verified,
    /// Neither is checked (`#insecure`).
    Insecure,
}

/// The reason why a URL cannot be used. It repeats nothing of the URL, since a password with a
/// stray `/`, `?` or `#` can end up in any part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RedisUrlError {
    /// It does not parse as a URL.
    #[error(
        "{0} (the form is redis://host:port; other characters of a password than letters and \
         digits are written %XX)"
    )]
    Syntax(String),
    /// White space or a control character, which the parser would remove silently.
    #[error("it holds white space or a control character")]
    Space,
    /// Not one of the schemes.
    #[error(
        "the scheme must be one of redis, rediss, valkey, valkeys, unix, redis+unix, valkey+unix"
    )]
    Scheme,
    /// No host.
    #[error("the host is missing")]
    HostMissing,
    /// A host name with other characters than those of a DNS name.
    #[error("the host is neither a name nor an address")]
    Host,
    /// A wildcard address.
    #[error("the host is a wildcard address, which can be listened on but not connected to")]
    Wildcard,
    /// Port 0.
    #[error("the port must be at least 1")]
    Port,
    /// The path is not the number of a database.
    #[error("the database must be a number from 0 to 2147483647")]
    Database,
    /// A Unix socket without a path.
    #[error("the path of the socket is missing; it is absolute, as in unix:///run/redis.sock")]
    SocketPath,
    /// A host, port, user or password in front of a socket's path.
    #[error("a socket has no host; a user is given as ?user=...&pass=...")]
    SocketHost,
    /// A query parameter that does not exist.
    #[error("it has a parameter that is not known; known are {0}")]
    Parameter(&'static str),
    /// A query parameter that occurs twice.
    #[error("it has a parameter twice")]
    ParameterTwice,
    /// `?protocol=` of something else.
    #[error("the protocol must be resp2 or resp3")]
    Protocol,
    /// A fragment that is not `#insecure`.
    #[error("the only fragment is #insecure")]
    Fragment,
    /// `#insecure` without TLS.
    #[error("#insecure is for rediss and valkeys; this scheme has no TLS")]
    InsecureWithoutTls,
    /// User or password do not decode.
    #[error("the user or the password is not UTF-8")]
    Credentials,
    /// A mask, `***`, in place of the password or of a user.
    #[error("the password or the user is masked: put the real one in its place")]
    Masked,
}

impl RedisUrl {
    /// Parses and checks `text`.
    pub fn parse(text: &str) -> Result<RedisUrl, RedisUrlError> {
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(RedisUrlError::Space);
        }
        let url = Url::parse(text).map_err(|error| RedisUrlError::Syntax(error.to_string()))?;
        match url.scheme() {
            "redis" | "valkey" => RedisUrl::tcp(text, &url, false),
            "rediss" | "valkeys" => RedisUrl::tcp(text, &url, true),
            "unix" | "redis+unix" | "valkey+unix" => RedisUrl::unix(text, &url),
            _ => Err(RedisUrlError::Scheme),
        }
    }

    fn tcp(text: &str, url: &Url, tls: bool) -> Result<RedisUrl, RedisUrlError> {
        let [protocol] = parameters(url, ["protocol"], "protocol")?;
        let tls = match (tls, url.fragment()) {
            (true, None) => Some(TlsMode::Verified),
            (true, Some("insecure")) => Some(TlsMode::Insecure),
            (false, None) => None,
            (false, Some("insecure")) => return Err(RedisUrlError::InsecureWithoutTls),
            (_, Some(_)) => return Err(RedisUrlError::Fragment),
        };
        let endpoint = Endpoint::Tcp {
            host: host(url)?,
            port: match url.port() {
                Some(0) => return Err(RedisUrlError::Port),
                port => port.unwrap_or(DEFAULT_PORT),
            },
            tls,
        };
        let username = Some(url.username()).filter(|name| !name.is_empty()).map(decode_percent);
        let password = url.password().map(decode_percent).transpose()?;
        let mut masked = url.clone();
        // A name without a password may be a password without the colon that belongs before it.
        // Both fail only for a URL without a host.
        let _ = match (&username, &password) {
            (_, Some(_)) => masked.set_password(Some(MASK)),
            (Some(_), None) => masked.set_username(MASK),
            (None, None) => Ok(()),
        };
        let shows_all = username.is_none() && password.is_none();
        Ok(RedisUrl {
            text: text.to_owned(),
            masked: if shows_all { text.to_owned() } else { masked.into() },
            endpoint,
            names_port: url.port().is_some(),
            database: match url.path().trim_matches('/') {
                "" => 0,
                number => parse_database(number)?,
            },
            username: username.transpose()?.map(unmasked).transpose()?,
            password: password.map(checked).transpose()?,
            protocol: protocol.as_deref().map(parse_protocol).transpose()?,
        })
    }

    fn unix(text: &str, url: &Url) -> Result<RedisUrl, RedisUrlError> {
        let known = ["db", "user", "pass", "protocol"];
        let [number, username, password, protocol] =
            parameters(url, known, "db, user, pass and protocol")?;
        match url.fragment() {
            None => {}
            Some("insecure") => return Err(RedisUrlError::InsecureWithoutTls),
            Some(_) => return Err(RedisUrlError::Fragment),
        }
        if url.host_str().is_some_and(|host| !host.is_empty()) {
            return Err(RedisUrlError::SocketHost);
        }
        let path = decode_percent(url.path())?;
        if path.len() < 2 || !url.path().starts_with('/') || path.contains('\0') {
            return Err(RedisUrlError::SocketPath);
        }
        let hidden = if password.is_some() { "pass" } else { "user" };
        let mask = || {
            let mut masked = url.clone();
            let pairs = url.query_pairs();
            let pairs = pairs.map(|(name, value)| match &*name {
                name if name == hidden => (name.to_owned().into(), MASK.into()),
                _ => (name, value),
            });
            masked.query_pairs_mut().clear().extend_pairs(pairs);
            masked.into()
        };
        Ok(RedisUrl {
            text: text.to_owned(),
            masked: if username.is_some() || password.is_some() { mask() } else { text.to_owned() },
            endpoint: Endpoint::Unix { path: path.into() },
            names_port: false,
            database: number.as_deref().map_or(Ok(0), parse_database)?,
            username: username.map(unmasked).transpose()?,
            password: password.map(checked).transpose()?,
            protocol: protocol.as_deref().map(parse_protocol).transpose()?,
        })
    }

    /// The whole URL as it was given: for the client that connects only.
    pub fn as_str_with_password(&self) -> &str {
        &self.text
    }

    /// The address to connect to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// True if it names its port.
    pub fn names_port(&self) -> bool {
        self.names_port
    }

    /// The checks of a TLS connection; None for plain TCP and for sockets.
    pub fn tls(&self) -> Option<TlsMode> {
        match &self.endpoint {
            Endpoint::Tcp { tls, .. } => *tls,
            Endpoint::Unix { .. } => None,
        }
    }

    /// The number of the database; 0 if none was given.
    pub fn database(&self) -> u32 {
        self.database
    }

    /// The user, decoded.
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// The password, decoded.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The protocol, if the URL names one.
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }
}

impl Default for RedisUrl {
    /// `redis://127.0.0.1`.
    fn default() -> RedisUrl {
        let text = "redis://127.0.0.1".to_owned();
        let host = "127.0.0.1".to_owned();
        RedisUrl {
            masked: text.clone(),
            text,
            endpoint: Endpoint::Tcp { host, port: DEFAULT_PORT, tls: None },
            names_port: false,
            database: 0,
            username: None,
            password: None,
            protocol: None,
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({})", self.masked)
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked)
    }
}

/// The values of the known query parameters; an error if there are others.
fn parameters<const N: usize>(
    url: &Url,
    known: [&str; N],
    names: &'static str,
) -> Result<[Option<String>; N], RedisUrlError> {
    let mut values = [const { None }; N];
    let query = url.query().unwrap_or_default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let index = known.iter().position(|known| *known == name);
        let slot = &mut values[index.ok_or(RedisUrlError::Parameter(names))?];
        if slot.replace(value.into_owned()).is_some() {
            return Err(RedisUrlError::ParameterTwice);
        }
    }
    Ok(values)
}

fn host(url: &Url) -> Result<String, RedisUrlError> {
    let host = match url.host() {
        // For schemes other than those of the web an IPv4 address is kept as a name.
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => return Err(RedisUrlError::HostMissing),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    match host.as_str() {
        "" => Err(RedisUrlError::HostMissing),
        "0.0.0.0" | "::" => Err(RedisUrlError::Wildcard),
        name if name.chars().all(plain) => Ok(host),
        _ => Err(RedisUrlError::Host),
    }
}

fn parse_database(text: &str) -> Result<u32, RedisUrlError> {
    if text.starts_with('+') {
        return Err(RedisUrlError::Database);
    }
    let number = text.parse::<i32>().map_err(|_| RedisUrlError::Database)?;
    number.try_into().map_err(|_| RedisUrlError::Database)
}

fn parse_protocol(text: &str) -> Result<Protocol, RedisUrlError> {
    match text {
        "2" | "resp2" => Ok(Protocol::Resp2),
        "3" | "resp3" => Ok(Protocol::Resp3),
        _ => Err(RedisUrlError::Protocol),
    }
}

fn unmasked(username: String) -> Result<String, RedisUrlError> {
    if is_mask(&username) { Err(RedisUrlError::Masked) } else { Ok(username) }
}

fn checked(password: String) -> Result<Secret, RedisUrlError> {
    if is_mask(&password) { Err(RedisUrlError::Masked) } else { Ok(Secret::new(password)) }
}

/// `text`, percent-decoded.
fn decode_percent(text: &str) -> Result<String, RedisUrlError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| RedisUrlError::Credentials)
}
