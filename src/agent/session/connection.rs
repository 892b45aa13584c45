//! Who the client is, and which version it speaks.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use subtle::ConstantTimeEq as _;

use super::{
    Ended, Session, Step,
    dispatch::{Answer, number, unknown_subcommand, upper},
};
use crate::agent::resp::{Reply, Version};

/// The longest text that a client may say of itself.
const MAX_TEXT: usize = 128;

/// The version of Redis whose commands these are. Clients look at its first numbers.
const REDIS_VERSION: &str = "7.0.0";

/// The user of who gives only a password.
const DEFAULT_USER: &[u8] = b"default";

impl Session {
    /// `HELLO [version [AUTH user password] [SETNAME name]]`. Nothing changes where any of it is
    /// wrong.
    pub(super) fn hello(&mut self, arguments: &[Bytes], out: &mut BytesMut) -> Answer {
        let mut version = self.version;
        let (mut name, mut credentials) = (None, None);
        if let Some((wanted, mut options)) = arguments.split_first() {
            version = match number::<i64>(wanted) {
                Some(2) => Version::Resp2,
                Some(3) => Version::Resp3,
                Some(_) => return Err("NOPROTO unsupported protocol version".into()),
                None => {
                    return Err("ERR Protocol version is not an integer or out of range".into());
                }
            };
            while let Some((option, rest)) = options.split_first() {
                match (upper(option).as_str(), rest) {
                    ("AUTH", [user, password, rest @ ..]) => {
                        credentials = Some((user, password));
                        options = rest;
                    }
                    ("SETNAME", [text, rest @ ..]) => {
                        name = Some(own_text(text)?);
                        options = rest;
                    }
                    _ => return Err("ERR Syntax error in HELLO".into()),
                }
            }
        }
        if let Some((user, password)) = credentials {
            if !self.knows(user, password)? {
                return self.wrong_password(out);
            }
            self.set_authenticated(true);
        }
        if !self.authenticated {
            return Err("NOAUTH HELLO must be called with the client already authenticated, or \
                        with the option AUTH <user> <password>"
                .into());
        }
        if let Some(name) = name {
            self.client.name = name;
        }
        self.version = version;
        let mut reply = Reply::new(out, version);
        reply.map(7);
        reply.bulk("server");
        reply.bulk("trunkline");
        reply.bulk("version");
        reply.bulk(REDIS_VERSION);
        reply.bulk("proto");
        reply.integer(version.number());
        reply.bulk("id");
        reply.integer(i64::try_from(self.id).unwrap_or(i64::MAX));
        reply.bulk("mode");
        reply.bulk("standalone");
        reply.bulk("role");
        reply.bulk("master");
        reply.bulk("modules");
        reply.array(0);
        Ok(Step::Answered)
    }

    /// `AUTH [user] password`.
    pub(super) fn auth(&mut self, arguments: &[Bytes], out: &mut BytesMut) -> Answer {
        let (user, password) = match arguments {
            [password] => (DEFAULT_USER, password),
            [user, password, ..] => (&user[..], password),
            [] => (DEFAULT_USER, &Bytes::new()),
        };
        if !self.knows(user, password)? {
            return self.wrong_password(out);
        }
        self.set_authenticated(true);
        Reply::new(out, self.version).simple("OK");
        Ok(Step::Answered)
    }

    fn knows(&self, user: &[u8], password: &[u8]) -> Result<bool, String> {
        // Who sends a password believes that there is one.
        let Some(own) = &self.settings.credentials else {
            return Err("ERR AUTH was called and this agent has no password: leave user and \
                        password out of the URL, or set a password for the agent"
                .into());
        };
        // Both are compared, so that the time does not tell which one is wrong.
        let user = own.user.as_bytes().ct_eq(user);
        Ok((user & own.password.as_bytes().ct_eq(password)).into())
    }

    fn wrong_password(&mut self, out: &mut BytesMut) -> Answer {
        self.wrong_passwords += 1;
        let error = "WRONGPASS invalid username-password pair or user is disabled.";
        if self.wrong_passwords < self.settings.wrong_passwords {
            return Err(error.into());
        }
        Reply::new(out, self.version).error(error);
        Ok(Step::Close(Ended::WrongPasswords))
    }

    /// `CLIENT ...`.
    pub(super) fn client_command(&mut self, arguments: &[Bytes], out: &mut BytesMut) -> Answer {
        let mut reply = Reply::new(out, self.version);
        match (upper(&arguments[0]).as_str(), &arguments[1..]) {
            ("ID", []) => reply.integer(i64::try_from(self.id).unwrap_or(i64::MAX)),
            ("GETNAME", []) if self.client.name.is_empty() => reply.null(),
            ("GETNAME", []) => reply.bulk(&self.client.name),
            ("SETNAME", [name]) => {
                self.client.name = own_text(name)?;
                reply.simple("OK");
            }
            ("SETINFO", [what, text]) => {
                let text = own_text(text)?;
                match upper(what).as_str() {
                    "LIB-NAME" => self.client.library = text,
                    "LIB-VER" => self.client.library_version = text,
                    _ => return Err("ERR unknown attribute of CLIENT SETINFO".into()),
                }
                reply.simple("OK");
            }
            // One line: a session knows no other.
            ("LIST" | "INFO", _) => reply.bulk(self.client_line()),
            ("NO-EVICT" | "NO-TOUCH", [_]) => reply.simple("OK"),
            ("ID" | "GETNAME" | "SETNAME" | "SETINFO" | "NO-EVICT" | "NO-TOUCH", _) => {
                return Err("ERR wrong number of arguments for 'client' command".into());
            }
            _ => return Err(unknown_subcommand("CLIENT", &arguments[0])),
        }
        Ok(Step::Answered)
    }

    fn client_line(&self) -> String {
        let (host, port) = &self.address;
        format!(
            "id={} laddr={host}:{port} name={} db=0 sub={} psub=0 ssub=0 resp={} \
             lib-name={} lib-ver={}\n",
            self.id,
            self.client.name,
            self.subscriptions.len(),
            self.version.number(),
            self.client.library,
            self.client.library_version,
        )
    }

    /// The reply to `INFO`, whatever section it asks for.
    pub(super) fn info(&self) -> String {
        let (_, port) = &self.address;
        format!(
            "# Server\r\nredis_version:{REDIS_VERSION}\r\nserver_name:trunkline\r\n\
             trunkline_version:{}\r\nredis_mode:standalone\r\nprocess_id:{}\r\nrun_id:{}\r\n\
             tcp_port:{port}\r\n\r\n# Persistence\r\nloading:0\r\n\r\n# Replication\r\n\
             role:master\r\nconnected_slaves:0\r\n",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            self.run_id(),
        )
    }

    /// Identity of this process, as Redis writes it: 40 hexadecimal digits.
    pub(super) fn run_id(&self) -> String {
        let mut text = String::with_capacity(40);
        for byte in self.settings.run_id {
            // Writing to memory does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// A text that a client says of itself: printable and without spaces, as in Redis.
fn own_text(text: &[u8]) -> Result<String, String> {
    if text.len() > MAX_TEXT || !text.iter().all(u8::is_ascii_graphic) {
        return Err(format!(
            "ERR names and versions of clients have at most {MAX_TEXT} characters, and no spaces, \
             newlines or special characters"
        ));
    }
    Ok(String::from_utf8_lossy(text).into_owned())
}
