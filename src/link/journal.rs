//! The state file of a link: what it has taken from the source, written before it is sent.
//!
//! The destination knows the events of a publisher by their sequences. A link that is killed must
//! send again what has no answer, each event under the sequence that it had; so events and
//! sequences are in the file, and synchronized with the disk, before anything is sent. Nothing
//! depends on whether the source would send the same events in the same order once more.
//!
//! The file is a series of records, each with its length and a checksum; the first says whose state
//! it is. A record that the process could not finish is left out: nothing of it was sent. Where
//! most of the file is settled, what is left is written to a new one, which takes its place.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use prost::Message;
use ring::digest::{SHA256, digest};
use trunkline_client::v1::Event;
use uuid::Uuid;

/// Length, its complement, and the beginning of the SHA-256 of what follows.
const HEADER: usize = 4 + 4 + 8;

/// Settled bytes for which the file is written anew.
const SETTLED_BYTES: u64 = 8 << 20;

/// Whose state it is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Identity {
    /// The deployment that events come from.
    #[prost(string, tag = "1")]
    pub from: String,
    /// The one that they go to.
    #[prost(string, tag = "2")]
    pub to: String,
    /// The node that publishes them there.
    #[prost(string, tag = "3")]
    pub node_id: String,
}

/// The last event of a kind whose last value gateways keep: each stream begins with it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct LastValue {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, tag = "3")]
    pub event_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    /// In the first record.
    #[prost(message, optional, tag = "1")]
    begin: Option<Begin>,
    /// Where the subscription goes on after the events; empty: as before.
    #[prost(bytes = "vec", tag = "2")]
    token: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    events: Vec<Event>,
    /// When they were written, in milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    written_at: u64,
    /// Everything up to this sequence has its answer.
    #[prost(uint64, tag = "5")]
    settled: u64,
    #[prost(message, repeated, tag = "6")]
    last_values: Vec<LastValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Begin {
    #[prost(message, optional, tag = "1")]
    identity: Option<Identity>,
    #[prost(string, tag = "2")]
    publisher_id: String,
    /// The sequence of the first event in the file.
    #[prost(uint64, tag = "3")]
    first_sequence: u64,
}

/// Why a state file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another process has it.
    #[error("another process uses it: two links need two files")]
    InUse,
    /// Something else was written there, or the disk is damaged.
    #[error(
        "it is damaged at byte {0}: restore it, or remove it. A link without a state begins with \
         what is published from then on, and the nodes of the destination get a gap"
    )]
    Damaged(usize),
    /// It is the state of another link.
    #[error("it is the state of the link {found}, and this is {here}: each link has a file")]
    OfAnother {
        /// The link that wrote it.
        found: String,
        /// This one.
        here: String,
    },
}

/// The state of a link.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    size: u64,
    identity: Identity,
    publisher_id: String,
    token: Vec<u8>,
    settled: u64,
    /// The sequence of the next event.
    next: u64,
    /// The records with events that are not settled: the first sequence of each, and where it is.
    records: VecDeque<(u64, u64)>,
    last_values: BTreeMap<i32, LastValue>,
}

/// The events without an answer, each with the time since it was written.
pub(super) type Unsettled = Vec<(Event, Duration)>;

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Identity { from, to, node_id } = self;
        write!(f, "from {from:?} to {to:?} as the node {node_id:?}")
    }
}

impl Journal {
    /// The state in a file, which is created where there is none.
    ///
    /// # Errors
    ///
    /// All of [`StateError`].
    pub(super) fn open(
        path: &Path,
        identity: &Identity,
    ) -> Result<(Journal, Unsettled), StateError> {
        let mut file = options().create(true).open(path)?;
        lock(&file)?;
        if fs::metadata(path)?.ino() != file.metadata()?.ino() {
            // Its owner has just put another one in its place.
            return Err(StateError::InUse);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut journal = Journal {
            path: path.to_owned(),
            file,
            size: 0,
            identity: identity.clone(),
            publisher_id: Uuid::new_v4().to_string(),
            token: vec![],
            settled: 0,
            next: 1,
            records: VecDeque::new(),
            last_values: BTreeMap::new(),
        };
        let unsettled = journal.read(&bytes)?;
        journal.file.set_len(journal.size)?;
        journal.file.seek(SeekFrom::End(0))?;
        if journal.size == 0 {
            journal.renew(0)?;
        }
        Ok((journal, unsettled))
    }

    /// The publisher of the link at the destination.
    pub(super) fn publisher_id(&self) -> &str {
        &self.publisher_id
    }

    /// Where the subscription goes on; empty: it was never open.
    pub(super) fn token(&self) -> &[u8] {
        &self.token
    }

    /// The last sequence up to which everything has its answer.
    pub(super) fn settled(&self) -> u64 {
        self.settled
    }

    /// True if events wait for their answers.
    pub(super) fn has_unsettled(&self) -> bool {
        self.settled + 1 < self.next
    }

    /// True if this is the last event of its kind that was taken: a stream that goes on begins with
    /// it again.
    pub(super) fn is_last_value(&self, value: &LastValue) -> bool {
        self.last_values.get(&value.kind) == Some(value)
    }

    /// Records events, the token after them, and up to where everything is settled. With events it
    /// returns when the disk has them.
    pub(super) fn append(
        &mut self,
        token: &[u8],
        events: Vec<Event>,
        last_values: Vec<LastValue>,
        settled: u64,
    ) -> io::Result<Vec<Event>> {
        let at = self.size;
        let record = Record {
            begin: None,
            token: token.to_vec(),
            events,
            written_at: now(),
            settled: settled.max(self.settled),
            last_values,
        };
        self.write(&record)?;
        if !record.events.is_empty() {
            self.file.sync_data()?;
        }
        let events = self.apply(record, at);
        let live = self.records.front().map_or(self.size, |(_, at)| *at);
        if live > SETTLED_BYTES.max(self.size - live) {
            self.renew(live)?;
        }
        Ok(events)
    }

    /// Takes in a record that is in the file; returns its events.
    fn apply(&mut self, record: Record, at: u64) -> Vec<Event> {
        if !record.token.is_empty() {
            self.token = record.token;
        }
        if !record.events.is_empty() {
            self.records.push_back((self.next, at));
            self.next += record.events.len() as u64;
        }
        self.settled = self.settled.max(record.settled);
        let values = record.last_values.into_iter().map(|value| (value.kind, value));
        self.last_values.extend(values);
        while let Some((first, _)) = self.records.front() {
            let end = self.records.get(1).map_or(self.next, |(next, _)| *next);
            if end > self.settled + 1 || *first > self.settled {
                break;
            }
            self.records.pop_front();
        }
        record.events
    }

    fn begin(&self, first_sequence: u64) -> Begin {
        let identity = Some(self.identity.clone());
        Begin { identity, publisher_id: self.publisher_id.clone(), first_sequence }
    }

    /// Writes what is left, from `live` on, to a new file in the place of this one.
    fn renew(&mut self, live: u64) -> io::Result<()> {
        let mut path = self.path.clone().into_os_string();
        path.push(".new");
        let file = options().create(true).truncate(true).open(&path)?;
        lock(&file).map_err(io::Error::other)?;
        let first = self.records.front().map_or(self.next, |(first, _)| *first);
        let record = Record {
            begin: Some(self.begin(first)),
            token: self.token.clone(),
            settled: self.settled,
            last_values: self.last_values.values().cloned().collect(),
            ..Record::default()
        };
        let old = std::mem::replace(&mut self.file, file);
        let (mut rest, size) = (&old, self.size - live);
        self.size = 0;
        self.write(&record)?;
        let moved = self.size;
        rest.seek(SeekFrom::Start(live))?;
        io::copy(&mut rest.take(size), &mut self.file)?;
        self.size += size;
        self.records.iter_mut().for_each(|(_, at)| *at = *at - live + moved);
        self.file.sync_all()?;
        fs::rename(&path, &self.path)?;
        sync_folder(&self.path)
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let content = record.encode_to_vec();
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER + content.len());
        bytes.extend(length.to_le_bytes());
        bytes.extend((!length).to_le_bytes());
        bytes.extend(checksum(&content));
        bytes.extend(content);
        self.file.write_all(&bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Reads the records of a file, up to one that was not finished.
    fn read(&mut self, bytes: &[u8]) -> Result<Unsettled, StateError> {
        let mut unsettled = Vec::new();
        let mut at = 0;
        if !bytes.is_empty() && content_at(bytes, 0)?.is_none() {
            // The first record comes with the file.
            return Err(StateError::Damaged(0));
        }
        while let Some(content) = content_at(bytes, at)? {
            let damaged = |_| StateError::Damaged(at);
            let mut record = Record::decode(content).map_err(damaged)?;
            match record.begin.take() {
                Some(begin) if at == 0 => self.begins(begin)?,
                None if at > 0 => {}
                _ => return Err(StateError::Damaged(at)),
            }
            let (written_at, place) = (record.written_at, at as u64);
            at += HEADER + content.len();
            self.size = at as u64;
            let events = self.apply(record, place);
            let since = Duration::from_millis(now().saturating_sub(written_at));
            unsettled.extend(events.into_iter().map(|event| (event, since)));
        }
        let left = usize::try_from(self.next - 1 - self.settled).unwrap_or(usize::MAX);
        let settled = unsettled.len().checked_sub(left).ok_or(StateError::Damaged(at))?;
        unsettled.drain(..settled);
        Ok(unsettled)
    }

    fn begins(&mut self, begin: Begin) -> Result<(), StateError> {
        let found = begin.identity.unwrap_or_default();
        if found != self.identity {
            let (found, here) = (found.to_string(), self.identity.to_string());
            return Err(StateError::OfAnother { found, here });
        }
        self.publisher_id = begin.publisher_id;
        self.next = begin.first_sequence.max(1);
        self.settled = self.next - 1;
        Ok(())
    }
}

/// The content of the record at a place; none at the end, and where the record is not whole.
fn content_at(bytes: &[u8], at: usize) -> Result<Option<&[u8]>, StateError> {
    let Some((header, rest)) = bytes[at..].split_at_checked(HEADER) else { return Ok(None) };
    let number = |from: usize| {
        let bytes = header[from..from + 4].try_into().unwrap_or_default();
        u32::from_le_bytes(bytes)
    };
    let length = number(0);
    if number(4) != !length {
        return Err(StateError::Damaged(at));
    }
    let Some(content) = rest.get(..length as usize) else { return Ok(None) };
    if header[8..] != checksum(content) {
        return Err(StateError::Damaged(at));
    }
    Ok(Some(content))
}

fn checksum(content: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&digest(&SHA256, content).as_ref()[..8]);
    sum
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn lock(file: &File) -> Result<(), StateError> {
    file.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => StateError::InUse,
        fs::TryLockError::Error(error) => error.into(),
    })
}

/// Makes the name of a file last.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn now() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use trunkline_client::v1::MailboxChange;

    use super::*;

    fn identity() -> Identity {
        Identity { from: "a".into(), to: "b".into(), node_id: "link".into() }
    }

    fn event(id: u64) -> Event {
        let change = MailboxChange { account_id: id.to_string(), ..Default::default() };
        Event { event_id: id.to_string(), ..change.into() }
    }

    fn open(path: &Path) -> (Journal, Vec<String>) {
        let (journal, unsettled) = Journal::open(path, &identity()).unwrap();
        (journal, unsettled.into_iter().map(|(event, _)| event.event_id).collect())
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        (folder, path)
    }

    #[test]
    fn what_is_not_settled_keeps_its_sequence_in_the_next_process() {
        let (_folder, path) = file();
        let (mut journal, unsettled) = open(&path);
        assert!(unsettled.is_empty() && journal.token().is_empty());
        let publisher = journal.publisher_id().to_owned();
        journal.append(b"t1", vec![event(1), event(2)], vec![], 0).unwrap();
        journal.append(b"t2", vec![event(3)], vec![], 1).unwrap();
        journal.append(b"", vec![], vec![], 1).unwrap();
        assert!(journal.has_unsettled());
        drop(journal);
        let (mut journal, unsettled) = open(&path);
        assert_eq!((journal.settled(), journal.token()), (1, &b"t2"[..]));
        assert_eq!(
            (unsettled, journal.publisher_id()),
            (vec!["2".into(), "3".into()], &*publisher)
        );
        journal.append(b"t3", vec![event(4)], vec![], 4).unwrap();
        assert!(!journal.has_unsettled());
        drop(journal);
        let (journal, unsettled) = open(&path);
        assert_eq!((journal.settled(), unsettled.len()), (4, 0));
    }

    #[test]
    fn a_record_that_was_not_finished_is_left_out_wherever_it_ends() {
        let (_folder, path) = file();
        let (mut journal, _) = open(&path);
        journal.append(b"t1", vec![event(1)], vec![], 0).unwrap();
        let whole = usize::try_from(journal.size).unwrap();
        journal.append(b"t2", vec![event(2)], vec![], 0).unwrap();
        drop(journal);
        let bytes = fs::read(&path).unwrap();
        for end in whole..bytes.len() {
            fs::write(&path, &bytes[..end]).unwrap();
            let (mut journal, unsettled) = open(&path);
            assert_eq!((unsettled, journal.token()), (vec!["1".to_owned()], &b"t1"[..]), "{end}");
            journal.append(b"t3", vec![event(3)], vec![], 0).unwrap();
            drop(journal);
            assert_eq!(open(&path).1, ["1", "3"]);
        }
        // The first record comes with the file: something else was written there.
        for end in 1..20 {
            fs::write(&path, &bytes[..end]).unwrap();
            let opened = Journal::open(&path, &identity());
            assert!(matches!(opened, Err(StateError::Damaged(0))), "{end}: {opened:?}");
        }
    }

    #[test]
    fn a_changed_byte_is_found_wherever_it_is() {
        let (_folder, path) = file();
        let (mut journal, _) = open(&path);
        journal.append(b"t1", vec![event(1)], vec![], 0).unwrap();
        journal.append(b"t2", vec![event(2)], vec![], 1).unwrap();
        drop(journal);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            let opened = Journal::open(&path, &identity());
            assert!(matches!(opened, Err(StateError::Damaged(_))), "{at}: {opened:?}");
        }
    }

    #[test]
    fn a_file_is_for_one_process_and_one_link() {
        let (_folder, path) = file();
        let (journal, _) = open(&path);
        assert!(matches!(Journal::open(&path, &identity()), Err(StateError::InUse)));
        drop(journal);
        let other = Identity { to: "c".into(), ..identity() };
        let error = Journal::open(&path, &other).unwrap_err().to_string();
        assert!(error.contains(r#"from "a" to "b""#) && error.contains(r#"to "c""#), "{error}");
        for other in ["else", "something else, and more of it"] {
            fs::write(&path, other).unwrap();
            let opened = Journal::open(&path, &identity());
            assert!(matches!(opened, Err(StateError::Damaged(0))), "{opened:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
    }

    #[test]
    fn a_file_that_is_settled_is_written_anew_and_keeps_what_is_not() {
        let (_folder, path) = file();
        let (mut journal, _) = open(&path);
        let value = |id: &str| LastValue { kind: 18, source: "n".into(), event_id: id.into() };
        let publisher = journal.publisher_id().to_owned();
        let large = |id: u64| Event { tracestate: "x".repeat(1 << 20), ..event(id) };
        let mut greatest = 0;
        for id in 1..=40 {
            let token = format!("t{id}");
            let values = vec![value(&id.to_string())];
            // The last two have no answer.
            let events = journal.append(token.as_bytes(), vec![large(id)], values, id.max(3) - 2);
            assert_eq!(events.unwrap().len(), 1);
            greatest = greatest.max(journal.size);
        }
        assert!(greatest < 13 << 20, "{greatest} bytes");
        assert!(journal.is_last_value(&value("40")) && !journal.is_last_value(&value("39")));
        drop(journal);
        let (journal, unsettled) = open(&path);
        assert_eq!((unsettled, journal.token()), (vec!["39".into(), "40".into()], &b"t40"[..]));
        assert_eq!((journal.settled(), journal.publisher_id()), (38, &*publisher));
        assert!(journal.is_last_value(&value("40")));
        assert!(!path.with_extension("new").exists());
    }
}
