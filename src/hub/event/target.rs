//! The names in the targets of an event.

use super::{
    TARGET, TARGET_NODE_IDS, TARGET_ROLES,
    wire::{Fields, Span},
};

/// One name in an event's target, as bytes of UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetName<'a> {
    /// A node.
    NodeId(&'a [u8]),
    /// Every node with the role.
    Role(&'a [u8]),
}

/// Walks the names of all targets of one event.
pub struct TargetNames<'a> {
    frame: &'a [u8],
    /// The fields from the first target to the end of the last: targets, and possibly others
    /// between them.
    targets: Option<Fields<'a>>,
    /// The names of the current target.
    names: Option<Fields<'a>>,
}

impl<'a> TargetNames<'a> {
    pub(super) fn new(frame: &'a [u8], targets: Span) -> TargetNames<'a> {
        TargetNames { frame, targets: Fields::new(frame, targets).ok(), names: None }
    }
}

impl<'a> Iterator for TargetNames<'a> {
    type Item = TargetName<'a>;

    fn next(&mut self) -> Option<TargetName<'a>> {
        // The peek walked these bytes without an error.
        loop {
            while let Some(field) = self.names.as_mut().and_then(|names| names.next().ok()?) {
                match (field.number, field.content()) {
                    (TARGET_NODE_IDS, Ok(name)) => {
                        return Some(TargetName::NodeId(name.of(self.frame)));
                    }
                    (TARGET_ROLES, Ok(name)) => return Some(TargetName::Role(name.of(self.frame))),
                    _ => {}
                }
            }
            let field = self.targets.as_mut()?.next().ok()??;
            if field.number == TARGET {
                self.names = Fields::new(self.frame, field.content().ok()?).ok();
            }
        }
    }
}
