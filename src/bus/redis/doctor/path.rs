//! Checks of the deployment record, of the balance of shards, and of the path through each shard.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use redis::{Client, ProtocolVersion, PushInfo, PushKind, RedisResult, Value};
use tokio::sync::mpsc;

use super::{CONNECT, Finding, Master, Settings, ShardNames, connect, error_text, names};
use crate::bus::{
    ShardId,
    redis::{
        auth::Keys,
        deployment::{key_mismatch, mode, shards_of_new},
        server::Server,
        topology::Topology,
    },
};

/// The number of round trips to measure.
const TRIPS: usize = 5;

/// A round trip above this is noticeable to nodes.
const SLOW: Duration = Duration::from_millis(100);

/// Compares the record of the gateways with this configuration. The finding, and the number of
/// shards.
pub(super) async fn deployment(settings: &Settings) -> Result<(Finding, u16), String> {
    let key = names::deployment(&settings.prefix);
    let topology = Topology::new(settings.clone(), vec![names::slot_of(&key)])
        .map_err(|error| error.to_string())?;
    topology.refresh().await.map_err(|error| error.to_string())?;
    let server = topology.master(ShardId(0)).ok_or("no server is known to own the record")?;
    let mut connection = connect(&server).await.map_err(|error| error_text(&error))?;
    let mut asked = redis::cmd("HMGET");
    asked.arg(&key).arg("shards").arg("mode").arg("key");
    let fields: RedisResult<(Option<String>, Option<String>, Option<String>)> =
        asked.query_async(&mut connection).await;
    let (shards, recorded, key_of_others) = fields.map_err(|error| error_text(&error))?;
    let ours = shards_of_new(settings);
    let (Some(shards), Some(recorded)) = (shards, recorded) else {
        let seen = format!(
            "nothing is recorded under {key} yet: the first gateway will record {ours} shards"
        );
        let advice = "start a gateway, and run doctor again: it then compares what is recorded";
        return Ok((Finding::not_checked("deployment", seen, advice), ours));
    };
    let advice = "all gateways of a prefix must agree: set it as on the others, leave it out, or \
                  take another prefix";
    let Some(count) = shards.parse().ok().filter(|count| (1..=256).contains(count)) else {
        let seen = format!("{key} records {shards:?} shards");
        let advice = format!("another system wrote this key: take another prefix, or DEL {key}");
        return Ok((Finding::failure("deployment", seen, advice), ours));
    };
    let finding = if settings.shards.is_some_and(|ours| ours != count) {
        let seen = format!("shards is {ours} here, and {key} records {count}");
        Finding::failure("deployment", seen, advice)
    } else if recorded != mode(settings) {
        let seen = format!(
            "this gateway would use {} channels, and {key} records {recorded}",
            mode(settings)
        );
        Finding::failure("deployment", seen, advice)
    } else if let Some(why) = key_mismatch(
        &settings.prefix,
        key_of_others.as_deref(),
        &settings.keys.as_ref().map(Keys::ids).unwrap_or_default(),
    ) {
        Finding::failure("deployment", why, advice)
    } else {
        Finding::ok("deployment", format!("{key} records {count} shards, {recorded}"))
    };
    Ok((finding, count))
}

pub(super) fn unknown_deployment(why: &str) -> Finding {
    let advice = "see that the user may read the prefix's keys, and that every slot of a cluster \
                  has a master";
    Finding::failure("deployment", format!("the record could not be read: {why}"), advice)
}

/// Checks that the masters have about the same number of shards.
pub(super) fn balance(masters: &[Master]) -> Finding {
    let mut owned: BTreeMap<String, usize> = BTreeMap::new();
    for master in masters {
        *owned.entry(master.server.shown()).or_default() += 1;
    }
    let seen: Vec<_> = owned.iter().map(|(address, count)| format!("{address}: {count}")).collect();
    let seen = format!("shards by master: {}", seen.join(", "));
    let (least, most) = (owned.values().min(), owned.values().max());
    if most.zip(least).is_some_and(|(most, least)| most > &(least + 1)) {
        let advice = "redis-cli --cluster rebalance: the shards lie evenly over the slots";
        return Finding::warning("shards", seen, advice);
    }
    Finding::ok("shards", seen)
}

/// Sends messages over a channel of its own in the shard's slot, and measures their way back.
pub(super) async fn round_trip(
    server: &Server,
    settings: &Settings,
    shard: ShardId,
    names: &[ShardNames],
) -> Vec<Finding> {
    let (names, address) = (&names[shard.index()], server.shown());
    let channel = names.scratch(&format!("{:016x}:trip", rand::random::<u64>()));
    let trips = async {
        trips(server, settings.sharded, &channel).await.map_err(|error| error_text(&error))?
    };
    let finding = match trips.await {
        Ok(mut trips) => {
            trips.sort_unstable();
            let (middle, most) = (trips[trips.len() / 2], trips[trips.len() - 1]);
            let seen = format!("shard {shard} by {address}: {middle:.2?}, at most {most:.2?}");
            if middle > SLOW {
                let advice = "put gateways and Redis nearer to each other; look at SLOWLOG and the \
                              server's load";
                Finding::warning("round trip", seen, advice)
            } else {
                Finding::ok("round trip", seen)
            }
        }
        Err(why) => {
            let advice = if why.contains("NOPERM") {
                let subscribe = if settings.sharded { "ssubscribe" } else { "subscribe" };
                format!("ACL SETUSER <user> +{subscribe} &{}:*", settings.prefix)
            } else {
                "see that nothing between this machine and Redis drops connections".to_owned()
            };
            Finding::failure("round trip", format!("shard {shard} by {address}: {why}"), advice)
        }
    };
    vec![finding]
}

async fn trips(
    server: &Server,
    sharded: bool,
    channel: &str,
) -> RedisResult<Result<Vec<Duration>, String>> {
    let (sender, mut pushed) = mpsc::channel::<PushInfo>(64);
    let config = server
        .config()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(CONNECT))
        .set_push_sender(move |push| sender.try_send(push));
    let info = server.info().await?;
    // Both protocols share their channels; only RESP3 has push messages.
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let client = Client::open(info.set_redis_settings(redis))?;
    let mut subscriber = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut publisher = connect(server).await?;
    let (subscribe, publish) =
        if sharded { ("SSUBSCRIBE", "SPUBLISH") } else { ("SUBSCRIBE", "PUBLISH") };
    let _: Value = redis::cmd(subscribe).arg(channel).query_async(&mut subscriber).await?;
    let mut trips = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let started = Instant::now();
        let _: Value =
            redis::cmd(publish).arg(channel).arg("x").query_async(&mut publisher).await?;
        let came = async {
            while let Some(push) = pushed.recv().await {
                if matches!(push.kind, PushKind::Message | PushKind::SMessage) {
                    return true;
                }
            }
            false
        };
        if tokio::time::timeout(CONNECT, came).await != Ok(true) {
            return Ok(Err("what was published did not come back".to_owned()));
        }
        trips.push(started.elapsed());
    }
    Ok(Ok(trips))
}
