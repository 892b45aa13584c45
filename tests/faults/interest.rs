//! Many nodes whose interest changes all the time.

use std::time::{Duration, Instant};

use crate::{
    either,
    load::{Load, Shape},
    pair_on,
    redis::serving,
    report::Report,
    seconds,
    support::redis::{Data, RedisOptions, RedisServer},
};

/// Accounts that each node adds or removes in a second.
const CHANGES: u64 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_change_accounts_all_the_time_miss_nothing_of_those_that_they_have() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    // 200 of them for a minute, or 20 for 10 seconds.
    let time = seconds(60, 10);
    let watchers = usize::try_from(either(200, 20)).expect("few");
    let shape = Shape {
        subscribers: 2,
        watchers,
        changes: CHANGES,
        accounts: 1000,
        pace: Duration::from_millis(10),
        ..Shape::default()
    };
    let load = Load::start(&[&one, &two], shape).await;
    let begun = Instant::now();
    loop {
        for gateway in [&one, &two] {
            gateway.kill_9();
            load.publishes(300).await;
            gateway.restart().await;
            load.publishes(300).await;
        }
        redis.kill_9();
        redis.restart(Data::Wiped).await;
        serving([&one, &two]).await;
        load.publishes(300).await;
        if begun.elapsed() >= time {
            break;
        }
    }
    let (updated, took) = (load.updated(), begun.elapsed());
    println!("{updated} updates of {watchers} nodes in {took:?}");
    // A node that has no stream changes nothing.
    let expected = watchers as u64 * time.as_secs();
    assert!(updated as u64 >= expected, "{updated} updates, fewer than {expected}");
    let history = load.finish().await;
    let fault = "gateways killed in turn and Redis killed, back empty, while nodes change accounts";
    Report::of(fault, &history).check_without_gap();
}
