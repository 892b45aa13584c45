//! `Subscribe`, and the opening of every stream: a `Subscribe` is a `Watch` without updates.

mod watch;

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use tokio::time::Instant;
use trunkline_proto::kinds;
use uuid::Uuid;

use crate::{
    access::{Caller, Grant, quota::StreamPermit},
    bus::ShardId,
    errors::{Error, Limit},
    hub::{
        Begin, ReadOptions,
        accounts::AccountSet,
        cursor::{Cursor, Missing},
        filter::Filter,
        had::Had,
    },
    observe::{counters::Method, streams::StreamRecord},
    presence::{CurrentPosition, timestamp},
    proto::v1,
    rpc::{
        Context,
        stream::{Revoked, StreamOptions, Subscription},
        validate::{self, ValidSubscribe},
        watch::{Named, Watch},
    },
};

/// A stream that is being opened: its request is checked, and its interest may still grow.
pub struct Opening {
    /// The request. The accounts of its filter are in `accounts`, too.
    pub request: ValidSubscribe,
    /// The accounts of the interest.
    pub accounts: AccountSet,
    /// How names are understood that it has none of.
    pub named: Named,
    /// Bytes that count against the quota of the identity for its interest.
    pub held: usize,
    permit: StreamPermit,
}

impl Context {
    /// Opens the stream that a request asks for.
    pub async fn subscribe(
        self: Arc<Self>,
        request: v1::SubscribeRequest,
        caller: &Caller,
    ) -> Result<Subscription, Error> {
        let opening = self.begin_stream(request, Named::default(), caller)?;
        self.open_stream(opening, caller, Method::Subscribe, |_, _| None).await
    }

    /// Checks the request for a stream.
    pub fn begin_stream(
        &self,
        request: v1::SubscribeRequest,
        named: Named,
        caller: &Caller,
    ) -> Result<Opening, Error> {
        self.gateway.refuse_if_draining()?;
        if let Some(grant) = &caller.grant {
            grant.check_subscribe(&request)?;
        }
        let permit = self.quotas.stream(caller.in_flight.quota(), &caller.peer.streams)?;
        let held = request
            .filter
            .as_ref()
            .map_or(0, |filter| Filter::held_bytes(filter.accounts.len(), &filter.custom_types));
        caller.in_flight.add(held)?;
        let request = validate::subscribe(request, &self.limits, self.heartbeat, self.deployment)?;
        self.check_node_events(&request.filter)?;
        let accounts = request.filter.accounts.iter().map(String::as_bytes).collect();
        Ok(Opening { request, accounts, named, held, permit })
    }

    /// Refuses a filter with kinds that gateways publish no events of.
    pub fn check_node_events(&self, filter: &v1::Filter) -> Result<(), Error> {
        let is_of_nodes = |kind: &i32| kinds::is_made_by_gateways(*kind);
        if !self.nodes.have_events() && filter.kinds.iter().any(is_of_nodes) {
            let what = "filter.kinds: an event about nodes";
            return Err(Error::NotEnabled { what, key: "nodeEvents" });
        }
        Ok(())
    }

    /// Opens a stream. `watch` makes what receives its updates.
    pub async fn open_stream(
        self: Arc<Self>,
        opening: Opening,
        caller: &Caller,
        method: Method,
        watch: impl FnOnce(&Opening, &Cursor) -> Option<Watch>,
    ) -> Result<Subscription, Error> {
        let grant = caller.grant.as_ref();
        let hub = self.gateway.verified_hub().await?;
        self.nodes.announced().await;
        let request = &opening.request;
        let with_token = request.token.is_some();
        let behind = request.token.as_ref().and_then(|token| token.behind.clone());
        let begin = match (&request.token, request.start) {
            (Some(token), _) => Begin::After(token.shards.clone()),
            (None, v1::Start::Oldest) => Begin::Oldest,
            (None, _) => Begin::Latest,
        };
        let read_options = ReadOptions {
            max_events: request.max_events,
            merge: request.overflow == v1::Overflow::Merge,
            explain: request.explain,
            trace: self.tracer.is_on(),
            history: Some(caller.in_flight.quota().history().clone()),
        };
        let filter = within(opening.filter(), grant);
        let opened = hub.open(filter, &begin, read_options).await?;
        if opening.request.current_nodes {
            let others = hub.bus().members().is_some();
            self.nodes.current_known(others).await.map_err(Error::BusUnavailable)?;
        }
        let mut watch = watch(&opening, &opened.cursor);
        let mut gaps = given_up(behind.as_deref(), &opened.cursor);
        if let Some(watch) = &mut watch {
            gaps = watch.take_over(gaps);
        }
        let Opening { request, accounts, permit, .. } = opening;
        let subscription_id = Uuid::now_v7().to_string();
        let kinds = request.filter.kinds.clone();
        let node = v1::Node {
            node_id: request.node_id,
            incarnation: request.incarnation,
            roles: request.roles,
            client_version: request.client_version,
            subscription_id: subscription_id.clone(),
            connect_time: Some(timestamp(SystemTime::now())),
            peer: caller.peer.address.to_string(),
            filter: Some(request.filter),
            filter_accounts: u32::try_from(accounts.len()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let listed = (self.nodes)
            .enter(node, opened.cursor.progress(), &caller.peer.leaving)
            .map_err(|_| Error::limit(Limit::Streams, self.nodes.max_streams()))?;
        let records = self.records.clone();
        let resumed = opened.resumed && gaps.is_empty();
        let record = StreamRecord::opened(records, method, listed.node(), resumed, opened.replayed);
        let options = StreamOptions {
            heartbeat: request.heartbeat,
            end: request.max_duration.map(|duration| Instant::now() + duration),
            overflow: request.overflow,
            revoked: grant.map(|grant| -> Revoked { Box::pin(grant.clone().revoked()) }),
            explain: request.explain,
            current: request.current_nodes.then(CurrentPosition::default),
            kinds,
            with_token,
            subscribed: v1::Subscribed {
                gateway_id: self.gateway.about.gateway_id.clone(),
                subscription_id,
                resumed,
                replayed_events: opened.replayed,
                heartbeat_interval: prost_types::Duration::try_from(request.heartbeat).ok(),
                overflow: request.overflow.into(),
                // The stream adds them when it sends the message.
                resume_token: vec![],
                unverified_shards: vec![],
                deployment: self.gateway.about.deployment.clone(),
            },
        };
        let held = (permit, caller.in_flight.clone());
        let (context, health) = (self.clone(), hub.bus().health());
        let stream =
            Subscription::new(context, health, opened.cursor, listed, record, options, held);
        Ok(stream.beginning_with(gaps, watch))
    }
}

impl Opening {
    fn filter(&self) -> Filter {
        let request = &self.request;
        let names = v1::Filter {
            kinds: request.filter.kinds.clone(),
            accounts: vec![],
            custom_types: request.filter.custom_types.clone(),
        };
        let named = self.named.accounts || !self.accounts.is_empty();
        let filter =
            Filter::new(&names, &request.node_id, &request.roles, request.include_own_events)
                .naming(named.then(|| self.accounts.clone()), self.named.custom_types);
        if request.explain { filter.watching_all() } else { filter }
    }
}

/// The events that a token says a part of the interest was behind, up to where the stream begins:
/// lost, unless that part goes on there.
fn given_up(behind: Option<&[Had]>, cursor: &Cursor) -> VecDeque<(ShardId, Missing)> {
    let behind = behind.unwrap_or_default().iter().zip(cursor.positions()).enumerate();
    let gaps = behind.filter_map(|(shard, (had, to))| {
        let from = had.place();
        (to.is_known() && from < to)
            .then(|| (ShardId::at_index(shard), Missing::given_up(from, to)))
    });
    gaps.collect()
}

/// The filter, narrowed to what the caller may receive.
fn within(filter: Filter, grant: Option<&Grant>) -> Filter {
    match grant {
        None => filter,
        Some(grant) => filter.within(grant.receive()),
    }
}
