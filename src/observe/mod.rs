//! The view of operators: counters, recent failures, the log lines of streams,
//! traces, the answer of `GetStatus`, and the admin port with its page.

pub mod admin;
pub mod counters;
pub mod handled;
pub mod histogram;
pub mod load;
pub mod recent;
pub mod status;
pub mod streams;
pub mod trace;

use std::sync::Arc;

use crate::errors::{Error, Requester};

use self::{
    counters::{Counters, Method},
    handled::Handled,
    recent::Recent,
};

/// The record of requests and streams: totals since the start, and the last failures.
#[derive(Debug, Default)]
pub struct Records {
    /// Totals since the start.
    pub counters: Counters,
    /// The last failures.
    pub recent: Recent,
    /// What became of every request.
    pub handled: Arc<Handled>,
}

impl Records {
    /// Records a request that was answered with an error.
    pub fn refused(&self, method: Method, requester: &Requester, error: &Error) {
        self.counters.failed(method, error);
        self.recent.refused(method, requester, error);
    }
}
