//! Which changes of this gateway's streams are published as events, and which are not yet.
//!
//! Three rules make a list of nodes and the events after it the truth, whatever happens between:
//!
//! - `node_joined` is published after the stream's record was written, and before `node_left`. Who
//!   reads all records after that finds the stream.
//! - `node_left` is published before the record is removed. If this gateway dies first, others find
//!   the stream in its record.
//! - A stream that others may have read gets both events, though it has ended. One that ended
//!   before that gets none.
//!
//! A stream that has left is known until its events were read back, in the order of the bus: where
//! another gateway took it for lost before it had joined, the last event of its name is the wrong
//! one, and it joins and leaves once more under other names.
//!
//! Pure: no clocks, tasks and bus. `S` is what the caller knows a stream by.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::StreamId;
use crate::proto::v1::NodeLeftReason;

/// Streams that have ended and wait for their events; more are given up.
const MAX_CLOSED: usize = 65_536;

/// Events that are published together.
const MAX_DRAFT: usize = 128;

/// The changes of this gateway's streams.
pub struct Changes<S> {
    streams: HashMap<u64, Stream<S>>,
    by_id: HashMap<StreamId, u64>,
    /// Streams by what is next for them: their record, `node_joined`, `node_left`.
    unwritten: BTreeSet<u64>,
    writing: BTreeSet<u64>,
    joining: BTreeSet<u64>,
    leaving: VecDeque<u64>,
    /// The number of streams that have ended.
    closed: usize,
    /// What is being published: the same until it is known what became of it.
    draft: Option<Draft<S>>,
    gave_up: bool,
}

struct Stream<S> {
    content: S,
    id: StreamId,
    returns: u32,
    state: State,
    /// Others may have read its record.
    known: bool,
    /// Its `node_joined` was read back.
    has_joined: bool,
    /// The reason, once it has ended.
    closed: Option<NodeLeftReason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its record is to be written.
    Unwritten,
    /// The exchange under way writes it.
    Writing,
    /// `node_joined` is to be published, or under way.
    Written,
    /// `node_joined` is published.
    Joined,
    /// `node_left` is to be published, or under way.
    Leaving,
    /// `node_left` is published, and not read back yet.
    Left,
}

/// Events to publish: all `joined` together, then those of `left`, one by one.
#[derive(Clone, Debug)]
pub struct Draft<S> {
    pub joined: Vec<Change<S>>,
    pub left: Vec<(Change<S>, NodeLeftReason)>,
}

/// One event.
#[derive(Clone, Debug)]
pub struct Change<S> {
    pub stream: S,
    pub id: StreamId,
    /// How often the stream was taken for lost before.
    pub returns: u32,
    number: u64,
}

/// What it means that a stream of this gateway is said to have left.
#[derive(Debug, PartialEq, Eq)]
pub enum LeftSeen {
    /// It is none, or nothing follows.
    Nothing,
    /// It has ended, and everything about it was read back: its record can be removed.
    Gone(u64),
    /// It joins anew, and leaves anew if it has ended: its record is to be written with this number
    /// of returns.
    Open(u64, u32),
}

impl<S> Default for Changes<S> {
    fn default() -> Changes<S> {
        Changes {
            streams: HashMap::new(),
            by_id: HashMap::new(),
            unwritten: BTreeSet::new(),
            writing: BTreeSet::new(),
            joining: BTreeSet::new(),
            leaving: VecDeque::new(),
            closed: 0,
            draft: None,
            gave_up: false,
        }
    }
}

impl<S: Clone> Changes<S> {
    /// A stream was opened.
    pub fn opened(&mut self, number: u64, id: StreamId, stream: S) {
        let (returns, state) = (0, State::Unwritten);
        let (known, has_joined, closed) = (false, false, None);
        let content = stream;
        let stream = Stream { content, id, returns, state, known, has_joined, closed };
        self.streams.insert(number, stream);
        self.by_id.insert(id, number);
        self.unwritten.insert(number);
    }

    /// A stream has ended. True if nothing is to be published about it: its record can be removed.
    pub fn closed(&mut self, number: u64, reason: NodeLeftReason) -> bool {
        let is_full = self.closed >= MAX_CLOSED;
        let Some(stream) = self.streams.get_mut(&number) else { return true };
        if stream.closed.is_some() {
            return false;
        }
        if stream.state == State::Unwritten && !stream.known {
            self.forget(number);
            return true;
        }
        if is_full {
            self.gave_up = true;
            self.forget(number);
            return true;
        }
        stream.closed = Some(reason);
        self.closed += 1;
        if stream.state == State::Joined {
            stream.state = State::Leaving;
            self.leaving.push_back(number);
        }
        false
    }

    /// All streams have ended. Returns those of which the record can be removed.
    pub fn close_all(&mut self, reason: NodeLeftReason) -> Vec<u64> {
        let numbers: Vec<u64> = self.streams.keys().copied().collect();
        numbers.into_iter().filter(|number| self.closed(*number, reason)).collect()
    }

    /// An exchange begins that writes the records of all streams that `are_listed`.
    pub fn exchange_begins(&mut self, are_listed: impl Fn(u64) -> bool) {
        let (streams, writing) = (&mut self.streams, &mut self.writing);
        self.unwritten.retain(|number| {
            if !are_listed(*number) {
                return true;
            }
            if let Some(stream) = streams.get_mut(number) {
                stream.state = State::Writing;
                writing.insert(*number);
            }
            false
        });
    }

    /// It has ended: the records were written, or they were not, or nobody knows.
    pub fn exchange_ended(&mut self, written: bool) {
        for number in std::mem::take(&mut self.writing) {
            let Some(stream) = self.streams.get_mut(&number) else { continue };
            stream.known = true;
            if written {
                stream.state = State::Written;
                self.joining.insert(number);
            } else {
                stream.state = State::Unwritten;
                self.unwritten.insert(number);
            }
        }
    }

    /// The next events to publish; the same ones until [`Changes::settle`].
    pub fn draft(&mut self) -> Option<&Draft<S>> {
        if self.draft.is_none() {
            let mut draft = Draft { joined: vec![], left: vec![] };
            while draft.joined.len() < MAX_DRAFT
                && let Some(number) = self.joining.pop_first()
            {
                draft.joined.extend(self.streams.get(&number).map(|s| s.change(number)));
            }
            while draft.left.len() < MAX_DRAFT
                && let Some(number) = self.leaving.pop_front()
            {
                // Unless it joins anew since then.
                let stream = self.streams.get(&number);
                let stream = stream.filter(|stream| stream.state == State::Leaving);
                let left = stream.and_then(|stream| Some((stream.change(number), stream.closed?)));
                draft.left.extend(left);
            }
            let is_empty = draft.joined.is_empty() && draft.left.is_empty();
            self.draft = (!is_empty).then_some(draft);
        }
        self.draft.as_ref()
    }

    /// Records what became of the draft: whether `joined` was published, and each of `left`.
    pub fn settle(&mut self, joined: bool, left: &[bool]) {
        let Some(mut draft) = self.draft.take() else { return };
        if joined {
            for change in std::mem::take(&mut draft.joined) {
                let Some(stream) = self.drafted(&change, State::Written) else { continue };
                stream.state = State::Joined;
                if stream.closed.is_some() {
                    stream.state = State::Leaving;
                    self.leaving.push_back(change.number);
                }
            }
        }
        let mut done = left.iter().copied().chain(std::iter::repeat(false));
        let mut changes = std::mem::take(&mut draft.left);
        changes.retain(|(change, _)| {
            let is_done = done.next() == Some(true);
            if is_done && let Some(stream) = self.drafted(change, State::Leaving) {
                stream.state = State::Left;
            }
            !is_done
        });
        draft.left = changes;
        if !draft.joined.is_empty() || !draft.left.is_empty() {
            self.draft = Some(draft);
        }
    }

    /// The stream of a drafted event, unless it is to join anew, or is gone, since then.
    fn drafted(&mut self, change: &Change<S>, state: State) -> Option<&mut Stream<S>> {
        let stream = self.streams.get_mut(&change.number)?;
        (stream.returns == change.returns && stream.state == state).then_some(stream)
    }

    /// A `node_joined` of this stream was read; `is_of` says for which number of returns.
    pub fn joined_seen(&mut self, id: StreamId, is_of: impl FnOnce(u32) -> bool) {
        let stream = self.by_id.get(&id).and_then(|number| self.streams.get_mut(number));
        if let Some(stream) = stream {
            stream.has_joined |= is_of(stream.returns);
        }
    }

    /// A `node_left` of this stream was read, by whomever it was published.
    pub fn left_seen(&mut self, id: StreamId) -> LeftSeen {
        let Some(&number) = self.by_id.get(&id) else { return LeftSeen::Nothing };
        let Some(stream) = self.streams.get(&number) else { return LeftSeen::Nothing };
        if stream.has_joined && stream.closed.is_some() {
            self.forget(number);
            return LeftSeen::Gone(number);
        }
        LeftSeen::Open(number, self.again(number))
    }

    /// Events about these streams may be lost: all of them join anew. Returns them, with their
    /// returns.
    pub fn all_anew(&mut self) -> Vec<(u64, u32)> {
        let is_published = |stream: &Stream<S>| {
            matches!(stream.state, State::Joined | State::Leaving | State::Left)
        };
        let published = self.streams.iter().filter(|(_, stream)| is_published(stream));
        let published: Vec<u64> = published.map(|(number, _)| *number).collect();
        published.into_iter().map(|number| (number, self.again(number))).collect()
    }

    /// The record of a stream is to be written again, and then it joins anew.
    fn again(&mut self, number: u64) -> u32 {
        let Some(stream) = self.streams.get_mut(&number) else { return 0 };
        stream.returns = stream.returns.saturating_add(1);
        (stream.state, stream.known, stream.has_joined) = (State::Unwritten, true, false);
        self.writing.remove(&number);
        self.joining.remove(&number);
        self.unwritten.insert(number);
        stream.returns
    }

    /// True if a list of nodes has the stream: it is open, and if that changes, there are events.
    pub fn is_current(&self, number: u64) -> bool {
        let stream = self.streams.get(&number);
        stream.is_some_and(|stream| {
            let is_written = matches!(stream.state, State::Written | State::Joined);
            stream.closed.is_none() && (is_written || stream.known)
        })
    }

    /// True once if events were given up.
    pub fn take_gave_up(&mut self) -> bool {
        std::mem::take(&mut self.gave_up)
    }

    /// The number of events that wait.
    pub fn waiting(&self) -> usize {
        let draft = self.draft.as_ref().map_or(0, |draft| draft.joined.len() + draft.left.len());
        self.joining.len() + self.leaving.len() + draft
    }

    fn forget(&mut self, number: u64) {
        let Some(stream) = self.streams.remove(&number) else { return };
        self.by_id.remove(&stream.id);
        self.unwritten.remove(&number);
        self.writing.remove(&number);
        self.joining.remove(&number);
        self.closed -= usize::from(stream.closed.is_some());
    }
}

impl<S: Clone> Stream<S> {
    fn change(&self, number: u64) -> Change<S> {
        let (stream, id, returns) = (self.content.clone(), self.id, self.returns);
        Change { stream, id, returns, number }
    }
}

#[cfg(test)]
mod tests;
