//! Values as the answers to the page show them.

use std::time::{Duration, SystemTime};

/// Milliseconds since 1970.
pub fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, whole)
}

/// Whole milliseconds.
pub fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The name of a state on the page: `NODE_STATE_CURRENT` without its prefix `NODE_STATE_`, in lower
/// case.
pub fn state_name(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}
