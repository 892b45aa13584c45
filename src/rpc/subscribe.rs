//! `Subscribe`: checks a request, and opens its stream.

use std::{sync::Arc, time::SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    access::{Caller, Grant},
    errors::{Error, Limit},
    hub::{Begin, ReadOptions, filter::Filter},
    observe::streams::StreamRecord,
    presence::timestamp,
    proto::v1,
    rpc::{
        Context,
        stream::{Revoked, StreamOptions, Subscription},
        validate,
    },
};

impl Context {
    /// Opens the stream that a request asks for.
    pub async fn subscribe(
        self: Arc<Self>,
        request: v1::SubscribeRequest,
        caller: &Caller,
    ) -> Result<Subscription, Error> {
        self.gateway.refuse_if_draining()?;
        let grant = caller.grant.as_ref();
        if let Some(grant) = grant {
            grant.check_subscribe(&request)?;
        }
        let stream_permit = self.quotas.stream(caller.in_flight.quota(), &caller.peer.streams)?;
        let filter_bytes = request.filter.as_ref().map_or(0, Filter::held_bytes);
        caller.in_flight.add(filter_bytes)?;
        let subscribe =
            validate::subscribe(request, &self.limits, self.heartbeat, self.deployment)?;
        let hub = self.gateway.verified_hub().await?;
        let with_token = subscribe.token.is_some();
        let begin = match (subscribe.token, subscribe.start) {
            (Some(token), _) => Begin::After(token.shards),
            (None, v1::Start::Oldest) => Begin::Oldest,
            (None, _) => Begin::Latest,
        };
        let read_options = ReadOptions {
            max_events: subscribe.max_events,
            merge: subscribe.overflow == v1::Overflow::Merge,
            explain: subscribe.explain,
            trace: self.tracer.is_on(),
            history: Some(caller.in_flight.quota().history().clone()),
        };
        let filter = within(subscribe.filter, grant);
        let opened = hub.open(filter, &begin, read_options).await?;
        let subscription_id = Uuid::now_v7().to_string();
        let kinds = subscribe.wire_filter.kinds.clone();
        let node = v1::Node {
            node_id: subscribe.node_id,
            incarnation: subscribe.incarnation,
            roles: subscribe.roles,
            client_version: subscribe.client_version,
            subscription_id: subscription_id.clone(),
            connect_time: Some(timestamp(SystemTime::now())),
            peer: caller.peer.address.to_string(),
            filter: Some(subscribe.wire_filter),
            ..Default::default()
        };
        let listed = (self.nodes)
            .enter(node, opened.cursor.progress())
            .map_err(|_| Error::limit(Limit::Streams, self.nodes.max_streams()))?;
        let records = self.records.clone();
        let record = StreamRecord::opened(records, listed.node(), opened.resumed, opened.replayed);
        let options = StreamOptions {
            heartbeat: subscribe.heartbeat,
            end: subscribe.max_duration.map(|duration| Instant::now() + duration),
            overflow: subscribe.overflow,
            revoked: grant.map(|grant| -> Revoked { Box::pin(grant.clone().revoked()) }),
            explain: subscribe.explain,
            kinds,
            with_token,
            subscribed: v1::Subscribed {
                gateway_id: self.gateway.about.gateway_id.clone(),
                subscription_id,
                resumed: opened.resumed,
                replayed_events: opened.replayed,
                heartbeat_interval: prost_types::Duration::try_from(subscribe.heartbeat).ok(),
                overflow: subscribe.overflow.into(),
                resume_token: vec![],
            },
        };
        let held = (stream_permit, caller.in_flight.clone());
        Ok(Subscription::new(self.clone(), opened.cursor, listed, record, options, held))
    }
}

/// The filter, narrowed to what the caller may receive.
fn within(filter: Filter, grant: Option<&Grant>) -> Filter {
    match grant {
        None => filter,
        Some(grant) => filter.within(grant.receive()),
    }
}
