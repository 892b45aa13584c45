//! Which events a stream delivers: `trunkline.v1.Filter`, compiled once and asked for every event.

use std::{collections::HashSet, ops::ControlFlow, sync::Arc};

use super::{
    event::{CUSTOM, EventView, KINDS, TargetName, concerns_account},
    log::Indexed,
    scope::{Patterns, Scope},
};
use crate::proto::v1;

/// Decides for one subscriber; its promises are `Filtered` and `NoEcho`.
///
/// An event is delivered if its kind is one of the kinds, its account (if its kind concerns one) one of the accounts, its type
/// (if it is custom) one of the types, its target (if it has one) names the node or one of its roles, and its source is
/// another node, unless the node asked for its own events.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Bit n stands for kind n.
    kinds: u128,
    /// Those that are included whatever their account or type.
    plain_kinds: u128,
    /// `None`: all.
    accounts: Option<HashSet<Box<[u8]>>>,
    /// `None`: all.
    custom_types: Option<Patterns>,
    node_id: Box<[u8]>,
    roles: HashSet<Box<[u8]>>,
    include_own: bool,
    /// What else its node may receive no more than; `None` if the fields above say it all.
    scope: Option<Arc<Scope>>,
    /// Whether the stream is to see what it excludes too.
    watching: bool,
}

/// A part of a filter that keeps an event from the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// The kind is not included, or there is none.
    Kind,
    /// The node published it itself.
    OwnEvent,
    /// The account is not included.
    Account,
    /// The type of the custom event is not included.
    CustomType,
    /// Neither the node nor one of its roles is named.
    Target,
    /// The scope of its node does not allow it.
    Rule,
}

impl From<Exclusion> for v1::Exclusion {
    fn from(exclusion: Exclusion) -> v1::Exclusion {
        match exclusion {
            Exclusion::Kind => v1::Exclusion::Kind,
            Exclusion::OwnEvent => v1::Exclusion::OwnEvent,
            Exclusion::Account => v1::Exclusion::Account,
            Exclusion::CustomType => v1::Exclusion::CustomType,
            Exclusion::Target => v1::Exclusion::Target,
            Exclusion::Rule => v1::Exclusion::Rule,
        }
    }
}

impl Filter {
    /// Compiles what a subscriber asked for; numbers that are no kind's (not 10 to 99) are passed over.
    pub fn new(wire: &v1::Filter, node_id: &str, roles: &[String], include_own: bool) -> Filter {
        let kinds = if wire.kinds.is_empty() {
            all_kinds()
        } else {
            let known = wire.kinds.iter().filter_map(|&kind| u8::try_from(kind).ok());
            known.fold(0, |kinds, kind| kinds | kind_bit(kind)) & all_kinds()
        };
        let mut plain_kinds = kinds;
        if !wire.accounts.is_empty() {
            plain_kinds &= !ACCOUNT_KINDS;
        }
        if !wire.custom_types.is_empty() {
            plain_kinds &= !kind_bit(CUSTOM);
        }
        Filter {
            kinds,
            plain_kinds,
            accounts: (!wire.accounts.is_empty())
                .then(|| wire.accounts.iter().map(|account| boxed(account)).collect()),
            custom_types: (!wire.custom_types.is_empty())
                .then(|| Patterns::new(&wire.custom_types)),
            node_id: boxed(node_id),
            roles: roles.iter().map(|role| boxed(role)).collect(),
            include_own,
            scope: None,
            watching: false,
        }
    }

    /// The same, without what the scope does not allow.
    #[must_use]
    pub fn within(mut self, scope: &Arc<Scope>) -> Filter {
        if self.watching {
            // It sees everything: the parts stay as they were asked for, so that each tells what is its own.
            self.scope = Some(scope.clone());
            return self;
        }
        self.kinds &= scope.kind_bits();
        if self.accounts.is_none() {
            // So that nothing wakes the stream for other accounts.
            self.accounts = scope.named_accounts().cloned();
        }
        self.plain_kinds &= self.kinds;
        if self.accounts.is_some() {
            self.plain_kinds &= !ACCOUNT_KINDS;
        }
        self.scope = scope.looks_inside().then(|| scope.clone());
        self
    }

    /// The same, for a stream that is to see what it excludes too, to explain it.
    #[must_use]
    pub fn watching_all(self) -> Filter {
        Filter { watching: true, ..self }
    }

    /// Whether the stream is to see every event, included or not.
    pub(super) fn is_watching(&self) -> bool {
        self.watching
    }

    /// Whether the stream delivers the event.
    pub fn matches(&self, event: &EventView<'_>) -> bool {
        self.judge(event, |_| ControlFlow::Break(())).is_continue()
    }

    /// Everything that keeps the event from the stream; nothing if it is delivered.
    pub fn explain(&self, event: &EventView<'_>) -> Vec<Exclusion> {
        let mut exclusions = Vec::new();
        let _ = self.judge(event, |exclusion| {
            exclusions.push(exclusion);
            ControlFlow::Continue(())
        });
        exclusions
    }

    /// Asks every part of the filter. `exclude` is told each that excludes the event, and says whether to go on.
    #[inline]
    fn judge(
        &self,
        event: &EventView<'_>,
        mut exclude: impl FnMut(Exclusion) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let kind = event.kind();
        if self.kinds & kind_bit(kind) == 0 {
            exclude(Exclusion::Kind)?;
        }
        if !self.include_own && event.source_bytes() == &*self.node_id {
            exclude(Exclusion::OwnEvent)?;
        }
        if !self.matches_account(kind, event) {
            exclude(Exclusion::Account)?;
        }
        if !self.matches_custom_type(kind, event) {
            exclude(Exclusion::CustomType)?;
        }
        if !self.matches_target(event) {
            exclude(Exclusion::Target)?;
        }
        if self.scope.as_ref().is_some_and(|scope| !scope.allows(event)) {
            exclude(Exclusion::Rule)?;
        }
        ControlFlow::Continue(())
    }

    /// Whether it certainly includes every event of a frame: most filters do, and then no event is asked.
    pub(super) fn includes_whole(&self, indexed: &Indexed) -> bool {
        let summary = &indexed.summary;
        let asked = summary.kinds & !self.plain_kinds;
        self.scope.is_none()
            && (asked == 0 || asked == kind_bit(CUSTOM) & self.kinds && self.types_all(indexed))
            && !summary.targeted
            && (self.include_own || !indexed.may_be_from(&self.node_id))
    }

    fn types_all(&self, indexed: &Indexed) -> bool {
        let types = self.custom_types.as_ref();
        types.is_none_or(|types| indexed.types_all(|name| types.contain(name)))
    }

    /// The kinds that it includes, each as [`kind_bit`] gives it.
    pub(super) fn kind_bits(&self) -> u128 {
        self.kinds
    }

    /// Those of which the stream is to see every event, whatever its account or type.
    pub(super) fn plain_kinds(&self) -> u128 {
        if self.watching { u128::MAX } else { self.plain_kinds }
    }

    /// The types of custom events that it looks for: whole ones, and prefixes; `None`: all.
    pub(super) fn custom_types(
        &self,
    ) -> Option<(impl Iterator<Item = &[u8]>, impl Iterator<Item = &[u8]>)> {
        let types = self.custom_types.as_ref().filter(|_| !self.watching)?;
        Some((types.exact.iter().map(|t| &**t), types.prefixes.iter().map(|p| &**p)))
    }

    /// The accounts that it looks for; `None`: all.
    pub(super) fn accounts(&self) -> Option<impl Iterator<Item = &[u8]>> {
        let accounts = self.accounts.as_ref().filter(|_| !self.watching);
        accounts.map(|accounts| accounts.iter().map(|account| &**account))
    }

    /// Whether only a target or `NoEcho` can keep an event from this stream.
    pub fn matches_everything(&self) -> bool {
        self.kinds == all_kinds()
            && self.accounts.is_none()
            && self.custom_types.is_none()
            && self.scope.is_none()
    }

    fn matches_account(&self, kind: u8, event: &EventView<'_>) -> bool {
        match &self.accounts {
            Some(accounts) if concerns_account(kind) => accounts.contains(event.account_bytes()),
            _ => true,
        }
    }

    fn matches_custom_type(&self, kind: u8, event: &EventView<'_>) -> bool {
        match &self.custom_types {
            Some(types) if kind == CUSTOM => types.contain(event.custom_type_bytes()),
            _ => true,
        }
    }

    fn matches_target(&self, event: &EventView<'_>) -> bool {
        !event.has_target()
            || event.target_names().any(|name| match name {
                TargetName::NodeId(node_id) => node_id == &*self.node_id,
                TargetName::Role(role) => self.roles.contains(role),
            })
    }
}

/// The bit of a kind. What is no kind has bit 0, which no filter includes.
pub(super) fn kind_bit(kind: u8) -> u128 {
    if KINDS.contains(&kind) { 1 << kind } else { 1 }
}

/// The bits of the kinds that concern an account.
pub(super) const ACCOUNT_KINDS: u128 = {
    let (mut kind, mut kinds) = (*KINDS.start(), 0);
    while kind <= *KINDS.end() {
        if concerns_account(kind) {
            kinds |= 1 << kind;
        }
        kind += 1;
    }
    kinds
};

/// The bits of all kinds that there are or will be.
pub(super) fn all_kinds() -> u128 {
    let below = |kind: u8| (1u128 << kind) - 1;
    below(KINDS.end() + 1) & !below(*KINDS.start())
}

fn boxed(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::v1::event::Kind;

    fn matches(filter: &Filter, event: &v1::Event) -> bool {
        filter.matches(&EventView::peek(&event.encode_to_vec()).unwrap())
    }

    #[allow(clippy::needless_pass_by_value)] // made where it is passed
    fn filter(wire: v1::Filter) -> Filter {
        Filter::new(&wire, "me", &["imap".to_owned()], false)
    }

    fn mailbox_change(account_id: &str) -> v1::Event {
        let change = v1::MailboxChange { account_id: account_id.into(), ..Default::default() };
        v1::Event { kind: Some(Kind::MailboxChange(change)), ..Default::default() }
    }

    fn custom(name: &str) -> v1::Event {
        let custom = v1::CustomEvent { r#type: name.into(), ..Default::default() };
        v1::Event { kind: Some(Kind::Custom(custom)), ..Default::default() }
    }

    fn refresh() -> v1::Event {
        let kind = Some(Kind::QueueRefresh(v1::QueueRefresh {}));
        v1::Event { source: "other".into(), kind, ..Default::default() }
    }

    #[test]
    fn an_empty_filter_includes_everything_but_own_events() {
        let all = filter(v1::Filter::default());
        assert!(all.matches_everything());
        assert!(matches(&all, &mailbox_change("alice")));
        assert!(matches(&all, &custom("t")));
        assert!(matches(&all, &refresh()));
        assert!(!matches(&all, &v1::Event { source: "me".into(), ..refresh() }));
        let own = Filter::new(&v1::Filter::default(), "me", &[], true);
        assert!(matches(&own, &v1::Event { source: "me".into(), ..refresh() }));
    }

    #[test]
    fn kinds_of_newer_peers_are_kinds() {
        let newer = [0xd2, 0x02, 0x00]; // field 42, an empty message
        let view = EventView::peek(&newer).unwrap();
        assert!(filter(v1::Filter::default()).matches(&view));
        assert!(filter(v1::Filter { kinds: vec![42], ..Default::default() }).matches(&view));
        let others = filter(v1::Filter { kinds: vec![10, 43, 99], ..Default::default() });
        assert!(!others.matches(&view));
        assert!(!others.matches_everything());
    }

    #[test]
    fn what_has_no_kind_is_never_delivered() {
        let all = filter(v1::Filter::default());
        assert!(!matches(&all, &v1::Event { source: "other".into(), ..Default::default() }));
        let none = filter(v1::Filter { kinds: vec![0, -1, 5, 100, 266], ..Default::default() });
        assert!(!matches(&none, &v1::Event::default()));
        assert!(!matches(&none, &mailbox_change("alice")), "266 is not 10");
    }

    #[test]
    fn accounts_narrow_only_the_kinds_that_concern_one() {
        let alice = filter(v1::Filter { accounts: vec!["alice".into()], ..Default::default() });
        assert!(matches(&alice, &mailbox_change("alice")));
        assert!(!matches(&alice, &mailbox_change("bob")));
        assert!(!matches(&alice, &mailbox_change("")));
        assert!(matches(&alice, &refresh()));
        assert!(matches(&alice, &custom("bob")));
        assert!(!alice.matches_everything());
    }

    #[test]
    fn custom_types_match_whole_or_by_prefix() {
        let types = |types: &[&str]| {
            let custom_types = types.iter().map(|&name| name.to_owned()).collect();
            filter(v1::Filter { custom_types, ..Default::default() })
        };
        let some = types(&["com.example.paid", "org.*"]);
        for (name, included) in [
            ("com.example.paid", true),
            ("com.example.paid.twice", false),
            ("com.example", false),
            ("org.", true),
            ("org.a.b", true),
            ("org", false),
        ] {
            assert_eq!(matches(&some, &custom(name)), included, "{name}");
        }
        assert!(matches(&some, &mailbox_change("alice")));
        assert!(!some.matches_everything());
        assert!(matches(&types(&["*"]), &custom("anything")));
    }

    #[test]
    fn a_target_names_the_node_or_a_role() {
        let all = filter(v1::Filter::default());
        let to = |node_ids: &[&str], roles: &[&str]| {
            let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let target = v1::Target { node_ids: strings(node_ids), roles: strings(roles) };
            v1::Event { target: Some(target), ..refresh() }
        };
        assert!(matches(&all, &to(&["you", "me"], &[])));
        assert!(matches(&all, &to(&["you"], &["mta", "imap"])));
        assert!(!matches(&all, &to(&["you"], &["mta"])));
        assert!(!matches(&all, &to(&["imap"], &["me"])), "a node id is no role");
        assert!(!matches(&all, &to(&[], &[])), "nobody is named");
    }

    /// The comments of `Filter`, `Target` and `SubscribeRequest`, word by word, on the decoded event: what excludes it.
    fn reference(
        wire: &v1::Filter,
        node_id: &str,
        roles: &[String],
        include_own: bool,
        event: &v1::Event,
        newer_kind: Option<i32>,
    ) -> Vec<Exclusion> {
        let (kind, account, custom_type) = match &event.kind {
            Some(Kind::MailboxChange(change)) => (10, Some(&change.account_id), None),
            Some(Kind::EmailDelivery(delivery)) => (11, Some(&delivery.account_id), None),
            Some(Kind::BlockedIp(_)) => (14, None, None),
            Some(Kind::Custom(custom)) => (20, None, Some(&custom.r#type)),
            _ => (newer_kind.unwrap_or(0), None, None),
        };
        let mut excluded = vec![];
        if kind == 0 || (!wire.kinds.is_empty() && !wire.kinds.contains(&kind)) {
            excluded.push(Exclusion::Kind);
        }
        if !include_own && event.source == node_id {
            excluded.push(Exclusion::OwnEvent);
        }
        if let Some(account) = account
            && !wire.accounts.is_empty()
            && !wire.accounts.contains(account)
        {
            excluded.push(Exclusion::Account);
        }
        if let Some(name) = custom_type
            && !wire.custom_types.is_empty()
            && !wire.custom_types.iter().any(|pattern| match pattern.split_once('*') {
                Some((prefix, _)) => name.starts_with(prefix),
                None => pattern == name,
            })
        {
            excluded.push(Exclusion::CustomType);
        }
        if let Some(target) = &event.target
            && !target.node_ids.iter().any(|name| name == node_id)
            && !target.roles.iter().any(|role| roles.contains(role))
        {
            excluded.push(Exclusion::Target);
        }
        excluded
    }

    /// A few names, so that equal ones meet.
    fn name() -> impl Strategy<Value = String> {
        "[ab]{1,2}"
    }

    fn list(name: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(name, 0..3)
    }

    fn some_kind() -> impl Strategy<Value = Option<Kind>> {
        prop_oneof![
            name().prop_map(|account_id| Some(Kind::MailboxChange(v1::MailboxChange {
                account_id,
                ..Default::default()
            }))),
            name().prop_map(|account_id| Some(Kind::EmailDelivery(v1::EmailDelivery {
                account_id,
                ..Default::default()
            }))),
            Just(Some(Kind::BlockedIp(v1::BlockedIp::default()))),
            name().prop_map(|name| Some(Kind::Custom(v1::CustomEvent {
                r#type: name,
                ..Default::default()
            }))),
            Just(None),
        ]
    }

    prop_compose! {
        fn some_event()(
            kind in some_kind(),
            source in name(),
            target in prop::option::of((list(name()), list(name()))),
        ) -> v1::Event {
            let target = target.map(|(node_ids, roles)| v1::Target { node_ids, roles });
            v1::Event { source, target, kind, ..Default::default() }
        }
    }

    prop_compose! {
        fn some_filter()(
            kinds in prop::collection::vec(prop::sample::select(vec![10, 11, 14, 20, 21, 99]), 0..4),
            accounts in list(name()),
            custom_types in list("[ab]{0,2}\\*|[ab]{1,2}"),
        ) -> v1::Filter {
            v1::Filter { kinds, accounts, custom_types }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_filter_does_what_its_comments_say(
            wire in some_filter(),
            event in some_event(),
            newer_kind in prop::option::of(prop::sample::select(vec![21_i32, 98, 99])),
            node_id in name(),
            roles in list(name()),
            include_own in any::<bool>(),
        ) {
            let mut bytes = event.encode_to_vec();
            let newer_kind = newer_kind.filter(|_| event.kind.is_none());
            if let Some(kind) = newer_kind {
                crate::hub::event::wire::put_field(&mut bytes, kind.unsigned_abs(), b"newer");
            }
            let filter = Filter::new(&wire, &node_id, &roles, include_own);
            let view = EventView::peek(&bytes).unwrap();
            let included = filter.matches(&view);
            let excluded = reference(&wire, &node_id, &roles, include_own, &event, newer_kind);
            prop_assert_eq!(included, excluded.is_empty());
            prop_assert_eq!(filter.explain(&view), excluded);
            let watching = filter.clone().watching_all();
            prop_assert_eq!(included, watching.matches(&view), "who watches gets no more");
            prop_assert!(watching.accounts().is_none() && watching.custom_types().is_none());
            prop_assert!(watching.plain_kinds() & kind_bit(view.kind()) != 0);
            if filter.matches_everything() && event.target.is_none() && include_own {
                prop_assert_eq!(included, event.kind.is_some() || newer_kind.is_some());
            }
        }
    }
}
