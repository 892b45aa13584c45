//! Compression of the events of a frame.
//!
//! Redis copies each byte of a frame many times: off the socket, into the script, into history, and
//! to each gateway. Events of one frame are much alike, and LZ4 takes a few microseconds a frame.
//! History shrinks as well, so that its limit in bytes reaches further back.

use bytes::Bytes;

/// Fewer bytes are not worth compressing.
const MIN: usize = 512;

/// Several times the largest request: a frame that claims more is not ours.
const MAX: usize = 64 * 1024 * 1024;

/// LZ4 cannot compress better than this, so a small frame with a false size cannot ask for much
/// memory.
const MAX_RATIO: usize = 256;

/// The events as one LZ4 block; None unless that saves at least an eighth.
pub(super) fn pack(events: &[u8]) -> Option<Vec<u8>> {
    if !(MIN..=MAX).contains(&events.len()) {
        return None;
    }
    let packed = lz4_flex::block::compress(events);
    (packed.len() <= events.len() / 8 * 7).then_some(packed)
}

/// The events that [`pack`] packed; None if the block is not valid or does not hold `size` bytes.
pub(super) fn unpack(packed: &[u8], size: usize) -> Option<Bytes> {
    if size > MAX || size > packed.len().saturating_mul(MAX_RATIO) {
        return None;
    }
    let events = lz4_flex::block::decompress(packed, size).ok()?;
    (events.len() == size).then(|| events.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_and_random_events_are_not_packed() {
        assert!(pack(&[7; MIN - 1]).is_none());
        assert!(pack(&[7; MIN]).is_some());
        let random: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
        assert!(pack(&random).is_none());
    }

    #[test]
    fn a_false_size_is_rejected() {
        let packed = pack(&vec![7; 100_000]).unwrap();
        assert_eq!(unpack(&packed, 100_000).unwrap(), vec![7; 100_000]);
        for size in [0, 99_999, 100_001, packed.len() * MAX_RATIO + 1, usize::MAX] {
            assert!(unpack(&packed, size).is_none(), "{size}");
        }
    }

    proptest! {
        #[test]
        fn packed_events_are_unpacked_unchanged(word in "[a-z]{1,40}", times in 20..2000_usize) {
            let events = word.repeat(times).into_bytes();
            if let Some(packed) = pack(&events) {
                prop_assert_eq!(unpack(&packed, events.len()).unwrap(), events);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, size in 0..100_000_usize) {
            let _ = unpack(&bytes, size);
        }
    }
}
