//! Free ports, without races between tests that run side by side.
//!
//! Whoever leases a TCP port holds the UDP socket of the same number. Nothing here speaks UDP, so the socket is nothing but a
//! lock; and the kernel gives it back when the process ends, however it ends. Unlike a port that the kernel chose and that
//! was closed again, a lease stays ours while its server is down: a killed server comes back on the same port.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    ops::Range,
};

/// What Redis adds to a node's port for its cluster bus.
pub const BUS: u16 = 10_000;

// Below the ports that Linux gives to outgoing connections (32768 and up), with the bus ports too.
const RANGE: Range<u16> = 12_000..22_000;

/// A TCP port on loopback that no other test takes, until it is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _leases: Vec<UdpSocket>,
}

impl Port {
    /// Leases a free port.
    pub fn free() -> Port {
        Port::lease(&[0])
    }

    /// Leases a free port whose cluster bus port is free too.
    pub fn with_bus() -> Port {
        Port::lease(&[0, BUS])
    }

    /// The port.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn lease(offsets: &[u16]) -> Port {
        let count = RANGE.end - RANGE.start;
        // Processes start at different places, so that they seldom ask for the same port.
        let start = rand::random_range(0..count);
        (0..count)
            .map(|step| RANGE.start + (start + step) % count)
            .find_map(|number| {
                let leases = offsets.iter().map(|offset| claim(number + offset));
                Some(Port { number, _leases: leases.collect::<Option<_>>()? })
            })
            .expect("no free port on loopback")
    }
}

/// Locks the port, if nobody has and nobody listens on it.
fn claim(port: u16) -> Option<UdpSocket> {
    let lock = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    Some(lock)
}
