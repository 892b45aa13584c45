//! URLs of Redis as values of keys.

use serde_json::{Value, json};

use crate::config::{
    error::Problem,
    fields::Found,
    redis_url::{Endpoint, RedisUrl},
    types::{ValueType, set_schema},
};

/// Redis would be asked for nothing with a name alone.
const USER_ALONE: &str = "has a user and no password; a password alone is written with a colon \
                          before it: redis://:PASSWORD@host";

/// The URL of one server.
pub(super) struct OneUrl;

impl ValueType for OneUrl {
    type Value = RedisUrl;
    type Literal = ();

    fn name(&self) -> &'static str {
        "URL"
    }

    fn read(&self, found: &Found<'_>) -> Option<RedisUrl> {
        let text = found.text()?;
        let url = RedisUrl::parse(text).map_err(Problem::from);
        found.or_report(url.and_then(|url| match (url.username(), url.password()) {
            (Some(_), None) => Err(Problem::Invalid(USER_ALONE.to_owned())),
            _ => Ok(url),
        }))
    }

    fn value_of(&self, (): &()) -> RedisUrl {
        RedisUrl::default()
    }

    fn show(&self, value: &RedisUrl) -> Value {
        json!(value.to_string())
    }

    fn schema(&self) -> Value {
        json!({ "type": ["string"] })
    }
}

/// The URLs of a cluster's servers, or of sentinels.
pub(super) struct SeveralUrls {
    /// True for those of a cluster, which has no numbered databases.
    pub(super) of_cluster: bool,
}

impl ValueType for SeveralUrls {
    type Value = Vec<RedisUrl>;
    type Literal = ();

    fn name(&self) -> &'static str {
        "set"
    }

    /// The URLs without those that are broken.
    fn read(&self, found: &Found<'_>) -> Option<Vec<RedisUrl>> {
        let Some(members) = found.members() else { return Some(vec![]) };
        if members.is_empty() {
            let expected =
                "at least one URL of a server of the cluster, or of a sentinel".to_owned();
            found.report(Problem::Missing { expected });
        }
        let mut urls: Vec<RedisUrl> = Vec::new();
        for (path, text) in members {
            let checked = RedisUrl::parse(text).map_err(Problem::from).and_then(|url| {
                check_beside(&url, urls.first(), self.of_cluster)
                    .map_err(|why| Problem::Invalid(why.to_owned()))?;
                Ok(url)
            });
            match checked {
                Ok(url) if urls.contains(&url) => {}
                Ok(url) => urls.push(url),
                Err(problem) => found.report_at(&path, problem),
            }
        }
        Some(urls)
    }

    fn value_of(&self, (): &()) -> Vec<RedisUrl> {
        vec![RedisUrl::default()]
    }

    fn show(&self, value: &Vec<RedisUrl>) -> Value {
        json!(value.iter().map(RedisUrl::to_string).collect::<Vec<_>>())
    }

    fn schema(&self) -> Value {
        let mut schema = set_schema(&json!({ "type": "string" }));
        schema["minItems"] = json!(1);
        schema["minProperties"] = json!(1);
        schema
    }
}

/// Checks that `url` can be one of several, beside their `first`.
fn check_beside(
    url: &RedisUrl,
    first: Option<&RedisUrl>,
    of_cluster: bool,
) -> Result<(), &'static str> {
    if matches!(url.endpoint(), Endpoint::Unix { .. }) {
        return Err("is a Unix socket; servers that name one another are reached over TCP");
    }
    if of_cluster && url.database() != 0 {
        return Err("names a database; a cluster has only number 0");
    }
    let Some(first) = first else { return Ok(()) };
    if url.tls() != first.tls() {
        return Err("differs from the first URL in TLS; the servers are all alike");
    }
    let credentials = |url: &RedisUrl| (url.username().map(str::to_owned), url.password().cloned());
    if credentials(url) != credentials(first) {
        return Err("differs from the first URL in user or password; there is one of each");
    }
    if url.protocol() != first.protocol() {
        return Err("differs from the first URL in its protocol; there is one");
    }
    if url.database() != first.database() {
        return Err("differs from the first URL in its database; there is one");
    }
    Ok(())
}
