//! What makes an event pleasant to build: `MailboxChange { .. }.into()`, and its targets.

use crate::v1::{Event, Target, event::Kind};

impl From<Kind> for Event {
    fn from(kind: Kind) -> Event {
        Event { kind: Some(kind), ..Event::default() }
    }
}

impl Event {
    /// Delivers the event to nodes with this role only. May be called several times, also with
    /// [`Event::for_node`]; a node that fits one of the targets gets the event.
    #[must_use]
    pub fn for_role(mut self, role: impl Into<String>) -> Event {
        self.target.get_or_insert_with(Target::default).roles.push(role.into());
        self
    }

    /// Delivers the event to the node with this id only. May be called several times, also with
    /// [`Event::for_role`].
    #[must_use]
    pub fn for_node(mut self, node_id: impl Into<String>) -> Event {
        self.target.get_or_insert_with(Target::default).node_ids.push(node_id.into());
        self
    }
}
