//! Which version a node has, by what it sends.

use super::{
    decode::Message,
    version::{Tags, Version, Young},
};

/// Finds the version of a node by what it sends.
///
/// Many messages read alike in both releases, and a few read wrong: the access token of account 12
/// in release 0.15 (`03 01 0c`) is a push subscription and a queue refresh in 0.16. So until a
/// message was readable in one alone, 0.16 is a guess. Where nodes have 0.15, it is better set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finder {
    may_be_old: bool,
    may_be_new: bool,
    young: Young,
}

impl Default for Finder {
    fn default() -> Finder {
        Finder { may_be_old: true, may_be_new: true, young: Young::NONE }
    }
}

impl Finder {
    /// Looks at a message of the node. One that no release reads says nothing.
    pub fn look(&mut self, message: &[u8]) {
        let mut young = Young::NONE;
        let mut reads = |tags| {
            let Ok(message) = Message::read(message, tags) else { return false };
            message.events().all(|event| match event {
                Ok(event) if tags == Tags::V0_16 => {
                    young.0 |= Young::of(&event).0;
                    true
                }
                event => event.is_ok(),
            })
        };
        let (old, new) = (reads(Tags::V0_15), reads(Tags::V0_16));
        let (may_be_old, may_be_new) = (self.may_be_old && old, self.may_be_new && new);
        if may_be_old || may_be_new {
            (self.may_be_old, self.may_be_new) = (may_be_old, may_be_new);
        }
        // A guess is no reason to send a node something that it may not have.
        if self.may_be_new && !self.may_be_old {
            self.young.0 |= young.0;
        }
    }

    /// The version, or as much of it as is certain; release 0.16 while nothing is.
    pub fn version(&self) -> Version {
        if self.may_be_new {
            Version { tags: Tags::V0_16, young: self.young }
        } else {
            Version { tags: Tags::V0_15, young: Young::NONE }
        }
    }

    /// True once a message was readable in one release alone.
    pub fn is_certain(&self) -> bool {
        self.may_be_old != self.may_be_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_by_the_messages_that_only_one_release_reads() {
        let mut finder = Finder::default();
        // A state change is the same in both, and what none reads says nothing.
        for message in [&[0, 0, 2, 25, 1][..], &[0], b"hello", &[]] {
            finder.look(message);
            assert!(!finder.is_certain());
            assert_eq!(finder.version(), Version::default());
        }
        let mut old = finder;
        // Settings are to be read again in 0.15; in 0.16 the rest is missing.
        old.look(&[0, 5]);
        assert!(old.is_certain());
        assert_eq!(old.version().tags, Tags::V0_15);
        // A message of the other release is one that cannot be read.
        old.look(&[0, 11]);
        assert_eq!(old.version().tags, Tags::V0_15);

        finder.look(&[0, 12]);
        assert!(finder.is_certain());
        let young = Young(Young::EMAIL_NEGATIVE.0 | Young::QUEUE_REFRESH.0);
        assert_eq!(finder.version(), Version { tags: Tags::V0_16, young });
        finder.look(&[0, 7, 1, 11, 0]);
        assert_eq!(finder.version(), Version::V0_16_19);
    }
}
