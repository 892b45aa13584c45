//! What each identity has of the gateway: its streams, the bytes of its requests, its events a second.
//!
//! An identity is known here while it has something: an open stream, a request under way, or a bucket that is not full.

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
use crate::config::Limits;
use crate::{
    access::Identity,
    rpc::{error::Error, limit::Limit},
};

/// Fewer identities than this are not looked through for those that have nothing.
const FEW: usize = 1024;

/// The shares of all identities.
#[derive(Debug)]
pub struct Quotas {
    most_streams: usize,
    most_streams_of_connection: usize,
    most_pending: usize,
    most_pending_of_one: usize,
    rate: Option<Rate>,
    /// Bytes of all requests that are not answered.
    pending: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    shares: HashMap<Identity, Arc<Share>>,
    /// How many there may be until those that have nothing are forgotten.
    look_at: usize,
}

/// What one identity has.
#[derive(Debug)]
pub struct Share {
    streams: AtomicUsize,
    pending: AtomicUsize,
    bucket: Mutex<Bucket>,
}

/// Bytes of one request that is not answered. They are free again when this is dropped.
#[derive(Debug)]
pub struct Pending {
    quotas: Arc<Quotas>,
    share: Arc<Share>,
    bytes: AtomicUsize,
}

/// The open streams of one connection.
#[derive(Debug, Default)]
pub struct Streams(AtomicUsize);

/// One open stream of an identity, on a connection. Dropping it makes room for another.
#[derive(Debug)]
pub struct Seat {
    share: Arc<Share>,
    streams: Arc<Streams>,
}

impl Quotas {
    /// Shares as the limits have them.
    pub fn new(limits: &Limits) -> Quotas {
        let rate = |per_second| Rate { per_second, burst: limits.event_burst };
        Quotas {
            most_streams: limits.max_streams_per_identity,
            most_streams_of_connection: limits.max_streams_per_connection,
            most_pending: limits.max_pending_bytes,
            most_pending_of_one: limits.max_pending_bytes_per_identity,
            rate: limits.events_per_second.map(rate),
            pending: AtomicUsize::new(0),
            table: Mutex::default(),
        }
    }

    /// The share of an identity.
    pub fn of(&self, identity: &Identity) -> Arc<Share> {
        let mut table = self.table.lock();
        if let Some(share) = table.shares.get(identity) {
            return share.clone();
        }
        if table.shares.len() >= table.look_at.max(FEW) {
            let now = Instant::now();
            table.shares.retain(|_, share| {
                Arc::strong_count(share) > 1 || !share.bucket.lock().is_full(now)
            });
            table.look_at = table.shares.len() * 2;
        }
        let share = Arc::new(Share {
            streams: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            bucket: Mutex::new(Bucket::full(Instant::now())),
        });
        table.shares.insert(identity.clone(), share.clone());
        share
    }

    /// A request of an identity, of which nothing has come yet.
    pub fn request(self: &Arc<Self>, share: Arc<Share>) -> Pending {
        Pending { quotas: self.clone(), share, bytes: AtomicUsize::new(0) }
    }

    /// Whether an identity may publish `events` more now.
    pub fn publish(&self, share: &Share, events: usize) -> Result<(), Error> {
        let Some(rate) = self.rate else { return Ok(()) };
        if events > rate.burst {
            let most = rate.burst;
            let why = format!("has {events}; limits.eventBurst is {most}, so it never fits");
            return Err(Error::field("events", why));
        }
        share
            .bucket
            .lock()
            .take(events, rate, Instant::now())
            .map_err(|wait| Error::limit_for(Limit::EventsPerSecond, rate.per_second, wait))
    }

    /// One more stream of an identity, on a connection.
    pub fn stream(&self, share: &Arc<Share>, streams: &Arc<Streams>) -> Result<Seat, Error> {
        // Counted first: of two that come at once for the last place, one finds it taken.
        let of_identity = share.streams.fetch_add(1, Ordering::Relaxed);
        let of_connection = streams.0.fetch_add(1, Ordering::Relaxed);
        let seat = Seat { share: share.clone(), streams: streams.clone() };
        if of_connection >= self.most_streams_of_connection {
            let most = self.most_streams_of_connection;
            return Err(Error::limit(Limit::StreamsPerConnection, most));
        }
        if of_identity >= self.most_streams {
            return Err(Error::limit(Limit::StreamsPerIdentity, self.most_streams));
        }
        Ok(seat)
    }

    /// Bytes of all requests that are not answered.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// How many there may be.
    pub fn most_pending(&self) -> usize {
        self.most_pending
    }
}

impl Pending {
    /// What the sender of the request has.
    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// More bytes of the request have come.
    pub fn add(&self, bytes: usize) -> Result<(), Error> {
        let Quotas { most_pending, most_pending_of_one, pending, .. } = &*self.quotas;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let of_one = self.share.pending.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let of_all = pending.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if of_one > *most_pending_of_one {
            return Err(Error::limit(Limit::PendingBytesPerIdentity, *most_pending_of_one));
        }
        if of_all > *most_pending {
            return Err(Error::limit(Limit::PendingBytes, *most_pending));
        }
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.share.pending.fetch_sub(bytes, Ordering::Relaxed);
        self.quotas.pending.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.share.streams.fetch_sub(1, Ordering::Relaxed);
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
    fn streams_and_bytes_are_counted_by_identity_and_freed() {
        let quotas = Arc::new(Quotas::new(&Limits {
            max_streams_per_identity: 3,
            max_streams_per_connection: 2,
            max_pending_bytes: 150,
            max_pending_bytes_per_identity: 100,
            ..Limits::default()
        }));
        let [one, two] = [1, 2].map(|n| quotas.of(&identity(n)));
        let [here, there] = [(); 2].map(|()| Arc::new(Streams::default()));
        let [first, _second] = [(); 2].map(|()| quotas.stream(&one, &here).unwrap());
        let full = refused(quotas.stream(&one, &here));
        assert_eq!(full, "limits.maxStreamsPerConnection is reached: 2");
        let _third = quotas.stream(&one, &there).unwrap();
        let full = refused(quotas.stream(&one, &there));
        assert_eq!(full, "limits.maxStreamsPerIdentity is reached: 3");
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
        assert_eq!(quotas.pending(), 0);
    }

    #[test]
    fn the_rate_is_one_for_all_that_an_identity_does() {
        let limits = Limits { events_per_second: Some(10), event_burst: 20, ..Limits::default() };
        let quotas = Quotas::new(&limits);
        let publish = |n, events| quotas.publish(&quotas.of(&identity(n)), events);
        publish(1, 20).unwrap();
        // Its share is remembered though nothing of it is open.
        assert!(refused(publish(1, 5)).contains("limits.eventsPerSecond"));
        publish(2, 20).unwrap();
        assert!(refused(publish(3, 21)).contains("limits.eventBurst is 20"));
    }

    #[test]
    fn who_has_nothing_is_forgotten() {
        let limits = Limits { events_per_second: Some(10), ..Limits::default() };
        let quotas = Arc::new(Quotas::new(&limits));
        let seat = quotas.stream(&quotas.of(&identity(0)), &Arc::default()).unwrap();
        quotas.publish(&quotas.of(&identity(1)), 100).unwrap();
        for n in 2..100_000 {
            quotas.of(&identity(n));
        }
        let table = quotas.table.lock();
        assert!(table.shares.len() < 3 * FEW, "{}", table.shares.len());
        assert!([0, 1].iter().all(|n| table.shares.contains_key(&identity(*n))));
        drop(table);
        drop(seat);
    }
}
