//! Events from their kinds: `client.publish([MailboxChange { .. }])`.

use crate::v1::{
    BlockedIp, CacheInvalidation, CalendarAlert, CertificateChange, CustomEvent, EmailDelivery,
    Event, MailboxChange, PushSubscriptionChange, QueueRefresh, QueueStatus, RegistryChange,
    Target, event::Kind,
};

impl From<Kind> for Event {
    fn from(kind: Kind) -> Event {
        Event { kind: Some(kind), ..Event::default() }
    }
}

macro_rules! event_from {
    ($($kind:ident($message:ident)),* $(,)?) => {$(
        impl From<$message> for Event {
            fn from(message: $message) -> Event {
                Kind::$kind(message).into()
            }
        }
    )*};
}

event_from! {
    MailboxChange(MailboxChange),
    EmailDelivery(EmailDelivery),
    CalendarAlert(CalendarAlert),
    PushSubscriptionChange(PushSubscriptionChange),
    BlockedIp(BlockedIp),
    CertificateChange(CertificateChange),
    RegistryChange(RegistryChange),
    CacheInvalidation(CacheInvalidation),
    QueueStatus(QueueStatus),
    QueueRefresh(QueueRefresh),
    Custom(CustomEvent),
}

impl Event {
    /// For nodes with this role only. May be called several times, also with [`Event::for_node`]: one that fits is enough.
    #[must_use]
    pub fn for_role(mut self, role: impl Into<String>) -> Event {
        self.target.get_or_insert_with(Target::default).roles.push(role.into());
        self
    }

    /// For the node with this id only. May be called several times.
    #[must_use]
    pub fn for_node(mut self, node_id: impl Into<String>) -> Event {
        self.target.get_or_insert_with(Target::default).node_ids.push(node_id.into());
        self
    }
}
