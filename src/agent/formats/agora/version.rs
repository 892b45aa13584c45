//! Versions of the format. A message does not say which one it has: it is set, or found.

use std::{fmt, str::FromStr};

use super::{
    event::Event,
    names::{Cache, MAX_OBJECT_TYPE},
};

/// The meaning of tags: the same tag is another event in another release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tags {
    /// Release 0.15.
    V0_15,
    /// Release 0.16.
    #[default]
    V0_16,
}

/// The version of a node's format, as far as others must know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// What tags mean.
    pub tags: Tags,
    /// The kinds of patch releases that the node is known to have.
    pub young: Young,
}

impl Version {
    /// The release whose format was measured, 0.16.19: it has all kinds.
    pub const V0_16_19: Version = Version { tags: Tags::V0_16, young: Young::ALL };

    /// True if nodes of this version are known to have an event of this kind.
    pub(super) fn has(self, event: &Event<'_>) -> bool {
        match event {
            Event::QueueRefresh => !self.young.lacks(Young::QUEUE_REFRESH),
            Event::RegistryInsert { object_type, .. }
            | Event::RegistryDelete { object_type, .. }
            | Event::RegistryReload { object_type } => *object_type <= MAX_OBJECT_TYPE,
            _ => true,
        }
    }
}

/// Kinds that came with patch releases of 0.16. A node that does not have one drops it, and what
/// follows it in its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Young(pub(super) u8);

impl Young {
    /// None of them.
    pub const NONE: Young = Young(0);
    /// Entries of [`Cache::EmailNegative`]: 20 June 2026.
    pub const EMAIL_NEGATIVE: Young = Young(1);
    /// [`Event::QueueRefresh`]: 5 July 2026.
    pub const QUEUE_REFRESH: Young = Young(1 << 1);
    /// Entries of [`Cache::DomainNegative`]: 17 August 2026.
    pub const DOMAIN_NEGATIVE: Young = Young(1 << 2);
    /// All of them.
    pub const ALL: Young = Young(0b111);

    /// The kind that entries of a cache are.
    pub(super) fn of_cache(cache: Cache) -> Young {
        match cache {
            Cache::EmailNegative => Young::EMAIL_NEGATIVE,
            Cache::DomainNegative => Young::DOMAIN_NEGATIVE,
            _ => Young::NONE,
        }
    }

    /// True if any of these is not among them.
    pub(super) fn lacks(self, others: Young) -> bool {
        others.0 & !self.0 != 0
    }
}

/// A version that a configuration does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a release of the mail server: 0.15, 0.16 or 0.16.19")]
pub struct UnknownVersion(String);

impl FromStr for Version {
    type Err = UnknownVersion;

    /// A release: `0.15`, `0.15.5`, `0.16`, `0.16.19`. Of those of 0.16, the kinds of patch
    /// releases are certain from 0.16.19 on.
    fn from_str(text: &str) -> Result<Version, UnknownVersion> {
        let unknown = || UnknownVersion(text.chars().take(32).collect());
        let mut parts = text.split('.').map(super::names::decimal::<u32>);
        let release = (parts.next().flatten(), parts.next().flatten());
        let patch = parts.next();
        if parts.next().is_some() || patch == Some(None) {
            return Err(unknown());
        }
        match (release, patch.flatten()) {
            ((Some(0), Some(15)), _) => Ok(Version { tags: Tags::V0_15, young: Young::NONE }),
            ((Some(0), Some(16)), Some(19..)) => Ok(Version::V0_16_19),
            ((Some(0), Some(16)), _) => Ok(Version::default()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.tags, self.young) {
            (Tags::V0_15, _) => "0.15",
            (Tags::V0_16, Young::ALL) => "0.16.19",
            (Tags::V0_16, _) => "0.16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_from_its_number_and_written_again() {
        for (text, expected) in [
            ("0.15", "0.15"),
            ("0.15.5", "0.15"),
            ("0.16", "0.16"),
            ("0.16.18", "0.16"),
            ("0.16.19", "0.16.19"),
            ("0.16.20", "0.16.19"),
        ] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), expected, "{text}");
        }
        for text in ["", "0", "0.14", "1.0", "0.16.", "0.16.x", "0.16.19.1", "0.16.+1", "v0.16"] {
            let error = text.parse::<Version>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("'{text}' is not a release")));
        }
    }
}
