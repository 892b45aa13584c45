//! How many connections there may be: in all, and from one peer.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::rpc::limit::Limit;

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
        let peer = peer_of(address);
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

/// Who counts as one peer: an address of IPv4, and the network of an address of IPv6, of which one host has all 2^64.
pub fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address @ IpAddr::V4(_) => address,
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

    #[test]
    fn a_host_of_ipv6_is_one_peer_whatever_address_it_takes() {
        assert_eq!(peer_of(address("2001:db8:1:2:3:4:5:6")), address("2001:db8:1:2::"));
        assert_eq!(peer_of(address("2001:db8:1:2::1")), address("2001:db8:1:2::"));
        assert_ne!(peer_of(address("2001:db8:1:3::1")), address("2001:db8:1:2::"));
        assert_eq!(peer_of(address("::ffff:10.1.2.3")), address("10.1.2.3"));
    }
}
