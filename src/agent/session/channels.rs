//! Subscriptions.

use bytes::{Bytes, BytesMut};

use super::{
    Channel, Session, Step,
    dispatch::{Answer, shown},
};
use crate::agent::resp::Reply;

impl Session {
    /// The channel of a name.
    pub(super) fn channel(&self, name: &[u8]) -> Result<Channel, String> {
        self.settings.channels.iter().position(|channel| *channel == name).ok_or_else(|| {
            format!(
                "ERR channel '{}' is not carried by this agent: name it in its configuration",
                shown(name)
            )
        })
    }

    /// All of the channels or none, so that an error means that nothing was subscribed to.
    pub(super) fn subscribe(&mut self, names: &[Bytes], out: &mut BytesMut) -> Answer {
        let channels: Result<Vec<Channel>, String> =
            names.iter().map(|name| self.channel(name)).collect();
        let mut added = Vec::new();
        for channel in channels? {
            if self.subscriptions.insert(channel) {
                added.push(channel);
            }
            let name = self.settings.channels[channel].clone();
            self.confirm("subscribe", Some(&name), out);
        }
        Ok(Step::Subscriptions { added, removed: Vec::new() })
    }

    /// Without names: all.
    pub(super) fn unsubscribe(&mut self, names: &[Bytes], out: &mut BytesMut) -> Step {
        let mut removed = Vec::new();
        let names = if names.is_empty() { self.subscribed_names() } else { names.to_vec() };
        for name in &names {
            if let Ok(channel) = self.channel(name)
                && self.subscriptions.remove(&channel)
            {
                removed.push(channel);
            }
            self.confirm("unsubscribe", Some(name), out);
        }
        if names.is_empty() {
            self.confirm("unsubscribe", None, out);
        }
        Step::Subscriptions { added: Vec::new(), removed }
    }

    /// There are no patterns to unsubscribe from; clients do so before they use a connection again.
    pub(super) fn unsubscribe_patterns(&self, command: &str, names: &[Bytes], out: &mut BytesMut) {
        let command = command.to_ascii_lowercase();
        for name in names {
            self.confirm(&command, Some(name), out);
        }
        if names.is_empty() {
            self.confirm(&command, None, out);
        }
    }

    /// Back to the state of a new connection.
    pub(super) fn reset(&mut self, out: &mut BytesMut) -> Step {
        let removed: Vec<Channel> = std::mem::take(&mut self.subscriptions).into_iter().collect();
        self.version = super::Version::default();
        self.client.name.clear();
        self.set_authenticated(self.settings.credentials.is_none());
        Reply::new(out, self.version).simple("RESET");
        if removed.is_empty() {
            Step::Answered
        } else {
            Step::Subscriptions { added: Vec::new(), removed }
        }
    }

    fn subscribed_names(&self) -> Vec<Bytes> {
        self.subscriptions.iter().map(|channel| self.settings.channels[*channel].clone()).collect()
    }

    fn confirm(&self, what: &str, name: Option<&Bytes>, out: &mut BytesMut) {
        let mut reply = Reply::new(out, self.version);
        reply.push(3);
        reply.bulk(what);
        match name {
            Some(name) => reply.bulk(name),
            None => reply.null(),
        }
        reply.integer(i64::try_from(self.subscriptions.len()).unwrap_or(i64::MAX));
    }
}
