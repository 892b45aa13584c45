//! The interest of a `Watch` stream as its updates change it: what each update may, and what it
//! takes.

use std::sync::Arc;

use crate::{
    access::{Grant, quota::InFlightRequest},
    config::Limits,
    errors::{Error, Violations},
    hub::{
        accounts::AccountKey,
        filter::{Change, Filter},
        token::ResumeToken,
    },
    proto::v1,
    rpc::{lists::MAX_PATTERNS, messages, validate},
};

/// Bytes that a part of an update takes until the update is complete, besides its names.
const PART_COST: usize = 256;

/// How names that a stream is opened without are understood: none, or all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Named {
    /// Accounts are named one by one.
    pub accounts: bool,
    /// So are custom types.
    pub custom_types: bool,
}

/// What updates are checked against.
pub struct Rules<'a> {
    /// The limits of the gateway.
    pub limits: &'a Limits,
    /// The deployment, as tokens name it.
    pub deployment: u32,
    /// The rules of the caller, where there are some.
    pub grant: Option<&'a Grant>,
    /// Refuses kinds of which there are no events here.
    pub check_kinds: &'a dyn Fn(&v1::Filter) -> Result<(), Error>,
}

/// The interest of a stream.
pub struct Interest {
    /// As the stream was opened.
    named: Named,
    state: State,
    last_id: u64,
    /// Parts of an update that is not complete.
    parts: Parts,
    /// Bytes of the interest before.
    past: usize,
    held: Held,
}

/// What the interest names.
#[derive(Clone, Debug, Default)]
struct State {
    names_accounts: bool,
    /// The number of accounts; while parts of an update wait, at most so many.
    accounts: usize,
    /// `None`: all.
    custom_types: Option<Vec<String>>,
}

enum Parts {
    None,
    Waiting(Vec<Change>, State),
    /// The part with this id was rejected: so is the whole update.
    Wrong(u64),
}

/// Bytes that count against the quota of the identity.
struct Held {
    in_flight: Arc<InFlightRequest>,
    bytes: usize,
}

/// The answer to an update.
pub enum Checked {
    /// It takes effect with a later one.
    Part,
    /// It changes nothing.
    Rejected(v1::InterestRejected),
    /// It takes effect.
    Update(Update),
}

/// An update that takes effect.
pub struct Update {
    /// Its number.
    pub id: u64,
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Where added interest begins; `None`: now.
    pub since: Option<ResumeToken>,
    /// For [`Interest::updated`].
    pub after: AfterUpdate,
}

/// What the interest names after an update.
pub struct AfterUpdate(State);

impl AfterUpdate {
    /// True if accounts are named one by one.
    pub fn names_accounts(&self) -> bool {
        self.0.names_accounts
    }
}

impl Interest {
    /// The interest of a stream that is opened, for which `bytes` are held.
    pub fn new(
        named: Named,
        filter: &v1::Filter,
        accounts: usize,
        last_id: u64,
        (in_flight, bytes): (Arc<InFlightRequest>, usize),
    ) -> Interest {
        let types = named.custom_types || !filter.custom_types.is_empty();
        let state = State {
            names_accounts: named.accounts || accounts > 0,
            accounts,
            custom_types: types.then(|| filter.custom_types.clone()),
        };
        let held = Held { in_flight, bytes };
        Interest { named, state, last_id, parts: Parts::None, past: 0, held }
    }

    /// The number of custom types in the interest.
    pub fn custom_types(&self) -> usize {
        self.state.custom_types.as_ref().map_or(0, Vec::len)
    }

    /// Checks an update of a stream with this filter.
    pub fn check(
        &mut self,
        update: &v1::InterestUpdate,
        filter: &Filter,
        rules: &Rules<'_>,
    ) -> Checked {
        let (id, incomplete) = (update.update_id, update.incomplete);
        if let Parts::Wrong(part) = self.parts {
            if let Err(error) = self.begin(id) {
                return self.reject(id, incomplete, error);
            }
            if incomplete {
                return Checked::Part;
            }
            self.parts = Parts::None;
            let why = format!("part {part} of this update was rejected");
            return self.reject(id, false, Error::field("update_id", why));
        }
        let checked = self.begin(id).and_then(|()| self.part(update, filter, rules));
        let (since, change, state) = match checked {
            Ok(checked) => checked,
            Err(error) => return self.reject(id, incomplete, error),
        };
        let mut changes = match std::mem::replace(&mut self.parts, Parts::None) {
            Parts::Waiting(changes, _) => changes,
            Parts::None | Parts::Wrong(_) => vec![],
        };
        changes.push(change);
        if incomplete {
            self.parts = Parts::Waiting(changes, state);
            return Checked::Part;
        }
        Checked::Update(Update { id, changes, since, after: AfterUpdate(state) })
    }

    /// Rejects an update that was not decoded.
    pub fn refuse(&mut self, id: u64, incomplete: bool, error: Error) -> Checked {
        let error = self.begin(id).err().unwrap_or(error);
        self.reject(id, incomplete, error)
    }

    /// Rejects an update, and the update of which it is a part.
    fn reject(&mut self, id: u64, incomplete: bool, error: Error) -> Checked {
        self.parts = if incomplete { Parts::Wrong(id) } else { Parts::None };
        // What its parts would have taken.
        let bytes = self.bytes();
        self.held.release_to(bytes);
        let status = messages::status_of(error);
        Checked::Rejected(v1::InterestRejected { update_id: id, status: Some(status) })
    }

    /// Records that an update has taken effect, after which there are so many accounts, and `past`
    /// bytes are held for what was before.
    pub fn updated(&mut self, named: AfterUpdate, accounts: usize, past: usize) {
        self.state = State { accounts, ..named.0 };
        self.past = past;
        let bytes = self.bytes();
        self.held.release_to(bytes);
    }

    /// Checks the number of an update.
    fn begin(&mut self, id: u64) -> Result<(), Error> {
        if id <= self.last_id {
            let why = format!("is {id}, must be higher than {}", self.last_id);
            return Err(Error::field("update_id", why));
        }
        self.last_id = id;
        Ok(())
    }

    fn bytes(&self) -> usize {
        let types = self.state.custom_types.as_deref().unwrap_or_default();
        self.past + Filter::held_bytes(self.state.accounts, types)
    }

    /// Checks a part of an update. Returns where its interest begins, the change, and what the
    /// interest names after it.
    fn part(
        &mut self,
        update: &v1::InterestUpdate,
        filter: &Filter,
        rules: &Rules<'_>,
    ) -> Result<(Option<ResumeToken>, Change, State), Error> {
        let nothing = v1::Filter::default();
        let add = update.add.as_ref().unwrap_or(&nothing);
        let remove = update.remove.as_ref().unwrap_or(&nothing);
        if let Some(grant) = rules.grant {
            grant.check_interest(add)?;
        }
        let since = validate::update(update, rules.limits, rules.deployment)?;
        (rules.check_kinds)(add)?;
        let before = match &self.parts {
            Parts::Waiting(_, state) => state,
            Parts::None | Parts::Wrong(_) => &self.state,
        };
        let (state, change) =
            if update.replace { replaced(self.named, add) } else { changed(before, remove, add)? };
        let max = rules.limits.max_accounts_per_stream;
        let state = within(state, max, || accounts_after(before, filter, remove, add))?;
        let names = add.accounts.len() + remove.accounts.len();
        let types = state.custom_types.as_deref().unwrap_or_default();
        self.held.add(PART_COST + Filter::held_bytes(names, types))?;
        Ok((since, change, state))
    }
}

impl Held {
    fn add(&mut self, bytes: usize) -> Result<(), Error> {
        let added = self.in_flight.add(bytes);
        self.bytes += bytes;
        added
    }

    fn release_to(&mut self, bytes: usize) {
        let over = self.bytes.saturating_sub(bytes);
        self.in_flight.release(over);
        self.bytes -= over;
    }
}

/// The interest that is `add` alone.
fn replaced(named: Named, add: &v1::Filter) -> (State, Change) {
    let names_accounts = named.accounts || !add.accounts.is_empty();
    let types = named.custom_types || !add.custom_types.is_empty();
    let custom_types = types.then(|| distinct(vec![], &add.custom_types));
    let change = Change::new(&v1::Filter::default(), add)
        .replacing(names_accounts)
        .with_custom_types(custom_types.clone());
    (State { names_accounts, accounts: add.accounts.len(), custom_types }, change)
}

/// The interest without what is removed and with what is added.
fn changed(
    before: &State,
    remove: &v1::Filter,
    add: &v1::Filter,
) -> Result<(State, Change), Error> {
    let mut violations = Violations::default();
    let mut refuse = |field: &str, named: &str, what: &str, names: &[String]| {
        if !names.is_empty() {
            let why = format!("the stream has all {what}: open it with {named} to name them");
            violations.add(field, why);
        }
    };
    if !before.names_accounts {
        refuse("add.accounts", "accounts_named", "accounts", &add.accounts);
        refuse("remove.accounts", "accounts_named", "accounts", &remove.accounts);
    }
    let mut custom_types = before.custom_types.clone();
    match &mut custom_types {
        None => {
            refuse("add.custom_types", "custom_types_named", "types", &add.custom_types);
            refuse("remove.custom_types", "custom_types_named", "types", &remove.custom_types);
        }
        Some(types) => {
            types.retain(|known| !remove.custom_types.contains(known));
            *types = distinct(std::mem::take(types), &add.custom_types);
            let count = types.len();
            if count > MAX_PATTERNS {
                let why = format!("the stream would have {count}; the limit is {MAX_PATTERNS}");
                violations.add("add.custom_types", why);
            }
        }
    }
    violations.found().map_or(Ok(()), |found| Err(Error::Invalid(found)))?;
    let change = Change::new(remove, add);
    let change = if custom_types == before.custom_types {
        change
    } else {
        change.with_custom_types(custom_types.clone())
    };
    let accounts = before.accounts + add.accounts.len();
    Ok((State { names_accounts: before.names_accounts, accounts, custom_types }, change))
}

/// The same state if it has no more accounts than a stream may have. They are counted exactly where
/// there may be more.
fn within(state: State, max: usize, exact: impl FnOnce() -> usize) -> Result<State, Error> {
    if state.accounts <= max {
        return Ok(state);
    }
    let accounts = exact();
    if accounts <= max {
        return Ok(State { accounts, ..state });
    }
    let why = format!("the stream would have {accounts}; limits.maxAccountsPerStream is {max}");
    Err(Error::field("add.accounts", why))
}

/// The number of accounts after a change.
fn accounts_after(before: &State, filter: &Filter, remove: &v1::Filter, add: &v1::Filter) -> usize {
    let keys = |names: &[String]| -> std::collections::HashSet<AccountKey> {
        names.iter().map(|name| AccountKey::of(name.as_bytes())).collect()
    };
    let (removed, added) = (keys(&remove.accounts), keys(&add.accounts));
    let gone = removed.iter().filter(|key| filter.has_account(**key) && !added.contains(key));
    let new = added.iter().filter(|key| !filter.has_account(**key));
    before.accounts + new.count() - gone.count()
}

/// The names, and those of `more` that are not among them.
fn distinct(mut names: Vec<String>, more: &[String]) -> Vec<String> {
    for name in more {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}
