//! Requests that do not come whole, or are not what they seem.

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
    scene::{Scene, short},
    support::{LIMIT, until},
    wire::{
        ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, RST_STREAM, Raw, SETTINGS,
        Windows, call, field, frame, message,
    },
};

/// The first frame with which a call is answered, or its end; None when the gateway has closed.
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
async fn half_a_request_and_then_silence_is_answered_and_freed() {
    let scene = Scene::new(short()).await;
    let bystander = scene.bystander().await;
    let mut raw = Raw::greeted(&scene.gateway).await;
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
    assert!((scene.refused("requestTimeout").await - 3.0).abs() < 0.1);
    // The stream beside it has a few.
    until(LIMIT, "they are free", async || scene.metric("pending_request_bytes").await < 1000.0)
        .await;
    drop(raw);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_byte_at_a_time_has_no_more_time_than_any_other() {
    let scene = Scene::new(short()).await;
    let bystander = scene.bystander().await;
    let mut raw = Raw::greeted(&scene.gateway).await;
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
    let answered = timeout(LIMIT, sent).await.expect("it is cut off");
    assert_eq!(answered.unwrap().kind, HEADERS);
    assert!(scene.refused("requestTimeout").await >= 1.0);
    drop(raw);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn halves_of_large_requests_cannot_fill_the_memory() {
    let limits = json!({
        "maxPendingBytes": "16MiB", "maxPendingBytesPerIdentity": "8MiB", "requestTimeout": "10m",
    });
    let scene = Scene::new(limits).await;
    let bystander = scene.bystander().await;
    // Forty connections with ten halves of two megabytes each: 800 MB, if they were taken.
    let sent = Arc::new(AtomicUsize::new(0));
    let mut attack = JoinSet::new();
    for _ in 0..40 {
        let raw = Raw::greeted(&scene.gateway).await;
        attack.spawn(halves(raw, sent.clone()));
    }
    until(LIMIT, "one half too many", async || {
        scene.refused("maxPendingBytesPerIdentity").await >= 1.0
    })
    .await;
    // Until the windows let nothing through any more.
    let mut before = 0;
    until(LIMIT, "the end of the attack", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(Ordering::Relaxed);
        std::mem::replace(&mut before, now) == now
    })
    .await;
    assert!(attack.try_join_next().is_none(), "no connection was at fault");
    eprintln!("{} MiB were sent", before >> 20);
    let pending = scene.metric("pending_request_bytes").await;
    assert!(pending <= f64::from(9 << 20), "{pending}");
    scene.memory_is_bounded();
    attack.shutdown().await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

/// A request of four megabytes, of which nothing comes with it.
fn announcement(stream: u32) -> Vec<u8> {
    let headers = frame(HEADERS, END_HEADERS, stream, &call("Publish"));
    let body = frame(DATA, 0, stream, &message(4_000_000, &[]));
    [headers, body].concat()
}

/// Halves of ten requests at once, as fast as they are taken. Whoever is answered is let be. Ends when the connection does.
async fn halves(mut raw: Raw, sent: Arc<AtomicUsize>) {
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
        let Some(said) = raw.frame().await else { return };
        windows.hear(&said);
        match said.kind {
            SETTINGS if said.flags & ACK == 0 => {
                let seen = raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
                if seen.is_err() {
                    return;
                }
            }
            HEADERS | RST_STREAM => drop(open.remove(&said.stream)),
            GOAWAY => return,
            _ => {}
        }
    }
}

/// Room is made for what a message says that it has, so that is what counts, whether it ever comes or not.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_announce_much_and_send_nothing_are_as_large_as_they_say() {
    let limits = json!({ "maxPendingBytesPerIdentity": "8MiB", "requestTimeout": "10m" });
    let scene = Scene::new(limits).await;
    let bystander = scene.bystander().await;
    let mut raw = Raw::greeted(&scene.gateway).await;
    for stream in [1, 3, 5] {
        raw.send(&announcement(stream)).await.unwrap();
    }
    assert_eq!(answer(&mut raw, 5).await.unwrap().kind, HEADERS);
    assert!(scene.refused("maxPendingBytesPerIdentity").await >= 1.0);
    // The two that were let in, and what the nodes beside them have.
    until(LIMIT, "two messages of four megabytes", async || {
        (8_000_010.0..8_010_000.0).contains(&scene.metric("pending_request_bytes").await)
    })
    .await;
    drop(raw);
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_requests_are_refused_before_they_are_unpacked() {
    let scene = Scene::new(json!({})).await;
    let bystander = scene.bystander().await;
    let attack = async || {
        for encoding in ["gzip", "deflate", "zstd"] {
            let mut raw = Raw::greeted(&scene.gateway).await;
            let headers = [call("Publish"), field("grpc-encoding", encoding)].concat();
            raw.send(&frame(HEADERS, END_HEADERS, 1, &headers)).await.unwrap();
            let mut bomb = message(1000, &[0x1f; 1000]);
            bomb[0] = 1;
            raw.send(&frame(DATA, END_STREAM, 1, &bomb)).await.unwrap();
            let answer = answer(&mut raw, 1).await.unwrap();
            assert_eq!(answer.kind, HEADERS);
            // UNIMPLEMENTED, with what is taken instead.
            let text = String::from_utf8_lossy(&answer.payload).into_owned();
            assert_eq!(answer.flags & END_STREAM, END_STREAM, "{text:?}");
        }
    };
    bystander.endures(attack).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn giant_header_fields_are_refused() {
    let scene = Scene::new(json!({ "maxHeaderBytes": "4KiB" })).await;
    let bystander = scene.bystander().await;
    let headers = [call("GetStatus"), field("x-large", &"x".repeat(10_000))].concat();
    let attack = async || {
        let mut raw = Raw::greeted(&scene.gateway).await;
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers)).await.unwrap();
        // 431, or the end of the stream: never an answer of the service, which would be longer.
        let answer = answer(&mut raw, 1).await.unwrap();
        assert_eq!(answer.flags & END_STREAM, if answer.kind == HEADERS { END_STREAM } else { 0 });
    };
    bystander.endures(attack).await;
    bystander.saw_nothing().await;
    scene.is_as_before().await;
}
