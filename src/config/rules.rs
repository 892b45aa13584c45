//! Rules of the top level: texts with a form of their own, and keys that depend on one another.

use std::net::SocketAddr;

use super::{
    Auth, Config, Drain, SCHEMA,
    error::{Problem, shown, wrong_choice},
    fields::Fields,
    units::format_duration,
};

const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn check_config(config: &mut Config, fields: &mut Fields<'_>) {
    fields.value(SCHEMA);
    let http = config.http.as_ref().map(|http| http.listen);
    if fields.sound(&["listen", "admin"]) && fields.all_sound("http") {
        let (listen, admin) = (Some(config.listen), config.admin);
        check_addresses(fields, ("listen", listen), ("admin", admin));
        check_addresses(fields, ("listen", listen), ("http.listen", http));
        check_addresses(fields, ("admin", admin), ("http.listen", http));
    }
    if fields.sound(&["listen"]) {
        check_plain_text(config, fields, "listen", config.listen);
    }
    if let Some(http) = http.filter(|_| fields.all_sound("http")) {
        check_plain_text(config, fields, "http.listen", http);
    }
    check_credentials(config, fields);
}

/// Two listeners cannot have one port of one address; a wildcard is every address.
fn check_addresses(
    fields: &Fields<'_>,
    (key, one): (&str, Option<SocketAddr>),
    (other_key, other): (&str, Option<SocketAddr>),
) {
    let Some((one, other)) = one.zip(other) else { return };
    let covers = |one: SocketAddr, other: SocketAddr| {
        // A wildcard of IPv6 includes IPv4.
        one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4())
    };
    let clash = one.ip() == other.ip() || covers(one, other) || covers(other, one);
    // Port 0 is a different one each time.
    if clash && one.port() == other.port() && one.port() != 0 {
        let problem = format!("{other} is taken by {key}, which is {one}");
        fields.fail_at(other_key, Problem::Invalid(problem));
    }
}

/// A port in plain text is reachable from this machine only, unless that was asked for.
fn check_plain_text(config: &Config, fields: &Fields<'_>, key: &str, listen: SocketAddr) {
    let Config { tls, insecure, .. } = config;
    // Without a certificate in `tls`, a violation there says so.
    let plain_text = tls.is_none() && fields.all_sound("tls");
    if !plain_text || *insecure || listen.ip().is_loopback() {
        return;
    }
    let danger = if fields.has("auth") {
        "tokens would travel in plain text"
    } else {
        "anybody who reaches it could read and publish everything, in plain text"
    };
    let problem = format!(
        "{listen} can be reached from other machines: {danger}. Set tls, listen on 127.0.0.1, or \
         set \"insecure\": true"
    );
    fields.fail_at(key, Problem::Invalid(problem));
}

/// Certificates of nodes need rules, and rules need certificates or tokens.
fn check_credentials(config: &Config, fields: &Fields<'_>) {
    let certificates = config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if certificates && !fields.has("auth") {
        let expected = "tls.clientCa authenticates nodes, and auth has the rights of each of them";
        fields.fail("auth", Problem::Missing { expected: expected.to_owned() });
    }
    let without_tokens = |auth: &Auth| {
        !auth.identities.is_empty() && auth.identities.iter().all(|rules| rules.tokens.is_empty())
    };
    if config.auth.as_ref().is_some_and(without_tokens) && !certificates {
        let problem = "no node can authenticate as any of them: set tokens, or tls.clientCa";
        fields.fail_in("auth", "identities", Problem::Invalid(problem.to_owned()));
    }
}

pub(super) fn check_drain(drain: &mut Drain, fields: &Fields<'_>) {
    if !fields.has("spread") {
        drain.spread = drain.spread.min(drain.timeout);
    }
    if fields.sound(&["spread", "timeout"]) && drain.spread > drain.timeout {
        let (spread, limit) = (format_duration(drain.spread), format_duration(drain.timeout));
        let problem = format!("{spread} is more than drain.timeout, which is {limit}");
        fields.fail("spread", Problem::Invalid(problem));
    }
}

pub(super) fn check_id(id: &str) -> Result<(), Problem> {
    if id.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let problem = format!("{} holds white space or a control character", shown(id));
        return Err(Problem::Invalid(problem));
    }
    Ok(())
}

pub(super) fn check_prefix(prefix: &str) -> Result<(), Problem> {
    // Braces would choose the hash slot, which the shards do.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
    if prefix.chars().all(plain) {
        Ok(())
    } else {
        let problem = format!("{} may hold letters, digits and . _ - : / alone", shown(prefix));
        Err(Problem::Invalid(problem))
    }
}

/// Levels and `target=level`, with commas between. A misspelt level would otherwise be taken for a
/// target, and silence everything else.
pub(super) fn check_log_level(directives: &str) -> Result<(), Problem> {
    for directive in directives.split(',') {
        let (target, level) = match directive.rsplit_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, directive.trim()),
        };
        if target == Some("") {
            let problem = format!("{} names no target before a level", shown(directives));
            return Err(Problem::Invalid(problem));
        }
        if !LOG_LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
            let mut problem = wrong_choice(level, &LOG_LEVELS);
            // A part of a URL would not be recognised as one.
            if let (Problem::Choice { found, .. }, true) =
                (&mut problem, directives.contains("://"))
            {
                *found = shown(directives);
            }
            return Err(problem);
        }
    }
    Ok(())
}
