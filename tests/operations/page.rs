//! The page of the admin port in a real browser, for real gateways over a real Redis.

use std::{path::Path, time::Duration};

use super::support::{
    Browser, Collector, Data, Gateway, GatewayOptions, Keep, LIMIT, RedisOptions, RedisServer,
    TestNode, events, shared, watch::accounts,
};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use trunkline_proto::v1::{
    Acknowledge, AgentChannel, AgentReport, Filter, Overflow, SubscribeRequest,
    watch_request::Request,
};

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
    let node = TestNode::connect(&gateway, "mx-1").await;
    node.publish(events::numbered("e", 7, 1)).await.expect("published");
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

    // The timeline has what happened: a track on the axis of the plots, and a list.
    let again = "a new epoch; 7 events appended again, none lost";
    browser
        .wait("the recovery and the time before it", async || {
            let rows = browser.rows("#incident-table").await;
            let of = |what: &str, is: fn(&[String], &str) -> bool| {
                rows.iter().any(|row| row[1..3] == [what, "shard 0"] && is(row, again))
            };
            let over = |row: &[String], _: &str| !row[3].contains("goes on");
            (of("recovery", |row, again| row[4] == again) && of("not verified", over)).then_some(())
        })
        .await;
    row(&browser, "#incident-table", 1, &["new link", "links", "–", &link]).await;
    for mark in ["recovery", "unverified", "subscribed"] {
        let box_of = format!("return document.querySelector('.track .{mark}').offsetWidth;");
        assert!(browser.run(&box_of).await.as_f64().expect("a width") >= 4.0, "{mark}");
    }
    let tracks = browser.text("#tracks").await;
    assert!(tracks.contains("shard 0") && tracks.contains("links"), "{tracks}");
    let note = browser.text("#timeline-note").await;
    assert!(note.starts_with("The last "), "{note}");
    assert_eq!(browser.axe().await, Vec::<String>::new());
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

#[tokio::test(flavor = "multi_thread")]
async fn nothing_on_the_page_keeps_anybody_out_or_flickers() {
    let browser = Browser::start(1360, 1000).await;
    // A stream that is moved by its age, and a refusal.
    let options = GatewayOptions::embedded().set("limits", json!({ "maxStreamAge": "2s" }));
    let aging = Gateway::start(options).await;
    browser.open(&page(&aging)).await;
    state(&browser, "Serving").await;
    let brief = TestNode::connect(&aging, "brief-1").await;
    drop(brief.subscribe(brief.request()).await.end(LIMIT).await);
    brief.publish(vec![]).await.expect_err("no events");
    browser
        .wait("the move", async || {
            let moves = browser.text("#nodes-moves").await;
            (moves == "1 asked to leave for age, 1 have").then_some(())
        })
        .await;
    row(&browser, "#incident-table", 1, &["streams moved", "streams"]).await;
    row(&browser, "#refused-table", 2, &["Publish", "invalid request", "events"]).await;
    assert_eq!(browser.axe().await, Vec::<String>::new());
    is_clean(&browser, &aging).await;

    // An agent, and ids that hide what they are.
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    browser.open(&page(&gateway)).await;
    state(&browser, "Serving").await;
    let agent = TestNode::connect(&gateway, "agent-1").await;
    let watch = agent.watch(agent.open(accounts(["a"]))).await;
    let channel = |name: &str, carried| AgentReport {
        host: "mx-1".into(),
        joined_channel: Some(AgentChannel {
            channel: name.into(),
            server: "redis://redis:6379".into(),
            carried,
            published_messages: 3,
        }),
        ..Default::default()
    };
    let report = |report| {
        let resume_token = watch.last_token();
        watch.send(Request::Acknowledge(Acknowledge { resume_token, agent: Some(report) }))
    };
    report(channel("stwt.agora", false)).await;
    let turned = TestNode::connect(&gateway, "mx-\u{202e}1").await;
    let roles = vec!["im\u{200b}ap\u{202e}".into(), "דואר".into()];
    let _turned = turned.subscribe(SubscribeRequest { roles, ..turned.request() }).await;

    // What is hidden in an id is shown.
    let escaped = [r"mx-\u{202e}1", "im\\u{200b}ap\\u{202e}, דואר"];
    let seen = browser
        .wait("the escaped id", async || {
            let rows = browser.rows("#node-table").await;
            rows.into_iter().find(|row| row[0] == escaped[0])
        })
        .await;
    assert_eq!(seen[1].trim_matches(['\u{2068}', '\u{2069}']), escaped[1]);
    let unseen = "return /[\\u202a-\\u202e\\u200b]/.test(document.documentElement.innerText);";
    assert_eq!(browser.run(unseen).await, false);

    // The channel of Redis that nobody carries is trouble until an agent does.
    let trouble = "No agent carries the channel stwt.agora at redis://redis:6379";
    browser
        .wait("the channel", async || {
            browser.text("#trouble-list").await.contains(trouble).then_some(())
        })
        .await;
    report(channel("stwt.agora", true)).await;
    browser
        .wait("the channel that is carried", async || {
            let rows = browser.rows("#agent-table").await;
            let carries = rows.first().is_some_and(|row| row[3] == "carries stwt.agora");
            (carries && !browser.text("#trouble-list").await.contains(trouble)).then_some(())
        })
        .await;

    // No rule of axe-core is broken, in light and dark, wide and narrow.
    for (width, dark) in [(1360, false), (1360, true), (390, false), (390, true)] {
        browser.as_wide_as(width, 1000, width < 600).await;
        browser.dark(dark).await;
        assert_eq!(browser.axe().await, Vec::<String>::new(), "{width} {dark}");
    }
    browser.as_wide_as(1360, 1000, false).await;
    browser.dark(false).await;

    // The keyboard reaches everything, and the focus is seen everywhere.
    let focused = "const now = document.activeElement;
        const { outlineStyle, outlineWidth } = getComputedStyle(now);
        return [now === document.body, outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2,
            now.outerHTML.slice(0, 80)];";
    let all = "return [...document.querySelectorAll('a, button, input, [tabindex=\"0\"]')]
        .filter((one) => one.checkVisibility()).length;";
    let all = browser.run(all).await.as_u64().expect("a number");
    browser.run("document.activeElement.blur(); scrollTo(0, 0);").await;
    let mut reached = 0;
    loop {
        browser.press("\u{e004}").await;
        let seen = browser.run(focused).await;
        if seen[0] == true {
            break;
        }
        assert_eq!(seen[1], true, "{seen}");
        reached += 1;
        assert!(reached <= all, "the focus does not leave the page");
    }
    assert_eq!(reached, all);

    // A key searches all tables, another ends the search.
    browser.run("document.activeElement.blur();").await;
    browser.press("/agent-1").await;
    row(&browser, "#node-table", 0, &["agent-1"]).await;
    browser
        .wait("the search in other tables", async || {
            let rows = browser.rows("#shard-table").await;
            (rows == [["No row matches."]]).then_some(())
        })
        .await;
    let address = browser.run("return location.search;").await;
    assert!(address.as_str().expect("a text").contains("search=agent-1"), "{address}");
    browser.press("\u{e00c}").await;
    browser
        .wait("all nodes", async || (browser.rows("#node-table").await.len() == 2).then_some(()))
        .await;

    // Arrows read a plot, second by second, also while new values come.
    let read = "const { ariaValueNow, ariaValueText } = document.querySelector('#plot-in .area');
        return [ariaValueNow, ariaValueText];";
    browser.run("document.querySelector('#plot-in .area').focus();").await;
    browser.press("\u{e011}").await;
    let first = browser.run(read).await;
    assert_eq!(first[0], "0");
    browser.press("\u{e014}").await;
    let second = browser.run(read).await;
    assert!(second[0] == "1" && second[1] != first[1], "{first} {second}");

    // What does not change is not touched: watched over three answers.
    let observe = "window.touched = 0; window.answers = 0;
        new MutationObserver((all) => { touched += all.filter(({ target }) =>
            ['TBODY', 'TR', 'TD'].includes(target.nodeName)).length; })
            .observe(document.querySelector('main'), { childList: true, subtree: true });
        new PerformanceObserver((all) => { answers += all.getEntries()
            .filter(({ name }) => name.includes('/api/nodes')).length; })
            .observe({ type: 'resource' });";
    browser.run(observe).await;
    browser
        .wait("three answers", async || {
            (browser.run("return answers;").await.as_u64() >= Some(3)).then_some(())
        })
        .await;
    assert_eq!(browser.run("return touched;").await, 0);

    // The words are explained, each at its own place.
    browser.click("#nodes-title a").await;
    browser
        .wait("the glossary", async || {
            let target = "return document.querySelector(':target dt')?.textContent ?? '';";
            (browser.run(target).await == "Node").then_some(())
        })
        .await;
    for dark in [false, true] {
        browser.dark(dark).await;
        assert_eq!(browser.axe().await, Vec::<String>::new());
    }
    is_clean(&browser, &gateway).await;
}

/// The pictures of the documents: a cluster of mail servers at work, and a recovery. It takes two
/// minutes. `UPDATE_DOCS=1 cargo test --test operations -- --ignored pictures` writes docs/images;
/// without it, they are in `target/tmp`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes docs/images"]
async fn the_pictures_of_the_documents() {
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
        let mut parts = tokio::time::interval(Duration::from_secs(20));
        for nth in 0..6 {
            parts.tick().await;
            if nth == 3 {
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
        let folder = match std::env::var_os("UPDATE_DOCS") {
            Some(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images"),
            None => env!("CARGO_TARGET_TMPDIR").into(),
        };
        for (name, width, height, dark) in [
            ("page", 1280, 1420, false),
            ("page-dark", 1280, 1420, true),
            ("page-phone", 390, 1600, true),
        ] {
            browser.dark(dark).await;
            browser.as_wide_as(width, height, width < 600).await;
            // Of a phone, what it shows of the timeline.
            let part = "document.getElementById('timeline').scrollIntoView();";
            browser.run(if width < 600 { part } else { "scrollTo(0, 0);" }).await;
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
