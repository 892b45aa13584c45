//! URLs of Redis servers.

use std::path::PathBuf;

use serde_json::json;

use super::error;
use crate::config::{Endpoint, Protocol, RedisUrl, RedisUrlError, TlsMode};

fn url(text: &str) -> RedisUrl {
    RedisUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn tcp(host: &str, port: u16, tls: Option<TlsMode>) -> Endpoint {
    Endpoint::Tcp { host: host.to_owned(), port, tls }
}

#[test]
fn every_scheme_is_parsed() {
    for scheme in ["redis", "valkey", "REDIS"] {
        assert_eq!(*url(&format!("{scheme}://h:1")).endpoint(), tcp("h", 1, None));
    }
    for scheme in ["rediss", "valkeys"] {
        let verified = tcp("h", 6379, Some(TlsMode::Verified));
        assert_eq!(*url(&format!("{scheme}://h")).endpoint(), verified);
        let insecure = tcp("h", 6379, Some(TlsMode::Insecure));
        assert_eq!(*url(&format!("{scheme}://h#insecure")).endpoint(), insecure);
        assert_eq!(*url(&format!("{scheme}://h/#insecure")).endpoint(), insecure);
    }
    for scheme in ["unix", "redis+unix", "valkey+unix"] {
        let socket = Endpoint::Unix { path: PathBuf::from("/run/my redis.sock") };
        let parsed = url(&format!("{scheme}:///run/my%20redis.sock"));
        assert_eq!((parsed.endpoint(), parsed.tls()), (&socket, None));
    }
}

#[test]
fn every_part_is_parsed() {
    let parsed = url("redis://us%40er:p%2Fss@h.example:7000/12?protocol=resp3");
    assert_eq!(*parsed.endpoint(), tcp("h.example", 7000, None));
    assert_eq!(parsed.username(), Some("us@er"));
    assert_eq!(parsed.password().unwrap().expose(), "p/ss");
    assert_eq!((parsed.database(), parsed.protocol()), (12, Some(Protocol::Resp3)));

    let parsed = url("redis://:p@h");
    assert_eq!((parsed.username(), parsed.password().unwrap().expose()), (None, "p"));

    let parsed = url("redis://h/");
    assert_eq!((parsed.database(), parsed.protocol()), (0, None));
    assert_eq!((parsed.username(), parsed.password()), (None, None));

    for (text, protocol) in
        [("2", Protocol::Resp2), ("resp2", Protocol::Resp2), ("3", Protocol::Resp3)]
    {
        assert_eq!(url(&format!("redis://h/?protocol={text}")).protocol(), Some(protocol));
    }

    let parsed = url("unix:///s?db=3&user=u&pass=p%26&protocol=2");
    assert_eq!((parsed.database(), parsed.username()), (3, Some("u")));
    assert_eq!(parsed.password().unwrap().expose(), "p&");
    assert_eq!(parsed.protocol(), Some(Protocol::Resp2));
}

#[test]
fn hosts_may_be_addresses() {
    assert_eq!(*url("redis://127.0.0.1").endpoint(), tcp("127.0.0.1", 6379, None));
    assert_eq!(*url("redis://[::1]:7").endpoint(), tcp("::1", 7, None));
}

#[test]
fn the_password_is_masked_and_a_user_that_may_be_one() {
    assert_eq!(url("redis://u:p@h:1/2?protocol=2").to_string(), "redis://u:***@h:1/2?protocol=2");
    assert_eq!(url("redis://:p@h").to_string(), "redis://:***@h");
    assert_eq!(url("redis://p@h/1").to_string(), "redis://***@h/1");
    assert_eq!(url("rediss://p:@h").to_string(), "rediss://***@h");
    assert_eq!(url("unix:///s?user=p&db=1").to_string(), "unix:///s?user=***&db=1");
    assert_eq!(url("unix:///s?user=u&pass=p").to_string(), "unix:///s?user=u&pass=***");
    assert_eq!(url("unix:///s?pass=p&db=1").to_string(), "unix:///s?pass=***&db=1");
    for plain in ["redis://127.0.0.1", "rediss://h:1/2#insecure", "unix:///s?db=1"] {
        assert_eq!(url(plain).to_string(), plain);
        assert_eq!(url(plain).as_str_with_password(), plain);
    }
    assert_eq!(format!("{:?}", url("redis://:p@h")), "RedisUrl(redis://:***@h)");
}

#[test]
fn each_mistake_has_its_error() {
    use RedisUrlError as E;
    let socket = "db, user, pass and protocol";
    for (text, expected) in [
        ("", E::Syntax("relative URL without a base".into())),
        ("127.0.0.1:6379", E::Syntax("relative URL without a base".into())),
        ("redis://h:99999", E::Syntax("invalid port number".into())),
        ("redis://h:x", E::Syntax("invalid port number".into())),
        ("redis://[::1", E::Syntax("invalid IPv6 address".into())),
        (" redis://h", E::Space),
        ("redis://h\n", E::Space),
        ("redis://a b", E::Space),
        ("http://h", E::Scheme),
        ("h:6379", E::Scheme),
        ("redis+sentinel://h", E::Scheme),
        ("redis://", E::HostMissing),
        ("redis:///0", E::HostMissing),
        ("redis:h", E::HostMissing),
        ("redis://b\u{fc}cher", E::Host),
        ("redis://0.0.0.0", E::Wildcard),
        ("redis://[::]", E::Wildcard),
        ("redis://h:0", E::Port),
        ("redis://h/x", E::Database),
        ("redis://h/-1", E::Database),
        ("redis://h/+1", E::Database),
        ("redis://h/1/2", E::Database),
        ("redis://h/4294967296", E::Database),
        ("unix:///s?db=x", E::Database),
        ("unix:///s?db=", E::Database),
        ("redis://h?db=1", E::Parameter("protocol")),
        ("unix:///s?password=x", E::Parameter(socket)),
        ("redis://h?protocol=2&protocol=3", E::ParameterTwice),
        ("redis://h?protocol=4", E::Protocol),
        ("unix:///s?protocol=", E::Protocol),
        ("redis://h#insecure", E::InsecureWithoutTls),
        ("unix:///s#insecure", E::InsecureWithoutTls),
        ("rediss://h#secure", E::Fragment),
        ("redis://h#x", E::Fragment),
        ("unix:///s#x", E::Fragment),
        ("unix://", E::SocketPath),
        ("unix:///", E::SocketPath),
        ("unix:relative", E::SocketPath),
        ("unix:%2Frelative", E::SocketPath),
        ("unix:///a%00b", E::SocketPath),
        ("unix://host/s", E::SocketHost),
        ("redis://u:%ff@h", E::Credentials),
        ("redis://%ff@h", E::Credentials),
        ("redis://u:***@h", E::Masked),
        ("unix:///s?pass=***", E::Masked),
        ("redis://***@h", E::Masked),
        ("unix:///s?user=***", E::Masked),
    ] {
        assert_eq!(RedisUrl::parse(text), Err(expected), "{text}");
    }
}

#[test]
fn a_user_without_a_password_is_refused_and_not_shown() {
    for url in ["redis://hunter2@h", "redis://hunter2:@h", "unix:///s?user=hunter2"] {
        let line = error(&json!({ "coordinator": { "@type": "Redis", "url": url } }));
        assert!(line.starts_with("coordinator.url: has a user and no password;"), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
}

#[test]
fn an_error_names_the_key() {
    let line = error(&json!({ "coordinator": { "@type": "Redis", "url": "redis://h#insecure" } }));
    assert_eq!(
        line,
        "coordinator.url: is not a usable Redis URL: #insecure is for rediss and valkeys; this \
         scheme has no TLS"
    );
}
