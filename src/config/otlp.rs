//! `otlp`: where spans go.

use std::time::Duration;

use super::{
    error::{Problem, shown},
    fields::Fields,
    secret::{self, Secret},
};

/// The endpoint where one is set; it is not, by default.
const HEADER: &str = "authorization";

const TIMEOUT: Duration = Duration::from_secs(5);
const LEAST_TIMEOUT: Duration = Duration::from_millis(100);
const MOST_TIMEOUT: Duration = Duration::from_mins(1);

/// A collector of spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// Its URL, of OTLP over gRPC.
    pub endpoint: String,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// Of so many requests without a trace context one is followed; 0: none.
    pub sample_one_in: u32,
    /// The name of the header that carries the secret.
    pub header: String,
    /// What the collector asks for.
    pub secret: Option<Secret>,
}

impl Default for Otlp {
    fn default() -> Otlp {
        Otlp {
            endpoint: String::new(),
            timeout: TIMEOUT,
            sample_one_in: 0,
            header: HEADER.to_owned(),
            secret: None,
        }
    }
}

/// Reads the group; none where no endpoint is set.
pub(super) fn decode(fields: &mut Fields<'_>) -> Option<Otlp> {
    let default = Otlp::default();
    let endpoint = fields.checked_text("endpoint", check_endpoint);
    let otlp = Otlp {
        timeout: fields.duration("timeout", LEAST_TIMEOUT..=MOST_TIMEOUT, default.timeout),
        sample_one_in: fields.number("sampleOneIn", 0..=1_000_000, default.sample_one_in),
        header: fields.checked_text("header", check_header).unwrap_or(default.header),
        secret: fields
            .optional_group("headerSecret", |fields| secret::decode(fields, true))
            .flatten(),
        endpoint: endpoint.clone().unwrap_or_default(),
    };
    if otlp.secret.as_ref().is_some_and(|secret| !is_header_value(secret.expose())) {
        let problem = "the secret has characters that no header may have";
        fields.fail("headerSecret", Problem::Invalid(problem.to_owned()));
    }
    endpoint.map(|_| otlp)
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
    // It may hold a password.
    let problem = "must be like http://127.0.0.1:4317, without user and password";
    Err(Problem::Invalid(problem.to_owned()))
}

fn check_header(name: &str) -> Result<(), Problem> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if !name.is_empty() && name.len() <= 128 && name.chars().all(plain) && !name.ends_with("-bin") {
        return Ok(());
    }
    let problem =
        format!("{} is no name of a header: lower case, digits and - _ . alone", shown(name));
    Err(Problem::Invalid(problem))
}

fn is_header_value(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}
