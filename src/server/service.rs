//! The coordination service: checks requests, and hands them to the hub and the bus.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, future::join_all};
use parking_lot::RwLock;
use tokio::{sync::watch, time::Instant};
use tonic::{Request, Status};
use uuid::Uuid;

use super::{
    access::Caller,
    counters::{Counters, Kinds, Method},
    error::Error,
    nodes::{Nodes, timestamp},
    stream::{Drain, Terms, encode_token, position, stream},
    validate,
    wire::{self, Response},
};
use crate::{
    bus::{AppendError, Appended, Batch, Health, Place, ShardId},
    config::Limits,
    hub::{Begin, Hub, LAST_VALUE_KINDS, Reading, event::shard_of},
    proto::v1,
};

/// How long a new stream waits for a bus that is not proven, before it is refused.
const PROOF_WAIT: Duration = Duration::from_secs(2);

/// What all requests share.
pub struct Shared {
    /// Identity of this gateway.
    pub gateway_id: String,
    /// What the tokens of this deployment are marked with.
    pub deployment: u32,
    /// When the gateway started.
    pub started: SystemTime,
    /// What requests may ask for.
    pub limits: Limits,
    /// Streams that may be open.
    pub max_streams: usize,
    /// The heartbeat interval of streams that do not ask for one.
    pub heartbeat: Duration,
    /// Over how long nodes are sent away, which is also how long they are told to wait.
    pub drain_spread: Duration,
    /// Set when the bus has started.
    pub hub: OnceLock<Arc<Hub>>,
    /// Why the bus has not started, while it has not.
    pub waiting: RwLock<String>,
    /// The open streams.
    pub nodes: Arc<Nodes>,
    /// Set once the gateway is going away.
    pub drain: watch::Sender<Option<Drain>>,
    /// What was done so far.
    pub counters: Counters,
}

impl Shared {
    /// A resume token for places.
    pub fn token(&self, places: &[Place]) -> Vec<u8> {
        encode_token(self.deployment, places)
    }

    /// How long a node is told to wait before it connects again.
    pub fn reconnect_delay(&self) -> Duration {
        self.drain_spread.min(Duration::from_secs(1))
    }

    /// Whoever still comes while load balancers are waited for is served.
    fn refuse_if_draining(&self) -> Result<(), Error> {
        match *self.drain.borrow() {
            Some(drain) if drain.start <= Instant::now() => {
                Err(Error::draining(self.reconnect_delay()))
            }
            _ => Ok(()),
        }
    }

    /// Why the gateway does not serve; none if it does.
    pub fn why_not_serving(&self) -> Option<String> {
        let Some(hub) = self.hub.get() else {
            return Some(format!("the bus has not started: {}", self.waiting.read()));
        };
        if self.drain.borrow().is_some() {
            return Some("draining".into());
        }
        match &*hub.bus().health().borrow() {
            Health::NotReady(why) => Some(why.clone()),
            Health::Ready => None,
        }
    }

    fn hub(&self) -> Result<&Arc<Hub>, Error> {
        self.hub.get().ok_or_else(|| Error::bus_unavailable(self.waiting.read().clone()))
    }

    /// The hub, once the way through the bus is proven.
    async fn proven_hub(&self) -> Result<&Arc<Hub>, Error> {
        let hub = self.hub()?;
        let mut health = hub.bus().health();
        let ready = health.wait_for(|health| *health == Health::Ready);
        match tokio::time::timeout(PROOF_WAIT, ready).await {
            Ok(Ok(_)) if hub.is_started() => Ok(hub),
            _ => {
                let why = match &*hub.bus().health().borrow() {
                    Health::NotReady(why) => why.clone(),
                    Health::Ready => "the bus has just started".into(),
                };
                Err(Error::bus_unavailable(why))
            }
        }
    }
}

/// The gRPC service.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

impl Service {
    /// A service over what is shared.
    pub fn new(shared: Arc<Shared>) -> Service {
        Service { shared }
    }

    async fn publish(&self, request: wire::PublishRequest) -> Result<v1::PublishResponse, Error> {
        self.shared.refuse_if_draining()?;
        let begun = Instant::now();
        let publish = validate::publish(request, &self.shared.limits, SystemTime::now())?;
        let hub = self.shared.hub()?;
        let shards = hub.bus().shards();
        let count = publish.events.len();
        let mut kinds = Kinds::default();
        let mut by_shard: Vec<(Vec<usize>, Batch)> = Vec::new();
        let mut slots: Vec<Option<usize>> = vec![None; usize::from(shards)];
        for (index, event) in publish.events.into_iter().enumerate() {
            let shard = shard_of(event.key_hash, shards).index();
            let slot = *slots[shard].get_or_insert_with(|| {
                let request_id = publish.request_id;
                let batch = Batch { events: vec![], request_id, retain: vec![] };
                by_shard.push((vec![], batch));
                by_shard.len() - 1
            });
            by_shard[slot].0.push(index);
            kinds.add(event.kind);
            let batch = &mut by_shard[slot].1;
            if LAST_VALUE_KINDS.contains(&event.kind) {
                batch.retain.push((batch.events.len(), event.kind));
            }
            batch.events.push(event.bytes);
        }
        let appends = (0..shards).filter_map(|shard| {
            let (indexes, batch) = &by_shard[slots[usize::from(shard)]?];
            let shard = ShardId(shard);
            let batch = batch.clone();
            Some(async move { (shard, indexes, hub.bus().append(shard, batch).await) })
        });
        let mut positions = vec![v1::Position::default(); count];
        let (mut accepted, mut failed) = (0, None);
        for (shard, indexes, result) in join_all(appends).await {
            match result {
                Ok(Appended { epoch, first }) => {
                    accepted += 1;
                    for (nth, index) in indexes.iter().enumerate() {
                        let place = Place { epoch, offset: first.plus(nth as u64) };
                        positions[*index] = position(shard, place);
                    }
                }
                // What is not known of one part is not known of the whole.
                Err(error) if !matches!(failed, Some(AppendError::OutcomeUnknown(_))) => {
                    failed = Some(error);
                }
                Err(_) => {}
            }
        }
        match failed {
            None => {
                self.shared.counters.published(&kinds, begun.elapsed());
                Ok(v1::PublishResponse { positions })
            }
            Some(AppendError::Unavailable(why)) if accepted > 0 => {
                Err(AppendError::OutcomeUnknown(format!("part of the request was accepted; {why}"))
                    .into())
            }
            Some(error) => Err(error.into()),
        }
    }

    async fn subscribe(
        &self,
        request: v1::SubscribeRequest,
        peer: String,
    ) -> Result<impl Stream<Item = Result<Response, Status>> + Send + use<>, Error> {
        let shared = &self.shared;
        shared.refuse_if_draining()?;
        let subscribe =
            validate::subscribe(request, &shared.limits, shared.heartbeat, shared.deployment)?;
        let hub = shared.proven_hub().await?;
        let with_token = subscribe.token.is_some();
        let begin = match (subscribe.token, subscribe.start) {
            (Some(token), _) => Begin::After(token.places),
            (None, v1::Start::Oldest) => Begin::Oldest,
            (None, _) => Begin::Latest,
        };
        let reading = Reading {
            max_events: subscribe.max_events,
            merge: subscribe.overflow == v1::Overflow::Merge,
        };
        let opened = hub.open(subscribe.filter, &begin, reading).await?;
        let subscription_id = Uuid::now_v7().to_string();
        let kinds = subscribe.wire_filter.kinds.clone();
        let node = v1::Node {
            node_id: subscribe.node_id,
            incarnation: subscribe.incarnation,
            roles: subscribe.roles,
            client_version: subscribe.client_version,
            subscription_id: subscription_id.clone(),
            connect_time: Some(timestamp(SystemTime::now())),
            peer,
            filter: Some(subscribe.wire_filter),
            ..Default::default()
        };
        let listed = shared
            .nodes
            .enter(node, opened.cursor.progress(), shared.max_streams)
            .map_err(|_| Error::limit("limits.maxStreams", shared.max_streams))?;
        let terms = Terms {
            heartbeat: subscribe.heartbeat,
            end: subscribe.max_duration.map(|duration| Instant::now() + duration),
            overflow: subscribe.overflow,
            kinds,
            with_token,
            subscribed: v1::Subscribed {
                gateway_id: shared.gateway_id.clone(),
                subscription_id,
                resumed: opened.resumed,
                replayed_events: opened.replayed,
                heartbeat_interval: prost_types::Duration::try_from(subscribe.heartbeat).ok(),
                overflow: subscribe.overflow.into(),
                resume_token: vec![],
            },
        };
        Ok(stream(shared.clone(), opened.cursor, listed, terms))
    }

    /// Counts what went wrong.
    fn counted<T>(&self, method: Method, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| self.shared.counters.failed(method, error))
    }

    fn list_nodes(&self, request: &v1::ListNodesRequest) -> Result<v1::ListNodesResponse, Error> {
        Ok(self.shared.list_nodes(&validate::page(request)?))
    }

    fn status(&self) -> v1::GetStatusResponse {
        let shared = &self.shared;
        let reason = shared.why_not_serving();
        let mut response = v1::GetStatusResponse {
            gateway_id: shared.gateway_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            start_time: Some(timestamp(shared.started)),
            streams: u32::try_from(shared.nodes.count()).unwrap_or(u32::MAX),
            behind_events: shared.nodes.behind(),
            published_events: shared.counters.published_events(),
            delivered_events: shared.counters.delivered_events(),
            serving: reason.is_none(),
            reason: reason.unwrap_or_default(),
            ..Default::default()
        };
        let Some(hub) = shared.hub.get() else { return response };
        let bus = hub.bus();
        response.bus = bus.kind().into();
        let status = bus.status();
        response.bus_gaps = status.gaps.iter().map(|count| count.gaps).sum();
        response.unreadable_frames = status.unreadable;
        response.links = status
            .links
            .into_iter()
            .map(|link| v1::BusLink {
                address: link.address,
                purpose: link.purpose.into(),
                connected: link.connected,
                reconnects: link.reconnects,
            })
            .collect();
        response.shards = status
            .shards
            .iter()
            .zip(hub.logs())
            .zip(0..)
            .map(|((shard, log), id)| {
                let extent = log.extent();
                v1::ShardStatus {
                    shard: id,
                    epoch: extent.end.epoch.0,
                    offset: extent.end.offset.0,
                    proof_age: shard
                        .proof_age
                        .and_then(|age| prost_types::Duration::try_from(age).ok()),
                    proven: shard.proven,
                    log_events: extent.events as u64,
                    log_bytes: extent.bytes as u64,
                    repairs: shard.repairs,
                }
            })
            .collect();
        response
    }
}

/// The generated server.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod generated {
    include!(concat!(env!("OUT_DIR"), "/trunkline.v1.CoordinationService.rs"));
}

#[tonic::async_trait]
impl generated::coordination_service_server::CoordinationService for Service {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<Response, Status>> + Send>>;

    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<tonic::Response<v1::PublishResponse>, Status> {
        let answer = self.publish(request.into_inner()).await;
        Ok(tonic::Response::new(self.counted(Method::Publish, answer)?))
    }

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<tonic::Response<Self::SubscribeStream>, Status> {
        let caller = request.extensions().get::<Caller>();
        let peer = caller.map(|caller| caller.peer.to_string()).unwrap_or_default();
        let stream = self.subscribe(request.into_inner(), peer).await;
        let stream = self.counted(Method::Subscribe, stream)?;
        Ok(tonic::Response::new(Box::pin(stream)))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<tonic::Response<v1::ListNodesResponse>, Status> {
        let nodes = self.list_nodes(request.get_ref());
        Ok(tonic::Response::new(self.counted(Method::ListNodes, nodes)?))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<tonic::Response<v1::GetStatusResponse>, Status> {
        Ok(tonic::Response::new(self.status()))
    }
}
