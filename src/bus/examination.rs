//! The findings of an examination by `trunkline doctor`.

use std::fmt;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Not seen, so that nothing is said about it.
    NotChecked,
    /// It works now, and may stop working.
    Warning,
    /// A gateway does not serve with this, or loses events.
    Failure,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The name of the check; a check may have several findings.
    pub check: &'static str,
    /// Severity.
    pub level: Level,
    /// What was observed.
    pub seen: String,
    /// The remedy; empty where there is nothing to do.
    pub advice: String,
}

/// Progress of an examination.
#[derive(Clone, Debug)]
pub enum Progress {
    /// A check begins.
    Begins(&'static str),
    /// A check has a finding.
    Found(Finding),
    /// The servers of the bus say that its gateways have this number of shards.
    Shards(u16),
}

impl Finding {
    /// A finding that needs no action.
    pub fn ok(check: &'static str, seen: impl Into<String>) -> Finding {
        Finding { check, level: Level::Ok, seen: seen.into(), advice: String::new() }
    }

    /// A finding of [`Level::NotChecked`]: why it was not seen, and how to have it checked.
    pub fn not_checked(
        check: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding { check, level: Level::NotChecked, seen: seen.into(), advice: advice.into() }
    }

    /// A finding of [`Level::Warning`].
    pub fn warning(
        check: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding { check, level: Level::Warning, seen: seen.into(), advice: advice.into() }
    }

    /// A finding of [`Level::Failure`].
    pub fn failure(
        check: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding { check, level: Level::Failure, seen: seen.into(), advice: advice.into() }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Ok => "ok",
            Level::NotChecked => "not checked",
            Level::Warning => "warning",
            Level::Failure => "failure",
        })
    }
}
