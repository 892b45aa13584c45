//! Who sent a request that is refused.

use std::{fmt, net::SocketAddr, sync::Arc};

/// The sender of a request, as far as it is known where the request is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requester {
    /// The id of the node, as the request names it.
    pub node_id: String,
    /// The identity that it authenticated as.
    pub identity: Option<Arc<str>>,
    /// The address and port of its client.
    pub peer: Option<SocketAddr>,
}

impl Requester {
    /// The same of a request that names this node.
    #[must_use]
    pub fn node(self, node_id: &str) -> Requester {
        Requester { node_id: node_id.to_owned(), ..self }
    }
}

/// `mx1 (spiffe://example.org/mx1), 10.0.0.7:5000`, without what is not known.
impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.identity.as_deref();
        let mut parts = Vec::new();
        match (&*self.node_id, identity) {
            ("", None) => {}
            ("", Some(identity)) => parts.push(identity.to_owned()),
            (node, None) => parts.push(node.to_owned()),
            (node, Some(identity)) => parts.push(format!("{node} ({identity})")),
        }
        parts.extend(self.peer.map(|peer| peer.to_string()));
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_shown() {
        let peer = Some(([10, 0, 0, 7], 5000).into());
        let all = Requester { peer, identity: Some("mail".into()), ..Requester::default() };
        assert_eq!(all.to_string(), "mail, 10.0.0.7:5000");
        assert_eq!(all.clone().node("mx1").to_string(), "mx1 (mail), 10.0.0.7:5000");
        let unknown = Requester { identity: None, ..all };
        assert_eq!(unknown.clone().node("mx1").to_string(), "mx1, 10.0.0.7:5000");
        assert_eq!(unknown.to_string(), "10.0.0.7:5000");
    }
}
