//! `http`: the port for browsers and scripts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use super::{
    error::{Problem, shown},
    settings::{key, settings},
    types::{Address, Members, Set},
};

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7422);

settings! {
    /// The HTTP port.
    pub struct Http {
        /// The address. The certificate, the identities, the rules and the limits are those of the
        /// port for nodes; as there, any other than one of loopback needs `tls` or `insecure`. Must
        /// not have the port of `listen` or `admin`.
        pub listen: SocketAddr = key("listen", Address, LISTEN),
        /// The origins whose pages may use the port, such as `https://mail.example.org`: no others
        /// may. Requests of scripts and programs have no origin.
        pub allowed_origins: Vec<String> = key("allowedOrigins", Set(Origins), []),
    }
}

/// Origins of web pages.
pub(super) struct Origins;

impl Members for Origins {
    type Member = String;
    type All = Vec<String>;

    fn parse(&self, text: &str) -> Result<String, Problem> {
        let origin = url::Url::parse(text).ok().map(|url| url.origin());
        // As browsers write it: in lower case, without a path, without the port that is usual.
        if origin.is_some_and(|origin| origin.is_tuple() && origin.ascii_serialization() == text) {
            return Ok(text.to_owned());
        }
        let text = shown(text);
        let expected = "is not an origin such as https://mail.example.org or http://localhost:8080";
        Err(Problem::Invalid(format!("{text} {expected}")))
    }

    fn collect(&self, members: Vec<String>) -> Vec<String> {
        members
    }

    fn show(&self, all: &Vec<String>) -> Vec<String> {
        all.clone()
    }

    fn schema(&self) -> Value {
        json!({ "type": "string", "pattern": "^https?://[^/]+$" })
    }
}
