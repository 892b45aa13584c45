use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline::bus::redis::{
    envelope::{Body, Envelope},
    recovery::{HeldFrame, Memory, Task},
    script::{self, Answer},
};

/// Frames and bytes that the memory may hold.
const LIMITS: (usize, usize) = (8, 4096);

/// What a gateway knows of a shard, after any messages, answers of the script and times: it holds
/// no more than it may, and each copy that it offers is one of what it holds.
///
/// The input is a sequence of acts: a byte that chooses one, a length, and so many bytes.
pub fn recovery(bytes: &[u8]) {
    let mut memory = Memory::new(LIMITS);
    let mut now = Instant::now();
    let mut rest = bytes;
    while let [act, length, tail @ ..] = rest {
        let (content, next) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = next;
        match act & 7 {
            0..=2 => {
                if let Some(mut envelope) = Envelope::parse(Bytes::copy_from_slice(content)) {
                    memory.learn(&mut envelope, now);
                }
            }
            3 => {
                let field = content.first().map_or(&b"f"[..], std::slice::from_ref);
                let value = Bytes::copy_from_slice(content.get(1..).unwrap_or_default());
                if let Some(mut envelope) = Envelope::parse_history(b"4096-7", field, &value) {
                    memory.learn(&mut envelope, now);
                }
            }
            4 => {
                let answer = redis::parse_redis_value(content).ok();
                let answer = answer.and_then(|value| script::parse(&value));
                if let Some(Answer::Shard(view, _)) = answer {
                    memory.learn_view(&view);
                }
            }
            5 => now += Duration::from_millis(100 * u64::from(*length)),
            _ => offers(&mut memory, now, content),
        }
        let (frames, bytes) = memory.held();
        assert!(frames <= LIMITS.0 && bytes <= LIMITS.1, "{frames} frames, {bytes} bytes");
        assert!(memory.reported().len() <= 64 * 64 * 42, "what is reported is bounded");
    }
}

fn offers(memory: &mut Memory, now: Instant, indices: &[u8]) {
    let Task::Again(offer) = memory.task(now) else { return };
    let copy = Envelope::parse_history(b"999999999-100000", b"f", &offer.frame.clone().into());
    let body = copy.expect("an entry of history").body;
    let Body::Frame(copy) = body else { panic!("a copy is a frame, and not {body:?}") };
    let provenance = copy.frame.provenance.expect("a copy has a name");
    assert_eq!(provenance.name, Some(offer.held.name.clone()));
    assert_eq!(
        (copy.writer, copy.sequence),
        (offer.held.stamped.writer, offer.held.stamped.sequence)
    );
    assert!(memory.holds(offer.held.first()));
    // Some of it was accepted again: what is left is offered next, under the same name.
    let seen: Vec<usize> = indices.iter().map(|index| usize::from(*index)).collect();
    memory.offer_without(&offer.held, &seen);
    memory.offer_after(offer.held.name.last());
    if let Task::Again(left) = memory.task(now) {
        let origin = |held: &HeldFrame| (held.name.epoch, held.name.first, held.name.count);
        assert_eq!(origin(&left.held), origin(&offer.held));
        let count = |held: &HeldFrame| held.stamped.frame.count;
        assert!(count(&left.held) <= count(&offer.held));
        let named = match &left.held.name {
            name if name.left.is_empty() => name.count,
            name => name.left.len() as u64,
        };
        assert_eq!(named, count(&left.held), "the name says which are left");
    }
}
