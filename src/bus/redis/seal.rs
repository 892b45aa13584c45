//! Seals what lies in Redis, so that another tenant of it can neither forge nor replay.
//!
//! A seal is an HMAC-SHA-256, cut to 16 bytes, over the shard's channel (which holds the prefix), the kind of thing, its place,
//! and its bytes. The place is what makes a frame worthless anywhere else: the writer names the place that it expects, and the
//! append script gives it that one or none. ARCHITECTURE.md says what this prevents and what it does not.

use std::{fmt, sync::Arc, time::Duration};

use ring::hmac;

use crate::{
    bus::{Epoch, Position, StartError, unix_ms},
    config::Secret,
};

/// A seal as it travels: field 9 of a frame, with its length, the key's id and the code.
pub(super) const LENGTH: usize = 2 + ID + CODE;

/// The tag of field 9, and the length of what follows.
const HEAD: [u8; 2] = [0x4a, 20];

const ID: usize = 4;
const CODE: usize = 16;

/// How far the first epoch of a gateway lies beyond its clock: beyond every epoch for which anybody has sealed anything before.
const AHEAD: Duration = Duration::from_mins(5);

/// How much clocks of gateways may differ without one waiting for another.
const SKEW: Duration = Duration::from_secs(10);

/// What is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A frame; its place is that of its last event.
    Frame = 1,
    /// A beacon, which has no place of its own.
    Beacon = 2,
    /// A last value, at the place of its event.
    Retained = 3,
}

/// The keys of a deployment: the first seals, all open.
#[derive(Clone)]
pub(super) struct Keys(Vec<Key>);

#[derive(Clone)]
struct Key {
    /// Tells which key it is, and nothing about it.
    id: [u8; ID],
    key: hmac::Key,
}

impl Keys {
    /// The keys of a secret, one a word.
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

    /// The ids, as they are recorded: that of the key that seals first.
    pub(super) fn ids(&self) -> Vec<String> {
        let hex = |key: &Key| format!("{:08x}", u32::from_be_bytes(key.id));
        self.0.iter().map(hex).collect()
    }

    /// What seals and opens on one channel.
    pub(super) fn on(&self, channel: &str) -> Arc<Seal> {
        let begun = |key: &Key| {
            let mut context = hmac::Context::with_key(&key.key);
            context.update(b"trunkline 1\0");
            context.update(channel.as_bytes());
            context.update(b"\0");
            (key.id, context)
        };
        Arc::new(Seal(self.0.iter().map(begun).collect()))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.debug_tuple("Keys").field(&self.ids()).finish()
    }
}

/// What seals and opens on one channel. What is the same for all is fed to the codes already.
pub(super) struct Seal(Vec<([u8; ID], hmac::Context)>);

impl Seal {
    /// The seal of `parts`, one behind the other.
    pub(super) fn of(&self, kind: Kind, position: Position, parts: &[&[u8]]) -> [u8; LENGTH] {
        let (id, begun) = &self.0[0];
        let mut seal = [0; LENGTH];
        seal[..2].copy_from_slice(&HEAD);
        seal[2..2 + ID].copy_from_slice(id);
        let code = code(begun, kind, position, parts);
        seal[2 + ID..].copy_from_slice(&code.as_ref()[..CODE]);
        seal
    }

    /// Whether `seal` is one of these keys' for `parts`.
    pub(super) fn holds(
        &self,
        seal: &[u8],
        kind: Kind,
        position: Position,
        parts: &[&[u8]],
    ) -> bool {
        let Some((head, code_there)) = seal.split_at_checked(2 + ID) else { return false };
        // More than one key may have the same id.
        head.starts_with(&HEAD)
            && self.0.iter().filter(|(id, _)| head[2..] == id[..]).any(|(_, begun)| {
                let code = code(begun, kind, position, parts);
                let equal = subtle::ConstantTimeEq::ct_eq(&code.as_ref()[..CODE], code_there);
                bool::from(equal)
            })
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

fn code(begun: &hmac::Context, kind: Kind, position: Position, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = begun.clone();
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

/// The epoch that a gateway asks for when it starts: nothing that was ever sealed lies in it or beyond it.
pub(super) fn first_epoch() -> Epoch {
    Epoch(unix_ms().saturating_add(millis(AHEAD)))
}

/// Whether an epoch lies so far beyond this gateway's clock that nothing may be sealed for it yet.
pub(super) fn is_beyond(epoch: Epoch) -> bool {
    epoch.0 > unix_ms().saturating_add(millis(AHEAD + SKEW))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "fedcba9876543210fedcba9876543210";

    fn on(keys: &str, channel: &str) -> Arc<Seal> {
        Keys::of(&Secret::new(keys)).unwrap().on(channel)
    }

    #[test]
    fn a_seal_holds_for_what_it_was_made_for_and_for_nothing_else() {
        let seal = on(NEW, "p:{0}:channel");
        let position = Position::new(7, 3);
        let made = seal.of(Kind::Frame, position, &[b"some ", b"bytes"]);
        let holds =
            |seal: &Seal, kind, position, bytes: &[u8]| seal.holds(&made, kind, position, &[bytes]);
        assert!(holds(&seal, Kind::Frame, position, b"some bytes"));
        assert!(!holds(&seal, Kind::Frame, position, b"some bytez"));
        assert!(!holds(&seal, Kind::Frame, Position::new(7, 4), b"some bytes"));
        assert!(!holds(&seal, Kind::Frame, Position::new(8, 3), b"some bytes"));
        assert!(!holds(&seal, Kind::Retained, position, b"some bytes"));
        assert!(!holds(&on(NEW, "p:{1}:channel"), Kind::Frame, position, b"some bytes"));
        assert!(!holds(&on(NEW, "q:{0}:channel"), Kind::Frame, position, b"some bytes"));
        assert!(!holds(&on(OLD, "p:{0}:channel"), Kind::Frame, position, b"some bytes"));
        for bit in 0..LENGTH * 8 {
            let mut flipped = made;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!seal.holds(&flipped, Kind::Frame, position, &[b"some bytes"]), "bit {bit}");
        }
        assert!(!seal.holds(&made[..LENGTH - 1], Kind::Frame, position, &[b"some bytes"]));
        assert!(!seal.holds(b"", Kind::Frame, position, &[b"some bytes"]));
    }

    #[test]
    fn while_keys_are_rotated_both_open_and_the_first_seals() {
        let (old, both) = (on(OLD, "c"), on(&format!("{NEW}\n{OLD}\n"), "c"));
        let (position, bytes) = (Position::new(1, 1), [&b"bytes"[..]]);
        let by_old = old.of(Kind::Frame, position, &bytes);
        let by_both = both.of(Kind::Frame, position, &bytes);
        assert!(both.holds(&by_old, Kind::Frame, position, &bytes));
        assert!(on(NEW, "c").holds(&by_both, Kind::Frame, position, &bytes));
        assert!(!old.holds(&by_both, Kind::Frame, position, &bytes));
    }

    #[test]
    fn the_first_epoch_may_be_sealed_for_at_once() {
        assert!(!is_beyond(Epoch(first_epoch().0 + 1)));
        assert!(is_beyond(Epoch(first_epoch().0 + 60_000)));
    }

    /// `cargo test --lib -- --ignored --nocapture what_a_seal_costs`
    #[test]
    #[ignore = "a measurement"]
    fn what_a_seal_costs() {
        let seal = on(NEW, "trunkline:{0}:channel");
        for bytes in [100, 1024, 8 << 10, 128 << 10] {
            let frame = vec![7; bytes];
            let rounds = (64 << 20) / (bytes + 1000);
            let mut best = Duration::MAX;
            // The least of many: what else runs on the machine only adds.
            for _ in 0..20 {
                let started = std::time::Instant::now();
                for round in 0..rounds / 20 {
                    let position = Position::new(1, round as u64);
                    std::hint::black_box(seal.of(Kind::Frame, position, &[&frame]));
                }
                best = best.min(started.elapsed() / u32::try_from(rounds / 20).unwrap());
            }
            println!("{bytes} bytes: {best:?}");
        }
    }
}
