//! Incomplete, slow, oversized and malformed requests.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    support::{LIMIT, until},
    target::{Target, short_timeouts},
    wire::{
        ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, RST_STREAM, Raw, SETTINGS,
        Windows, call, field, frame, message,
    },
};

/// The first frame of the answer to a request: HEADERS or `RST_STREAM`. None when the gateway has
/// closed the connection.
async fn answer(raw: &mut Raw, stream: u32) -> Option<Frame> {
    let found = timeout(LIMIT, async {
        loop {
            let frame = raw.frame().await?;
            if frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM) {
                return Some(frame);
            }
        }
    });
    found.await.expect("an answer in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_is_refused_after_the_request_timeout_and_freed() {
    let target = Target::new(short_timeouts()).await;
    let bystander = target.bystander().await;
    let mut raw = Raw::with_preface(&target.gateway).await;
    for stream in [1, 3, 5] {
        let half = message(100_000, &[0; 10_000]);
        raw.send(&frame(HEADERS, END_HEADERS, stream, &call("Publish"))).await.unwrap();
        raw.send(&frame(DATA, 0, stream, &half)).await.unwrap();
    }
    let mut waiting = vec![1, 3, 5];
    while !waiting.is_empty() {
        let frame = timeout(LIMIT, raw.frame()).await.expect("an answer in time").unwrap();
        if frame.kind == HEADERS {
            waiting.retain(|stream| *stream != frame.stream);
        }
    }
    assert!((target.refused("requestTimeout").await - 3.0).abs() < 0.1);
    // The bystander's stream has a few bytes.
    until(LIMIT, "their bytes are freed", async || {
        target.metric("pending_request_bytes").await < 1000.0
    })
    .await;
    drop(raw);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_sent_byte_by_byte_does_not_extend_the_request_timeout() {
    let target = Target::new(short_timeouts()).await;
    let bystander = target.bystander().await;
    let mut raw = Raw::with_preface(&target.gateway).await;
    raw.send(&frame(HEADERS, END_HEADERS, 1, &call("Publish"))).await.unwrap();
    raw.send(&frame(DATA, 0, 1, &message(100, &[]))).await.unwrap();
    let sent = async {
        loop {
            raw.send(&frame(DATA, 0, 1, &[0])).await.unwrap();
            let wait = timeout(Duration::from_millis(100), answer(&mut raw, 1)).await;
            if let Ok(answer) = wait {
                return answer;
            }
        }
    };
    let answered = timeout(LIMIT, sent).await.expect("it is refused in time");
    assert_eq!(answered.unwrap().kind, HEADERS);
    assert!(target.refused("requestTimeout").await >= 1.0);
    drop(raw);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_large_requests_are_bounded_in_memory() {
    let limits = json!({
        "maxPendingBytes": "16MiB", "maxPendingBytesPerIdentity": "8MiB", "requestTimeout": "10m",
    });
    let target = Target::new(limits).await;
    let bystander = target.bystander().await;
    // Forty connections with ten half requests of two megabytes each: 800 MB, if all were read.
    let sent = Arc::new(AtomicUsize::new(0));
    let mut attack = JoinSet::new();
    for _ in 0..40 {
        let raw = Raw::with_preface(&target.gateway).await;
        attack.spawn(send_halves(raw, sent.clone()));
    }
    until(LIMIT, "the first refusal", async || {
        target.refused("maxPendingBytesPerIdentity").await >= 1.0
    })
    .await;
    // The attack ends when all flow-control windows are used up.
    let mut before = 0;
    until(LIMIT, "the end of the attack", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(Ordering::Relaxed);
        std::mem::replace(&mut before, now) == now
    })
    .await;
    assert!(attack.try_join_next().is_none(), "no connection was closed");
    eprintln!("{} MiB were sent", before >> 20);
    let pending = target.metric("pending_request_bytes").await;
    assert!(pending <= f64::from(9 << 20), "{pending}");
    target.memory_is_bounded();
    attack.shutdown().await;
    target.withstood(bystander).await;
}

/// A request that announces four megabytes and sends none of them.
fn announcement(stream: u32) -> Vec<u8> {
    let headers = frame(HEADERS, END_HEADERS, stream, &call("Publish"));
    let body = frame(DATA, 0, stream, &message(4_000_000, &[]));
    [headers, body].concat()
}

/// Sends ten requests at once, half of each, as fast as flow control allows; stops sending one that
/// is answered. Ends with the connection.
async fn send_halves(mut raw: Raw, sent: Arc<AtomicUsize>) {
    let chunk = [0; 16_384];
    let mut windows = Windows::new();
    let mut open: HashMap<u32, usize> = (1..20).step_by(2).map(|stream| (stream, 0)).collect();
    for stream in (1..20).step_by(2) {
        assert!(windows.take(stream, 5));
        if raw.send(&announcement(stream)).await.is_err() {
            return;
        }
    }
    loop {
        for (stream, half) in &mut open {
            while *half < 2_000_000 && windows.take(*stream, chunk.len()) {
                if raw.send(&frame(DATA, 0, *stream, &chunk)).await.is_err() {
                    return;
                }
                *half += chunk.len();
                sent.fetch_add(chunk.len(), Ordering::Relaxed);
            }
        }
        let Some(received) = raw.frame().await else { return };
        windows.receive(&received);
        match received.kind {
            SETTINGS if received.flags & ACK == 0 => {
                let acknowledged = raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
                if acknowledged.is_err() {
                    return;
                }
            }
            HEADERS | RST_STREAM => drop(open.remove(&received.stream)),
            GOAWAY => return,
            _ => {}
        }
    }
}

/// tonic allocates the length that a message announces, so that length counts, sent or not.
#[tokio::test(flavor = "multi_thread")]
async fn requests_count_the_length_that_they_announce_even_if_they_send_nothing() {
    let limits = json!({ "maxPendingBytesPerIdentity": "8MiB", "requestTimeout": "10m" });
    let target = Target::new(limits).await;
    let bystander = target.bystander().await;
    let mut raw = Raw::with_preface(&target.gateway).await;
    for stream in [1, 3, 5] {
        raw.send(&announcement(stream)).await.unwrap();
    }
    assert_eq!(answer(&mut raw, 5).await.unwrap().kind, HEADERS);
    assert!(target.refused("maxPendingBytesPerIdentity").await >= 1.0);
    // The two that were accepted, and the bystander's requests.
    until(LIMIT, "two messages of four megabytes", async || {
        (8_000_010.0..8_010_000.0).contains(&target.metric("pending_request_bytes").await)
    })
    .await;
    drop(raw);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_requests_are_refused_before_they_are_decompressed() {
    let target = Target::new(json!({})).await;
    let attack = async || {
        for encoding in ["gzip", "deflate", "zstd"] {
            let mut raw = Raw::with_preface(&target.gateway).await;
            let headers = [call("Publish"), field("grpc-encoding", encoding)].concat();
            raw.send(&frame(HEADERS, END_HEADERS, 1, &headers)).await.unwrap();
            let mut bomb = message(1000, &[0x1f; 1000]);
            bomb[0] = 1;
            raw.send(&frame(DATA, END_STREAM, 1, &bomb)).await.unwrap();
            let answer = answer(&mut raw, 1).await.unwrap();
            assert_eq!(answer.kind, HEADERS);
            // UNIMPLEMENTED, with the encodings that are accepted.
            let text = String::from_utf8_lossy(&answer.payload).into_owned();
            assert_eq!(answer.flags & END_STREAM, END_STREAM, "{text:?}");
        }
    };
    target.withstands(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_header_fields_are_refused() {
    let target = Target::new(json!({ "maxHeaderBytes": "4KiB" })).await;
    let headers = [call("GetStatus"), field("x-large", &"x".repeat(10_000))].concat();
    let attack = async || {
        let mut raw = Raw::with_preface(&target.gateway).await;
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers)).await.unwrap();
        // Status 431 or RST_STREAM. An answer of the service would have more frames.
        let answer = answer(&mut raw, 1).await.unwrap();
        assert_eq!(answer.flags & END_STREAM, if answer.kind == HEADERS { END_STREAM } else { 0 });
    };
    target.withstands(attack).await;
}
