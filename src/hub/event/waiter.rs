//! What an event says of the publisher that waits for it: see [`hub::waits`](crate::hub::waits).

use std::{ops::Range, time::Duration};

use crate::bus::MemberId;

/// The longest time for which a publisher waits.
pub const MAX_WAIT: Duration = Duration::from_mins(1);

/// Bytes of an encoded stamp.
const STAMP_BYTES: usize = 25;

/// Names a publisher's wait: the gateway that was asked, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitName {
    /// The gateway.
    pub asked: MemberId,
    /// The number of the wait.
    pub number: u64,
}

/// What an event says of the wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitStamp {
    /// The wait.
    pub name: WaitName,
    /// True if nodes must acknowledge the event, not only receive it.
    pub acknowledged: bool,
    /// The place of the event among those of the wait, and the number of these.
    pub index: u16,
    /// See `index`.
    pub count: u16,
    /// The time for which the publisher waits.
    pub timeout: Duration,
}

impl WaitStamp {
    /// The content of the field.
    pub fn encode(&self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.name.asked.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.name.number.to_be_bytes());
        bytes[16] = u8::from(self.acknowledged);
        bytes[17..19].copy_from_slice(&self.index.to_be_bytes());
        bytes[19..21].copy_from_slice(&self.count.to_be_bytes());
        let ms = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        bytes[21..].copy_from_slice(&ms.to_be_bytes());
        bytes
    }

    /// Reads the content of the field. None: no gateway of this version wrote it.
    pub fn decode(bytes: &[u8]) -> Option<WaitStamp> {
        let bytes: &[u8; STAMP_BYTES] = bytes.try_into().ok()?;
        let number = |range: Range<usize>| {
            bytes[range].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let [index, count] = [17..19, 19..21].map(|range| u16::try_from(number(range)));
        let (index, count) = (index.ok()?, count.ok()?);
        if bytes[16] > 1 || index >= count {
            return None;
        }
        Some(WaitStamp {
            name: WaitName { asked: MemberId(number(0..8)), number: number(8..16) },
            acknowledged: bytes[16] == 1,
            index,
            count,
            timeout: Duration::from_millis(number(21..25)).min(MAX_WAIT),
        })
    }
}

/// A stamp for tests: of one of `count` events.
#[cfg(test)]
pub fn stamp(index: u16, count: u16) -> WaitStamp {
    WaitStamp {
        name: WaitName { asked: MemberId(7), number: 1 << 40 },
        acknowledged: true,
        index,
        count,
        timeout: Duration::from_secs(5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written_and_nothing_else_is_one() {
        let whole = stamp(3, 4);
        assert_eq!(WaitStamp::decode(&whole.encode()), Some(whole));
        assert_eq!(WaitStamp::decode(&whole.encode()[1..]), None);
        assert_eq!(WaitStamp::decode(&stamp(4, 4).encode()), None);
        let mut wrong = whole.encode();
        wrong[16] = 2;
        assert_eq!(WaitStamp::decode(&wrong), None);
        let long = WaitStamp { timeout: Duration::from_hours(1), ..whole };
        assert_eq!(WaitStamp::decode(&long.encode()).unwrap().timeout, MAX_WAIT);
    }
}
