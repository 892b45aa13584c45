//! Checks what nodes send, and names everything that is wrong with it at once.

mod events;
mod path;

use std::{
    fmt::Display,
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use prost::Message;
use uuid::Uuid;

use self::path::Path;
use crate::{
    config::Limits,
    hub::{
        event::{EventView, KINDS, routing_key_hash, stamp, stamped_len},
        filter::Filter,
        token::{ResumeToken, TokenError},
    },
    proto::v1,
    trace::{Carried, Context},
};
use crate::{
    presence::{PageStart, Query},
    rpc::{
        error::{Error, Violation},
        wire,
    },
};

/// Bytes of an id.
const MAX_ID: usize = 128;
/// Node ids or roles of a target, and roles of a node.
const MAX_NAMES: usize = 64;
const MAX_PATTERNS: usize = 256;
const MAX_PAGE: usize = 1000;
const DEFAULT_PAGE: usize = 100;
const MIN_HEARTBEAT: Duration = Duration::from_secs(1);
const MAX_HEARTBEAT: Duration = Duration::from_hours(1);
/// What is longer is as good as this, which no clock overflows: a hundred years.
const MAX_DURATION: Duration = Duration::from_hours(100 * 366 * 24);
/// What a `google.protobuf.Timestamp` may say: the years 1 to 9999. Clients fail on others.
const TIME_SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// A request to publish that is right.
#[derive(Debug)]
pub struct Publish {
    /// The publishing node.
    pub node_id: String,
    /// Makes a retry safe.
    pub request_id: Option<[u8; 16]>,
    /// The events, with the gateway's stamp.
    pub events: Vec<Stamped>,
}

/// An event with the gateway's stamp.
#[derive(Debug)]
pub struct Stamped {
    /// The encoded event.
    pub bytes: Bytes,
    /// The hash of its routing key.
    pub key_hash: u32,
    /// The number of its kind.
    pub kind: u8,
    /// Its trace, if that is recorded.
    pub followed: Option<Context>,
}

/// A request to subscribe that is right.
#[derive(Debug)]
pub struct Subscribe {
    /// The node.
    pub node_id: String,
    /// This start of its process.
    pub incarnation: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// What runs on it.
    pub client_version: String,
    /// What it asks for.
    pub filter: Filter,
    /// The same, as it was sent.
    pub wire_filter: v1::Filter,
    /// Where to begin without a token.
    pub start: v1::Start,
    /// Where to go on.
    pub token: Option<ResumeToken>,
    /// After how long a heartbeat is sent.
    pub heartbeat: Duration,
    /// After how many events the stream ends.
    pub max_events: Option<u64>,
    /// After how long the stream ends.
    pub max_duration: Option<Duration>,
    /// What to do when it is too slow.
    pub overflow: v1::Overflow,
    /// Whether it tells what became of every event.
    pub explain: bool,
}

/// Collects what is wrong.
#[derive(Default)]
struct Check {
    violations: Vec<Violation>,
}

/// Checks a request to publish, and stamps its events.
pub fn publish(
    request: wire::PublishRequest,
    limits: &Limits,
    now: SystemTime,
    trace: Option<&Carried>,
) -> Result<Publish, Error> {
    for (index, event) in request.events.iter().enumerate() {
        if event.len() > limits.max_event_bytes {
            return Err(too_large(
                &format!("events[{index}]"),
                limits.max_event_bytes,
                event.len(),
            ));
        }
    }
    let mut check = Check::default();
    check.node_id(&request.node_id);
    let request_id = match request.request_id.as_str() {
        "" => None,
        text => match Uuid::parse_str(text) {
            // Whoever forgets to fill it in must not find every request but the first already accepted.
            Ok(id) if id.is_nil() => {
                check.wrong("request_id", "is the nil UUID; leave it empty or make one");
                None
            }
            Ok(id) => Some(id.into_bytes()),
            Err(_) => {
                check.wrong("request_id", "is not a UUID");
                None
            }
        },
    };
    let most = limits.max_events_per_request;
    if request.events.is_empty() || request.events.len() > most {
        check.wrong("events", format!("has {}, must have 1 to {most}", request.events.len()));
    }
    let mut events = Vec::with_capacity(request.events.len());
    let sizes: usize =
        request.events.iter().map(|event| stamped_len(event, &request.node_id)).sum();
    let mut room = BytesMut::with_capacity(sizes);
    let (path, mut event) = (Path::of("events"), v1::Event::default());
    for (index, bytes) in request.events.iter().enumerate() {
        let path = path.index(index);
        // Decoded once, so that no bytes ever reach a subscriber that its decoder refuses.
        event.clear();
        let decoded = event.merge(&bytes[..]);
        let (Ok(()), Ok(view)) = (decoded, EventView::peek(bytes)) else {
            check.wrong(path, "is not a valid protobuf message");
            continue;
        };
        check.event(path, &event, view.kind());
        if !check.violations.is_empty() {
            continue;
        }
        let (key_hash, kind) = (routing_key_hash(&view), view.kind());
        let context =
            if view.meta().has_trace() { view.trace() } else { trace.map(|trace| trace.context) };
        let followed = context.filter(|context| context.sampled);
        let bytes = stamp(&mut room, &view, &request.node_id, now, trace, Uuid::now_v7);
        events.push(Stamped { bytes, key_hash, kind, followed });
    }
    check.done()?;
    Ok(Publish { node_id: request.node_id, request_id, events })
}

/// Checks a request to subscribe.
pub fn subscribe(
    request: v1::SubscribeRequest,
    limits: &Limits,
    default_heartbeat: Duration,
    deployment: u32,
) -> Result<Subscribe, Error> {
    let mut check = Check::default();
    check.node_id(&request.node_id);
    check.id("incarnation", &request.incarnation);
    check.names(Path::of("roles"), &request.roles);
    check.id("client_version", &request.client_version);
    let wire_filter = request.filter.unwrap_or_default();
    check.filter(&wire_filter, limits);
    let start = v1::Start::try_from(request.start).unwrap_or_else(|_| {
        check.wrong("start", format!("{} is no value of Start", request.start));
        v1::Start::Unspecified
    });
    let overflow = match v1::Overflow::try_from(request.overflow) {
        Ok(v1::Overflow::Unspecified) => v1::Overflow::Gap,
        Ok(overflow) => overflow,
        Err(_) => {
            check.wrong("overflow", format!("{} is no value of Overflow", request.overflow));
            v1::Overflow::Gap
        }
    };
    let heartbeat = match request.heartbeat_interval {
        None => default_heartbeat,
        Some(given) => match Duration::try_from(given) {
            Ok(given) if (MIN_HEARTBEAT..=MAX_HEARTBEAT).contains(&given) => given,
            _ => {
                check.wrong("heartbeat_interval", "must be 1s to 1h");
                default_heartbeat
            }
        },
    };
    let max_duration = request.max_duration.and_then(|given| match Duration::try_from(given) {
        Ok(given) if !given.is_zero() => Some(given.min(MAX_DURATION)),
        _ => {
            check.wrong("max_duration", "must be longer than 0s");
            None
        }
    });
    let token = match &request.resume_token[..] {
        [] => Ok(None),
        bytes => resume_token(bytes, deployment).map(Some),
    };
    if let Err(why) = &token
        && !check.violations.is_empty()
    {
        check.wrong("resume_token", why);
    }
    check.done()?;
    let token = token.map_err(Error::TokenMalformed)?;
    let filter =
        Filter::new(&wire_filter, &request.node_id, &request.roles, request.include_own_events);
    let filter = if request.explain { filter.watching_all() } else { filter };
    Ok(Subscribe {
        node_id: request.node_id,
        incarnation: request.incarnation,
        roles: request.roles,
        client_version: request.client_version,
        filter,
        wire_filter,
        start,
        token,
        heartbeat,
        max_events: (request.max_events > 0).then_some(request.max_events),
        max_duration,
        overflow,
        explain: request.explain,
    })
}

/// Reads a token. One of another deployment is right and means nothing here: it has no place in any shard, so the stream begins
/// with gaps, as after any other loss of memory.
fn resume_token(bytes: &[u8], deployment: u32) -> Result<ResumeToken, String> {
    match ResumeToken::decode(bytes, deployment) {
        Err(TokenError::ForeignDeployment) => Ok(ResumeToken { deployment, positions: vec![] }),
        result => result.map_err(|error| error.to_string()),
    }
}

/// Which nodes are asked for. Of the size of a page the default for 0; what is more than the most is the most.
pub fn page(request: &v1::ListNodesRequest) -> Result<Query, Error> {
    let mut check = Check::default();
    let size = usize::try_from(request.page_size).unwrap_or_else(|_| {
        check.wrong("page_size", "must not be negative");
        0
    });
    let start = PageStart::decode(&request.page_token).unwrap_or_else(|| {
        check.wrong("page_token", "is not one that this method gave");
        PageStart::default()
    });
    check.id("gateway_id", &request.gateway_id);
    check.id("node_id", &request.node_id);
    check.done()?;
    let some = |id: &String| (!id.is_empty()).then(|| id.clone());
    Ok(Query {
        gateway_id: some(&request.gateway_id),
        node_id: some(&request.node_id),
        start,
        size: if size == 0 { DEFAULT_PAGE } else { size.min(MAX_PAGE) },
    })
}

fn too_large(what: &str, limit: usize, actual: usize) -> Error {
    Error::PayloadTooLarge { what: what.to_owned(), limit, actual }
}

impl Check {
    #[cold]
    fn wrong(&mut self, field: impl Display, description: impl Into<String>) {
        let description = description.into();
        self.violations.push(Violation { field: field.to_string(), description });
    }

    fn done(self) -> Result<(), Error> {
        if self.violations.is_empty() { Ok(()) } else { Err(Error::Invalid(self.violations)) }
    }

    fn node_id(&mut self, id: &str) {
        self.required("node_id", id);
        if id.chars().any(char::is_control) {
            self.wrong("node_id", "must not have control characters");
        }
    }

    fn id(&mut self, field: impl Display, id: &str) {
        self.at_most(field, id, MAX_ID);
    }

    fn required(&mut self, field: impl Display, id: &str) {
        if id.is_empty() {
            self.wrong(&field, "is required");
        }
        self.id(field, id);
    }

    fn at_most(&mut self, field: impl Display, text: &str, most: usize) {
        if text.len() > most {
            self.wrong(field, format!("has {} bytes; the limit is {most}", text.len()));
        }
    }

    fn count(&mut self, field: impl Display, count: usize, most: usize) {
        if count > most {
            self.wrong(field, format!("has {count}; the limit is {most}"));
        }
    }

    fn names(&mut self, field: Path<'_>, names: &[String]) {
        self.count(field, names.len(), MAX_NAMES);
        for (index, name) in names.iter().enumerate().take(MAX_NAMES) {
            self.required(field.index(index), name);
        }
    }

    fn time(&mut self, field: impl Display, time: Option<&prost_types::Timestamp>) {
        let valid = |time: &prost_types::Timestamp| {
            TIME_SECONDS.contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos)
        };
        if !time.is_none_or(valid) {
            self.wrong(field, "is no valid time: the years 1 to 9999, and 0 to 999,999,999 ns");
        }
    }

    /// A value of an enum in an event: what only newer peers know passes as everything of theirs does, and none is negative.
    fn value(&mut self, field: impl Display, value: i32) {
        if value < 0 {
            self.wrong(field, format!("{value} is no value of this enum"));
        }
    }

    fn filter(&mut self, filter: &v1::Filter, limits: &Limits) {
        let path = Path::of("filter");
        let (kinds, accounts) = (path.field("kinds"), path.field("accounts"));
        let custom_types = path.field("custom_types");
        for (index, kind) in filter.kinds.iter().enumerate() {
            // All numbers that are set apart for kinds: a newer peer may publish kinds that this gateway does not know.
            if !u8::try_from(*kind).is_ok_and(|kind| KINDS.contains(&kind)) {
                self.wrong(kinds.index(index), format!("{kind} is no kind"));
            }
        }
        self.count(accounts, filter.accounts.len(), limits.max_accounts_per_filter);
        for (index, account) in
            filter.accounts.iter().enumerate().take(limits.max_accounts_per_filter)
        {
            self.required(accounts.index(index), account);
        }
        self.count(custom_types, filter.custom_types.len(), MAX_PATTERNS);
        for (index, pattern) in filter.custom_types.iter().enumerate().take(MAX_PATTERNS) {
            let field = custom_types.index(index);
            let name = pattern.strip_suffix('*').unwrap_or(pattern);
            if pattern.is_empty() {
                self.wrong(field, "is required");
            } else if name.contains('*') {
                self.wrong(field, "may have '*' at its end only");
            } else if !name.is_empty() {
                self.type_name(field, name);
            }
        }
    }

    fn type_name(&mut self, field: impl Display, name: &str) {
        self.required(&field, name);
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if !name.bytes().all(allowed) {
            self.wrong(field, "may have letters, digits, '.', '_', '-' and '/' only");
        }
    }
}
