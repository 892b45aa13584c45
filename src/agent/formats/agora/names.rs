//! The mail server's numbers, and the names that they have on the wire of Trunkline.

use std::ops::BitOr;

use trunkline_proto::v1::ChangedType;

/// A set of types of objects, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types(pub u64);

impl Types {
    /// Messages.
    pub const EMAIL: Types = Types(1);
    /// Arrivals of messages.
    pub const EMAIL_DELIVERY: Types = Types(1 << 1);
    /// Mailboxes.
    pub const MAILBOX: Types = Types(1 << 3);
    /// Threads.
    pub const THREAD: Types = Types(1 << 4);
    /// Every type that there is.
    pub const ALL: Types = Types((1 << TYPES.len()) - 1);
}

impl BitOr for Types {
    type Output = Types;

    fn bitor(self, other: Types) -> Types {
        Types(self.0 | other.0)
    }
}

/// A cache, as the number that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names of the mail server")]
#[repr(u8)]
pub enum Cache {
    AccessToken = 0,
    DavResources,
    Domain,
    Account,
    DkimSignature,
    Tenant,
    Role,
    List,
    DomainLogo,
    TenantLogo,
    EmailNegative,
    DomainNegative,
}

/// The type that each bit of [`Types`] stands for.
pub(super) const TYPES: [ChangedType; 23] = [
    ChangedType::Email,
    ChangedType::EmailDelivery,
    ChangedType::EmailSubmission,
    ChangedType::Mailbox,
    ChangedType::Thread,
    ChangedType::Identity,
    ChangedType::Core,
    ChangedType::PushSubscription,
    ChangedType::SearchSnippet,
    ChangedType::VacationResponse,
    ChangedType::Mdn,
    ChangedType::Quota,
    ChangedType::SieveScript,
    ChangedType::Calendar,
    ChangedType::CalendarEvent,
    ChangedType::CalendarEventNotification,
    ChangedType::AddressBook,
    ChangedType::ContactCard,
    ChangedType::FileNode,
    ChangedType::Principal,
    ChangedType::ShareNotification,
    ChangedType::ParticipantIdentity,
    ChangedType::CalendarAlert,
];

/// Each cache, by its number, and its name.
pub(super) const CACHES: [(Cache, &str); 12] = [
    (Cache::AccessToken, "access_token"),
    (Cache::DavResources, "dav_resources"),
    (Cache::Domain, "domain"),
    (Cache::Account, "account"),
    (Cache::DkimSignature, "dkim_signature"),
    (Cache::Tenant, "tenant"),
    (Cache::Role, "role"),
    (Cache::List, "list"),
    (Cache::DomainLogo, "domain_logo"),
    (Cache::TenantLogo, "tenant_logo"),
    (Cache::EmailNegative, "email_negative"),
    (Cache::DomainNegative, "domain_negative"),
];

/// The last type of object that release 0.16 has. A node does not read what follows one that it
/// does not know.
pub const MAX_OBJECT_TYPE: u16 = 116;

/// Types of objects whose names are known. Others are written as their number: `#64`.
const OBJECT_TYPES: [(u16, &str); 17] = [
    (0, "Account"),
    (11, "Application"),
    (BLOCKED_IP, "BlockedIp"),
    (CERTIFICATE, "Certificate"),
    (DATA_STORE, "DataStore"),
    (37, "Domain"),
    (39, "Email"),
    (40, "Enterprise"),
    (52, "MemoryLookupKey"),
    (83, "Role"),
    (93, "SpamClassifier"),
    (SPAM_RULE, "SpamRule"),
    (100, "SpamSettings"),
    (104, "StoreLookup"),
    (105, "SystemSettings"),
    (108, "Tenant"),
    (113, "Tracer"),
];

/// Banned addresses.
pub const BLOCKED_IP: u16 = 17;
/// TLS certificates.
pub const CERTIFICATE: u16 = 23;
/// The store that settings are read from: reloading it reads all settings again, which holds up a
/// node for about 22 ms.
pub const DATA_STORE: u16 = 28;
/// Rules of the spam filter.
pub const SPAM_RULE: u16 = 99;

/// The name of a type of object.
pub fn object_type(number: u16) -> String {
    let known = OBJECT_TYPES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("#{number}"), |(_, name)| (*name).to_owned())
}

/// The number of a type of object; its name may be written `BlockedIp` or `blocked_ip`.
pub(super) fn object_type_number(name: &str) -> Option<u16> {
    if let Some(number) = name.strip_prefix('#') {
        return decimal(number);
    }
    OBJECT_TYPES.iter().find(|(_, known)| is_same(known, name)).map(|(number, _)| *number)
}

/// The name of a cache.
pub(super) fn cache_name(cache: Cache) -> &'static str {
    CACHES[cache as usize].1
}

/// The cache of a name.
pub(super) fn cache(name: &str) -> Option<Cache> {
    CACHES.iter().find(|(_, known)| is_same(known, name)).map(|(cache, _)| *cache)
}

/// The types of a state change. Those that have no name are a change of anything.
pub(super) fn changed_types(types: Types) -> Vec<i32> {
    let bits = TYPES.iter().enumerate().filter(|(bit, _)| types.0 >> bit & 1 == 1);
    let unknown = types.0 & !Types::ALL.0 != 0;
    let unknown = unknown.then_some(ChangedType::Unspecified.into());
    bits.map(|(_, changed)| (*changed).into()).chain(unknown).collect()
}

/// The bits of types. All, if anything may have changed, or something that has no bit.
pub(super) fn types(changed: &[i32]) -> Types {
    let bit = |changed: &i32| TYPES.iter().position(|known| *known as i32 == *changed);
    if changed.is_empty() {
        return Types::ALL;
    }
    let bits: Option<Vec<usize>> = changed.iter().map(bit).collect();
    bits.map_or(Types::ALL, |bits| Types(bits.iter().fold(0, |types, bit| types | 1 << bit)))
}

/// A number in decimal digits alone.
pub(super) fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// True for names that differ in case and underscores alone.
fn is_same(one: &str, other: &str) -> bool {
    let letters = |name: &str| {
        let name = name.bytes().filter(|byte| *byte != b'_');
        name.map(|byte| byte.to_ascii_lowercase()).collect::<Vec<u8>>()
    };
    letters(one) == letters(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_the_order_of_their_numbers_and_names_lead_back() {
        for (number, (known, name)) in CACHES.iter().enumerate() {
            assert_eq!(
                (*known as usize, cache_name(*known), cache(name)),
                (number, *name, Some(*known))
            );
        }
        for (number, name) in OBJECT_TYPES {
            assert!(number <= MAX_OBJECT_TYPE);
            assert_eq!(
                (object_type(number).as_str(), object_type_number(name)),
                (name, Some(number))
            );
        }
        assert_eq!(object_type_number("blocked_ip"), Some(BLOCKED_IP));
        assert_eq!(object_type_number(&object_type(4000)), Some(4000));
        for name in ["", "listener", "#", "#65536", "#-1", "#+1"] {
            assert_eq!(object_type_number(name), None, "{name}");
        }
    }

    #[test]
    fn every_type_has_its_bit_and_what_has_none_is_a_change_of_anything() {
        for bit in 0..TYPES.len() {
            let one = Types(1 << bit);
            assert_eq!(types(&changed_types(one)), one);
        }
        assert_eq!(changed_types(Types(0)), Vec::<i32>::new());
        assert_eq!(types(&changed_types(Types(0))), Types::ALL);
        let unknown = Types(1 | 1 << 40);
        assert_eq!(changed_types(unknown), [ChangedType::Email as i32, 0]);
        assert_eq!(types(&changed_types(unknown)), Types::ALL);
        assert_eq!(types(&[1, 99]), Types::ALL);
        assert_eq!(types(&[1, 4]), Types::EMAIL | Types::MAILBOX);
    }
}
