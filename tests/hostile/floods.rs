//! Floods of small things: streams, resets, frames of every kind.

use serde_json::json;
use tokio::time::timeout;
use tonic::Code;

use crate::{
    error_details::error_details,
    support::{LIMIT, events::queue_refresh},
    target::Target,
    wire::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw,
        SETTINGS, WINDOW_UPDATE, call, frame, message,
    },
};

/// Sends pieces until the gateway closes the connection or stops reading, or all are sent. Reads
/// nothing. Returns how many were sent.
async fn send_until_closed(raw: &mut Raw, pieces: impl Iterator<Item = Vec<u8>>) -> usize {
    let mut sent = 0;
    for piece in pieces {
        // A connection that makes no progress counts as closed.
        match timeout(std::time::Duration::from_secs(3), raw.send(&piece)).await {
            Ok(Ok(())) => sent += 1,
            _ => break,
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets_close_the_connection_or_do_not_affect_other_clients() {
    let target = Target::new(json!({})).await;
    let attack = async || {
        for method in ["GetStatus", "Subscribe"] {
            let mut raw = Raw::with_preface(&target.gateway).await;
            let pieces = (0..50_000).map(|n| {
                let stream = 2 * n + 1;
                let headers = frame(HEADERS, END_HEADERS, stream, &call(method));
                [headers, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
            });
            send_until_closed(&mut raw, pieces).await;
            target.memory_is_bounded();
            drop(raw);
            target.metric_is("requests_in_flight", 1.0).await;
        }
    };
    target.withstands(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_continuation_frames_closes_the_connection() {
    let target = Target::new(json!({})).await;
    let attack = async || {
        let mut raw = Raw::with_preface(&target.gateway).await;
        raw.send(&frame(HEADERS, 0, 1, &call("GetStatus"))).await.unwrap();
        // Header fields without an end: 160 MB, if the gateway read them.
        let field = crate::wire::field("x-more", &"x".repeat(15_000));
        let pieces = (0..10_000).map(|_| frame(CONTINUATION, 0, 1, &field));
        let taken = send_until_closed(&mut raw, pieces).await;
        assert!(taken < 5000, "{taken} were read");
        target.memory_is_bounded();
        drop(raw);
    };
    target.withstands(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_settings_and_pings_with_unread_answers_do_not_affect_other_clients() {
    let target = Target::new(json!({})).await;
    let attack = async || {
        for (kind, payload) in
            [(SETTINGS, &[][..]), (PING, &[0; 8]), (WINDOW_UPDATE, &[0, 0, 0, 1])]
        {
            let mut raw = Raw::with_preface(&target.gateway).await;
            let piece = frame(kind, 0, 0, payload).repeat(1000);
            send_until_closed(&mut raw, (0..500).map(|_| piece.clone())).await;
            target.memory_is_bounded();
        }
    };
    target.withstands(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_and_empty_data_frames_close_the_connection() {
    let target = Target::new(json!({})).await;
    let attack = async || {
        for piece in [&[][..], &[0]] {
            let mut raw = Raw::with_preface(&target.gateway).await;
            raw.send(&frame(HEADERS, END_HEADERS, 1, &call("Publish"))).await.unwrap();
            raw.send(&frame(DATA, 0, 1, &message(1_000_000, &[]))).await.unwrap();
            let pieces = frame(DATA, 0, 1, piece).repeat(50);
            let taken = send_until_closed(&mut raw, (0..10_000).map(|_| pieces.clone())).await;
            assert!(taken < 10_000, "{taken} were read");
            target.memory_is_bounded();
            drop(raw);
        }
    };
    target.withstands(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_of_a_connection_are_refused_and_requests_still_pass() {
    let limits = json!({ "maxStreamsPerConnection": 20, "maxRequestsPerConnection": 5 });
    let target = Target::new(limits).await;
    let attack = async || {
        let node = target.hostile_node("many").await;
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(node.stream(node.request()).await.unwrap());
        }
        let status = node.stream(node.request()).await.unwrap_err();
        let error = error_details(&status, Code::ResourceExhausted, "LIMIT_REACHED");
        assert_eq!(error.metadata["limit"], "limits.maxStreamsPerConnection");
        assert_eq!(error.quotas, ["limits.maxStreamsPerConnection"]);
        assert!(error.retry.is_some());
        node.publish(vec![queue_refresh()]).await.unwrap();
        open.pop();
        crate::support::until(LIMIT, "a free stream permit", async || {
            node.stream(node.request()).await.is_ok()
        })
        .await;
        drop((open, node));
        // All its requests have ended when only the bystander's stream is left.
        target.metric_is("streams", 1.0).await;

        // HTTP/2 refuses a client that ignores SETTINGS_MAX_CONCURRENT_STREAMS.
        let mut raw = Raw::with_preface(&target.gateway).await;
        for n in 0..400 {
            let stream = 2 * n + 1;
            if raw.send(&frame(HEADERS, END_HEADERS, stream, &call("Publish"))).await.is_err() {
                break;
            }
        }
        let refused = timeout(LIMIT, async {
            loop {
                match raw.frame().await {
                    Some(frame) if matches!(frame.kind, RST_STREAM | GOAWAY) => return,
                    Some(_) => {}
                    None => return,
                }
            }
        });
        refused.await.expect("a refusal");
        // A connection may have 25; the bystander has a stream and sometimes a publish.
        let in_flight = target.metric("requests_in_flight").await;
        assert!(in_flight <= 27.0, "{in_flight} are in flight");
        drop(raw);
    };
    target.withstands(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_streams_beyond_the_limit_are_refused_and_the_connection_stays() {
    let limits = json!({ "maxStreamsPerConnection": 1, "maxRequestsPerConnection": 1 });
    let target = Target::new(limits).await;
    let attack = async || {
        let mut raw = Raw::with_preface(&target.gateway).await;
        let open = (0..2).map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &call("Publish")));
        let more = (2..2000)
            .map(|n| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &call("GetStatus")));
        let pieces: Vec<_> = open.chain(more).collect();
        raw.send(&pieces.concat()).await.unwrap();
        let mut refused = 0;
        while refused < 1998 {
            let frame = timeout(LIMIT, raw.frame()).await.expect("in time").expect("it is open");
            assert_ne!(frame.kind, GOAWAY, "{frame:?}");
            refused += u32::from(frame.kind == RST_STREAM);
        }
    };
    target.withstands(attack).await;
}
