//! How far a node has processed its stream, from the tokens that it acknowledges.

use std::collections::VecDeque;

use crate::{
    bus::Position,
    errors::Error,
    hub::{
        cursor::Cursor,
        had::HadAt,
        token::{ResumeToken, TokenError},
    },
};

/// Responses with events that are remembered until they are acknowledged. With more, every second
/// one is forgotten: acknowledging it acknowledges the one before.
const MAX_SENT: usize = 256;

/// What was sent on a stream and what its node has acknowledged of it.
pub struct Acknowledgements {
    /// Where the stream began, by shard.
    begin: Vec<Position>,
    /// How far responses reached, ascending, and the number of all events up to each.
    sent: VecDeque<(Reach, u64)>,
    events: u64,
    acknowledged: u64,
}

/// How far a token reaches, as numbers that only rise: the stream, and the part of it that is
/// behind.
type Reach = (u64, u64);

impl Acknowledgements {
    /// Nothing was sent yet on a stream that begins here.
    pub fn new(begin: Vec<Position>) -> Acknowledgements {
        Acknowledgements { begin, sent: VecDeque::new(), events: 0, acknowledged: 0 }
    }

    /// Records a response with events.
    pub fn sent(&mut self, events: u64, cursor: &Cursor, behind: Option<&Cursor>) {
        self.events += events;
        let reach = (reach(cursor.had()), behind.map_or(u64::MAX, |behind| reach(behind.had())));
        if self.sent.len() == MAX_SENT {
            let mut nth = 0;
            self.sent.retain(|_| {
                nth += 1;
                nth % 2 == 0
            });
        }
        self.sent.push_back((reach, self.events));
    }

    /// The number of events that were sent, and of those that were acknowledged.
    pub fn counts(&self) -> (u64, u64) {
        (self.events, self.acknowledged)
    }

    /// Records that a token is acknowledged on a stream whose cursor stands here.
    pub fn acknowledge(
        &mut self,
        token: &[u8],
        deployment: u32,
        cursor: &Cursor,
    ) -> Result<(), Error> {
        let malformed = |error: TokenError| Error::TokenMalformed(error.to_string());
        let token = ResumeToken::decode(token, deployment).map_err(malformed)?;
        let shards = || token.shards.iter().map(|had| had.at(Position::UNKNOWN));
        let in_order = token.shards.len() == self.begin.len()
            && shards().zip(cursor.had()).all(|(token, stream)| is_within(token, stream))
            && shards().zip(&self.begin).all(|(token, begin)| {
                begin.offset.0 == 0 || !begin.is_known() || token.has(*begin)
            });
        if !in_order {
            let why = "was not sent on this stream";
            return Err(Error::field("acknowledge.resume_token", why));
        }
        let behind = token.behind.as_ref();
        let behind = behind.map(|had| reach(had.iter().map(|had| had.at(Position::UNKNOWN))));
        let reach = (reach(shards()), behind.unwrap_or(u64::MAX));
        while let Some((_, events)) = self.sent.front().filter(|(sent, _)| *sent <= reach) {
            self.acknowledged = *events;
            self.sent.pop_front();
        }
        Ok(())
    }
}

/// True if the stream has passed everything that the token has.
fn is_within(token: HadAt<'_>, stream: HadAt<'_>) -> bool {
    token.epochs().all(|epoch| {
        let end = Position { epoch: epoch.epoch, offset: epoch.walked };
        end.offset.0 == 0 || stream.has(end)
    })
}

fn reach<'a>(shards: impl Iterator<Item = HadAt<'a>>) -> u64 {
    let walked = shards.flat_map(HadAt::epochs).map(|epoch| epoch.walked.0);
    walked.fold(0, u64::wrapping_add)
}
