//! Gateways whose clocks differ.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    redis::serving,
    support::{
        LIMIT,
        events::numbered,
        folder,
        gateway::{self, FRAME_KEY, Gateway, GatewayOptions},
        nodes::TestNode,
        redis::{Data, RedisOptions, RedisServer},
        shared, tools,
    },
};

/// A gateway's binary whose clock is off by this much: `+1h`.
fn with_clock(folder: &Path, offset: &str) -> PathBuf {
    let path = folder.join(format!("trunkline{offset}"));
    let (library, binary) = (tools::faketime_library(), gateway::binary());
    // Not by the program `faketime`, which waits for the gateway as its child: that would live on.
    let script = format!(
        "#!/bin/sh\nexport LD_PRELOAD={} FAKETIME={offset} FAKETIME_DONT_FAKE_MONOTONIC=1\n\
         exec {} \"$@\"\n",
        library.display(),
        binary.display()
    );
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

/// Every gateway publishes, and every gateway's node receives it from all.
async fn all_serve(gateways: &[&Gateway], round: &str) {
    let mut streams = Vec::new();
    for gateway in gateways {
        let node = TestNode::connect(gateway, "reader").await;
        streams.push(node.subscribe(node.request()).await);
    }
    for (index, gateway) in gateways.iter().enumerate() {
        let node = TestNode::connect(gateway, format!("publisher-{index}")).await;
        let batch = numbered(&format!("{round}-{index}"), 20, 20);
        node.publish(batch).await.unwrap_or_else(|error| panic!("{round} {index}: {error}"));
    }
    for stream in &streams {
        let recording = stream.events(20 * gateways.len(), LIMIT).await;
        assert!(recording.gaps().is_empty(), "{round}: {:?}", recording.gaps());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_frame_key_gateways_serve_together_whose_clocks_are_an_hour_apart() {
    let folder = folder::new();
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix())
        .set("shards", 4)
        .frame_keys(FRAME_KEY);
    let right = Gateway::start(options.clone()).await;
    all_serve(&[&right], "alone").await;
    let ahead = Gateway::start(options.clone().binary(&with_clock(folder.path(), "+1h"))).await;
    all_serve(&[&right, &ahead], "ahead").await;
    let behind = Gateway::start(options.clone().binary(&with_clock(folder.path(), "-1h"))).await;
    all_serve(&[&right, &ahead, &behind], "behind").await;
    // Also after they have started again, and after Redis lost everything.
    right.restart().await;
    all_serve(&[&right, &ahead, &behind], "restarted").await;
    redis.restart(Data::Wiped).await;
    serving([&right, &ahead]).await;
    serving([&right, &behind]).await;
    all_serve(&[&right, &ahead, &behind], "wiped").await;
    // And once the one that was ahead is gone.
    ahead.kill_9();
    behind.restart().await;
    all_serve(&[&right, &behind], "without it").await;
}
