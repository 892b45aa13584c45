//! `otlp`: the collector of traces.

use std::time::Duration;

use super::{
    error::{Problem, shown},
    fields::Fields,
    secret::Secret,
    secret_key::SecretKey,
    settings::{key, settings},
    types::{duration, number, text},
    units::{MINUTE, SECOND},
};

settings! {
    /// A collector of traces.
    pub struct Otlp checked by check_secret {
        /// The collector: `http://127.0.0.1:4317`. `null`: no spans are made.
        pub endpoint: String = key("endpoint", text(check_endpoint), ""),
        /// Limit of the time in which the collector answers. When the gateway ends it waits for the
        /// collector no longer than this.
        pub timeout: Duration = key("timeout", duration(SECOND / 10..=MINUTE), 5 * SECOND),
        /// One of this many `Publish` requests without a trace context is traced; 0: none of them.
        /// Requests whose trace context is marked as sampled are always traced.
        pub sample_one_in: u32 = key("sampleOneIn", number(0..=1_000_000), 0),
        /// The name of the header that carries `otlp.headerSecret`.
        pub header: String = key("header", text(check_header), "authorization"),
        /// The value of that header, for example `Bearer ...`: see [Secrets](#secrets).
        pub secret: Option<Secret> = SecretKey("headerSecret"),
    }
}

impl Otlp {
    /// True when there is a collector.
    pub(super) fn is_set(&self) -> bool {
        !self.endpoint.is_empty()
    }
}

fn check_secret(otlp: &mut Otlp, fields: &Fields<'_>) {
    let valid = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if otlp.secret.as_ref().is_some_and(|secret| !valid(secret.expose())) {
        let problem = "the secret has characters that no header may have";
        fields.fail("headerSecret", Problem::Invalid(problem.to_owned()));
    }
}

fn check_endpoint(url: &str) -> Result<(), Problem> {
    let parsed = url::Url::parse(url).ok();
    let plain = parsed.is_some_and(|url| {
        url.scheme() == "http"
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    });
    if plain {
        return Ok(());
    }
    // The text is not repeated, since it may hold a password.
    let problem = "must be like http://127.0.0.1:4317, without user and password";
    Err(Problem::Invalid(problem.to_owned()))
}

fn check_header(name: &str) -> Result<(), Problem> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if !name.is_empty() && name.len() <= 128 && name.chars().all(plain) && !name.ends_with("-bin") {
        return Ok(());
    }
    let name = shown(name);
    let problem = format!("{name} is not the name of a header: lower case, digits and - _ . alone");
    Err(Problem::Invalid(problem))
}
