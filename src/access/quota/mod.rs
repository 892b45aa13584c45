//! The quotas of each identity: its open streams, the bytes of its requests in flight, the history
//! that its streams read, its events a second.
//!
//! An identity is remembered while it uses something: while it has an open stream or a request in
//! flight, or its token bucket is not full.

mod bucket;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::time::Instant;

use self::bucket::{Bucket, Rate};
use crate::{
    access::Identity,
    config::Limits,
    errors::{Error, Limit},
    hub::readers::HistoryQuota,
};

/// With fewer identities than this, the table is not searched for unused ones.
const MIN_SWEEP: usize = 1024;

/// One address may have this part of the `Watch` streams of the health protocol.
const HEALTH_SHARE: usize = 10;

/// The quotas of all identities.
#[derive(Debug)]
pub struct Quotas {
    max_streams_per_identity: usize,
    max_streams_per_connection: usize,
    max_bytes: usize,
    max_bytes_per_identity: usize,
    max_history_bytes: usize,
    max_health_streams: usize,
    health_streams: AtomicUsize,
    rate: Option<Rate>,
    /// Bytes of all requests in flight.
    bytes: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    quotas: HashMap<Identity, Arc<Quota>>,
    /// Unused quotas are removed when the table has grown to this size.
    next_sweep: usize,
}

/// What one identity uses.
#[derive(Debug)]
pub struct Quota {
    streams: AtomicUsize,
    bytes: AtomicUsize,
    bucket: Mutex<Bucket>,
    history: HistoryQuota,
    health_streams: AtomicUsize,
}

impl Quota {
    /// What its streams read and hold of history.
    pub fn history(&self) -> &HistoryQuota {
        &self.history
    }
}

/// One request in flight. Its bytes count against the quota of its identity until it is dropped.
#[derive(Debug)]
pub struct InFlightRequest {
    quotas: Arc<Quotas>,
    quota: Arc<Quota>,
    bytes: AtomicUsize,
}

/// Counts the open streams of one connection.
#[derive(Debug, Default)]
pub struct ConnectionStreams(AtomicUsize);

/// Permits one open stream of an identity, on a connection, until it is dropped.
#[derive(Debug)]
pub struct StreamPermit {
    quota: Arc<Quota>,
    streams: Arc<ConnectionStreams>,
}

/// Permits one open `Watch` stream of the health protocol until it is dropped.
#[derive(Debug)]
pub struct HealthPermit {
    quotas: Arc<Quotas>,
    quota: Arc<Quota>,
}

impl Quotas {
    /// Quotas with the limits of the configuration.
    pub fn new(limits: &Limits) -> Quotas {
        let rate = |per_second| Rate { per_second, burst: limits.event_burst };
        Quotas {
            max_streams_per_identity: limits.max_streams_per_identity,
            max_streams_per_connection: limits.max_streams_per_connection,
            max_bytes: limits.max_pending_bytes,
            max_bytes_per_identity: limits.max_pending_bytes_per_identity,
            max_health_streams: limits.max_health_streams,
            health_streams: AtomicUsize::new(0),
            max_history_bytes: limits.max_history_bytes_per_identity,
            rate: limits.events_per_second.map(rate),
            bytes: AtomicUsize::new(0),
            table: Mutex::default(),
        }
    }

    /// The quota of an identity.
    pub fn of(&self, identity: &Identity) -> Arc<Quota> {
        let mut table = self.table.lock();
        if let Some(quota) = table.quotas.get(identity) {
            return quota.clone();
        }
        if table.quotas.len() >= table.next_sweep.max(MIN_SWEEP) {
            let now = Instant::now();
            table.quotas.retain(|_, quota| {
                Arc::strong_count(quota) > 1 || !quota.bucket.lock().is_full(now)
            });
            table.next_sweep = table.quotas.len() * 2;
        }
        let quota = Arc::new(Quota {
            streams: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            bucket: Mutex::new(Bucket::full(Instant::now())),
            history: HistoryQuota::new(self.max_history_bytes),
            health_streams: AtomicUsize::new(0),
        });
        table.quotas.insert(identity.clone(), quota.clone());
        quota
    }

    /// A new request in flight, of which no bytes have arrived yet.
    pub fn request(self: &Arc<Self>, quota: Arc<Quota>) -> InFlightRequest {
        InFlightRequest { quotas: self.clone(), quota, bytes: AtomicUsize::new(0) }
    }

    /// Events that may be published at once after a pause, at most.
    pub fn burst(&self) -> usize {
        self.rate.map_or(usize::MAX, |rate| rate.burst.max(1))
    }

    /// Takes `events` from the rate of an identity. The error says after which time a retry may
    /// succeed, or that so many events never fit.
    pub fn publish(&self, quota: &Quota, events: usize) -> Result<(), Error> {
        let Some(rate) = self.rate else { return Ok(()) };
        if events > rate.burst {
            let max = rate.burst;
            let why = format!("has {events}; limits.eventBurst is {max}, so it never fits");
            return Err(Error::field("events", why));
        }
        quota
            .bucket
            .lock()
            .take(events, rate, Instant::now())
            .map_err(|wait| Error::limit_for(Limit::EventsPerSecond, rate.per_second, wait))
    }

    /// Permits one more stream of an identity, on a connection. The error names the limit that is
    /// reached.
    pub fn stream(
        &self,
        quota: &Arc<Quota>,
        streams: &Arc<ConnectionStreams>,
    ) -> Result<StreamPermit, Error> {
        // Counted before it is checked: of two calls at one time for the last permit, one fails.
        let of_identity = quota.streams.fetch_add(1, Ordering::Relaxed);
        let of_connection = streams.0.fetch_add(1, Ordering::Relaxed);
        let permit = StreamPermit { quota: quota.clone(), streams: streams.clone() };
        if of_connection >= self.max_streams_per_connection {
            let max = self.max_streams_per_connection;
            return Err(Error::limit(Limit::StreamsPerConnection, max));
        }
        if of_identity >= self.max_streams_per_identity {
            let max = self.max_streams_per_identity;
            return Err(Error::limit(Limit::StreamsPerIdentity, max));
        }
        Ok(permit)
    }

    /// Permits one more `Watch` stream of the health protocol. They count apart from streams of
    /// events: neither kind takes the permits of the other.
    pub fn health_stream(self: &Arc<Self>, quota: &Arc<Quota>) -> Result<HealthPermit, Error> {
        let of_all = self.health_streams.fetch_add(1, Ordering::Relaxed);
        let of_identity = quota.health_streams.fetch_add(1, Ordering::Relaxed);
        let permit = HealthPermit { quotas: self.clone(), quota: quota.clone() };
        let max = self.max_health_streams;
        if of_all >= max || of_identity >= max / HEALTH_SHARE {
            return Err(Error::limit(Limit::HealthStreams, max));
        }
        Ok(permit)
    }

    /// The number of open `Watch` streams of the health protocol.
    pub fn health_streams(&self) -> usize {
        self.health_streams.load(Ordering::Relaxed)
    }

    /// The bytes of all requests in flight.
    pub fn bytes_in_flight(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The limit of [`Quotas::bytes_in_flight`].
    pub fn max_bytes_in_flight(&self) -> usize {
        self.max_bytes
    }
}

impl InFlightRequest {
    /// The quota of its identity.
    pub fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }

    /// Adds bytes that have arrived or were announced. The error names the limit that is reached.
    pub fn add(&self, bytes: usize) -> Result<(), Error> {
        let quotas = &*self.quotas;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let of_identity = self.quota.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let of_all = quotas.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if of_identity > quotas.max_bytes_per_identity {
            let max = quotas.max_bytes_per_identity;
            return Err(Error::limit(Limit::PendingBytesPerIdentity, max));
        }
        if of_all > quotas.max_bytes {
            return Err(Error::limit(Limit::PendingBytes, quotas.max_bytes));
        }
        Ok(())
    }
}

impl InFlightRequest {
    /// Takes back bytes that were added.
    pub fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.quota.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.quotas.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.quota.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.quotas.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for HealthPermit {
    fn drop(&mut self) {
        self.quota.health_streams.fetch_sub(1, Ordering::Relaxed);
        self.quotas.health_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.quota.streams.fetch_sub(1, Ordering::Relaxed);
        self.streams.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn identity(n: u32) -> Identity {
        Identity::Anonymous(IpAddr::V4(n.into()))
    }

    fn refused(result: Result<impl Sized, Error>) -> String {
        result.err().expect("a refusal").to_string()
    }

    #[test]
    fn streams_and_bytes_are_limited_by_identity_and_freed_when_dropped() {
        let quotas = Arc::new(Quotas::new(&Limits {
            max_streams_per_identity: 3,
            max_streams_per_connection: 2,
            max_pending_bytes: 150,
            max_pending_bytes_per_identity: 100,
            ..Limits::default()
        }));
        let [one, two] = [1, 2].map(|n| quotas.of(&identity(n)));
        let [here, there] = [(); 2].map(|()| Arc::new(ConnectionStreams::default()));
        let [first, _second] = [(); 2].map(|()| quotas.stream(&one, &here).unwrap());
        let reached = refused(quotas.stream(&one, &here));
        assert_eq!(reached, "limits.maxStreamsPerConnection is reached: 2");
        let _third = quotas.stream(&one, &there).unwrap();
        let reached = refused(quotas.stream(&one, &there));
        assert_eq!(reached, "limits.maxStreamsPerIdentity is reached: 3");
        quotas.stream(&two, &there).unwrap();
        drop(first);
        quotas.stream(&one, &here).unwrap();

        let request = quotas.request(one.clone());
        request.add(60).unwrap();
        request.add(40).unwrap();
        assert!(refused(request.add(1)).contains("limits.maxPendingBytesPerIdentity"));
        let other = quotas.request(two);
        assert!(refused(other.add(50)).contains("limits.maxPendingBytes is reached"));
        drop(request);
        other.add(1).unwrap();
        drop(other);
        assert_eq!(quotas.bytes_in_flight(), 0);
    }

    #[test]
    fn all_requests_of_an_identity_share_one_rate() {
        let limits = Limits { events_per_second: Some(10), event_burst: 20, ..Limits::default() };
        let quotas = Quotas::new(&limits);
        let publish = |n, events| quotas.publish(&quotas.of(&identity(n)), events);
        publish(1, 20).unwrap();
        // Its quota is remembered though it has nothing open.
        assert!(refused(publish(1, 5)).contains("limits.eventsPerSecond"));
        publish(2, 20).unwrap();
        assert!(refused(publish(3, 21)).contains("limits.eventBurst is 20"));
    }

    #[test]
    fn identities_that_use_nothing_are_forgotten() {
        let limits = Limits { events_per_second: Some(10), ..Limits::default() };
        let quotas = Arc::new(Quotas::new(&limits));
        let permit = quotas.stream(&quotas.of(&identity(0)), &Arc::default()).unwrap();
        quotas.publish(&quotas.of(&identity(1)), 100).unwrap();
        for n in 2..100_000 {
            quotas.of(&identity(n));
        }
        let table = quotas.table.lock();
        assert!(table.quotas.len() < 3 * MIN_SWEEP, "{}", table.quotas.len());
        assert!([0, 1].iter().all(|n| table.quotas.contains_key(&identity(*n))));
        drop(table);
        drop(permit);
    }
}
