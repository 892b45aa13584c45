//! The coordination service: checks requests, and hands them to the hub and the bus.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use futures_util::{
    future::join_all,
    stream::{Empty, empty},
};
use parking_lot::RwLock;
use tokio::{sync::watch, time::Instant};
use tonic::{
    Request, Status,
    metadata::{MetadataMap, MetadataValue},
};
use uuid::Uuid;

use crate::{
    access::{
        Access, Permit,
        quota::{Pending, Quotas},
    },
    observe::{
        counters::{Counters, Kinds, Method},
        lines::StreamLine,
        recent::Recent,
    },
    port::{connections::ConnectionSlots, listener::Peer},
    presence::{Nodes, timestamp},
    rpc::{
        body,
        error::Error,
        follow::Publishing,
        limit::Limit,
        stream::{Drain, Revoked, Subscription, Terms, encode_token, stream, wire_position},
        validate, wire,
    },
};
use crate::{
    bus::{AppendError, Appended, Batch, Health, Position, ShardId},
    config::Limits,
    hub::{Begin, Hub, LAST_VALUE_KINDS, Reading, event::shard_of},
    proto::v1,
    trace::{Carried, Tracer},
};

/// How long a new stream waits for a bus that is not proven, before it is refused.
const PROOF_WAIT: Duration = Duration::from_secs(2);

/// What all requests share.
pub struct Shared {
    /// Who may connect.
    pub access: Arc<Access>,
    /// Identity of this gateway.
    pub gateway_id: String,
    /// What the tokens of this deployment are marked with.
    pub deployment: u32,
    /// When the gateway started.
    pub started: SystemTime,
    /// What requests may ask for.
    pub limits: Limits,
    /// What each identity may have.
    pub quotas: Arc<Quotas>,
    /// The places for connections.
    pub slots: Arc<ConnectionSlots>,
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
    pub counters: Arc<Counters>,
    /// What went wrong lately.
    pub recent: Arc<Recent>,
    /// Who is told of the events of traces that are recorded.
    pub tracer: Tracer,
}

impl Shared {
    /// A resume token for places.
    pub fn token(&self, positions: &[Position]) -> Vec<u8> {
        encode_token(self.deployment, positions)
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

    async fn publish(
        &self,
        request: wire::PublishRequest,
        sender: &Pending,
        permit: Option<&Permit>,
        mut trace: Option<Carried>,
    ) -> Result<v1::PublishResponse, Error> {
        self.shared.refuse_if_draining()?;
        let now = SystemTime::now();
        let mut publishing = Publishing::begin(&self.shared.tracer, &mut trace, now);
        let answer =
            self.append(request, sender, permit, trace.as_ref(), now, &mut publishing).await;
        publishing.end(&answer);
        answer
    }

    async fn append(
        &self,
        request: wire::PublishRequest,
        sender: &Pending,
        permit: Option<&Permit>,
        trace: Option<&Carried>,
        now: SystemTime,
        publishing: &mut Publishing,
    ) -> Result<v1::PublishResponse, Error> {
        let begun = Instant::now();
        let node_id = permit.map(|_| request.node_id.clone());
        let publish = validate::publish(request, &self.shared.limits, now, trace)?;
        publishing.join(&publish);
        if let (Some(permit), Some(node_id)) = (permit, &node_id) {
            permit.check_publish(node_id, &publish.events)?;
        }
        self.shared.quotas.publish(sender.share(), publish.events.len())?;
        let hub = self.shared.hub()?;
        let shards = hub.bus().shards();
        let count = publish.events.len();
        let mut kinds = Kinds::default();
        let mut by_shard: Vec<(ShardId, Vec<usize>, Batch)> = Vec::new();
        let mut slots: Vec<Option<usize>> = vec![None; usize::from(shards)];
        for (index, event) in publish.events.into_iter().enumerate() {
            let shard = shard_of(event.key_hash, shards);
            let slot = *slots[shard.index()].get_or_insert_with(|| {
                let request_id = publish.request_id;
                let batch = Batch { events: vec![], request_id, retain: vec![], follow: None };
                by_shard.push((shard, vec![], batch));
                by_shard.len() - 1
            });
            kinds.add(event.kind);
            let (_, indexes, batch) = &mut by_shard[slot];
            indexes.push(index);
            if LAST_VALUE_KINDS.contains(&event.kind) {
                batch.retain.push((batch.events.len(), event.kind));
            }
            publishing.follow(batch, event.followed);
            batch.events.push(event.bytes);
        }
        let appends = by_shard.into_iter().map(|(shard, indexes, batch)| async move {
            (shard, indexes, hub.bus().append(shard, batch).await)
        });
        let mut positions = vec![v1::Position::default(); count];
        let (mut accepted, mut failed) = (0, None);
        for (shard, indexes, result) in join_all(appends).await {
            match result {
                Ok(Appended { epoch, first }) => {
                    accepted += 1;
                    for (nth, index) in indexes.into_iter().enumerate() {
                        let position = Position { epoch, offset: first.plus(nth as u64) };
                        positions[index] = wire_position(shard, position);
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
        sender: Arc<Pending>,
        peer: &Peer,
        permit: Option<&Permit>,
    ) -> Result<Subscription, Error> {
        let shared = &self.shared;
        shared.refuse_if_draining()?;
        let subscribe =
            validate::subscribe(request, &shared.limits, shared.heartbeat, shared.deployment)?;
        let filter = match permit {
            None => subscribe.filter,
            Some(permit) => {
                permit.check_subscribe(
                    &subscribe.node_id,
                    &subscribe.roles,
                    &subscribe.wire_filter,
                )?;
                permit.check_explain(subscribe.explain)?;
                subscribe.filter.within(permit.receive())
            }
        };
        let seat = shared.quotas.stream(sender.share(), &peer.streams)?;
        let hub = shared.proven_hub().await?;
        let with_token = subscribe.token.is_some();
        let begin = match (subscribe.token, subscribe.start) {
            (Some(token), _) => Begin::After(token.positions),
            (None, v1::Start::Oldest) => Begin::Oldest,
            (None, _) => Begin::Latest,
        };
        let reading = Reading {
            max_events: subscribe.max_events,
            merge: subscribe.overflow == v1::Overflow::Merge,
            explain: subscribe.explain,
            follow: shared.tracer.is_on(),
        };
        let opened = hub.open(filter, &begin, reading).await?;
        let subscription_id = Uuid::now_v7().to_string();
        let kinds = subscribe.wire_filter.kinds.clone();
        let node = v1::Node {
            node_id: subscribe.node_id,
            incarnation: subscribe.incarnation,
            roles: subscribe.roles,
            client_version: subscribe.client_version,
            subscription_id: subscription_id.clone(),
            connect_time: Some(timestamp(SystemTime::now())),
            peer: peer.address.to_string(),
            filter: Some(subscribe.wire_filter),
            ..Default::default()
        };
        let listed = shared
            .nodes
            .enter(node, opened.cursor.progress(), shared.limits.max_streams, shared.recent.clone())
            .map_err(|_| Error::limit(Limit::Streams, shared.limits.max_streams))?;
        let line = StreamLine::opened(listed.node(), opened.resumed, opened.replayed);
        let terms = Terms {
            line,
            heartbeat: subscribe.heartbeat,
            end: subscribe.max_duration.map(|duration| Instant::now() + duration),
            overflow: subscribe.overflow,
            revoked: permit.map(|permit| -> Revoked { Box::pin(permit.clone().revoked()) }),
            explain: subscribe.explain,
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
        Ok(stream(shared.clone(), opened.cursor, listed, terms, (seat, sender)))
    }

    /// Counts what went wrong, and keeps the last of it.
    fn counted<T>(&self, method: Method, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| {
            self.shared.counters.failed(method, error);
            self.shared.recent.refused(method, error);
        })
    }

    fn list_nodes(&self, request: &v1::ListNodesRequest) -> Result<v1::ListNodesResponse, Error> {
        Ok(self.shared.list_nodes(&validate::page(request)?))
    }
}

/// The trace that a request belongs to, as its caller says.
fn trace_of(metadata: &MetadataMap) -> Option<Carried> {
    let values = |name| metadata.get_all(name).iter().map(MetadataValue::as_bytes);
    Carried::read(values("traceparent"), values("tracestate"))
}

/// What a request is counted with.
fn pending<T>(request: &Request<T>) -> Result<Arc<Pending>, Status> {
    let pending = request.extensions().get::<Arc<Pending>>().cloned();
    pending.ok_or_else(|| Status::internal("a request that nobody counts"))
}

/// The generated server.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod generated {
    include!(concat!(env!("OUT_DIR"), "/trunkline.v1.CoordinationService.rs"));
}

#[tonic::async_trait]
impl generated::coordination_service_server::CoordinationService for Service {
    /// Empty: what it stands for is carried beside it.
    type SubscribeStream = Empty<Result<v1::SubscribeResponse, Status>>;

    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<tonic::Response<v1::PublishResponse>, Status> {
        let permit = request.extensions().get::<Permit>().cloned();
        let sender = pending(&request)?;
        let trace = trace_of(request.metadata());
        // What it is counted with stays until it is answered.
        let answer = self.publish(request.into_inner(), &sender, permit.as_ref(), trace).await;
        Ok(tonic::Response::new(self.counted(Method::Publish, answer)?))
    }

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<tonic::Response<Self::SubscribeStream>, Status> {
        let permit = request.extensions().get::<Permit>().cloned();
        let sender = pending(&request)?;
        let peer = request.extensions().get().cloned();
        let peer: Peer = peer.ok_or_else(|| Status::internal("a request from nowhere"))?;
        let stream = self.subscribe(request.into_inner(), sender, &peer, permit.as_ref()).await;
        let stream = self.counted(Method::Subscribe, stream)?;
        Ok(body::carry(empty(), stream))
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
        Ok(tonic::Response::new(self.shared.status()))
    }
}
