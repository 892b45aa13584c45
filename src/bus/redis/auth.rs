//! Authentication tags: with `frameKey`, another tenant of the same Redis can neither forge nor
//! replay what gateways write.
//!
//! A tag is an HMAC-SHA-256, cut to 16 bytes, over the shard's channel (which contains the prefix),
//! the kind of item, its position, and its bytes. The position makes a copied frame worthless
//! anywhere else: the writer names the position that it expects, and the append script assigns that
//! one or none. ARCHITECTURE.md says what this prevents and what it does not.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ring::hmac;

use crate::{
    bus::{Epoch, Position, StartError, millis, unix_ms},
    config::Secret,
};

/// Bytes of a tag as it is encoded: field 9 of a frame, with its length, the key id and the code.
pub(super) const TAG_LENGTH: usize = 2 + ID + CODE;

/// The protobuf key of field 9, and the length of what follows.
const HEAD: [u8; 2] = [0x4a, 20];

const ID: usize = 4;
const CODE: usize = 16;

/// The distance of a gateway's first epoch from its clock: beyond every epoch for which anybody has
/// made a tag before.
const AHEAD: Duration = Duration::from_mins(5);

/// How far a clock may be ahead that no gateway has stated yet: of Redis, and of a gateway of which
/// nothing was received.
const SKEW: Duration = Duration::from_secs(10);

/// Kind of an authenticated item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A frame, at the position of its last event.
    Frame = 1,
    /// A probe, which has no position of its own.
    Probe = 2,
    /// A last value, at the position of its event.
    Retained = 3,
}

/// The keys of a deployment: the first makes tags, all verify them.
#[derive(Clone)]
pub(super) struct Keys(Vec<Key>);

#[derive(Clone)]
struct Key {
    /// Identifies the key and reveals nothing about it.
    id: [u8; ID],
    key: hmac::Key,
}

impl Keys {
    /// The keys of a secret, which are separated by white space.
    pub(super) fn of(secret: &Secret) -> Result<Keys, StartError> {
        let key = |word: &str| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, word.as_bytes());
            let mut id = [0; ID];
            id.copy_from_slice(&hmac::sign(&key, b"trunkline key id").as_ref()[..ID]);
            Key { id, key }
        };
        let keys: Vec<_> = secret.expose().split_whitespace().map(key).collect();
        if keys.is_empty() {
            return Err(StartError("frameKey holds no key".to_owned()));
        }
        Ok(Keys(keys))
    }

    /// The key ids as the deployment records them; that of the key that makes tags is first.
    pub(super) fn ids(&self) -> Vec<String> {
        let hex = |key: &Key| format!("{:08x}", u32::from_be_bytes(key.id));
        self.0.iter().map(hex).collect()
    }

    /// The authenticator of one channel.
    pub(super) fn on(&self, channel: &str) -> Arc<Authenticator> {
        let prepared = |key: &Key| {
            let mut context = hmac::Context::with_key(&key.key);
            context.update(b"trunkline 1\0");
            context.update(channel.as_bytes());
            context.update(b"\0");
            (key.id, context)
        };
        let keys = self.0.iter().map(prepared).collect();
        Arc::new(Authenticator { keys, clock: Arc::new(unix_ms), latest_ms: AtomicU64::new(0) })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.debug_tuple("Keys").field(&self.ids()).finish()
    }
}

/// A gateway's clock: milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Makes and verifies the tags of one channel.
pub struct Authenticator {
    /// By key id: the context, which already holds the common prefix.
    keys: Vec<([u8; ID], hmac::Context)>,
    clock: Clock,
    /// The latest time that a gateway stated by its clock, in milliseconds since 1970.
    latest_ms: AtomicU64,
}

impl Authenticator {
    /// One that has learned nothing yet, with the same keys and another clock.
    pub(super) fn by_clock(&self, clock: Clock) -> Authenticator {
        Authenticator { keys: self.keys.clone(), clock, latest_ms: AtomicU64::new(0) }
    }

    /// The tag of the concatenated `parts`.
    pub(super) fn tag(&self, kind: Kind, position: Position, parts: &[&[u8]]) -> [u8; TAG_LENGTH] {
        let (id, prepared) = &self.keys[0];
        let mut tag = [0; TAG_LENGTH];
        tag[..2].copy_from_slice(&HEAD);
        tag[2..2 + ID].copy_from_slice(id);
        let code = code(prepared, kind, position, parts);
        tag[2 + ID..].copy_from_slice(&code.as_ref()[..CODE]);
        tag
    }

    /// True if one of the keys made `tag` for the concatenated `parts`.
    pub(super) fn verify(
        &self,
        tag: &[u8],
        kind: Kind,
        position: Position,
        parts: &[&[u8]],
    ) -> bool {
        let Some((head, claimed)) = tag.split_at_checked(2 + ID) else { return false };
        // More than one key may have the same id.
        head.starts_with(&HEAD)
            && self.keys.iter().filter(|(id, _)| head[2..] == id[..]).any(|(_, prepared)| {
                let code = code(prepared, kind, position, parts);
                let equal = subtle::ConstantTimeEq::ct_eq(&code.as_ref()[..CODE], claimed);
                bool::from(equal)
            })
    }

    /// Takes the time of a frame or probe that verified: what its gateway's clock showed. That
    /// clock may be ahead of this gateway's by any time; nobody else can state a time, and what is
    /// replayed states an earlier one.
    pub(super) fn learn_time(&self, time_ms: u64) {
        self.latest_ms.fetch_max(time_ms, Ordering::Relaxed);
    }

    /// The latest time that any gateway has stated, and this one's: what a probe states. So a clock
    /// that was ahead is known while any gateway lives that has received it, and one that starts
    /// later can serve the epochs that were opened by it.
    pub(super) fn latest_time(&self) -> u64 {
        (self.clock)().max(self.latest_ms.load(Ordering::Relaxed))
    }

    /// True if a gateway that states this time knows of an earlier one than this gateway: it may
    /// not be able to serve the shard's epoch before it knows.
    pub(super) fn is_later_than(&self, time_ms: u64) -> bool {
        self.latest_time() > time_ms.saturating_add(millis(SKEW))
    }

    /// True if an epoch lies so far beyond the clocks of all gateways that no tag may be made for
    /// it yet.
    pub(super) fn is_beyond(&self, epoch: Epoch) -> bool {
        let clock = self.latest_time();
        epoch > Epoch::opened_at(clock.saturating_add(millis(AHEAD + SKEW)), 0)
    }

    /// The epoch that a gateway asks for when it starts: no tag was ever made for it or a later
    /// one.
    pub(super) fn first_epoch(&self) -> Epoch {
        Epoch::opened_at((self.clock)().saturating_add(millis(AHEAD)), 0)
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authenticator")
    }
}

fn code(prepared: &hmac::Context, kind: Kind, position: Position, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = prepared.clone();
    let mut head = [0; 17];
    head[0] = kind as u8;
    head[1..9].copy_from_slice(&position.epoch.0.to_be_bytes());
    head[9..].copy_from_slice(&position.offset.0.to_be_bytes());
    context.update(&head);
    for part in parts {
        context.update(part);
    }
    context.sign()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "fedcba9876543210fedcba9876543210";

    fn on(keys: &str, channel: &str) -> Arc<Authenticator> {
        Keys::of(&Secret::new(keys)).unwrap().on(channel)
    }

    #[test]
    fn a_tag_verifies_only_its_own_kind_position_channel_key_and_bytes() {
        let auth = on(NEW, "p:{0}:channel");
        let position = Position::new(7, 3);
        let made = auth.tag(Kind::Frame, position, &[b"some ", b"bytes"]);
        let verifies = |auth: &Authenticator, kind, position, bytes: &[u8]| {
            auth.verify(&made, kind, position, &[bytes])
        };
        assert!(verifies(&auth, Kind::Frame, position, b"some bytes"));
        assert!(!verifies(&auth, Kind::Frame, position, b"some bytez"));
        assert!(!verifies(&auth, Kind::Frame, Position::new(7, 4), b"some bytes"));
        assert!(!verifies(&auth, Kind::Frame, Position::new(8, 3), b"some bytes"));
        assert!(!verifies(&auth, Kind::Retained, position, b"some bytes"));
        assert!(!verifies(&on(NEW, "p:{1}:channel"), Kind::Frame, position, b"some bytes"));
        assert!(!verifies(&on(NEW, "q:{0}:channel"), Kind::Frame, position, b"some bytes"));
        assert!(!verifies(&on(OLD, "p:{0}:channel"), Kind::Frame, position, b"some bytes"));
        for bit in 0..TAG_LENGTH * 8 {
            let mut flipped = made;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!auth.verify(&flipped, Kind::Frame, position, &[b"some bytes"]), "bit {bit}");
        }
        assert!(!auth.verify(&made[..TAG_LENGTH - 1], Kind::Frame, position, &[b"some bytes"]));
        assert!(!auth.verify(b"", Kind::Frame, position, &[b"some bytes"]));
    }

    #[test]
    fn during_a_rotation_all_keys_verify_and_the_first_makes_tags() {
        let (old, both) = (on(OLD, "c"), on(&format!("{NEW}\n{OLD}\n"), "c"));
        let (position, bytes) = (Position::new(1, 1), [&b"bytes"[..]]);
        let by_old = old.tag(Kind::Frame, position, &bytes);
        let by_both = both.tag(Kind::Frame, position, &bytes);
        assert!(both.verify(&by_old, Kind::Frame, position, &bytes));
        assert!(on(NEW, "c").verify(&by_both, Kind::Frame, position, &bytes));
        assert!(!old.verify(&by_both, Kind::Frame, position, &bytes));
    }

    #[test]
    fn tags_may_be_made_for_the_first_epoch_at_once() {
        let auth = on(NEW, "c").by_clock(Arc::new(|| 7_000_000));
        assert!(!auth.is_beyond(Epoch(auth.first_epoch().0 + 1)));
        assert!(auth.is_beyond(Epoch(auth.first_epoch().0 + 60_000 * 4096)));
    }

    #[test]
    fn tags_may_be_made_for_the_first_epoch_of_a_gateway_whose_clock_is_ahead() {
        let (now, hour) = (7_000_000, 3_600_000);
        let auth = on(NEW, "c").by_clock(Arc::new(move || now));
        let first = Epoch(auth.first_epoch().0 + hour * 4096);
        assert!(auth.is_beyond(first), "nobody has stated that time");
        auth.learn_time(now + hour);
        // What is replayed, and a gateway whose clock is behind, change nothing.
        auth.learn_time(now - hour);
        assert!(!auth.is_beyond(first));
        assert!(auth.is_beyond(Epoch(first.0 + 60_000 * 4096)));
    }

    /// `cargo test --lib -- --ignored --nocapture cost_of_a_tag`
    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_tag() {
        let auth = on(NEW, "trunkline:{0}:channel");
        for bytes in [100, 1024, 8 << 10, 128 << 10] {
            let frame = vec![7; bytes];
            let rounds = (64 << 20) / (bytes + 1000);
            let mut best = Duration::MAX;
            // The minimum of many rounds: other load on the machine only adds.
            for _ in 0..20 {
                let started = std::time::Instant::now();
                for round in 0..rounds / 20 {
                    let position = Position::new(1, round as u64);
                    std::hint::black_box(auth.tag(Kind::Frame, position, &[&frame]));
                }
                best = best.min(started.elapsed() / u32::try_from(rounds / 20).unwrap());
            }
            println!("{bytes} bytes: {best:?}");
        }
    }
}
