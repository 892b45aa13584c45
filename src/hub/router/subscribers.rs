//! The subscribers under one key of the index.

use std::{collections::HashMap, sync::Arc};

use super::Interest;

/// Subscribers by their ids. Most keys, such as an account, have one: it takes no allocation.
#[derive(Default)]
pub(super) enum Subscribers {
    #[default]
    None,
    One(u64, Arc<Interest>),
    /// Two or more, now or before. Boxed, since there is one of these for each account of a filter.
    #[allow(clippy::box_collection)]
    Many(Box<HashMap<u64, Arc<Interest>>>),
}

impl Subscribers {
    pub(super) fn insert(&mut self, id: u64, interest: Arc<Interest>) {
        *self = match std::mem::take(self) {
            Subscribers::None => Subscribers::One(id, interest),
            Subscribers::One(first, of_first) => {
                Subscribers::Many(Box::new(HashMap::from([(first, of_first), (id, interest)])))
            }
            Subscribers::Many(mut many) => {
                many.insert(id, interest);
                Subscribers::Many(many)
            }
        }
    }

    pub(super) fn remove(&mut self, id: u64) {
        match self {
            Subscribers::One(only, _) if *only == id => *self = Subscribers::None,
            Subscribers::Many(many) => {
                many.remove(&id);
                if many.is_empty() {
                    *self = Subscribers::None;
                }
            }
            Subscribers::None | Subscribers::One(..) => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Subscribers::None)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Interest>> {
        let (one, many) = match self {
            Subscribers::None => (None, None),
            Subscribers::One(_, interest) => (Some(interest), None),
            Subscribers::Many(many) => (None, Some(many.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}
