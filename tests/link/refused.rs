//! What a link refuses, and what it says.

use crate::{
    stage::{Link, Recorder, deployment, fails},
    support::{
        LIMIT,
        events::{mailbox_change, with_id},
        folder,
        gateway::{Gateway, GatewayOptions},
        nodes::TestNode,
    },
};

/// The exit code of a wrong configuration.
const CONFIGURATION: Option<i32> = Some(78);

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_itself_and_deployments_without_names_are_refused() {
    let (a, unnamed) = (deployment("a").await, Gateway::start(GatewayOptions::embedded()).await);
    let folder = folder::new();
    let state = folder.path().join("state");
    let (code, text) = fails(&a.url(), &a.url(), &state, &[]).await;
    assert_eq!(code, CONFIGURATION, "{text}");
    assert!(text.contains(r#"both the deployment "a": a link to itself"#), "{text}");
    for (from, to, side) in [(&a, &unnamed, "--to"), (&unnamed, &a, "--from")] {
        let (code, text) = fails(&from.url(), &to.url(), &state, &[]).await;
        assert_eq!(code, CONFIGURATION, "{text}");
        assert!(text.contains(side) && text.contains("set the key `deployment`"), "{text}");
    }
    assert!(!state.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_damaged_or_in_use_or_of_another_link_is_refused() {
    let (a, b, c) = (deployment("a").await, deployment("b").await, deployment("c").await);
    let link = Link::between(&a, &b, &[]);
    link.is_connected().await;
    let (code, text) = fails(&a.url(), &b.url(), &link.state(), &[]).await;
    assert_eq!(code, CONFIGURATION, "{text}");
    assert!(text.contains("another process uses it"), "{text}");
    link.kill_9();
    let (code, text) = fails(&a.url(), &c.url(), &link.state(), &[]).await;
    assert_eq!(code, CONFIGURATION, "{text}");
    assert!(text.contains(r#"from "a" to "b""#) && text.contains(r#"to "c""#), "{text}");
    let mut bytes = std::fs::read(link.state()).expect("a state");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    std::fs::write(link.state(), bytes).expect("written");
    let (code, text) = fails(&a.url(), &b.url(), &link.state(), &[]).await;
    assert_eq!(code, CONFIGURATION, "{text}");
    assert!(text.contains("is damaged at byte"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_state_that_is_older_than_what_was_published_is_refused() {
    let (a, b) = (deployment("a").await, deployment("b").await);
    let reader = Recorder::of(&b, "reader").await;
    let mut link = Link::between(&a, &b, &[]);
    link.is_connected().await;
    reader.gaps(1).await;
    link.kill_9();
    let copy = std::fs::read(link.state()).expect("a state");
    link.restart();
    let publisher = TestNode::connect(&a, "mx1").await;
    let publish = async |id: &str| {
        publisher.publish(vec![with_id(id, mailbox_change("a1", 1))]).await.expect("published");
    };
    for id in ["e1", "e2", "e3"] {
        publish(id).await;
        reader.event(id).await;
    }
    link.kill_9();
    // Such a link has one event to send, and the destination has three.
    let state = link.state();
    std::fs::write(&state, copy).expect("written");
    let folder = folder::new();
    let other = folder.path().join("state");
    std::fs::rename(&state, &other).expect("moved");
    let (code, text) = fails(&a.url(), &b.url(), &other, &[]).await;
    assert_eq!(code, CONFIGURATION, "{text}");
    assert!(text.contains("an older one was restored"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_waits_for_a_side_that_cannot_be_reached_and_says_so() {
    let (a, b) = (deployment("a").await, deployment("b").await);
    b.kill_9();
    let link = Link::between(&a, &b, &[]);
    link.process().stderr_has("no gateway answers", LIMIT).await;
    assert!(link.process().stderr().contains("--to"), "{}", link.process().stderr());
    b.restart().await;
    link.is_connected().await;
    drop(b);
    // It goes on waiting, and says when it has ended.
    assert!(link.process().ended().is_none());
    link.process().signal("TERM");
    let (status, _) = link.process().wait(LIMIT).await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_kinds_and_malformed_addresses_are_refused_at_once() {
    let folder = folder::new();
    let state = folder.path().join("state");
    let (code, text) = fails("a", "b", &state, &["--kinds", "mailbox"]).await;
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("mailbox-change, email-delivery"), "{text}");
    let (code, text) = fails("ftp://a", "b", &state, &[]).await;
    assert_eq!(code, Some(2), "{text}");
    assert!(!state.exists());
}
