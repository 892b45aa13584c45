//! The wrong fields of a request, as far as they are looked for.

use std::fmt;

/// Violations that are looked for in one request. It has room for millions of them, and a status
/// names about ten.
pub const MAX_VIOLATIONS: usize = 20;

/// One wrong field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field: `events[3].mailbox_change.account_id`.
    pub field: String,
    /// The mistake, with the limit that applies.
    pub description: String,
}

impl Violation {
    /// A wrong field and its mistake.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Violation {
        Violation { field: field.into(), description: description.into() }
    }
}

/// The violations of a request, at most [`MAX_VIOLATIONS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Adds a violation. Formats nothing once the list is full.
    #[cold]
    pub fn add(&mut self, field: impl fmt::Display, description: impl Into<String>) {
        if !self.is_full() {
            self.0.push(Violation::new(field.to_string(), description));
        }
    }

    /// True if no more violations need to be looked for.
    pub fn is_full(&self) -> bool {
        self.0.len() >= MAX_VIOLATIONS
    }

    /// True if nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The violations that were found; none if nothing is wrong.
    pub fn found(self) -> Option<Vec<Violation>> {
        (!self.0.is_empty()).then_some(self.0)
    }
}
