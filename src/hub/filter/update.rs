//! Changes of a filter on a live stream.

use std::sync::Arc;

use super::{Filter, bits_of};
use crate::{
    hub::{
        accounts::{AccountKey, AccountSet},
        kind_bits::default_kinds,
        scope::Patterns,
    },
    proto::v1,
};

/// A change of a filter.
#[derive(Clone, Debug, Default)]
pub struct Change {
    remove_kinds: u128,
    add_kinds: u128,
    remove_accounts: Vec<AccountKey>,
    add_accounts: Vec<AccountKey>,
    custom_types: Types,
    replace: Option<Replace>,
}

/// A change of the custom types.
#[derive(Clone, Debug, Default)]
enum Types {
    /// They stay.
    #[default]
    Same,
    /// Every type is included from here on.
    All,
    /// These are.
    These(Vec<String>),
}

/// A change of everything.
#[derive(Clone, Copy, Debug)]
struct Replace {
    /// True if accounts are named, be there none.
    accounts_named: bool,
}

impl Change {
    /// Accounts and kinds are removed, and others added.
    pub fn new(remove: &v1::Filter, add: &v1::Filter) -> Change {
        let keys = |names: &[String]| {
            names.iter().map(|name| AccountKey::of(name.as_bytes())).collect::<Vec<_>>()
        };
        Change {
            remove_kinds: bits_of(&remove.kinds),
            add_kinds: bits_of(&add.kinds),
            remove_accounts: keys(&remove.accounts),
            add_accounts: keys(&add.accounts),
            custom_types: Types::Same,
            replace: None,
        }
    }

    /// Everything is replaced by what is added.
    #[must_use]
    pub fn replacing(self, accounts_named: bool) -> Change {
        Change { replace: Some(Replace { accounts_named }), ..self }
    }

    /// These custom types are included from here on; `None`: all.
    #[must_use]
    pub fn with_custom_types(self, custom_types: Option<Vec<String>>) -> Change {
        Change { custom_types: custom_types.map_or(Types::All, Types::These), ..self }
    }

    /// True if it may change more than accounts.
    pub(super) fn concerns_more_than_accounts(&self) -> bool {
        let types = !matches!(self.custom_types, Types::Same);
        self.remove_kinds | self.add_kinds != 0 || types || self.replaces()
    }

    /// True if the whole filter is replaced.
    pub(in crate::hub) fn replaces(&self) -> bool {
        self.replace.is_some()
    }
}

impl Filter {
    /// The number of accounts that are named, if any are; not those that rules name.
    pub fn account_count(&self) -> usize {
        self.accounts.as_ref().map_or(0, |accounts| accounts.len())
    }

    /// Sets the accounts to those of a change that replaces all; returns those before.
    pub(in crate::hub) fn replace_accounts(&mut self, change: &Change) -> Option<Arc<AccountSet>> {
        let named = change.replace.is_some_and(|replace| replace.accounts_named);
        let accounts = if named {
            let mut accounts = AccountSet::default();
            for key in &change.add_accounts {
                accounts.insert(*key);
            }
            Some(Arc::new(accounts))
        } else {
            let scope = self.scope.as_ref().filter(|_| !self.watching);
            scope.and_then(|scope| scope.named_accounts())
        };
        std::mem::replace(&mut self.accounts, accounts)
    }

    /// Makes a change; [`Filter::replace_accounts`] was called if it replaces all. Calls `see` with
    /// each account that it adds (true) or removes.
    pub(in crate::hub) fn change(&mut self, change: Change, mut see: impl FnMut(AccountKey, bool)) {
        if change.replaces() {
            self.kinds = if change.add_kinds == 0 { default_kinds() } else { change.add_kinds };
        } else {
            self.kinds = self.kinds & !change.remove_kinds | change.add_kinds;
            self.change_accounts(&change, &mut see);
        }
        self.kinds &= self.allowed_kinds;
        match change.custom_types {
            Types::Same => {}
            Types::All => self.custom_types = None,
            Types::These(types) => self.custom_types = Some(Patterns::new(&types)),
        }
        self.set_plain_kinds();
    }

    fn change_accounts(&mut self, change: &Change, see: &mut impl FnMut(AccountKey, bool)) {
        let Some(accounts) = &mut self.accounts else { return };
        if change.remove_accounts.is_empty() && change.add_accounts.is_empty() {
            return;
        }
        let accounts = Arc::make_mut(accounts);
        for key in &change.remove_accounts {
            if accounts.remove(*key) {
                see(*key, false);
            }
        }
        for key in &change.add_accounts {
            if accounts.insert(*key) {
                see(*key, true);
            }
        }
    }

    /// True if the account with this key is included.
    pub fn has_account(&self, key: AccountKey) -> bool {
        self.accounts.as_ref().is_none_or(|accounts| accounts.has(key))
    }

    /// The same with these accounts, and these custom types if there are none; `None`: all.
    #[must_use]
    pub fn naming(mut self, accounts: Option<AccountSet>, custom_types: bool) -> Filter {
        self.accounts = accounts.map(Arc::new);
        if custom_types && self.custom_types.is_none() {
            self.custom_types = Some(Patterns::default());
        }
        self.with_plain_kinds()
    }

    /// The included kinds by their numbers; none if all are that need no name.
    pub fn kind_numbers(&self) -> Vec<i32> {
        if self.kinds == default_kinds() {
            return vec![];
        }
        (0..128).filter(|kind| self.kinds & (1 << kind) != 0).collect()
    }
}
