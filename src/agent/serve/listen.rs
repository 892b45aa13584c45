//! The sockets that an agent listens on.
//!
//! Programs do not try again for a long time where they find nobody, so a socket outlives the
//! process: systemd holds it, or the next process takes it over (see `handover.rs`).

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net as unix,
        },
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

/// What programs connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address of this host and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// True if only programs of this host can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Tcp(address) => address.ip().is_loopback(),
            Address::Unix(_) => true,
        }
    }

    /// Host and port, as clients are told of them.
    pub(super) fn parts(&self) -> (String, u16) {
        match self {
            Address::Tcp(address) => (address.ip().to_string(), address.port()),
            Address::Unix(path) => (path.display().to_string(), 0),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Address::Unix(path.into()))
            } else {
                Err("the path of a Unix socket is absolute: unix:/run/trunkline/agent.sock".into())
            };
        }
        let why = |_| "must be an address and a port, 127.0.0.1:6380, or unix:/path".to_owned();
        text.parse().map(Address::Tcp).map_err(why)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection of a program.
pub(super) type Stream = Either<TcpStream, UnixStream>;

/// A socket that programs connect to.
#[derive(Debug)]
pub struct Listener {
    socket: Either<TcpListener, UnixListener>,
    address: Address,
    /// The file of a Unix socket that this process made.
    file: Option<PathBuf>,
}

impl Listener {
    /// Listens on an address. `mode` are the permissions of the file of a Unix socket; one that a
    /// process left behind is replaced.
    ///
    /// # Errors
    ///
    /// The socket cannot be made, or somebody listens there.
    pub fn bind(address: &Address, mode: u32) -> io::Result<Listener> {
        match address {
            Address::Tcp(address) => Listener::tcp(std::net::TcpListener::bind(address)?),
            Address::Unix(path) => {
                let socket = bind_unix(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
                Ok(Listener { file: Some(path.clone()), ..Listener::unix(socket)? })
            }
        }
    }

    /// The sockets that systemd, or who follows its protocol, gave to this process; none as a rule.
    ///
    /// # Errors
    ///
    /// One of them is not a socket that streams are accepted from.
    pub fn passed() -> io::Result<Vec<Listener>> {
        let mut passed = ListenFd::from_env();
        let mut listeners = Vec::new();
        for index in 0..passed.len() {
            let listener = match passed.take_tcp_listener(index) {
                Ok(socket) => socket.map(Listener::tcp),
                Err(_) => passed.take_unix_listener(index)?.map(Listener::unix),
            };
            listeners.extend(listener.transpose()?);
        }
        Ok(listeners)
    }

    /// A socket that another process listened on until now.
    pub(super) fn taken_over(address: &Address, socket: OwnedFd) -> io::Result<Listener> {
        match address {
            Address::Tcp(_) => Listener::tcp(socket.into()),
            Address::Unix(path) => {
                Ok(Listener { file: Some(path.clone()), ..Listener::unix(socket.into())? })
            }
        }
    }

    fn tcp(socket: std::net::TcpListener) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        let address = Address::Tcp(socket.local_addr()?);
        let socket = Either::Left(TcpListener::from_std(socket)?);
        Ok(Listener { socket, address, file: None })
    }

    fn unix(socket: unix::UnixListener) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        let path = socket.local_addr()?.as_pathname().map(PathBuf::from).unwrap_or_default();
        let socket = Either::Right(UnixListener::from_std(socket)?);
        Ok(Listener { socket, address: Address::Unix(path), file: None })
    }

    /// Its address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts a connection.
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        Ok(match &self.socket {
            Either::Left(socket) => {
                let (stream, _) = socket.accept().await?;
                // A message must not wait for the acknowledgement of the one before.
                let _ = stream.set_nodelay(true);
                Either::Left(stream)
            }
            Either::Right(socket) => Either::Right(socket.accept().await?.0),
        })
    }

    /// Removes the file of the socket: nobody listens there any more.
    pub(super) fn close(self) {
        if let Some(file) = self.file {
            let _ = fs::remove_file(file);
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Listener {
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = Address::Tcp(socket.local_addr().unwrap_or(unspecified));
        Listener { socket: Either::Left(socket), address, file: None }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Either::Left(socket) => socket.as_fd(),
            Either::Right(socket) => socket.as_fd(),
        }
    }
}

/// Listens on a path. The file of a process that ended by force is replaced.
pub(super) fn bind_unix(path: &Path) -> io::Result<unix::UnixListener> {
    let error = match unix::UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        bound => return bound,
    };
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let connected = unix::UnixStream::connect(path);
    let is_left = connected.is_err_and(|why| why.kind() == io::ErrorKind::ConnectionRefused);
    if !is_socket || !is_left {
        return Err(error);
    }
    fs::remove_file(path)?;
    unix::UnixListener::bind(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["127.0.0.1:6380", "[::1]:6380", "unix:/run/trunkline/agent.sock"] {
            let address: Address = text.parse().unwrap();
            assert!(address.is_local());
            assert_eq!(address.to_string(), text);
        }
        assert!(!"10.0.0.5:6380".parse::<Address>().unwrap().is_local());
        for wrong in ["", "6380", "localhost:6380", "unix:agent.sock", "unix:"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_file_of_a_socket_is_replaced_only_where_nobody_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let address = Address::Unix(path.clone());
        let first = Listener::bind(&address, 0o660).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = Listener::bind(&address, 0o660).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        // Its process ends, and the file stays.
        drop(first);
        Listener::bind(&address, 0o600).unwrap().close();
        assert!(!path.exists());
        fs::write(&path, "not a socket").unwrap();
        assert!(Listener::bind(&address, 0o600).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a socket");
    }
}
