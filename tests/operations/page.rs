//! The page of the admin port in a real browser, for real gateways over a real Redis.

use std::time::Duration;

use super::support::{
    Browser, Collector, Data, Gateway, GatewayOptions, Keep, LIMIT, RedisOptions, RedisServer,
    TestNode, events, shared, watch::accounts,
};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use trunkline_proto::v1::{Filter, Overflow, SubscribeRequest};

/// A node id that would run code if the page took it for markup.
const HOSTILE: &str = r#"<script>hit=1</script><img src=x onerror="hit=1">"#;

/// A gateway with a short log and history, so that a slow subscriber soon misses events.
fn forgetful(redis: &RedisServer, prefix: &str, id: &str) -> GatewayOptions {
    GatewayOptions::redis(&redis.url(), prefix)
        .set("gatewayId", id)
        .set("log", json!({ "maxEvents": 100 }))
        .set("history", json!({ "maxFrames": 20 }))
}

fn page(gateway: &Gateway) -> String {
    format!("http://{}/", gateway.admin_address())
}

/// Waits for this state at the top of the page; returns the sentence beneath it.
async fn state(browser: &Browser, name: &str) -> String {
    browser
        .wait(&format!("state {name}"), async || {
            (browser.text("#state-name").await == name).then_some(())
        })
        .await;
    browser.text("#state-why").await
}

/// Waits for a row with these cells after the first `skip` ones; returns the row.
async fn row(browser: &Browser, table: &str, skip: usize, cells: &[&str]) -> Vec<String> {
    browser
        .wait(&format!("{cells:?} in {table}"), async || {
            let rows = browser.rows(table).await;
            rows.into_iter().find(|row| {
                row.len() >= skip + cells.len()
                    && cells.iter().zip(&row[skip..]).all(|(wanted, cell)| wanted == cell)
            })
        })
        .await
}

/// Publishes more than connection, log and history hold.
async fn flood(publisher: &TestNode) {
    for _ in 0..40 {
        publisher.publish(vec![events::large(60 << 10); 10]).await.expect("published");
    }
}

async fn is_clean(browser: &Browser, gateway: &Gateway) {
    assert_eq!(browser.console().await, Vec::<String>::new());
    let requests = browser.requests().await;
    assert!(requests.len() > 5, "{requests:?}");
    for url in requests {
        assert!(url.starts_with(&page(gateway)), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_nodes_gateways_and_recent_events() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let (one, two) = tokio::join!(
        Gateway::start(forgetful(&redis, &prefix, "gateway-1")),
        Gateway::start(forgetful(&redis, &prefix, "gateway-2")),
    );
    let browser = Browser::start(1360, 1000).await;
    browser.open(&page(&one)).await;
    let why = state(&browser, "Serving").await;
    assert_eq!(
        why,
        "The shard is verified: Redis answers, and what it says was published arrives."
    );
    assert_eq!(browser.rows("#ended-table").await, [["None since the start."]]);

    // Nodes connect.
    let imap = TestNode::connect(&one, "imap-1").await;
    let request = SubscribeRequest {
        roles: vec!["imap".into(), "jmap".into()],
        incarnation: "boot 7".into(),
        filter: Some(Filter { kinds: vec![10, 20], ..Default::default() }),
        ..imap.request()
    };
    let imap_stream = imap.subscribe(request).await;
    let evil = TestNode::connect(&one, HOSTILE).await;
    let request = SubscribeRequest { roles: vec![HOSTILE.into()], ..evil.request() };
    let _evil_stream = evil.subscribe(request).await;
    let slow = TestNode::connect(&one, "slow-1").await;
    let stalled = slow.stream(slow.request()).await.expect("a stream");
    let strict = TestNode::connect(&one, "strict-1").await;
    let request = SubscribeRequest { overflow: Overflow::Disconnect.into(), ..strict.request() };
    let stalled_too = strict.stream(request).await.expect("a stream");

    let seen = row(&browser, "#node-table", 0, &["imap-1", "imap, jmap", "gateway-1"]).await;
    assert!(seen[3] == "current" && seen[4].starts_with("127.0.0.1:"), "{seen:?}");
    assert_eq!(seen[11], "mailbox_change, custom");
    assert_eq!(browser.text("#nodes-count").await, "4");
    let version = env!("CARGO_PKG_VERSION");
    let seen = ["gateway-1 (this one)", "serving", version, "4"];
    let seen = row(&browser, "#gateway-table", 0, &seen).await;
    assert_eq!(seen.len(), 6, "{seen:?}");
    let redis_address = format!("127.0.0.1:{}", redis.port());
    row(&browser, "#link-table", 0, &[&redis_address, "subscribe", "up", "0"]).await;
    row(&browser, "#shard-table", 0, &["0", "verified"]).await;

    // The id of a node is shown as text.
    let seen = row(&browser, "#node-table", 0, &[HOSTILE, HOSTILE, "gateway-1"]).await;
    assert_eq!(seen[11], "everything");
    let harm = browser
        .run("return [window.hit, document.querySelectorAll('table img, table script').length];")
        .await;
    assert_eq!(harm, json!([null, 0]));

    // The other gateway and its nodes are listed too.
    let pop = TestNode::connect(&two, "pop-1").await;
    let quiet = Some(Filter { kinds: vec![20], ..Default::default() });
    let pop_stream = pop.subscribe(SubscribeRequest { filter: quiet, ..pop.request() }).await;
    let seen = row(&browser, "#node-table", 0, &["pop-1", "–", "gateway-2", "current"]).await;
    assert_eq!(seen[11], "custom", "{seen:?}");
    row(&browser, "#gateway-table", 0, &["gateway-2", "serving", version, "1"]).await;

    // Values are updated in place.
    let publisher = TestNode::connect(&two, "mx-1").await;
    imap.publish(vec![events::mailbox_change("a1", 1), events::queue_refresh()])
        .await
        .expect("published");
    browser
        .wait("two events in", async || {
            (browser.text("#tile-in-more").await == "2 since the start").then_some(())
        })
        .await;
    browser
        .wait("the kinds in the plot", async || {
            let legend = browser.text("#plot-in .legend").await;
            (legend.contains("mailbox change") && legend.contains("queue refresh")).then_some(())
        })
        .await;
    let drawn = "return document.querySelector('#plot-out .over').getAttribute('d').length;";
    let before = browser.run(drawn).await.as_u64().expect("a length");
    browser
        .wait("another point", async || {
            (browser.run(drawn).await.as_u64().expect("a length") > before).then_some(())
        })
        .await;

    // A node that does not read falls behind, and gets a gap when it reads.
    flood(&publisher).await;
    let behind = |row: &Vec<String>| row[7].replace(',', "").parse::<u64>().expect("a number");
    browser
        .wait("the slow node behind", async || {
            let rows = browser.rows("#node-table").await;
            rows.iter().any(|row| row[0] == "slow-1" && behind(row) > 0).then_some(())
        })
        .await;
    browser.click("[data-sort=behind]").await;
    browser
        .wait("the furthest behind first", async || {
            let rows = browser.rows("#node-table").await;
            let all: Vec<u64> = rows.iter().map(behind).collect();
            (all[0] > 0 && all.is_sorted_by(|a, b| a >= b)).then_some(())
        })
        .await;
    let sorted = "return document.querySelector('[data-sort=behind]').closest('th').ariaSort;";
    assert_eq!(browser.run(sorted).await, "descending");
    let slow_stream = Collector::start("slow-1".into(), stalled, Keep::Ids);
    let missed = slow_stream.gap(LIMIT).await.missed_events.expect("a count");
    let strict_stream = Collector::start("strict-1".into(), stalled_too, Keep::Ids);
    let ended = strict_stream.end(LIMIT).await.expect_err("too slow");
    assert_eq!(ended.code(), Code::ResourceExhausted);
    let missed = missed.to_string();
    row(&browser, "#gap-table", 1, &["slow-1", "0", "history expired", &missed]).await;
    row(&browser, "#ended-table", 1, &["strict-1", "too slow"]).await;

    // Streams end, each with its reason; requests are refused.
    let brief = SubscribeRequest { max_events: 1, ..imap.request() };
    let brief_stream =
        imap.subscribe(SubscribeRequest { node_id: "brief-1".into(), ..brief }).await;
    publisher.publish(vec![events::blocked_ip("192.0.2.7")]).await.expect("published");
    brief_stream.end(LIMIT).await.expect("an end in peace");
    drop(slow_stream);
    imap.publish(vec![]).await.expect_err("no events");
    let seen = row(&browser, "#ended-table", 1, &["brief-1", "max events"]).await;
    assert_eq!(seen[4], "1", "{seen:?}");
    row(&browser, "#ended-table", 1, &["slow-1", "client disconnected"]).await;
    let seen = row(&browser, "#refused-table", 2, &["Publish", "invalid request", "events"]).await;
    assert!(seen[1].starts_with("imap-1, 127.0.0.1:"), "{seen:?}");
    assert!(seen[5].starts_with("events: "), "{seen:?}");
    // Trouble comes first: what, of whom, and why.
    let first = "return document.querySelector('#state').nextElementSibling.id;";
    assert_eq!(browser.run(first).await, "trouble");
    let trouble = browser.text("#trouble-list").await;
    for expected in [
        "in ten minutes, the last of slow-1: history expired",
        "1 stream ended with an error in ten minutes, the last of strict-1: too slow",
        "refused in ten minutes, the last of imap-1, 127.0.0.1:",
        ": invalid request (events)",
    ] {
        assert!(trouble.contains(expected), "{expected} in {trouble}");
    }
    assert!(browser.text("#refused-note").await.contains("Subscribe subscriber too slow 1"));

    // The axis has the length of what is shown, and what happened in one second is visible.
    let axis = browser.text("#plot-in .times").await;
    assert!(axis.contains("min ago") && !axis.contains("10 min"), "{axis}");
    let narrowest = "return Math.min(...[...document.querySelectorAll('#plot-in .under')]
        .map((path) => path.getBBox().width));";
    assert!(browser.run(narrowest).await.as_f64().expect("a width") >= 4.0);
    let dots = "return document.querySelectorAll('#plot-publish .lone').length;";
    assert!(browser.run(dots).await.as_u64().expect("a number") > 0);

    // The search finds a node.
    browser.type_into("#search", "JMAP").await;
    browser
        .wait("one match", async || {
            let rows = browser.rows("#node-table").await;
            (rows.len() == 1 && rows[0][0] == "imap-1").then_some(())
        })
        .await;
    assert_eq!(browser.text("#nodes-count").await, "1 of 3 match");
    browser.type_into("#search", "?").await;
    row(&browser, "#node-table", 0, &["No node matches."]).await;
    is_clean(&browser, &one).await;

    // A node that disconnects from the other gateway leaves the page.
    let clear = "search.value = ''; search.dispatchEvent(new Event('input'));";
    browser.run(clear).await;
    row(&browser, "#node-table", 0, &["pop-1"]).await;
    drop(pop_stream);
    browser
        .wait("pop-1 gone", async || {
            let rows = browser.rows("#node-table").await;
            rows.iter().all(|row| row[0] != "pop-1").then_some(())
        })
        .await;

    // The page reports a gateway that does not answer, and recovers with it.
    imap_stream.subscribed().await;
    one.signal_term();
    state(&browser, "No answer").await;
    one.restart().await;
    state(&browser, "Serving").await;
    row(&browser, "#ended-table", 0, &["None since the start."]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_tells_streams_apart_and_shows_what_their_nodes_have_processed() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let node = TestNode::connect(&gateway, "watch-1").await;
    let watch = node.watch(node.open(accounts(["a"]))).await;
    let silent = TestNode::connect(&gateway, "watch-2").await;
    let _silent = silent.watch(silent.open(accounts(["a"]))).await;
    let simple = TestNode::connect(&gateway, "simple-1").await;
    let _simple = simple.subscribe(simple.request()).await;
    let publisher = TestNode::connect(&gateway, "publisher-1").await;
    let _producer = publisher.producer("").await.expect("a stream");
    let change = |id: &str| events::with_id(id, events::mailbox_change("a", 1));
    publisher.publish(vec![change("1"), change("2")]).await.expect("published");
    watch.event("2", LIMIT).await;
    let token = watch.last_token();
    publisher.publish(vec![change("3")]).await.expect("published");
    watch.event("3", LIMIT).await;
    watch.acknowledge(token).await;

    let browser = Browser::start(1360, 1000).await;
    browser.open(&page(&gateway)).await;
    for (node, cells) in [
        ("watch-1", ["3", "2", "Watch"]),
        ("watch-2", ["3", "–", "Watch"]),
        ("simple-1", ["3", "–", "Subscribe"]),
    ] {
        browser
            .wait(&format!("{cells:?} of {node}"), async || {
                let rows = browser.rows("#node-table").await;
                rows.iter().any(|row| row[0] == node && row[8..11] == cells).then_some(())
            })
            .await;
    }
    let more = browser.text("#tile-streams-more").await;
    assert!(more.ends_with(" here · 2 Watch · 1 PublishStream"), "{more}");
    browser.click("[data-sort=processed]").await;
    browser
        .wait("the one that acknowledges first", async || {
            (browser.rows("#node-table").await[0][0] == "watch-1").then_some(())
        })
        .await;
    is_clean(&browser, &gateway).await;
    let metrics = gateway.admin("/metrics").await;
    for line in [
        "trunkline_streams 3",
        "trunkline_watch_streams 2",
        "trunkline_publish_streams 1",
        "trunkline_unacknowledged_events 4",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_gives_the_reason_why_the_gateway_does_not_serve() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix())
        .set("gatewayId", "gateway-1")
        .set("drain", json!({ "delay": "1m", "timeout": "1m" }));
    let gateway = Gateway::start(options).await;
    let browser = Browser::start(1200, 900).await;
    browser.open(&page(&gateway)).await;
    state(&browser, "Serving").await;
    redis.kill_9();
    let why = state(&browser, "Not serving").await;
    assert!(why.starts_with("shard 0: "), "{why}");
    row(&browser, "#shard-table", 0, &["0", "not verified"]).await;
    let trouble = browser.text("#trouble-list").await;
    assert!(trouble.contains("1 shard not verified: 0"), "{trouble}");
    let link = format!("127.0.0.1:{}", redis.port());
    row(&browser, "#link-table", 0, &[&link, "subscribe", "down"]).await;
    redis.restart(Data::Wiped).await;
    state(&browser, "Serving").await;
    gateway.signal_term();
    let why = state(&browser, "Draining").await;
    assert!(why.contains("continue with their tokens"), "{why}");
    is_clean(&browser, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_works_on_phones_with_keyboards_and_with_screen_readers() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let mut streams = Vec::new();
    for nth in 0..3 {
        let node =
            TestNode::connect(&gateway, format!("imap-{nth}.a-rather-long-name.example.org")).await;
        streams.push(node.subscribe(node.request()).await);
    }
    let browser = Browser::start(1200, 900).await;
    browser.open(&page(&gateway)).await;
    state(&browser, "Serving").await;
    row(&browser, "#node-table", 0, &["imap-0.a-rather-long-name.example.org"]).await;

    // The page is no wider than a narrow screen, in light and dark.
    for (width, dark) in [(390, false), (390, true), (820, false)] {
        browser.as_wide_as(width, 844, width < 600).await;
        browser.dark(dark).await;
        let wide = browser.run("return document.documentElement.scrollWidth;").await;
        assert_eq!(wide, width, "{dark}");
        let ground = browser.run("return getComputedStyle(document.body).backgroundColor;").await;
        assert_eq!(ground == "rgb(16, 19, 22)", dark, "{ground}");
    }
    browser.as_wide_as(1200, 900, false).await;
    browser.dark(false).await;

    // The keyboard sorts.
    browser.type_into("[data-sort=node]", "\u{e007}").await;
    let sorted = "return document.querySelector('[data-sort=node]').closest('th').ariaSort;";
    browser
        .wait("sorted by the id", async || (browser.run(sorted).await == "ascending").then_some(()))
        .await;
    browser.type_into("[data-sort=node]", "\u{e007}").await;
    browser
        .wait("the other way round", async || {
            let rows = browser.rows("#node-table").await;
            rows[0][0].starts_with("imap-2").then_some(())
        })
        .await;

    // Every control and picture has a name.
    let tree = browser.devtools("Accessibility.getFullAXTree", json!({})).await;
    let mut named = 0;
    for node in tree["nodes"].as_array().expect("nodes") {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if ["button", "searchbox", "image", "region", "link"].contains(&role)
            && node["ignored"] == false
        {
            let name = node["name"]["value"].as_str().unwrap_or_default();
            assert!(!name.trim().is_empty(), "a {role} without a name: {node}");
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
    is_clean(&browser, &gateway).await;
}

/// Not a test: it makes the picture of the README from a cluster of mail servers at work, and takes
/// minutes. `cargo test --test operations -- --ignored page::`, then look at `target/tmp/page.png`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes docs/images/page.png"]
async fn the_picture_of_the_readme() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = |id: &str| {
        GatewayOptions::redis(&redis.url(), &prefix).set("gatewayId", id).set("shards", 2)
    };
    let (one, two) =
        tokio::join!(Gateway::start(options("gateway-1")), Gateway::start(options("gateway-2")),);
    let mut nodes = Vec::new();
    let mut streams = Vec::new();
    for (nth, (name, roles, kinds)) in [
        ("imap-1", vec!["imap"], vec![10, 11, 17]),
        ("imap-2", vec!["imap"], vec![10, 11, 17]),
        ("imap-3", vec!["imap"], vec![10, 11, 17]),
        ("jmap-1", vec!["jmap", "dav"], vec![10, 12, 13, 17]),
        ("jmap-2", vec!["jmap", "dav"], vec![10, 12, 13, 17]),
        ("mx-1", vec!["mta"], vec![14, 15, 16, 18, 19]),
        ("mx-2", vec!["mta"], vec![14, 15, 16, 18, 19]),
        ("admin-1", vec!["admin"], vec![]),
    ]
    .into_iter()
    .enumerate()
    {
        let gateway = if nth % 3 == 1 { &two } else { &one };
        let node = TestNode::connect(gateway, name).await;
        let request = SubscribeRequest {
            roles: roles.into_iter().map(Into::into).collect(),
            filter: Some(Filter { kinds, ..Default::default() }),
            ..node.request()
        };
        streams.push(node.collect(request, Keep::Ids).await.expect("a stream"));
        nodes.push(node);
    }
    let brief = SubscribeRequest { max_events: 3, ..nodes[7].request() };
    let brief = SubscribeRequest { node_id: "cli-4711".into(), ..brief };
    streams.push(nodes[7].subscribe(brief).await);
    nodes[5].publish(vec![]).await.expect_err("no events");
    let publishers = [nodes[5].clone(), nodes[6].clone(), TestNode::connect(&two, "mx-9").await];
    let load = AbortOnDropHandle::new(tokio::spawn(mail(publishers)));
    {
        let mut minute = tokio::time::interval(Duration::from_mins(1));
        for nth in 0..9 {
            minute.tick().await;
            if nth == 4 {
                // A node that comes back after Redis has lost its memory.
                let token = streams[3].last_token();
                redis.cli(&["FLUSHALL"]).await;
                let late = SubscribeRequest { resume_token: token, ..nodes[3].request() };
                drop(nodes[3].subscribe(late).await);
            }
        }
        let browser = Browser::start(1280, 1000).await;
        browser.open(&page(&one)).await;
        state(&browser, "Serving").await;
        // Two looks make the rates of nodes.
        browser
            .wait("a rate", async || {
                let rows = browser.rows("#node-table").await;
                (rows[0][6] != "–").then_some(())
            })
            .await;
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        for (name, width, height, dark) in [
            ("page", 1280, 1132, false),
            ("page-dark", 1280, 1600, true),
            ("page-phone", 390, 2400, true),
        ] {
            browser.dark(dark).await;
            browser.as_wide_as(width, height, width < 600).await;
            let file = folder.join(format!("{name}.png"));
            std::fs::write(file, browser.screenshot().await).expect("written");
        }
    }
    drop(load);
}

/// What a mail cluster sends, without an end: mostly changes of mailboxes, in waves.
async fn mail(publishers: [TestNode; 3]) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for nth in 0u32.. {
        second.tick().await;
        let wave = 1.6 + (f64::from(nth) / 60.0).sin();
        for (node, part) in publishers.iter().zip([40.0, 30.0, 25.0]) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let count = (part * wave * rand::random_range(0.8..1.2)) as u64;
            for each in 0..count {
                let account = format!("a{}", rand::random_range(0..500));
                let event = match each % 20 {
                    0..10 => events::mailbox_change(&account, u64::from(nth) * 100 + each),
                    10..16 => events::email_delivery(&account, "e"),
                    16 | 17 => events::cache_invalidation("access", &account),
                    18 => events::calendar_alert(&account),
                    _ => events::push_subscription_change(&account),
                };
                // Redis may be losing its memory just now.
                let _ = node.publish(vec![event]).await;
            }
        }
        if nth % 40 == 7 {
            let _ = publishers[0].publish(vec![events::blocked_ip("192.0.2.7")]).await;
        }
    }
}
