//! Many clients on one connection of a proxy: what one of them does wrong ends its own streams, and
//! not those of the others.

use serde_json::json;
use tokio::time::timeout;

use crate::{
    support::LIMIT,
    target::Target,
    wire::{
        ACK, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, RST_STREAM, Raw, call, field,
        frame,
    },
};

/// The header fields of a call whose authority is none.
fn bad_authority() -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", "/trunkline.v1.CoordinationService/GetStatus"),
        field(":authority", "not an authority"),
        field("content-type", "application/grpc"),
    ]
    .concat()
}

/// Sends pieces, and then a PING; reads until it is answered.
async fn all_are_taken(raw: &mut Raw, pieces: Vec<Vec<u8>>, what: &str) -> Vec<Frame> {
    raw.send(&pieces.concat()).await.unwrap();
    raw.send(&frame(PING, 0, 0, b"are-here")).await.unwrap();
    let mut frames = Vec::new();
    let pong = async {
        while let Some(frame) = raw.frame().await {
            assert_ne!(frame.kind, GOAWAY, "{what}: {frame:?}");
            let is_pong = frame.kind == PING && frame.flags & ACK != 0;
            frames.push(frame);
            if is_pong {
                return true;
            }
        }
        false
    };
    assert!(timeout(LIMIT, pong).await.expect("an answer in time"), "{what}: it was closed");
    frames
}

/// The number of streams that were reset. The one that is kept is not among them.
fn count_resets(frames: &[Frame], kept: u32) -> usize {
    let resets = frames.iter().filter(|frame| frame.kind == RST_STREAM);
    resets.inspect(|frame| assert_ne!(frame.stream, kept, "{frame:?}")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_and_malformed_requests_end_their_streams_and_not_the_connection() {
    let target = Target::new(json!({})).await;
    let bystander = target.bystander().await;
    let mut raw = Raw::with_preface(&target.gateway).await;
    let mut streams = (1_u32..).step_by(2);
    let mut stream = || streams.next().unwrap();
    // A client whose stream must survive all that the others do.
    let kept = stream();
    raw.send(&frame(HEADERS, END_HEADERS, kept, &call("Publish"))).await.unwrap();
    let mut resets = 0;
    for round in 0..20 {
        // 40 clients that cancel 25 requests each, at once.
        let cancelled = (0..1000).map(|_| {
            let stream = stream();
            let headers = frame(HEADERS, END_HEADERS, stream, &call("GetStatus"));
            [headers, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        });
        let what = format!("cancelled, {round}");
        let frames = all_are_taken(&mut raw, cancelled.collect(), &what).await;
        resets += count_resets(&frames, kept);
        // 100 clients with a wrong authority, over and over.
        let wrong =
            (0..100).map(|_| frame(HEADERS, END_HEADERS | END_STREAM, stream(), &bad_authority()));
        let frames = all_are_taken(&mut raw, wrong.collect(), &format!("wrong, {round}")).await;
        resets += count_resets(&frames, kept);
    }
    while resets < 2000 {
        let frame = timeout(LIMIT, raw.frame()).await.expect("in time").expect("it is open");
        resets += count_resets(&[frame], kept);
    }
    drop(raw);
    target.withstood(bystander).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_the_resets_of_its_requests_is_held_back() {
    let target = Target::new(json!({})).await;
    let bystander = target.bystander().await;
    let mut raw = Raw::with_buffer(&target.gateway, Some(4096)).await;
    let preface = [crate::wire::PREFACE, &frame(crate::wire::SETTINGS, 0, 0, &[])].concat();
    raw.send(&preface).await.unwrap();
    let headers = bad_authority();
    let piece = |first: u32| -> Vec<u8> {
        let streams = (0..100).map(|n| first + 2 * n);
        streams.flat_map(|n| frame(HEADERS, END_HEADERS | END_STREAM, n, &headers)).collect()
    };
    let (mut first, mut sent) = (1, 0);
    // It stops taking more, or closes the connection: 300 MB would go on for ever.
    while sent < 300 << 20 {
        let bytes = piece(first);
        let sending = timeout(
            std::time::Duration::from_secs(3),
            tokio::io::AsyncWriteExt::write_all(&mut raw.0, &bytes),
        );
        if !matches!(sending.await, Ok(Ok(()))) {
            break;
        }
        (first, sent) = (first + 200, sent + bytes.len());
    }
    eprintln!("{} KiB were taken", sent >> 10);
    assert!(sent < 100 << 20, "{sent}");
    target.memory_is_bounded();
    drop(raw);
    target.withstood(bystander).await;
}
