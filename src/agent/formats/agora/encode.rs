//! Messages, written.

use std::mem::replace;

use bytes::Bytes;

use super::{
    event::{Entries, Entry, Event},
    names::{self, Cache},
    reader::{put_number, put_text},
    version::{Tags, Version, Young},
};

/// A message ends with the event that makes it longer than this. Nodes write a hundred events at
/// most into one, and read any number.
const MESSAGE_BYTES: usize = 16 << 10;

/// Writes events as messages of one sender: several events in one, in their order.
///
/// A node does not read what follows an event that it does not know. So an event of a kind that
/// the nodes may not have goes into a message of its own, and takes nothing else with it.
#[derive(Debug)]
pub struct Writer {
    sender: u16,
    version: Version,
    messages: Vec<Bytes>,
    current: Vec<u8>,
    /// The length of the current message without any event.
    empty: usize,
    /// A queue refresh was written, alone.
    refreshed: bool,
}

impl Writer {
    /// A writer of messages for nodes of a version.
    pub fn new(sender: u16, version: Version) -> Writer {
        let mut current = Vec::with_capacity(64);
        put_number(&mut current, sender.into());
        let empty = current.len();
        Writer { sender, version, messages: Vec::new(), current, empty, refreshed: false }
    }

    /// Writes an event.
    ///
    /// # Errors
    ///
    /// This version has nothing for it; then nothing was written.
    pub fn put(&mut self, event: &Event<'_>) -> Result<(), &'static str> {
        match event {
            Event::CacheInvalidate(entries) if self.version.tags == Tags::V0_16 => {
                self.put_entries(*entries);
            }
            event => {
                let alone = !self.version.has(event);
                // The queue is read once for all of a batch. Where a refresh comes alone, a second
                // one would be one more message.
                if alone && *event == Event::QueueRefresh && replace(&mut self.refreshed, true) {
                    return Ok(());
                }
                self.put_as_one(alone, |out, tags| put_event(out, event, tags))?;
            }
        }
        Ok(())
    }

    /// Entries of caches that the nodes may not have leave the others in a message of their own.
    fn put_entries(&mut self, entries: Entries<'_>) {
        let version = self.version;
        let is_young = move |entry: &Entry| version.young.lacks(Young::of_cache(entry.cache));
        let (young, others): (Vec<Entry>, Vec<Entry>) = if entries.iter().any(|e| is_young(&e)) {
            entries.iter().partition(is_young)
        } else {
            self.put_list(false, entries);
            return;
        };
        let of = |cache| young.iter().copied().filter(move |e| e.cache == cache).collect();
        let parts: [(bool, Vec<Entry>); 3] =
            [(false, others), (true, of(Cache::EmailNegative)), (true, of(Cache::DomainNegative))];
        for (alone, entries) in parts.iter().filter(|(_, entries)| !entries.is_empty()) {
            self.put_list(*alone, Entries::new(entries));
        }
    }

    fn put_list(&mut self, alone: bool, entries: Entries<'_>) {
        // Release 0.16 has it.
        let _ = self.put_as_one(alone, |out, _| {
            put_entries(out, entries);
            Ok(())
        });
    }

    fn put_as_one(
        &mut self,
        alone: bool,
        put: impl FnOnce(&mut Vec<u8>, Tags) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        if alone {
            self.end_message();
        }
        let before = self.current.len();
        if let Err(error) = put(&mut self.current, self.version.tags) {
            self.current.truncate(before);
            return Err(error);
        }
        if alone || self.current.len() > MESSAGE_BYTES {
            self.end_message();
        }
        Ok(())
    }

    /// Ends the current message, if anything is in it.
    pub fn end_message(&mut self) {
        if self.current.len() > self.empty {
            self.messages.push(Bytes::copy_from_slice(&self.current));
            self.current.clear();
            put_number(&mut self.current, self.sender.into());
        }
    }

    /// The messages.
    pub fn finish(mut self) -> Vec<Bytes> {
        self.end_message();
        self.messages
    }
}

fn put_event(out: &mut Vec<u8>, event: &Event<'_>, tags: Tags) -> Result<(), &'static str> {
    match *event {
        Event::StateChange { account_id, change_id, types } => {
            out.push(0);
            put_number(out, change_id);
            put_number(out, types.0);
            put_number(out, account_id.into());
        }
        Event::CalendarAlert { account_id, event_id, recurrence_id, uid, alert_id } => {
            out.push(1);
            put_number(out, account_id.into());
            put_number(out, event_id.into());
            put_number(out, recurrence_id.cast_unsigned());
            put_text(out, uid);
            put_text(out, alert_id);
        }
        Event::EmailPush { account_id, email_id, change_id } => {
            out.push(2);
            put_number(out, account_id.into());
            put_number(out, email_id.into());
            put_number(out, change_id);
        }
        _ => match tags {
            Tags::V0_16 => put_new_event(out, event),
            Tags::V0_15 => return put_old_event(out, event),
        },
    }
    Ok(())
}

fn put_new_event(out: &mut Vec<u8>, event: &Event<'_>) {
    match *event {
        Event::StateChange { .. } | Event::CalendarAlert { .. } | Event::EmailPush { .. } => {}
        Event::PushServerUpdate { account_id } => {
            out.push(3);
            put_number(out, account_id.into());
        }
        Event::RegistryInsert { object_type, id } => {
            out.push(4);
            put_number(out, object_type.into());
            put_number(out, id);
        }
        Event::RegistryDelete { object_type, id } => {
            out.push(5);
            put_number(out, object_type.into());
            put_number(out, id);
        }
        Event::RegistryReload { object_type } => {
            out.push(6);
            put_number(out, object_type.into());
        }
        Event::CacheInvalidate(entries) => put_entries(out, entries),
        Event::CacheInvalidateAll => out.push(8),
        Event::CacheInvalidateNegative => out.push(9),
        Event::QueueStatus { is_running: true } => out.push(10),
        Event::QueueStatus { is_running: false } => out.push(11),
        Event::QueueRefresh => out.push(12),
    }
}

fn put_entries(out: &mut Vec<u8>, entries: Entries<'_>) {
    out.push(7);
    put_number(out, entries.len() as u64);
    for entry in &entries {
        out.push(entry.cache as u8);
        put_number(out, entry.id.into());
        if entry.cache == Cache::EmailNegative {
            put_number(out, entry.hash.into());
        }
    }
}

/// What release 0.15 has for an event.
fn put_old_event(out: &mut Vec<u8>, event: &Event<'_>) -> Result<(), &'static str> {
    match *event {
        Event::PushServerUpdate { account_id } => {
            out.push(7);
            put_number(out, account_id.into());
        }
        Event::RegistryInsert { object_type, .. }
        | Event::RegistryDelete { object_type, .. }
        | Event::RegistryReload { object_type } => out.push(match object_type {
            names::DATA_STORE => 5,
            names::BLOCKED_IP => 6,
            names::SPAM_RULE => 8,
            _ => return Err("release 0.15 reloads settings, banned addresses and spam rules only"),
        }),
        Event::CacheInvalidate(entries) => {
            let mut written = 0;
            for (tag, cache) in [(3, Cache::AccessToken), (4, Cache::DavResources)] {
                let of = || entries.iter().filter(|entry| entry.cache == cache);
                let count = of().count();
                if count > 0 {
                    out.push(tag);
                    put_number(out, count as u64);
                    of().for_each(|entry| put_number(out, entry.id.into()));
                    written += count;
                }
            }
            // It has no other caches, so there is nothing to drop in them.
            if written == 0 && !entries.is_empty() {
                return Err("release 0.15 drops access tokens and groupware caches only");
            }
        }
        _ => return Err("release 0.15 has no such event"),
    }
    Ok(())
}
