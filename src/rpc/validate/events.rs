//! Checks an event of any kind.

use std::net::IpAddr;

use trunkline_proto::kinds;

use super::{Check, Path};
use crate::{
    hub::event::EventView,
    proto::v1::{self, event::Kind},
    rpc::lists::{MAX_KINDS, MAX_NAMES},
    trace_context::{MAX_TRACEPARENT, MAX_TRACESTATE},
};

const MAX_REASON: usize = 1024;
const MAX_DOMAINS: usize = 256;
const MAX_DOMAIN: usize = 253;
const MAX_ENTRIES: usize = 1000;
const MAX_LABELS: usize = 32;
const MAX_LABEL_VALUE: usize = 1024;

impl Check {
    /// Checks an event, decoded and peeked at. `path` is the name of the event in violations.
    pub(super) fn event(&mut self, path: Path<'_>, event: &v1::Event, view: &EventView<'_>) {
        self.id(path.field("event_id"), &event.event_id);
        self.time(path.field("publish_time"), event.publish_time.as_ref());
        // Their content concerns only those who trace the event.
        self.at_most(path.field("traceparent"), &event.traceparent, MAX_TRACEPARENT);
        self.at_most(path.field("tracestate"), &event.tracestate, MAX_TRACESTATE);
        if let Some(target) = &event.target {
            self.names(path.field("target").field("node_ids"), &target.node_ids);
            self.names(path.field("target").field("roles"), &target.roles);
        }
        if let Some(origin) = &event.origin {
            let path = path.field("origin");
            self.id(path.field("node_id"), &origin.node_id);
            self.names(path.field("deployments"), &origin.deployments);
        }
        if view.kind() == 0 || view.meta().has_several_kinds() {
            self.wrong(path.field("kind"), "is required: exactly one kind");
            return;
        }
        if kinds::is_made_by_gateways(view.kind().into()) {
            let name = kinds::label(view.kind().into());
            self.wrong(path.field("kind"), format!("{name} is made by gateways alone"));
            return;
        }
        // Of a kind of a newer peer, nothing is known but whether it concerns an account.
        if kinds::concerns_account(view.kind()) {
            let kind = path.field(kinds::name(view.kind().into()).unwrap_or("kind"));
            self.required(kind.field("account_id"), view.account().unwrap_or_default());
        }
        if let Some(kind) = &event.kind {
            self.kind(path, kind);
        }
    }

    /// Checks the fields of a kind, except for the account.
    fn kind(&mut self, path: Path<'_>, kind: &Kind) {
        match kind {
            Kind::MailboxChange(e) => {
                let path = path.field("mailbox_change");
                self.changed_types(path, &e.changed_types);
                let states = path.field("type_states");
                self.count(states, e.type_states.len(), MAX_NAMES);
                for (index, state) in e.type_states.iter().enumerate().take(MAX_NAMES) {
                    self.changed_types(states.index(index), &state.changed_types);
                }
            }
            Kind::EmailDelivery(e) => {
                let path = path.field("email_delivery");
                self.id(path.field("email_id"), &e.email_id);
            }
            Kind::CalendarAlert(e) => {
                let path = path.field("calendar_alert");
                self.id(path.field("event_id"), &e.event_id);
                self.id(path.field("recurrence_id"), &e.recurrence_id);
                self.at_most(path.field("uid"), &e.uid, MAX_REASON);
                self.id(path.field("alert_id"), &e.alert_id);
            }
            Kind::BlockedIp(e) => {
                let path = path.field("blocked_ip");
                if !is_network(&e.address) {
                    self.wrong(
                        path.field("address"),
                        "must be an IPv4 or IPv6 address, or a network in CIDR form",
                    );
                }
                self.enum_value(path.field("action"), e.action);
                self.time(path.field("expires_at"), e.expires_at.as_ref());
                self.at_most(path.field("reason"), &e.reason, MAX_REASON);
            }
            Kind::CertificateChange(e) => {
                let path = path.field("certificate_change");
                self.required(path.field("certificate_id"), &e.certificate_id);
                self.count(path.field("domain_names"), e.domain_names.len(), MAX_DOMAINS);
                for (index, name) in e.domain_names.iter().enumerate().take(MAX_DOMAINS) {
                    self.at_most(path.field("domain_names").index(index), name, MAX_DOMAIN);
                }
                self.enum_value(path.field("action"), e.action);
            }
            Kind::RegistryChange(e) => {
                let path = path.field("registry_change");
                self.required(path.field("object_type"), &e.object_type);
                self.id(path.field("object_id"), &e.object_id);
                self.enum_value(path.field("action"), e.action);
            }
            Kind::CacheInvalidation(e) => self.cache_invalidation(path, e),
            Kind::QueueStatus(e)
                if e.state == v1::queue_status::State::Unspecified as i32 || e.state < 0 =>
            {
                self.wrong(path.field("queue_status").field("state"), "must be running or paused");
            }
            Kind::Custom(e) => {
                let path = path.field("custom");
                self.type_name(path.field("type"), &e.r#type);
                self.count(path.field("labels"), e.labels.len(), MAX_LABELS);
                for (key, value) in e.labels.iter().take(MAX_LABELS) {
                    self.required(path.field("labels"), key);
                    self.at_most(path.field("labels").key(key), value, MAX_LABEL_VALUE);
                }
            }
            Kind::MissedEvents(e) => {
                let path = path.field("missed_events");
                self.count(path.field("kinds"), e.kinds.len(), MAX_KINDS);
            }
            // The other kinds have no fields to check.
            _ => {}
        }
    }

    fn changed_types(&mut self, path: Path<'_>, types: &[i32]) {
        let path = path.field("changed_types");
        self.count(path, types.len(), MAX_NAMES);
        for (index, value) in types.iter().enumerate().take(MAX_NAMES) {
            self.enum_value(path.index(index), *value);
        }
    }

    fn cache_invalidation(&mut self, path: Path<'_>, e: &v1::CacheInvalidation) {
        use v1::cache_invalidation::Scope;
        let path = path.field("cache_invalidation");
        let all = matches!(e.scope(), Scope::All | Scope::AllNegative);
        match (all, e.entries.is_empty()) {
            (true, false) => {
                self.wrong(path.field("entries"), "must be empty where scope says all");
            }
            (false, true) => {
                self.wrong(path.field("entries"), "is required unless scope says all");
            }
            _ => {}
        }
        self.count(path.field("entries"), e.entries.len(), MAX_ENTRIES);
        for (index, entry) in e.entries.iter().enumerate().take(MAX_ENTRIES) {
            self.required(path.field("entries").index(index).field("cache"), &entry.cache);
            self.id(path.field("entries").index(index).field("id"), &entry.id);
        }
    }
}

fn is_network(text: &str) -> bool {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let max_bits = if address.is_ipv4() { 32 } else { 128 };
    bits.is_none_or(|bits| bits.parse::<u8>().is_ok_and(|bits| bits <= max_bits))
}
