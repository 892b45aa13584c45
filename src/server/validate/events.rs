//! Checks an event, whatever its kind.

use std::net::IpAddr;

use super::{Check, MAX_NAMES};
use crate::{
    proto::v1::{self, event::Kind},
    trace::{MAX_TRACEPARENT, MAX_TRACESTATE},
};

const MAX_REASON: usize = 1024;
const MAX_DOMAINS: usize = 256;
const MAX_DOMAIN: usize = 253;
const MAX_ENTRIES: usize = 1000;
const MAX_LABELS: usize = 32;
const MAX_LABEL_VALUE: usize = 1024;

impl Check {
    /// Checks an event of the kind `kind`, which is 0 if it has none; `path` is what it is called in violations.
    pub(super) fn event(&mut self, path: &str, event: &v1::Event, kind: u8) {
        self.id(&format!("{path}.event_id"), &event.event_id);
        self.time(&format!("{path}.publish_time"), event.publish_time.as_ref());
        // What is in them is nobody's business but that of who follows the event.
        self.at_most(&format!("{path}.traceparent"), &event.traceparent, MAX_TRACEPARENT);
        self.at_most(&format!("{path}.tracestate"), &event.tracestate, MAX_TRACESTATE);
        if let Some(target) = &event.target {
            self.names(&format!("{path}.target.node_ids"), &target.node_ids);
            self.names(&format!("{path}.target.roles"), &target.roles);
        }
        match &event.kind {
            Some(kind) => self.kind(path, kind),
            // A kind of a newer peer: nothing is known of it.
            None if kind != 0 => {}
            None => self.wrong(format!("{path}.kind"), "is required: exactly one kind"),
        }
    }

    fn kind(&mut self, path: &str, kind: &Kind) {
        match kind {
            Kind::MailboxChange(e) => {
                let path = format!("{path}.mailbox_change");
                self.required(&format!("{path}.account_id"), &e.account_id);
                self.count(&format!("{path}.changed_types"), e.changed_types.len(), MAX_NAMES);
                for (index, value) in e.changed_types.iter().enumerate() {
                    self.value(&format!("{path}.changed_types[{index}]"), *value);
                }
            }
            Kind::EmailDelivery(e) => {
                let path = format!("{path}.email_delivery");
                self.required(&format!("{path}.account_id"), &e.account_id);
                self.id(&format!("{path}.email_id"), &e.email_id);
            }
            Kind::CalendarAlert(e) => {
                let path = format!("{path}.calendar_alert");
                self.required(&format!("{path}.account_id"), &e.account_id);
                self.id(&format!("{path}.event_id"), &e.event_id);
                self.id(&format!("{path}.recurrence_id"), &e.recurrence_id);
                self.at_most(&format!("{path}.uid"), &e.uid, MAX_REASON);
                self.id(&format!("{path}.alert_id"), &e.alert_id);
            }
            Kind::PushSubscriptionChange(e) => {
                self.required(
                    &format!("{path}.push_subscription_change.account_id"),
                    &e.account_id,
                );
            }
            Kind::BlockedIp(e) => {
                let path = format!("{path}.blocked_ip");
                if !is_network(&e.address) {
                    self.wrong(
                        format!("{path}.address"),
                        "must be an IPv4 or IPv6 address, or a network in CIDR form",
                    );
                }
                self.value(&format!("{path}.action"), e.action);
                self.time(&format!("{path}.expires_at"), e.expires_at.as_ref());
                self.at_most(&format!("{path}.reason"), &e.reason, MAX_REASON);
            }
            Kind::CertificateChange(e) => {
                let path = format!("{path}.certificate_change");
                self.required(&format!("{path}.certificate_id"), &e.certificate_id);
                self.count(&format!("{path}.domain_names"), e.domain_names.len(), MAX_DOMAINS);
                for (index, name) in e.domain_names.iter().enumerate().take(MAX_DOMAINS) {
                    self.at_most(&format!("{path}.domain_names[{index}]"), name, MAX_DOMAIN);
                }
                self.value(&format!("{path}.action"), e.action);
            }
            Kind::RegistryChange(e) => {
                let path = format!("{path}.registry_change");
                self.required(&format!("{path}.object_type"), &e.object_type);
                self.id(&format!("{path}.object_id"), &e.object_id);
                self.value(&format!("{path}.action"), e.action);
            }
            Kind::CacheInvalidation(e) => self.cache_invalidation(path, e),
            Kind::QueueStatus(e) => {
                if e.state == v1::queue_status::State::Unspecified as i32 || e.state < 0 {
                    self.wrong(format!("{path}.queue_status.state"), "must be running or paused");
                }
            }
            Kind::QueueRefresh(_) => {}
            Kind::Custom(e) => {
                let path = format!("{path}.custom");
                self.type_name(&format!("{path}.type"), &e.r#type);
                self.count(&format!("{path}.labels"), e.labels.len(), MAX_LABELS);
                for (key, value) in e.labels.iter().take(MAX_LABELS) {
                    self.required(&format!("{path}.labels"), key);
                    self.at_most(&format!("{path}.labels[{key:?}]"), value, MAX_LABEL_VALUE);
                }
            }
        }
    }

    fn cache_invalidation(&mut self, path: &str, e: &v1::CacheInvalidation) {
        use v1::cache_invalidation::Scope;
        let path = format!("{path}.cache_invalidation");
        let all = matches!(e.scope(), Scope::All | Scope::AllNegative);
        match (all, e.entries.is_empty()) {
            (true, false) => {
                self.wrong(format!("{path}.entries"), "must be empty where scope says all");
            }
            (false, true) => {
                self.wrong(format!("{path}.entries"), "is required unless scope says all");
            }
            _ => {}
        }
        self.count(&format!("{path}.entries"), e.entries.len(), MAX_ENTRIES);
        for (index, entry) in e.entries.iter().enumerate().take(MAX_ENTRIES) {
            self.required(&format!("{path}.entries[{index}].cache"), &entry.cache);
            self.id(&format!("{path}.entries[{index}].id"), &entry.id);
        }
    }
}

fn is_network(text: &str) -> bool {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.is_none_or(|bits| bits.parse::<u8>().is_ok_and(|bits| bits <= most))
}
