//! How many connections there may be: in all, and from one peer.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use crate::{access::peer_network, errors::Limit};

/// The places for connections.
#[derive(Debug)]
pub struct ConnectionSlots {
    most: usize,
    most_per_peer: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Only those who have a connection.
    by_peer: HashMap<IpAddr, usize>,
}

/// A connection's place. Dropping it makes room for another.
#[derive(Debug)]
pub struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    peer: IpAddr,
}

/// There is no place for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Which limit is reached.
    pub limit: Limit,
    /// Its value.
    pub allowed: usize,
}

impl ConnectionSlots {
    /// Places for `most` connections, and for `most_per_peer` of one peer.
    pub fn new(most: usize, most_per_peer: usize) -> ConnectionSlots {
        ConnectionSlots { most, most_per_peer, taken: Mutex::default() }
    }

    /// Takes a place.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Result<ConnectionSlot, Full> {
        let peer = peer_network(address);
        let mut taken = self.taken.lock();
        if taken.all >= self.most {
            return Err(Full { limit: Limit::Connections, allowed: self.most });
        }
        let of_peer = taken.by_peer.get(&peer).copied().unwrap_or(0);
        if of_peer >= self.most_per_peer {
            return Err(Full { limit: Limit::ConnectionsPerPeer, allowed: self.most_per_peer });
        }
        taken.all += 1;
        taken.by_peer.insert(peer, of_peer + 1);
        drop(taken);
        Ok(ConnectionSlot { slots: self.clone(), peer })
    }

    /// How many connections are open.
    pub fn taken(&self) -> usize {
        self.taken.lock().all
    }

    /// How many connections there may be.
    pub fn most(&self) -> usize {
        self.most
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.by_peer.remove(&self.peer);
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
    fn there_are_places_for_so_many_of_a_peer_and_so_many_in_all() {
        let slots = Arc::new(ConnectionSlots::new(3, 2));
        let [one, two, three] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(address);
        let first = slots.take(one).unwrap();
        let _second = slots.take(one).unwrap();
        let full = Full { limit: Limit::ConnectionsPerPeer, allowed: 2 };
        assert_eq!(slots.take(one).unwrap_err(), full);
        let third = slots.take(two).unwrap();
        let full = Full { limit: Limit::Connections, allowed: 3 };
        assert_eq!(slots.take(three).unwrap_err(), full);
        drop(first);
        assert_eq!(slots.taken(), 2);
        let _again = slots.take(one).unwrap();
        drop(third);
        // Nothing is remembered of who is gone.
        assert_eq!(slots.taken.lock().by_peer.len(), 1);
    }
}
