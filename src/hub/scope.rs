//! The events that an identity may publish or receive: rules of the configuration, compiled once
//! and applied to every event.

use std::{collections::HashSet, sync::Arc};

use trunkline_proto::kinds::{self, CUSTOM, concerns_account};

use super::{
    accounts::AccountSet,
    event::EventView,
    kind_bits::{ACCOUNT_KINDS, NODE_KINDS, all_kinds, kind_bit},
};
use crate::config::EventRules;

/// The scope of one identity: the events that its allow list includes and its deny list does not.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The allowed kinds: bit n for kind n.
    kinds: u128,
    accounts: Allowed,
    custom_types: Allowed,
    /// All allowed accounts, if the rules name them one by one.
    named_accounts: Option<Arc<AccountSet>>,
}

/// Allowed names, without the denied ones.
#[derive(Clone, Debug)]
struct Allowed {
    /// `None`: all.
    allowed: Option<Patterns>,
    denied: Patterns,
}

/// Whole names.
type Names = HashSet<Box<[u8]>>;

/// Names and prefixes of names.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    pub(super) exact: Arc<Names>,
    /// Sorted, and none of them a prefix of another: at most one matches a name, and it is the last
    /// that does not come after it.
    pub(super) prefixes: Vec<Box<[u8]>>,
}

impl Scope {
    /// Compiles rules. If they narrow accounts, `*` stands for the kinds that this gateway knows
    /// and for the numbers that are reserved for kinds that concern an account; another unknown
    /// kind must be named by its number.
    pub fn new(rules: &EventRules) -> Scope {
        let accounts = Allowed::new(rules.allow.accounts.as_deref(), &rules.deny.accounts);
        let custom_types =
            Allowed::new(rules.allow.custom_types.as_deref(), &rules.deny.custom_types);
        let bits = |numbers: &mut dyn Iterator<Item = u8>| {
            numbers.fold(0, |bits, kind| bits | kind_bit(kind)) & all_kinds()
        };
        let mut allowed = bits(&mut rules.allow.kinds.numbers.iter().copied());
        if rules.allow.kinds.all {
            let narrowed = accounts.are_narrowed();
            let known = bits(&mut kinds::TABLE.iter().map(|row| row.number));
            allowed |= if narrowed { known | ACCOUNT_KINDS } else { all_kinds() };
        }
        allowed &= !bits(&mut rules.deny.kinds.numbers.iter().copied());
        if rules.deny.kinds.all {
            allowed = 0;
        }
        let named = accounts.allowed.as_ref().filter(|allowed| allowed.prefixes.is_empty());
        let named_accounts =
            named.map(|names| Arc::new(names.exact.iter().map(|name| &**name).collect()));
        Scope { kinds: allowed, accounts, custom_types, named_accounts }
    }

    /// The same without the events that name nodes: for an identity that may not list them.
    #[must_use]
    pub fn without_nodes(self) -> Scope {
        Scope { kinds: self.kinds & !NODE_KINDS, ..self }
    }

    /// True if some events of the kind may be allowed.
    pub fn allows_kind(&self, kind: u8) -> bool {
        self.kinds & kind_bit(kind) & all_kinds() != 0
    }

    /// True if events of any kind may be among those that are allowed.
    pub fn allows_some(&self) -> bool {
        self.kinds & all_kinds() != 0
    }

    /// True if events of the account are allowed.
    pub fn allows_account(&self, account: &[u8]) -> bool {
        self.accounts.contain(account)
    }

    /// True if some custom type is allowed that is `pattern`, or begins with the part before its
    /// `*`.
    pub fn allows_some_type(&self, pattern: &str) -> bool {
        match pattern.strip_suffix('*') {
            None => self.custom_types.contain(pattern.as_bytes()),
            Some(prefix) => self.custom_types.meet(prefix.as_bytes()),
        }
    }

    /// True if the event is allowed.
    pub fn allows(&self, event: &EventView<'_>) -> bool {
        let kind = event.kind();
        self.allows_kind(kind)
            && (!concerns_account(kind) || self.accounts.contain(event.account_bytes()))
            && (kind != CUSTOM || self.custom_types.contain(event.custom_type_bytes()))
    }

    /// True if the decision depends on more than the kind.
    pub fn depends_on_subject(&self) -> bool {
        self.accounts.are_narrowed() || self.custom_types.are_narrowed()
    }

    /// The kinds of which some events may be allowed, as bits of [`kind_bit`].
    pub(super) fn kind_bits(&self) -> u128 {
        self.kinds
    }

    /// All allowed accounts, if the rules name them one by one.
    pub(super) fn named_accounts(&self) -> Option<Arc<AccountSet>> {
        self.named_accounts.clone()
    }
}

impl Allowed {
    fn new(allowed: Option<&[String]>, denied: &[String]) -> Allowed {
        Allowed { allowed: allowed.map(Patterns::new), denied: Patterns::new(denied) }
    }

    fn are_narrowed(&self) -> bool {
        self.allowed.is_some() || !self.denied.is_empty()
    }

    fn contain(&self, name: &[u8]) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contain(name))
            && !self.denied.contain(name)
    }

    /// True if a name with this prefix may be allowed.
    fn meet(&self, prefix: &[u8]) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.meet(prefix))
            && !self.denied.prefixes.iter().any(|denied| prefix.starts_with(denied))
    }
}

impl Patterns {
    /// Compiles names; `*` at the end of a name makes it a prefix.
    pub(super) fn new(patterns: &[String]) -> Patterns {
        let prefixes = patterns.iter().filter_map(|pattern| pattern.strip_suffix('*'));
        let mut prefixes: Vec<&[u8]> = prefixes.map(str::as_bytes).collect();
        prefixes.sort_unstable();
        // Those that a shorter one covers follow it at once.
        prefixes.dedup_by(|next, kept| next.starts_with(kept));
        let prefixes = prefixes.into_iter().map(Box::from).collect();
        let mut names = Patterns { prefixes, ..Patterns::default() };
        let exact = patterns.iter().filter(|pattern| !pattern.ends_with('*'));
        let exact = exact.map(String::as_bytes).filter(|name| !names.begin(name));
        names.exact = Arc::new(exact.map(Box::from).collect());
        names
    }

    pub(super) fn contain(&self, name: &[u8]) -> bool {
        self.exact.contains(name) || self.begin(name)
    }

    /// True if one of the prefixes matches.
    fn begin(&self, name: &[u8]) -> bool {
        let after = self.prefixes.partition_point(|prefix| **prefix <= *name);
        after > 0 && name.starts_with(&self.prefixes[after - 1])
    }

    fn meet(&self, prefix: &[u8]) -> bool {
        self.exact.iter().any(|name| name.starts_with(prefix))
            || self.prefixes.iter().any(|own| own.starts_with(prefix) || prefix.starts_with(own))
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        config::{Allow, Deny, Kinds},
        hub::{
            event::wire::put_field,
            filter::{Exclusion, Filter},
        },
        proto::v1::{self, event::Kind},
    };

    fn kinds(numbers: &[u8]) -> Kinds {
        Kinds { all: false, numbers: numbers.iter().copied().collect() }
    }

    fn every() -> Kinds {
        Kinds { all: true, ..Kinds::default() }
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn mailbox(account: &str) -> Vec<u8> {
        let change = v1::MailboxChange { account_id: account.into(), ..Default::default() };
        let kind = Some(Kind::MailboxChange(change));
        v1::Event { kind, ..Default::default() }.encode_to_vec()
    }

    fn custom(name: &str) -> Vec<u8> {
        let custom = v1::CustomEvent { r#type: name.into(), ..Default::default() };
        v1::Event { kind: Some(Kind::Custom(custom)), ..Default::default() }.encode_to_vec()
    }

    fn newer(kind: u32) -> Vec<u8> {
        let mut bytes = vec![];
        put_field(&mut bytes, kind, b"");
        bytes
    }

    fn newer_of(kind: u32, account: &str) -> Vec<u8> {
        let (mut message, mut bytes) = (vec![], vec![]);
        put_field(&mut message, 1, account.as_bytes());
        put_field(&mut bytes, kind, &message);
        bytes
    }

    /// The decision of the scope, which must be that of a filter for everything within it.
    fn allows(rules: &EventRules, event: &[u8]) -> bool {
        let scope = std::sync::Arc::new(Scope::new(rules));
        let view = EventView::peek(event).unwrap();
        let filter = Filter::new(&v1::Filter::default(), "me", &[], true).within(&scope);
        assert_eq!(scope.allows(&view), filter.matches(&view), "{rules:?}");
        assert!(!filter.matches_everything() || filter.matches(&view), "{rules:?}");
        let watching = Filter::new(&v1::Filter::default(), "me", &[], true).watching_all();
        let watching = watching.within(&scope);
        assert_eq!(watching.matches(&view), scope.allows(&view), "watching delivers no more");
        let rule: &[Exclusion] = if scope.allows(&view) { &[] } else { &[Exclusion::Rule] };
        assert_eq!(watching.explain(&view), rule, "{rules:?}");
        scope.allows(&view)
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let nothing = EventRules::default();
        for event in [mailbox("a"), custom("t"), newer(42)] {
            assert!(!allows(&nothing, &event));
        }
        // Accounts and types narrow what the kinds allow, and allow nothing by themselves.
        let allow = Allow {
            accounts: Some(strings(&["*"])),
            custom_types: Some(strings(&["*"])),
            ..Allow::default()
        };
        let rules = EventRules { allow, ..nothing };
        assert!(!allows(&rules, &mailbox("a")) && !allows(&rules, &custom("t")));
    }

    #[test]
    fn a_deny_rule_wins_over_an_allow_rule() {
        let allow = Allow { kinds: every(), ..Allow::default() };
        let rules = |deny| EventRules { allow: allow.clone(), deny };
        assert!(allows(&rules(Deny::default()), &newer(42)));
        let no_kinds = rules(Deny { kinds: kinds(&[10, 42]), ..Deny::default() });
        assert!(!allows(&no_kinds, &mailbox("a")) && !allows(&no_kinds, &newer(42)));
        assert!(allows(&no_kinds, &custom("t")) && allows(&no_kinds, &newer(43)));
        let nothing = rules(Deny { kinds: every(), ..Deny::default() });
        assert!(!allows(&nothing, &custom("t")));
        let names = Deny {
            accounts: strings(&["vip-*", "boss"]),
            custom_types: strings(&["org.*"]),
            ..Deny::default()
        };
        let names = rules(names);
        assert!(allows(&names, &mailbox("a")) && allows(&names, &custom("com.a")));
        assert!(!allows(&names, &mailbox("boss")) && !allows(&names, &mailbox("vip-1")));
        assert!(!allows(&names, &custom("org.a")));
    }

    #[test]
    fn unknown_kinds_that_concern_no_account_need_a_name_if_accounts_are_narrowed() {
        let allow = |kinds| Allow { kinds, accounts: Some(strings(&["a"])), ..Allow::default() };
        let all = EventRules { allow: allow(every()), deny: Deny::default() };
        assert!(allows(&all, &mailbox("a")) && !allows(&all, &mailbox("b")));
        assert!(allows(&all, &custom("t")), "it concerns no account");
        assert!(!allows(&all, &newer(52)) && !allows(&all, &newer(29)));
        let named = EventRules { allow: allow(kinds(&[52])), deny: Deny::default() };
        assert!(allows(&named, &newer(52)) && !allows(&named, &newer(53)));
    }

    #[test]
    fn account_rules_apply_to_unknown_kinds_that_concern_an_account() {
        let allow = |kinds| Allow { kinds, accounts: Some(strings(&["a"])), ..Allow::default() };
        for kinds in [every(), kinds(&[30, 42, 49])] {
            let rules = EventRules { allow: allow(kinds), deny: Deny::default() };
            for kind in [30, 42, 49] {
                assert!(allows(&rules, &newer_of(kind, "a")), "{kind}");
                assert!(!allows(&rules, &newer_of(kind, "b")), "{kind}");
                assert!(!allows(&rules, &newer(kind)), "{kind} without an account");
            }
        }
        let allow = Allow { kinds: every(), ..Allow::default() };
        let deny = Deny { accounts: strings(&["vip*"]), ..Deny::default() };
        let rules = EventRules { allow, deny };
        assert!(allows(&rules, &newer_of(42, "a")) && !allows(&rules, &newer_of(42, "vip1")));
        // An unknown kind that concerns no account: `*` leaves it out where accounts are narrowed.
        assert!(!allows(&rules, &newer_of(52, "vip1")));
        let named = Allow { kinds: kinds(&[52]), ..Allow::default() };
        let rules = EventRules { allow: named, deny: rules.deny };
        assert!(allows(&rules, &newer_of(52, "vip1")), "it concerns no account");
    }

    #[test]
    fn a_pattern_is_allowed_if_it_can_match_an_allowed_type() {
        let allow = Allow {
            kinds: every(),
            custom_types: Some(strings(&["com.example.*", "org.one"])),
            ..Allow::default()
        };
        let deny = Deny { custom_types: strings(&["com.example.secret*"]), ..Deny::default() };
        let scope = Scope::new(&EventRules { allow, deny });
        for (pattern, some) in [
            ("*", true),
            ("com.*", true),
            ("com.example.paid", true),
            ("com.example.paid.*", true),
            ("org.*", true),
            ("org.one", true),
            ("org.two", false),
            ("net.*", false),
            ("com.example.secret", false),
            ("com.example.secret.*", false),
        ] {
            assert_eq!(scope.allows_some_type(pattern), some, "{pattern}");
        }
    }

    #[test]
    fn nested_patterns_are_one_and_every_name_is_matched_as_before() {
        let nested: Vec<String> = (0..100).map(|n| format!("{}*", "a".repeat(n + 1))).collect();
        let patterns = Patterns::new(&nested);
        assert_eq!(patterns.prefixes, [Box::from(&b"a"[..])]);
        let names = ["", "a", "ab", "aba", "abb", "b", "ba", "c", "ca", "cab", "d"];
        // All sets of three patterns.
        let all: Vec<String> =
            names.iter().flat_map(|name| [format!("{name}*"), (*name).to_owned()]).collect();
        for one in &all {
            for two in &all {
                for three in &all {
                    let given = [one.clone(), two.clone(), three.clone()];
                    let patterns = Patterns::new(&given);
                    for name in names {
                        let expected = given.iter().any(|pattern| {
                            let prefix = pattern.strip_suffix('*');
                            prefix.map_or(pattern == name, |prefix| name.starts_with(prefix))
                        });
                        assert_eq!(patterns.contain(name.as_bytes()), expected, "{given:?} {name}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_filter_within_named_accounts_looks_for_those_accounts() {
        let allow =
            Allow { kinds: every(), accounts: Some(strings(&["a", "b"])), ..Allow::default() };
        let deny = Deny { accounts: strings(&["b"]), ..Deny::default() };
        let scope = std::sync::Arc::new(Scope::new(&EventRules { allow, deny }));
        let filter = Filter::new(&v1::Filter::default(), "me", &[], true).within(&scope);
        assert_eq!(filter.accounts().map(|accounts| accounts.len()), Some(2));
        let matches = |event: &[u8]| filter.matches(&EventView::peek(event).unwrap());
        assert!(matches(&mailbox("a")) && !matches(&mailbox("b")) && !matches(&mailbox("c")));
    }
}
