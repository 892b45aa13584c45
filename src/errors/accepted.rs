//! The events of a request that the bus accepted, where it did not accept all of them.

use std::fmt::{self, Write};

/// Bytes of the list of accepted events in a text for people.
const MAX_LIST: usize = 160;

/// Events that a bitmap in the details of an error covers: a status travels in HTTP/2 headers.
const MAX_BITMAP_EVENTS: usize = 3072;

/// The events of a request, by index: true for each that the bus accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedEvents(pub Vec<bool>);

impl AcceptedEvents {
    /// The number of accepted events.
    pub fn count(&self) -> usize {
        self.0.iter().filter(|accepted| **accepted).count()
    }

    /// The number of events of the request.
    pub fn events(&self) -> usize {
        self.0.len()
    }

    /// A bit for each event, 1 for an accepted one, in hexadecimal digits: the first digit has
    /// events 0 to 3, and its highest bit is event 0. `None` for more events than fit in a status.
    pub fn bitmap(&self) -> Option<String> {
        if self.0.len() > MAX_BITMAP_EVENTS {
            return None;
        }
        let digit = |bits: &[bool]| {
            let bits = bits.iter().enumerate().filter(|(_, accepted)| **accepted);
            bits.fold(0, |digit, (index, _)| digit | 8 >> index)
        };
        Some(self.0.chunks(4).filter_map(|bits| char::from_digit(digit(bits), 16)).collect())
    }
}

/// `3 of 6 events (0-1, 5)`; a long list is cut.
impl fmt::Display for AcceptedEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = String::new();
        let mut index = 0;
        for run in self.0.chunk_by(|one, next| one == next) {
            let (first, last) = (index, index + run.len() - 1);
            index += run.len();
            if !run[0] {
                continue;
            }
            if list.len() > MAX_LIST {
                list.push_str(", ...");
                break;
            }
            let separator = if list.is_empty() { "" } else { ", " };
            write!(list, "{separator}{first}")?;
            if last > first {
                write!(list, "-{last}")?;
            }
        }
        write!(f, "{} of {} events ({list})", self.count(), self.events())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_events_are_listed_and_marked() {
        let events = |bits: &[u8]| AcceptedEvents(bits.iter().map(|bit| *bit == 1).collect());
        let some = events(&[1, 1, 0, 0, 0, 1]);
        assert_eq!((some.count(), some.events()), (3, 6));
        assert_eq!(some.to_string(), "3 of 6 events (0-1, 5)");
        assert_eq!(some.bitmap().as_deref(), Some("c4"));
        let every_other = AcceptedEvents((0..3072).map(|index| index % 2 == 1).collect());
        assert_eq!(every_other.bitmap(), Some("5".repeat(768)));
        let text = every_other.to_string();
        assert!(text.starts_with("1536 of 3072 events (1, 3, ") && text.ends_with(", ...)"));
        assert!(text.len() < 220, "{text}");
        assert_eq!(AcceptedEvents(vec![true; 3073]).bitmap(), None);
    }
}
