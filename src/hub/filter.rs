//! The filter of a stream: `trunkline.v1.Filter`, compiled once and applied to every event.

mod past;
mod update;

use std::{collections::HashSet, ops::ControlFlow, sync::Arc};

use prost::Message;
use trunkline_proto::kinds::{CUSTOM, MISSED_EVENTS, concerns_account};

pub(super) use self::past::{Passed, Past};
pub use self::update::Change;
use super::{
    accounts::{ACCOUNT_COST, AccountSet},
    event::{EventView, TargetName},
    kind_bits::{ACCOUNT_KINDS, all_kinds, default_kinds, kind_bit},
    log::IndexedFrame,
    scope::{Patterns, Scope},
};
use crate::proto::v1;

/// Bytes that a custom type of a filter takes besides its name: in the filter, and in the router's
/// index.
const NAME_COST: usize = 160;

/// The filter of one subscriber. It keeps the promises `Filtered` and `NoEcho`.
///
/// An event is delivered if its kind is one of the kinds, its account (if its kind concerns one) is
/// one of the accounts, its type (if it is custom) is one of the types, its target (if it has one)
/// names the node or one of its roles, and its source is another node, unless the node asked for
/// its own events. The report of a link is included if one of its kinds is, whatever else: it
/// stands for events of any account.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The included kinds: bit n for kind n.
    kinds: u128,
    /// The kinds that are included whatever their account or type.
    plain_kinds: u128,
    /// `None`: all.
    accounts: Option<Arc<AccountSet>>,
    /// `None`: all.
    custom_types: Option<Patterns>,
    audience: Arc<Audience>,
    include_own: bool,
    /// The kinds of which its node may receive some events.
    allowed_kinds: u128,
    /// The events that its node may receive; `None` if the fields above say it all.
    scope: Option<Arc<Scope>>,
    /// True if the stream is to see excluded events too.
    watching: bool,
}

/// The names under which a stream's node is the target of events.
#[derive(Debug)]
pub(super) struct Audience {
    pub node_id: Box<[u8]>,
    pub roles: HashSet<Box<[u8]>>,
}

/// A part of a filter that keeps an event from the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// The kind is not included, or the event has none.
    Kind,
    /// The node itself published the event.
    OwnEvent,
    /// The account is not included.
    Account,
    /// The type of the custom event is not included.
    CustomType,
    /// The target names neither the node nor one of its roles.
    Target,
    /// The scope of the node does not allow the event.
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
    /// Compiles a filter. Numbers that are no kind's (not 10 to 99) are ignored.
    pub fn new(wire: &v1::Filter, node_id: &str, roles: &[String], include_own: bool) -> Filter {
        let kinds = if wire.kinds.is_empty() { default_kinds() } else { bits_of(&wire.kinds) };
        let audience = Audience {
            node_id: boxed(node_id),
            roles: roles.iter().map(|role| boxed(role)).collect(),
        };
        let names = wire.accounts.iter().map(String::as_bytes);
        Filter {
            kinds,
            plain_kinds: 0,
            accounts: (!wire.accounts.is_empty()).then(|| Arc::new(names.collect())),
            custom_types: (!wire.custom_types.is_empty())
                .then(|| Patterns::new(&wire.custom_types)),
            audience: Arc::new(audience),
            include_own,
            allowed_kinds: all_kinds(),
            scope: None,
            watching: false,
        }
        .with_plain_kinds()
    }

    /// The same without its accounts: all are included.
    fn without_accounts(&self) -> Filter {
        Filter {
            accounts: None,
            custom_types: self.custom_types.clone(),
            audience: self.audience.clone(),
            scope: self.scope.clone(),
            ..*self
        }
    }

    fn with_plain_kinds(mut self) -> Filter {
        self.set_plain_kinds();
        self
    }

    fn set_plain_kinds(&mut self) {
        self.plain_kinds = self.kinds;
        if self.accounts.is_some() {
            self.plain_kinds &= !ACCOUNT_KINDS;
        }
        if self.custom_types.is_some() {
            self.plain_kinds &= !kind_bit(CUSTOM);
        }
    }

    /// The same, narrowed to what the scope allows.
    #[must_use]
    pub fn within(mut self, scope: &Arc<Scope>) -> Filter {
        if self.watching {
            // The stream sees everything. The parts stay as they are, so that each reports its own
            // exclusions.
            self.scope = Some(scope.clone());
            return self;
        }
        self.allowed_kinds = scope.kind_bits();
        self.kinds &= self.allowed_kinds;
        if self.accounts.is_none() {
            // So that events of other accounts do not wake the stream.
            self.accounts = scope.named_accounts();
        }
        self.scope = scope.depends_on_subject().then(|| scope.clone());
        self.with_plain_kinds()
    }

    /// The same, for a stream that sees excluded events too, to explain them.
    #[must_use]
    pub fn watching_all(self) -> Filter {
        Filter { watching: true, ..self }
    }

    /// True if the stream sees every event, included or not.
    pub(super) fn is_watching(&self) -> bool {
        self.watching
    }

    /// True if the stream delivers the event.
    pub fn matches(&self, event: &EventView<'_>) -> bool {
        self.check(event, |_| ControlFlow::Break(())).is_continue()
    }

    /// All parts of the filter that exclude the event; none if it is delivered.
    pub fn explain(&self, event: &EventView<'_>) -> Vec<Exclusion> {
        let mut exclusions = Vec::new();
        let _ = self.check(event, |exclusion| {
            exclusions.push(exclusion);
            ControlFlow::Continue(())
        });
        exclusions
    }

    /// Checks every part of the filter. `exclude` is called with each that excludes the event, and
    /// decides whether to go on.
    #[inline]
    fn check(
        &self,
        event: &EventView<'_>,
        mut exclude: impl FnMut(Exclusion) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let kind = event.kind();
        if kind == MISSED_EVENTS {
            if !self.includes_report(event) {
                exclude(Exclusion::Kind)?;
            }
            return ControlFlow::Continue(());
        }
        if self.kinds & kind_bit(kind) == 0 {
            exclude(Exclusion::Kind)?;
        }
        if !self.include_own && event.source_bytes() == &*self.audience.node_id {
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

    /// True if it includes every event of a frame; may be false in error. Most filters include
    /// whole frames, and then no event is looked at.
    pub(super) fn includes_whole(&self, frame: &IndexedFrame) -> bool {
        let summary = &frame.summary;
        let narrowed = summary.kinds & !self.plain_kinds;
        self.scope.is_none()
            && !frame.has_report()
            && (narrowed == 0 || narrowed == kind_bit(CUSTOM) & self.kinds && self.types_all(frame))
            && !summary.targeted
            && (self.include_own || !frame.may_be_from(&self.audience.node_id))
    }

    fn types_all(&self, frame: &IndexedFrame) -> bool {
        let types = self.custom_types.as_ref();
        types.is_none_or(|types| frame.types_all(|name| types.contain(name)))
    }

    /// The included kinds, as bits of [`kind_bit`].
    pub(super) fn kind_bits(&self) -> u128 {
        self.kinds
    }

    /// The kinds of which the stream sees every event, whatever its account or type.
    pub(super) fn plain_kinds(&self) -> u128 {
        if self.watching { u128::MAX } else { self.plain_kinds }
    }

    /// The included types of custom events, whole names and prefixes; `None`: all.
    pub(super) fn custom_types(
        &self,
    ) -> Option<(impl Iterator<Item = &[u8]>, impl Iterator<Item = &[u8]>)> {
        let types = self.custom_types.as_ref().filter(|_| !self.watching)?;
        Some((types.exact.iter().map(|t| &**t), types.prefixes.iter().map(|p| &**p)))
    }

    /// The included accounts under which the router finds the stream; `None`: all.
    pub(super) fn accounts(&self) -> Option<&Arc<AccountSet>> {
        self.accounts.as_ref().filter(|_| !self.watching)
    }

    /// The names under which the stream's node is the target of events.
    pub(super) fn audience(&self) -> &Arc<Audience> {
        &self.audience
    }

    /// Bytes that its custom types take, about.
    fn types_bytes(&self) -> usize {
        let types = self.custom_types.iter();
        let names = types.flat_map(|types| types.exact.iter().chain(&types.prefixes));
        names.map(|name| NAME_COST + name.len()).sum()
    }

    /// Bytes that a stream holds for these accounts and custom types, about.
    pub fn held_bytes(accounts: usize, custom_types: &[String]) -> usize {
        let names = custom_types.iter().map(|name| NAME_COST + name.len());
        accounts * ACCOUNT_COST + names.sum::<usize>()
    }

    /// True if only a target or `NoEcho` can exclude an event from this stream, but for the kinds
    /// that must be named.
    pub fn matches_everything(&self) -> bool {
        self.kinds & default_kinds() == default_kinds()
            && self.accounts.is_none()
            && self.custom_types.is_none()
            && self.scope.is_none()
    }

    /// True if it includes one of the kinds of a report.
    fn includes_report(&self, event: &EventView<'_>) -> bool {
        let kinds = match v1::Event::decode(event.bytes()).map(|event| event.kind) {
            Ok(Some(v1::event::Kind::MissedEvents(report))) => report.kinds,
            // Nothing was sent that does not decode.
            _ => vec![],
        };
        let reported = if kinds.is_empty() { default_kinds() } else { bits_of(&kinds) };
        self.kinds & reported & !kind_bit(MISSED_EVENTS) != 0
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
                TargetName::NodeId(node_id) => node_id == &*self.audience.node_id,
                TargetName::Role(role) => self.audience.roles.contains(role),
            })
    }
}

/// The bits of kinds. Numbers that are no kind's are ignored.
pub(super) fn bits_of(kinds: &[i32]) -> u128 {
    let known = kinds.iter().filter_map(|&kind| u8::try_from(kind).ok());
    known.fold(0, |kinds, kind| kinds | kind_bit(kind)) & all_kinds()
}

fn boxed(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

#[cfg(test)]
mod tests;
