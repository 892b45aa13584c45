//! A third bus, to show that a bus is one folder and one line: in memory, with faults on demand.

mod gateway;
mod store;

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use trunkline::{
    bus::{BusFactory, Finding, Progress, SharedBus, StartError, Starting},
    config::Config,
};

use self::{gateway::MemoryBus, store::Store};

/// A fault of the servers that this bus does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Appends and deliveries take a few milliseconds.
    Delay,
    /// Appends are made, and the answer is lost.
    LostAnswer,
    /// Nothing is appended or delivered.
    Unavailable,
}

/// `@type: Memory`. All gateways of one factory share a deployment.
#[derive(Clone, Default)]
pub struct MemoryFactory {
    store: Arc<Mutex<Option<Arc<Store>>>>,
    fault: Arc<Mutex<Option<Fault>>>,
}

impl MemoryFactory {
    pub fn inject(&self, fault: Fault) {
        *self.fault.lock() = Some(fault);
    }

    pub fn heal(&self) {
        *self.fault.lock() = None;
    }

    /// Loses the last frames of every shard, which begins a new epoch. `restored`: a gateway that
    /// has the frames appends them again; otherwise they are noted as lost.
    pub fn lose_tail(&self, frames: usize, restored: bool) {
        self.store.lock().as_ref().expect("a gateway was started").lose_tail(frames, restored);
    }
}

impl BusFactory for MemoryFactory {
    fn start<'a>(&'a self, starting: Starting<'a>) -> BoxFuture<'a, Result<SharedBus, StartError>> {
        async move {
            let store =
                self.store.lock().get_or_insert_with(|| Store::new(starting.config)).clone();
            let sink = (starting.sink)(store.shards());
            Ok(Arc::new(MemoryBus::start(store, self.fault.clone(), sink)) as SharedBus)
        }
        .boxed()
    }

    fn examine<'a>(
        &'a self,
        _: &'a Config,
        report: &'a mut (dyn FnMut(Progress) + Send),
    ) -> BoxFuture<'a, ()> {
        async move { report(Progress::Found(Finding::ok("reach", "the bus is in memory"))) }.boxed()
    }
}
