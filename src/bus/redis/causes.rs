//! The cause of an error of a Redis server, and its cure, in one line: for the log, `/readyz`,
//! `status` and `doctor` alike.

use std::time::Duration;

use redis::{ConnectionAddr, RedisError, io::AsyncDNSResolver};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::resolver::Resolver;

/// The time that a server is given to say something.
const LOOK: Duration = Duration::from_millis(100);

/// The cause, if a port that should have TLS answers in plain text.
const PLAIN: &str = "the server answers in plain text on this port";

/// What is known of a server before it answers.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    /// The user of the connections.
    pub user: String,
    /// The prefix of all names.
    pub prefix: String,
    /// True if connections use TLS.
    pub tls: bool,
    /// The number of the database.
    pub database: i64,
    /// True in a cluster.
    pub cluster: bool,
    /// Who gave its address; None for one of the configuration.
    pub reported: Option<Reported>,
}

/// Who gave the address of a server.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reported {
    /// Another server of the cluster.
    ByServer,
    BySentinel,
}

/// The text of an error: that of the server, if it has one, so that a search for "READONLY" or
/// "NOPERM" finds it.
pub(super) fn error_text(error: &RedisError) -> String {
    // Of a transaction or several commands, the first one.
    let first = error.clone().into_server_errors().and_then(|errors| errors.first().cloned());
    match first {
        Some((_, error)) => format!("{} {}", error.code(), error.details().unwrap_or_default()),
        None => error.to_string(),
    }
}

/// What a server says to a connection that has sent nothing, or no more than a PING in plain text:
/// one that refuses it says why and closes at once, which the client library may not read any more;
/// one of plain text answers. None: it says nothing.
pub(super) async fn look(address: &ConnectionAddr, resolver: &Resolver) -> Option<String> {
    let (ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }) = address
    else {
        return None;
    };
    let said = async {
        let at = resolver.resolve(host, *port).await.ok()?.next()?;
        let mut stream = TcpStream::connect(at).await.ok()?;
        let mut text = [0; 256];
        let greeting = timeout(LOOK, stream.read(&mut text)).await;
        let count = if let Ok(read) = greeting {
            read.ok()?
        } else {
            stream.write_all(b"PING\r\n").await.ok()?;
            timeout(LOOK, stream.read(&mut text)).await.ok()?.ok()?
        };
        let text = String::from_utf8_lossy(&text[..count]);
        Some(text.lines().next()?.to_owned())
    };
    let said = timeout(4 * LOOK, said).await.ok()??;
    let refused = ["-ERR max", "-DENIED"].iter().any(|begin| said.starts_with(begin));
    let tls = matches!(address, ConnectionAddr::TcpTls { .. });
    match said.chars().next() {
        Some('-') if refused => Some(said[1..].to_owned()),
        Some('+' | '-') if tls => Some(PLAIN.to_owned()),
        _ => None,
    }
}

impl About {
    /// The error and its cure in one line.
    pub(super) fn explain(&self, error: &str) -> String {
        let with_cure = |error: &str| format!("{error} ({})", self.cure(error));
        // A text that went through here before has it already.
        let mut ends = error.match_indices(" (").map(|(end, _)| &error[..end]);
        if ends.any(|before| with_cure(before) == error) {
            error.to_owned()
        } else {
            with_cure(error)
        }
    }

    /// What to do about an error of the server, or of a connection to it.
    pub(super) fn cure(&self, error: &str) -> String {
        let lower = error.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        if has(&["no login"]) {
            "there is no password to connect with: run the command as the user of the gateway, or \
             see that the file is there"
                .into()
        } else if has(&["max number of clients"]) {
            "the server has no connection left: raise its maxclients and its limit of open files, \
             end clients that are not needed (CLIENT LIST), or lower \
             coordinator.poolMaxConnections"
                .into()
        } else if has(&["wrongpass", "noauth", "authentication", "invalid username"]) {
            "set user and password: in coordinator.url, or authUsername and authSecret of a \
             cluster; those of sentinels are sentinelUsername and sentinelSecret"
                .into()
        } else if has(&["hello", "noproto", "unsupported protocol version"]) {
            let key =
                if self.cluster { "coordinator.protocolVersion resp2" } else { "?protocol=resp2" };
            format!(
                "the server, or a proxy before it, has no RESP3: set {key}, or let the user run \
                 HELLO"
            )
        } else if has(&["noperm", "no permissions"]) {
            self.cure_of_rights(error)
        } else if has(&["db index", "select is not allowed"]) {
            format!(
                "the URL names database {}, which this server does not have: a cluster has number \
                 0 alone, others as many as their setting `databases` says",
                self.database
            )
        } else if has(&["protected mode"]) {
            "give Redis a password, or set its protected-mode to no".into()
        } else if has(&["expired"]) {
            "renew the certificate of the Redis server, or set the clock of this machine".into()
        } else if has(&["not valid for name", "notvalidforname"]) {
            "name the server in the URL as its certificate does, or have it certified for that name"
                .into()
        } else if has(&["unknownissuer", "unknown issuer"]) {
            "set coordinator.tls.caCertificate to the authority that signed the server's \
             certificate"
                .into()
        } else if self.tls && has(&["corrupt message", "invalidcontenttype", PLAIN]) {
            "what answers there is no TLS: use redis:// in place of rediss://, or the server's \
             tls-port"
                .into()
        } else if has(&["certificate", "tls", "alert"]) {
            "compare coordinator.tls with the server's tls-* settings: does it ask for a client \
             certificate?"
                .into()
        } else if let Some(reported) = self.reported
            && has(&["refused", "timed out", "in time", "unreachable"])
        {
            let (who, how) = match reported {
                Reported::BySentinel => {
                    ("a sentinel", "replica-announce-ip and sentinel announce-ip, and their ports,")
                }
                Reported::ByServer => (
                    "another server of the cluster",
                    "cluster-announce-ip and cluster-announce-port",
                ),
            };
            format!(
                "{who} gave this address, which this machine does not reach: if it is behind NAT \
                 or in a container, set {how} to what gateways reach, or coordinator.addressMap"
            )
        } else if has(&["master of this name"]) {
            "set coordinator.masterName as in the line `sentinel monitor` of the sentinels".into()
        } else if has(&["refused"]) {
            "see that Redis runs, listens on this address (bind, port, protected-mode), and that \
             the port is right"
                .into()
        } else if has(&["timed out", "no answer", "deadline", "in time", "unreachable"]) {
            "see that the address is right and that no firewall drops what is sent to it".into()
        } else if has(&["lookup", "resolve", "name or service"]) {
            "see that the name in the URL is known to this machine".into()
        } else if has(&["closed", "end of file", "reset by peer", "broken pipe", "terminated"]) {
            let tls = if self.tls { "redis://" } else { "rediss://" };
            let kind = if self.tls { "a port without TLS" } else { "a TLS port" };
            format!(
                "the connection was closed before an answer came: if this is {kind}, use {tls}; \
                 else see the server's maxclients, its output and query buffer limits, and its log"
            )
        } else if has(&["loading"]) {
            "wait until Redis has loaded its data".into()
        } else if has(&["readonly", "masterdown"]) {
            "it is a replica: name the master, or an address that leads to it".into()
        } else if has(&["oom "]) {
            "it is full: raise maxmemory, lower history.maxBytes, or remove other data".into()
        } else if has(&["misconf"]) {
            "it cannot write to its disk: look at its log".into()
        } else if has(&["noreplicas"]) {
            "too few replicas are connected for its min-replicas-to-write".into()
        } else if has(&["clusterdown"]) {
            "see that every slot has a master that answers: redis-cli --cluster check".into()
        } else {
            "see that the URL is right (redis:// or rediss://), and what the log of Redis says"
                .into()
        }
    }

    /// The ACL line that grants what a NOPERM error names.
    fn cure_of_rights(&self, error: &str) -> String {
        let command = error.split_once('\'').and_then(|(_, rest)| rest.split_once('\''));
        let right = match command {
            Some((command, _)) => format!("+{}", command.to_lowercase()),
            None if error.contains("channel") => format!("&{}:*", self.prefix),
            None => format!("~{}:*", self.prefix),
        };
        self.acl_line(&right)
    }

    /// The command that gives the user these rights.
    pub(super) fn acl_line(&self, rights: &str) -> String {
        let everywhere = if self.cluster { " on every server" } else { "" };
        let all = "deploy/redis has all rights that are needed";
        format!("ACL SETUSER {} {rights}{everywhere}; {all}", self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About { user: "gw".into(), prefix: "mail".into(), database: 9, ..About::default() }
    }

    #[test]
    fn each_error_is_told_with_its_cure() {
        for (error, cure) in [
            ("NOAUTH HELLO must be called with the client already", "set user and password"),
            ("ERR max number of clients reached", "maxclients"),
            ("NOPERM User gw has no permissions to run the 'hello' command", "?protocol=resp2"),
            ("ERR unknown command 'HELLO'", "?protocol=resp2"),
            ("NOPERM this user has no permissions to run the 'xadd' command", "SETUSER gw +xadd"),
            ("NOPERM No permissions to access a key", "ACL SETUSER gw ~mail:*"),
            ("NOPERM No permissions to access a channel", "ACL SETUSER gw &mail:*"),
            ("ERR DB index is out of range", "names database 9"),
            ("WRONGPASS invalid username-password pair", "set user and password"),
            ("Connection refused (os error 111)", "bind"),
            ("no connection in time", "firewall"),
            ("unexpected end of file", "if this is a TLS port, use rediss://"),
            ("READONLY You can't write against a read only replica.", "name the master"),
            ("OOM command not allowed", "maxmemory"),
            (
                "no login: coordinator.authSecret: /x: it ended with exit status: 1",
                "run the command",
            ),
            ("it does not know a master of this name", "coordinator.masterName"),
        ] {
            let line = about().explain(error);
            assert!(line.starts_with(error) && line.contains(cure), "{line}");
            assert_eq!(about().explain(&line), line, "once");
        }
        let tls = About { tls: true, ..about() };
        let line = tls.explain("received corrupt message of type InvalidContentType");
        assert!(line.contains("use redis:// in place of rediss://"), "{line}");
        let cluster = About { cluster: true, reported: Some(Reported::ByServer), ..about() };
        assert!(cluster.explain("Connection refused").contains("cluster-announce-ip"));
        assert!(cluster.explain("NOPERM the 'set' command").contains("+set on every server"));
    }
}
