//! Nodes: each reads a chain of streams, one after the other, on whatever gateway it finds.

use std::{
    collections::BTreeSet,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_util::future::{BoxFuture, FutureExt};
use trunkline::{
    bus::{AppendError, redis::envelope::events_of},
    hub::{
        Begin, Hub, Opened, ReadOptions,
        cursor::{Cursor, Item, Missing},
        filter::Filter,
        token::{self, ResumeToken},
    },
    proto::v1,
};

use super::event;

/// The tag of the deployment in tokens.
const DEPLOYMENT: u32 = 7;

/// Something that a node was handed.
#[derive(Debug)]
pub enum Got {
    /// An event, and the number of the stream that brought it.
    Event(u64, usize),
    /// A gap, and the step at which it was told.
    Gap(Missing, u64),
}

pub struct Node {
    /// True if it begins with the oldest event.
    pub oldest: bool,
    /// The gateway of its stream, and the identity of that gateway.
    pub gateway: Option<(usize, u64)>,
    opening: Option<BoxFuture<'static, Result<Opened, AppendError>>>,
    cursor: Option<Cursor>,
    /// The last token that it received.
    pub token: Option<Vec<u8>>,
    pub got: Vec<Got>,
    /// Events, each with its stream, that its gateway did not hold when it handed them on: they
    /// came from history.
    pub unheld: BTreeSet<(u64, usize)>,
    /// The number of streams until now.
    pub streams: usize,
    /// The step at which the last stream was opened.
    pub opened: u64,
    /// The last stream of which the first page was read.
    pub begun: usize,
    /// Events that it is not owed: they came before it. None before the first stream.
    pub not_owed: Option<BTreeSet<u64>>,
}

impl Node {
    pub fn new(oldest: bool) -> Node {
        Node {
            oldest,
            gateway: None,
            opening: None,
            cursor: None,
            token: None,
            got: vec![],
            unheld: BTreeSet::new(),
            streams: 0,
            opened: 0,
            begun: 0,
            not_owed: None,
        }
    }

    /// Opens a stream where the last one ended.
    pub fn open(&mut self, gateway: (usize, u64), hub: &Arc<Hub>) {
        let begin = match &self.token {
            Some(bytes) => {
                let token = ResumeToken::decode(bytes, DEPLOYMENT).expect("a whole token");
                Begin::After(token.shards)
            }
            None if self.oldest => Begin::Oldest,
            None => Begin::Latest,
        };
        let hub = hub.clone();
        let filter = Filter::new(&v1::Filter::default(), "reader", &[], false);
        self.opening =
            Some(async move { hub.open(filter, &begin, ReadOptions::default()).await }.boxed());
        self.gateway = Some(gateway);
        self.streams += 1;
        // What is accepted from now on is owed.
        self.read(0);
    }

    /// Ends the stream.
    pub fn leave(&mut self) {
        (self.gateway, self.opening, self.cursor) = (None, None, None);
    }

    /// Ends the stream while a message is on its way.
    pub fn lose_message(&mut self) {
        if let Some(cursor) = &mut self.cursor {
            let _ = cursor.poll_next(&mut Context::from_waker(Waker::noop()));
        }
        self.leave();
    }

    /// Takes the next message of the stream, if there is one. Returns what it was.
    pub fn read(&mut self, step: u64) -> Option<String> {
        let context = &mut Context::from_waker(Waker::noop());
        if let Some(opening) = &mut self.opening {
            match opening.poll_unpin(context) {
                Poll::Pending => return None,
                Poll::Ready(Err(error)) => {
                    self.leave();
                    return Some(format!("is refused: {error}"));
                }
                Poll::Ready(Ok(opened)) => {
                    self.opening = None;
                    self.cursor = Some(opened.cursor);
                    self.keep_token();
                    return Some("is subscribed".into());
                }
            }
        }
        let cursor = self.cursor.as_mut()?;
        match cursor.poll_next(context) {
            Poll::Pending => None,
            Poll::Ready(Err(error)) => {
                self.leave();
                Some(format!("loses its stream: {error}"))
            }
            Poll::Ready(Ok(Item::Events(events))) => {
                let bytes = events.chunks.concat();
                let numbers: Vec<u64> = events_of(&bytes).map(event::number).collect();
                let stream = self.streams;
                self.got.extend(numbers.iter().map(|number| Got::Event(*number, stream)));
                self.keep_token();
                Some(format!("gets {numbers:?}"))
            }
            Poll::Ready(Ok(Item::Gap(_, missing))) => {
                let text = format!(
                    "is told a gap {} from {} to {}, {:?}",
                    missing.reason, missing.from, missing.to, missing.missed
                );
                self.got.push(Got::Gap(missing, step));
                self.keep_token();
                Some(text)
            }
        }
    }

    fn keep_token(&mut self) {
        if let Some(cursor) = &self.cursor {
            let mut bytes = Vec::new();
            token::encode(DEPLOYMENT, cursor.had(), &mut bytes);
            self.token = Some(bytes);
        }
    }

    /// What the last token says, for people.
    pub fn had(&self) -> String {
        let Some(bytes) = &self.token else { return String::from("nothing") };
        let token = ResumeToken::decode(bytes, DEPLOYMENT).expect("a whole token");
        format!("{:?}", token.shards[0].epochs())
    }
}

/// The epochs of a token.
pub fn epochs(token: Option<&[u8]>) -> Vec<u64> {
    let Some(bytes) = token else { return vec![] };
    let token = ResumeToken::decode(bytes, DEPLOYMENT).expect("a whole token");
    token.shards[0].epochs().iter().map(|had| had.epoch.0).collect()
}
