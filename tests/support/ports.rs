//! Free ports, without races between tests that run in parallel.
//!
//! A test that leases a TCP port binds the UDP port of the same number. Nothing here uses UDP, so
//! that socket is only a lock, which the kernel releases when the process ends for any reason.
//! Unlike a port from the kernel that was closed again, a leased port stays reserved while its
//! server is down: a killed server restarts on the same port.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    ops::Range,
};

/// The offset from a Redis node's port to that of its cluster bus.
pub const BUS: u16 = 10_000;

// Below the ports that Linux uses for outgoing connections (32768 and up), bus ports included.
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

    /// The port number.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn lease(offsets: &[u16]) -> Port {
        let count = RANGE.end - RANGE.start;
        // A random start, so that processes seldom try the same port.
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

/// Locks the port, unless it is locked or a server listens on it.
fn claim(port: u16) -> Option<UdpSocket> {
    let lock = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    Some(lock)
}
