//! Limits the number of open connections: in all, and from one peer.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use crate::{access::peer_network, errors::Limit};

/// The slots for connections: a semaphore that also limits what one peer may hold.
#[derive(Debug)]
pub struct ConnectionSlots {
    max: usize,
    max_per_peer: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    total: usize,
    /// Holds peers with at least one connection.
    by_peer: HashMap<IpAddr, usize>,
}

/// The slot of one connection. Dropping it frees the slot.
#[derive(Debug)]
pub struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    peer: IpAddr,
}

/// All slots for connections, or all of one peer, are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsExhausted {
    /// The limit that is reached.
    pub limit: Limit,
    /// Its value.
    pub allowed: usize,
}

impl ConnectionSlots {
    /// `max` slots, of which one peer may hold `max_per_peer`.
    pub fn new(max: usize, max_per_peer: usize) -> ConnectionSlots {
        ConnectionSlots { max, max_per_peer, used: Mutex::default() }
    }

    /// Takes a slot for a connection from this address. The error names the limit that is reached.
    pub fn acquire(self: &Arc<Self>, address: IpAddr) -> Result<ConnectionSlot, SlotsExhausted> {
        let peer = peer_network(address);
        let mut used = self.used.lock();
        if used.total >= self.max {
            return Err(SlotsExhausted { limit: Limit::Connections, allowed: self.max });
        }
        let of_peer = used.by_peer.get(&peer).copied().unwrap_or(0);
        if of_peer >= self.max_per_peer {
            let allowed = self.max_per_peer;
            return Err(SlotsExhausted { limit: Limit::ConnectionsPerPeer, allowed });
        }
        used.total += 1;
        used.by_peer.insert(peer, of_peer + 1);
        drop(used);
        Ok(ConnectionSlot { slots: self.clone(), peer })
    }

    /// The number of open connections.
    pub fn used(&self) -> usize {
        self.used.lock().total
    }

    /// The number of connections that may be open.
    pub fn max(&self) -> usize {
        self.max
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut used = self.slots.used.lock();
        used.total -= 1;
        if let Some(count) = used.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                used.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_limited_in_all_and_by_peer() {
        let slots = Arc::new(ConnectionSlots::new(3, 2));
        let [one, two, three] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(address);
        let first = slots.acquire(one).unwrap();
        let _second = slots.acquire(one).unwrap();
        let reached = SlotsExhausted { limit: Limit::ConnectionsPerPeer, allowed: 2 };
        assert_eq!(slots.acquire(one).unwrap_err(), reached);
        let third = slots.acquire(two).unwrap();
        let reached = SlotsExhausted { limit: Limit::Connections, allowed: 3 };
        assert_eq!(slots.acquire(three).unwrap_err(), reached);
        drop(first);
        assert_eq!(slots.used(), 2);
        let _fourth = slots.acquire(one).unwrap();
        drop(third);
        // A peer without connections is forgotten.
        assert_eq!(slots.used.lock().by_peer.len(), 1);
    }
}
