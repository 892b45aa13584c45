//! How a process goes on in the place of the one before, in a folder that both know.
//!
//! The running agent listens on a socket in that folder. A new one that is started with the same
//! folder connects to it, and gets the sockets that programs connect to, as file descriptors: they
//! were never closed, so no connection is refused, and those that nobody has accepted yet are
//! accepted by the new one. Then the running agent answers the commands that it has, closes its
//! connections, and gives away its state ([`Snapshot`]): what waits for a gateway, where the stream
//! of events goes on, and what it knows of accounts.
//!
//! An agent that is stopped keeps its state in a file of that folder, for the next start. The file
//! is empty while it runs, so that one which ended by force is found out.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::PathBuf,
    time::Duration,
};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    time::{Instant, sleep, timeout},
};

use super::{
    listen::{Address, Listener},
    snapshot::Snapshot,
};

/// The most sockets that are handed over.
const MAX_LISTENERS: usize = 32;

/// The longest snapshot that is read. The buffer of events is smaller by far.
const MAX_SNAPSHOT: usize = 1 << 30;

/// How long the other process may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long an address may be taken by a process that is about to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The wait before the next attempt.
const AGAIN: Duration = Duration::from_millis(50);

/// What comes with the sockets. Another protocol has another byte.
const SOCKETS: u8 = 1;

/// The new process has the sockets and takes over.
const TAKES_OVER: u8 = 2;

/// The new process has the state.
const HAS_STATE: u8 = 3;

/// The folder of an agent, its own.
#[derive(Clone, Debug)]
pub struct StateFolder {
    path: PathBuf,
}

impl StateFolder {
    /// Opens a folder. One that is missing is made, for this user alone.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<StateFolder> {
        let path = path.into();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(StateFolder { path })
    }

    /// Takes the sockets and the state over from the agent that runs in this folder, if there is
    /// one; else listens on the addresses, and reads the state that the last one kept. `mode` is
    /// that of [`Listener::bind`].
    ///
    /// # Errors
    ///
    /// An address cannot be listened on, or the state cannot be read.
    pub async fn begin(
        &self,
        addresses: &[Address],
        mode: u32,
    ) -> io::Result<(Vec<Listener>, Option<Snapshot>)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match timeout(2 * ANSWER, self.take_over(addresses, mode)).await {
                Ok(Ok(Some((listeners, snapshot)))) => return Ok((listeners, Some(snapshot))),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the running agent was not replaced"),
                Err(_) => tracing::warn!("the running agent does not answer"),
            }
            match bind(addresses, mode) {
                Ok(listeners) => return Ok((listeners, self.load()?)),
                // By an agent that is about to end, or that has just taken over.
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the state that the last agent kept, and marks the folder as that of a running one.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn load(&self) -> io::Result<Option<Snapshot>> {
        let file = self.file();
        let snapshot = match fs::read(&file) {
            Ok(bytes) if bytes.is_empty() => {
                tracing::warn!("the agent before this one ended by force");
                Some(Snapshot::of_a_crash())
            }
            Ok(bytes) => Some(Snapshot::decode(&*bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "the state of the agent before this one is unreadable");
                Snapshot::of_a_crash()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        self.write(&[])?;
        Ok(snapshot)
    }

    /// Keeps the state for the next start.
    pub(super) fn save(&self, snapshot: &Snapshot) -> io::Result<()> {
        self.write(&snapshot.encode_to_vec())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let new = self.path.join("state.new");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        fs::rename(new, self.file())
    }

    fn file(&self) -> PathBuf {
        self.path.join("state")
    }

    fn socket(&self) -> PathBuf {
        self.path.join("handover.sock")
    }

    /// Listens for the process that is to take over.
    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        // Who has the sockets of the agent owns the folder: the file is that of the one before.
        let _ = fs::remove_file(self.socket());
        UnixListener::bind(self.socket())
    }

    /// Nobody can take over any more.
    pub(super) fn close(&self) {
        let _ = fs::remove_file(self.socket());
    }

    /// None: no agent runs here.
    async fn take_over(
        &self,
        addresses: &[Address],
        mode: u32,
    ) -> io::Result<Option<(Vec<Listener>, Snapshot)>> {
        let Ok(mut stream) = UnixStream::connect(self.socket()).await else { return Ok(None) };
        check_peer(&stream)?;
        let sockets = stream.async_io(Interest::READABLE, || receive(&stream)).await?;
        let names = read_frame(&mut stream).await?;
        let names = String::from_utf8_lossy(&names).into_owned();
        let mut offered: Vec<(&str, OwnedFd)> = names.lines().zip(sockets).collect();
        let mut listeners = Vec::new();
        for address in addresses {
            let name = address.to_string();
            listeners.push(match offered.iter().position(|(offered, _)| *offered == name) {
                Some(at) => Listener::taken_over(address, offered.swap_remove(at).1)?,
                None => Listener::bind(address, mode)?,
            });
        }
        stream.write_all(&[TAKES_OVER]).await?;
        let snapshot = match read_frame(&mut stream).await {
            Ok(bytes) => Snapshot::decode(&*bytes).map_err(io::Error::other),
            Err(error) => Err(error),
        };
        let snapshot = snapshot.unwrap_or_else(|error| {
            tracing::warn!(%error, "the agent before this one left no state");
            Snapshot::of_a_crash()
        });
        // It may have ended already.
        let _ = stream.write_all(&[HAS_STATE]).await;
        tracing::info!(waiting = snapshot.waiting(), "took over from the running agent");
        Ok(Some((listeners, snapshot)))
    }
}

fn bind(addresses: &[Address], mode: u32) -> io::Result<Vec<Listener>> {
    addresses.iter().map(|address| Listener::bind(address, mode)).collect()
}

/// A process that takes over.
pub(super) struct Successor(UnixStream);

impl Successor {
    /// Waits for a process that takes over the listeners. It has them when this returns.
    pub(super) async fn wait(socket: &UnixListener, listeners: &[Listener]) -> Successor {
        loop {
            let stream = match socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a new process could not connect");
                    sleep(AGAIN).await;
                    continue;
                }
            };
            match timeout(ANSWER, offer(stream, listeners)).await {
                Ok(Ok(stream)) => return Successor(stream),
                Ok(Err(error)) => tracing::warn!(%error, "a new process did not take over"),
                Err(_) => tracing::warn!("a new process did not take over in time"),
            }
        }
    }

    /// Gives the state to the process. False if it may not have it.
    pub(super) async fn give(mut self, snapshot: &Snapshot) -> bool {
        let give = async {
            write_frame(&mut self.0, &snapshot.encode_to_vec()).await?;
            self.0.read_u8().await
        };
        matches!(timeout(ANSWER, give).await, Ok(Ok(HAS_STATE)))
    }
}

async fn offer(mut stream: UnixStream, listeners: &[Listener]) -> io::Result<UnixStream> {
    check_peer(&stream)?;
    let listeners = &listeners[..listeners.len().min(MAX_LISTENERS)];
    stream.async_io(Interest::WRITABLE, || send(&stream, listeners)).await?;
    let names: Vec<String> = listeners.iter().map(|each| each.address().to_string()).collect();
    write_frame(&mut stream, names.join("\n").as_bytes()).await?;
    match stream.read_u8().await? {
        TAKES_OVER => Ok(stream),
        _ => Err(io::Error::other("it speaks another protocol")),
    }
}

/// Only processes of this user, and the administrator's.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    if user == 0 || user == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let why = format!("the process at the other end is of user {user}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

fn send(stream: &UnixStream, listeners: &[Listener]) -> io::Result<()> {
    let sockets: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&sockets));
    sendmsg(stream, &[IoSlice::new(&[SOCKETS])], &mut control, SendFlags::empty())?;
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 || byte != [SOCKETS] {
        return Err(io::Error::other("it is about to end, or speaks another protocol"));
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

async fn write_frame(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_u64(bytes.len() as u64).await?;
    stream.write_all(bytes).await
}

async fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u64().await?;
    if length > MAX_SNAPSHOT as u64 {
        return Err(io::Error::other("what the other process sends is too long"));
    }
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes).await?;
    if (bytes.len() as u64) < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
