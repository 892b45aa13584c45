//! Compresses the events of a frame.
//!
//! Redis copies each byte of a frame many times: off the socket, into the script, into history, and to each gateway. Events of
//! one frame are much alike, and LZ4 takes a few microseconds a frame. What is kept in history shrinks as well, so that its
//! limit in bytes reaches further back.

use bytes::Bytes;

/// Fewer bytes are not worth while.
const MIN: usize = 512;

/// More bytes than the largest request has, several times over: what claims more is no frame of ours.
const MAX: usize = 64 * 1024 * 1024;

/// LZ4 cannot make less than this of so many bytes, so that a small lie cannot ask for much memory.
const GREATEST_RATIO: usize = 256;

/// The events as one LZ4 block, if that saves at least an eighth.
pub(super) fn pack(events: &[u8]) -> Option<Vec<u8>> {
    if !(MIN..=MAX).contains(&events.len()) {
        return None;
    }
    let packed = lz4_flex::block::compress(events);
    (packed.len() <= events.len() / 8 * 7).then_some(packed)
}

/// The events that [`pack`] packed; none if it was not, or not `size` bytes.
pub(super) fn unpack(packed: &[u8], size: usize) -> Option<Bytes> {
    if size > MAX || size > packed.len().saturating_mul(GREATEST_RATIO) {
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
    fn little_and_random_events_stay_as_they_are() {
        assert!(pack(&[7; MIN - 1]).is_none());
        assert!(pack(&[7; MIN]).is_some());
        let random: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
        assert!(pack(&random).is_none());
    }

    #[test]
    fn a_lie_about_the_size_is_found() {
        let packed = pack(&vec![7; 100_000]).unwrap();
        assert_eq!(unpack(&packed, 100_000).unwrap(), vec![7; 100_000]);
        for size in [0, 99_999, 100_001, packed.len() * GREATEST_RATIO + 1, usize::MAX] {
            assert!(unpack(&packed, size).is_none(), "{size}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(word in "[a-z]{1,40}", times in 20..2000_usize) {
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
