//! Events of each kind, for tests to publish.

use std::collections::HashMap;

use prost_types::{Any, Timestamp};
use trunkline_proto::v1::{
    BlockedIp, CacheInvalidation, CalendarAlert, CertificateChange, ChangedType, CustomEvent,
    EmailDelivery, Event, MailboxChange, PushSubscriptionChange, QueueRefresh, QueueStatus,
    RegistryChange, blocked_ip, cache_invalidation, certificate_change, event::Kind, queue_status,
    registry_change,
};

/// An event with only its kind set.
pub fn event(kind: Kind) -> Event {
    Event { kind: Some(kind), ..Event::default() }
}

/// An event with an id, so that it is recognised when it is delivered.
pub fn with_id(id: impl Into<String>, event: Event) -> Event {
    Event { event_id: id.into(), ..event }
}

/// New mail in an account.
pub fn mailbox_change(account: &str, change_id: u64) -> Event {
    event(Kind::MailboxChange(MailboxChange {
        account_id: account.to_owned(),
        change_id,
        changed_types: vec![ChangedType::Email.into(), ChangedType::Mailbox.into()],
        ..Default::default()
    }))
}

/// A message was delivered.
pub fn email_delivery(account: &str, email: &str) -> Event {
    event(Kind::EmailDelivery(EmailDelivery {
        account_id: account.to_owned(),
        email_id: email.to_owned(),
        change_id: 1,
    }))
}

/// An alert of a recurring meeting.
pub fn calendar_alert(account: &str) -> Event {
    event(Kind::CalendarAlert(CalendarAlert {
        account_id: account.to_owned(),
        event_id: "meeting".to_owned(),
        recurrence_id: "20260102T090000Z".to_owned(),
        uid: "7e1f@example.org".to_owned(),
        alert_id: "alert-1".to_owned(),
    }))
}

/// Push subscriptions have changed.
pub fn push_subscription_change(account: &str) -> Event {
    event(Kind::PushSubscriptionChange(PushSubscriptionChange { account_id: account.to_owned() }))
}

/// A ban.
pub fn blocked_ip(address: &str) -> Event {
    event(Kind::BlockedIp(BlockedIp {
        address: address.to_owned(),
        action: blocked_ip::Action::Added.into(),
        expires_at: Some(Timestamp { seconds: 4_102_444_800, nanos: 0 }),
        reason: "too many failed logins".to_owned(),
    }))
}

/// A renewed certificate.
pub fn certificate_change(domain: &str) -> Event {
    event(Kind::CertificateChange(CertificateChange {
        certificate_id: format!("acme-{domain}"),
        domain_names: vec![domain.to_owned(), format!("mail.{domain}")],
        action: certificate_change::Action::Renewed.into(),
    }))
}

/// A changed setting.
pub fn registry_change(object_type: &str, object_id: &str) -> Event {
    event(Kind::RegistryChange(RegistryChange {
        object_type: object_type.to_owned(),
        object_id: object_id.to_owned(),
        action: registry_change::Action::Insert.into(),
    }))
}

/// An invalid cache entry.
pub fn cache_invalidation(cache: &str, id: &str) -> Event {
    let entry = cache_invalidation::Entry { cache: cache.to_owned(), id: id.to_owned() };
    event(Kind::CacheInvalidation(CacheInvalidation {
        entries: vec![entry],
        scope: cache_invalidation::Scope::Entries.into(),
    }))
}

/// A paused queue.
pub fn queue_status() -> Event {
    event(Kind::QueueStatus(QueueStatus { state: queue_status::State::Paused.into() }))
}

/// A queue has changed.
pub fn queue_refresh() -> Event {
    event(Kind::QueueRefresh(QueueRefresh {}))
}

/// An event of another application, with labels and a payload.
pub fn custom(type_name: &str) -> Event {
    event(Kind::Custom(CustomEvent {
        r#type: type_name.to_owned(),
        labels: [("invoice".to_owned(), "42".to_owned())].into(),
        payload: Some(Any {
            type_url: "type.googleapis.com/google.protobuf.Duration".to_owned(),
            // 7 seconds.
            value: vec![0x08, 0x07],
        }),
    }))
}

/// Pseudorandom letters and digits, which do not compress. The same for the same seed.
pub fn noise(seed: u64, length: usize) -> String {
    const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    // SplitMix64, ten digits of each number.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let numbers = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    });
    let digits = numbers
        .flat_map(|number| (0..10).map(move |digit| (number >> (6 * digit)).to_le_bytes()[0]));
    digits.take(length).map(|digit| char::from(DIGITS[usize::from(digit & 63)])).collect()
}

/// An event with a payload of this many bytes.
pub fn large(bytes: usize) -> Event {
    let value = noise(bytes as u64, bytes).into_bytes();
    let payload = Any { type_url: "example.org/Large".to_owned(), value };
    event(Kind::Custom(CustomEvent {
        r#type: "com.example.large".to_owned(),
        labels: HashMap::new(),
        payload: Some(payload),
    }))
}

/// One event of each of the eleven kinds, in the order of their numbers. Those that concern an
/// account concern `account`.
pub fn one_of_each(account: &str) -> Vec<Event> {
    vec![
        mailbox_change(account, 1),
        email_delivery(account, "message-1"),
        calendar_alert(account),
        push_subscription_change(account),
        blocked_ip("192.0.2.7"),
        certificate_change("example.org"),
        registry_change("role", "admin"),
        cache_invalidation("access_token", "7"),
        queue_status(),
        queue_refresh(),
        custom("com.example.invoice_paid"),
    ]
}

/// `count` mailbox changes with ids `<prefix>-0`, `<prefix>-1` and so on, over `accounts` accounts
/// in turn.
pub fn numbered(prefix: &str, count: usize, accounts: usize) -> Vec<Event> {
    let one = |index: usize| {
        let account = format!("account-{}", index % accounts);
        with_id(format!("{prefix}-{index}"), mailbox_change(&account, index as u64))
    };
    (0..count).map(one).collect()
}
