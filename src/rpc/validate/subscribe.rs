//! Checks a `Subscribe` request.

use std::time::Duration;

use trunkline_proto::kinds;

use super::{Check, path::Path};
use crate::{
    config::Limits,
    errors::Error,
    hub::token::{ResumeToken, TokenError},
    proto::v1,
    rpc::lists::{MAX_KINDS, MAX_PATTERNS},
};

const MIN_HEARTBEAT: Duration = Duration::from_secs(1);
const MAX_HEARTBEAT: Duration = Duration::from_hours(1);

/// Longer durations are as good as this one, which no clock overflows: a hundred years.
const MAX_DURATION: Duration = Duration::from_hours(100 * 366 * 24);

/// A valid request.
#[derive(Debug)]
pub struct ValidSubscribe {
    /// The node.
    pub node_id: String,
    /// The start of the node's process, as the node names it.
    pub incarnation: String,
    /// Roles of the node.
    pub roles: Vec<String>,
    /// The software of the node.
    pub client_version: String,
    /// Delivers the events that the node itself published.
    pub include_own_events: bool,
    /// The filter.
    pub filter: v1::Filter,
    /// The begin of a stream without a token.
    pub start: v1::Start,
    /// The positions to continue from.
    pub token: Option<ResumeToken>,
    /// The heartbeat interval.
    pub heartbeat: Duration,
    /// The stream ends after this number of events.
    pub max_events: Option<u64>,
    /// The stream ends after this time.
    pub max_duration: Option<Duration>,
    /// The treatment of a client that is too slow.
    pub overflow: v1::Overflow,
    /// True if the stream explains why it delivers or withholds each event.
    pub explain: bool,
    /// True if it begins with the list of the nodes that are there.
    pub current_nodes: bool,
}

/// Checks a request.
pub fn subscribe(
    request: v1::SubscribeRequest,
    limits: &Limits,
    default_heartbeat: Duration,
    deployment: u32,
) -> Result<ValidSubscribe, Error> {
    let mut check = Check::default();
    check.node_id(&request.node_id);
    check.id("incarnation", &request.incarnation);
    check.names(Path::of("roles"), &request.roles);
    check.id("client_version", &request.client_version);
    let filter = request.filter.unwrap_or_default();
    check.filter(Path::of("filter"), &filter, limits);
    if request.current_nodes && !filter.kinds.contains(&v1::EventKind::NodeJoined.into()) {
        check.wrong("current_nodes", "needs EVENT_KIND_NODE_JOINED in filter.kinds");
    }
    let start = v1::Start::try_from(request.start).unwrap_or_else(|_| {
        check.wrong("start", format!("{} is not a value of Start", request.start));
        v1::Start::Unspecified
    });
    let overflow = match v1::Overflow::try_from(request.overflow) {
        Ok(v1::Overflow::Unspecified) => v1::Overflow::Gap,
        Ok(overflow) => overflow,
        Err(_) => {
            check.wrong("overflow", format!("{} is not a value of Overflow", request.overflow));
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
    let resume_token = match &request.resume_token[..] {
        [] => Ok(None),
        bytes => token(bytes, deployment).map(Some),
    };
    if let Err(why) = &resume_token
        && !check.violations.is_empty()
    {
        check.wrong("resume_token", why);
    }
    check.done()?;
    let token = resume_token.map_err(Error::TokenMalformed)?;
    Ok(ValidSubscribe {
        node_id: request.node_id,
        incarnation: request.incarnation,
        roles: request.roles,
        client_version: request.client_version,
        include_own_events: request.include_own_events,
        filter,
        start,
        token,
        heartbeat,
        max_events: (request.max_events > 0).then_some(request.max_events),
        max_duration,
        overflow,
        explain: request.explain,
        current_nodes: request.current_nodes,
    })
}

/// Reads a token. One of another deployment is valid, but means nothing here: it has had nothing in
/// any shard, so the stream begins with gaps, as after any other loss of memory.
pub fn token(bytes: &[u8], deployment: u32) -> Result<ResumeToken, String> {
    match ResumeToken::decode(bytes, deployment) {
        Err(TokenError::ForeignDeployment) => {
            Ok(ResumeToken { deployment, shards: vec![], behind: None })
        }
        result => result.map_err(|error| error.to_string()),
    }
}

impl Check {
    pub(super) fn filter(&mut self, path: Path<'_>, filter: &v1::Filter, limits: &Limits) {
        let (kinds, accounts) = (path.field("kinds"), path.field("accounts"));
        let custom_types = path.field("custom_types");
        self.count(kinds, filter.kinds.len(), MAX_KINDS);
        for (index, kind) in filter.kinds.iter().enumerate().take(MAX_KINDS) {
            // All reserved numbers: a newer peer may publish kinds that this gateway does not know.
            if !u8::try_from(*kind).is_ok_and(kinds::is_number) {
                self.wrong(kinds.index(index), format!("{kind} is not a kind"));
            }
        }
        self.count(accounts, filter.accounts.len(), limits.max_accounts_per_filter);
        for (index, account) in
            filter.accounts.iter().enumerate().take(limits.max_accounts_per_filter)
        {
            if self.is_full() {
                return;
            }
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
}
