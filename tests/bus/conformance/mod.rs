//! The rules of a bus, as `trunkline::bus::Bus` and `History` state them, checked on every bus.
//!
//! A new bus adds a line to the tests at the end of this file. It needs nothing else here.

mod history;
mod recorder;
mod rules;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use trunkline::{
    bus::{
        AppendError, Appended, Batch, Health, Position, Registry, RequestId, ShardId, SharedBus,
        Starting,
    },
    config::Config,
};

use self::recorder::Recorder;
use super::{
    memory::{Fault, MemoryFactory},
    support::{
        ClusterOptions, LIMIT, RedisCluster, RedisOptions, RedisServer, SentinelSet, eventually,
        shared, until,
    },
};

/// A deployment whose gateways are started by a test.
pub struct Deployment {
    registry: Registry,
    bus: &'static str,
    config: Config,
}

/// A gateway without anything but its bus.
pub struct Member {
    pub bus: SharedBus,
    pub sink: Arc<Recorder>,
}

impl Deployment {
    /// A deployment with the bus of the configuration.
    fn of(coordinator: &Value) -> Deployment {
        let config = config(coordinator);
        Deployment { registry: Registry::default(), bus: config.bus.type_name(), config }
    }

    /// A new gateway, as soon as it is ready.
    pub async fn member(&self) -> Member {
        let sink = Arc::new(Recorder::default());
        let starting = Starting {
            config: &self.config,
            waiting: Box::new(|_| {}),
            sink: Box::new({
                let sink = sink.clone();
                move |_| sink
            }),
        };
        let factory = self.registry.get(self.bus).expect("a registered bus");
        let bus = factory.start(starting).await.expect("a bus that starts");
        let member = Member { bus, sink };
        member.is_ready().await;
        member
    }
}

impl Member {
    async fn is_ready(&self) {
        let mut health = self.bus.health();
        let ready = health.wait_for(|health| *health == Health::Ready);
        tokio::time::timeout(LIMIT, ready).await.expect("ready in time").expect("a running bus");
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> {
        ShardId::all(self.bus.shards())
    }

    async fn append(&self, shard: ShardId, events: &[Bytes]) -> Result<Appended, AppendError> {
        self.bus.append(shard, batch(events, None)).await
    }

    /// Appends, however often it takes: for a bus that loses its memory at the same time.
    async fn appended(&self, shard: ShardId, events: &[Bytes]) -> Appended {
        let id = request_id();
        eventually(LIMIT, "an append", async || {
            self.bus.append(shard, batch(events, Some(id))).await.ok()
        })
        .await
    }

    /// Waits until the sink has everything up to a position.
    async fn reaches(&self, shard: ShardId, position: Position) {
        let what = format!("the delivery of {position} on shard {shard}");
        until(LIMIT, &what, async || self.sink.shard(shard).at.is_some_and(|at| at >= position))
            .await;
    }
}

/// The position of the last event of an append.
fn last(appended: Appended, events: &[Bytes]) -> Position {
    let offset = appended.first.plus(events.len() as u64 - 1);
    Position { epoch: appended.epoch, offset }
}

fn batch(events: &[Bytes], request_id: Option<RequestId>) -> Batch {
    Batch { events: events.to_vec(), request_id, runs: vec![], retain: vec![], trace: None }
}

fn request_id() -> RequestId {
    *uuid::Uuid::new_v4().as_bytes()
}

/// Events that no other call returns.
fn events(count: usize) -> Vec<Bytes> {
    let name = uuid::Uuid::new_v4().simple().to_string();
    (0..count).map(|number| Bytes::from(format!("{name}-{number}"))).collect()
}

fn config(coordinator: &Value) -> Config {
    super::support::config(&json!({
        "coordinator": coordinator,
        "prefix": shared::prefix(),
        "shards": 2,
        "history": {"maxFrames": 100},
    }))
}

/// Checks every rule that needs no fault.
async fn conforms(deployment: &Deployment) {
    let one = deployment.member().await;
    rules::start_is_delivered_before_health_is_ready(&one);
    // A bus through which gateways find one another has several.
    let several = one.bus.members().is_some();
    let two = if several { Some(deployment.member().await) } else { None };
    let two = two.as_ref().unwrap_or(&one);

    rules::concurrent_appends_are_delivered_in_one_order(&one, two).await;
    rules::a_request_id_is_appended_once(&one, two).await;
    rules::numbered_events_are_appended_once_however_they_are_cut(&one, two).await;
    rules::a_later_stream_takes_over_where_it_has_published(&one, two).await;
    rules::a_dropped_append_is_made_in_full_or_not_at_all(&one, two).await;
    if let Some(kept) = one.bus.history() {
        history::pages_continue_after_any_position(&one, kept).await;
        history::the_tip_is_the_last_append(two, kept).await;
        history::expired_events_are_a_gap_with_a_count(&one, kept).await;
        history::the_last_value_of_a_key_is_kept(&one, kept).await;
    }
    if let Some(members) = one.bus.members() {
        rules::members_find_one_another(members).await;
    }
    rules::an_idle_bus_stays_verified(&one).await;
    rules::close_answers_every_append(&deployment.member().await, two, several).await;
    for member in [&one, two] {
        member.sink.assert_rules_kept();
        for shard in member.shards() {
            assert!(member.sink.shard(shard).gaps.is_empty(), "no event was lost");
        }
        member.bus.close().await;
    }
}

/// Checks the rules about loss: `lose` makes the servers of the bus lose some or all of what they
/// have.
async fn conforms_after_loss(deployment: &Deployment, lose: impl AsyncFn()) {
    let one = deployment.member().await;
    let two = deployment.member().await;
    rules::a_loss_begins_a_new_epoch(&one, &two, lose).await;
    for member in [&one, &two] {
        member.sink.assert_rules_kept();
        member.bus.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_bus_conforms() {
    conforms(&Deployment::of(&json!({"@type": "Embedded"}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redis_bus_conforms() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let deployment = Deployment::of(&json!({"@type": "Redis", "url": redis.url()}));
    conforms(&deployment).await;
    conforms_after_loss(&deployment, async || {
        redis.cli(&["FLUSHALL"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redis_sentinel_bus_conforms() {
    let set = SentinelSet::start().await;
    let deployment = Deployment::of(&json!({"@type": "RedisSentinel", "urls": set.urls()}));
    conforms(&deployment).await;
    conforms_after_loss(&deployment, async || {
        set.server(set.master().await).cli(&["FLUSHALL"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redis_cluster_bus_conforms() {
    let options = ClusterOptions { replicas: 0, ..Default::default() };
    let cluster = RedisCluster::with(options).await;
    let deployment = Deployment::of(&json!({"@type": "RedisCluster", "urls": cluster.urls()}));
    conforms(&deployment).await;
    conforms_after_loss(&deployment, async || {
        for node in cluster.nodes() {
            node.cli(&["FLUSHALL"]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_on_while_acknowledgements_wait_for_a_replica() {
    let (redis, replica) = RedisServer::with_replica().await;
    let coordinator = json!({"@type": "Redis", "url": redis.url(), "minReplicas": 1});
    let member = Deployment::of(&coordinator).member().await;
    let shard = ShardId(0);
    let before = member.append(shard, &events(1)).await.expect("the replica has it");
    let position = |nth| Position { epoch: before.epoch, offset: before.first.plus(nth) };

    replica.pause().await;
    let mut appends = Vec::new();
    for nth in 1..=3 {
        let (bus, batch) = (member.bus.clone(), batch(&events(1), None));
        appends.push(tokio::spawn(async move { bus.append(shard, batch).await }));
        member.reaches(shard, position(nth)).await;
    }
    assert!(!appends.iter().any(tokio::task::JoinHandle::is_finished), "no replica has them");
    replica.resume();
    for (append, nth) in appends.into_iter().zip(1..) {
        let appended = append.await.expect("it ends").expect("the replica has it");
        assert_eq!(last(appended, &events(1)), position(nth));
    }
    member.sink.assert_rules_kept();
    member.bus.close().await;
}

/// The third bus: `tests/bus/memory` and one line in a registry.
fn in_memory() -> (Deployment, MemoryFactory) {
    let memory = MemoryFactory::default();
    let registry = Registry::default().with("Memory", memory.clone());
    let config = config(&json!({"@type": "Embedded"}));
    (Deployment { registry, bus: "Memory", config }, memory)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_in_memory_bus_conforms() {
    let (deployment, memory) = in_memory();
    conforms(&deployment).await;
    memory.inject(Fault::Delay);
    conforms(&deployment).await;
    conforms_after_loss(&deployment, async || memory.lose_tail(3, false)).await;
    conforms_after_loss(&deployment, async || memory.lose_tail(3, true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_away_says_so_and_appends_nothing() {
    let (deployment, memory) = in_memory();
    let member = deployment.member().await;
    rules::an_outage_is_noticed_and_appends_nothing(&member, &memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_an_unknown_outcome_and_a_retry_is_safe() {
    let (deployment, memory) = in_memory();
    let member = deployment.member().await;
    rules::a_retry_after_a_lost_answer_is_safe(&member, &memory).await;
}
