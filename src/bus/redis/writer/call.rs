//! Calls of the append script by a writer: retries, redirects, and positions for authentication.

use super::Writer;
use crate::bus::{
    Epoch, Offset, Position, RequestId,
    redis::{
        attempts::Attempts,
        auth::{self, Authenticator, Kind},
        envelope::with_tag,
        script::{Answer, Call, Failure, Retain},
    },
};

/// A frame or probe to be sent under one sequence.
pub(super) struct Outgoing<'a> {
    /// The writer's number of the frame; 0: a probe.
    pub sequence: u64,
    pub count: u64,
    pub frame: &'a [u8],
    pub requests: &'a [(RequestId, u64)],
    pub retain: &'a [Retain<'a>],
}

/// The same with authentication tags, for the position after `seen`.
struct Authenticated {
    frame: Vec<u8>,
    /// The events that are retained.
    retain: Vec<Vec<u8>>,
}

impl Writer {
    /// Calls the script until it answers or no further attempt is allowed. The error is the reason.
    pub(super) async fn call(
        &mut self,
        out: &Outgoing<'_>,
        attempts: &mut Attempts,
    ) -> Result<Answer, String> {
        let mut asked = None;
        loop {
            // Only the epoch matters for a frame. The offset that the reader has seen reveals a
            // Redis that went back in time.
            let seen = self.parts.liveness.position();
            let epoch = self.state.epoch;
            let mut seen =
                if seen.epoch == epoch { seen } else { Position { epoch, offset: Offset(0) } };
            let mut authenticated = None;
            if let Some(auth) = &self.parts.names.auth {
                match self.authenticated_after(seen) {
                    Ok(after) => seen = after,
                    Err(why) if attempts.wait().await => {
                        tracing::debug!(shard = %self.parts.shard, why, "append: trying again");
                        continue;
                    }
                    Err(why) => return Err(why),
                }
                authenticated = Some(Authenticated::new(auth, out, seen));
            }
            let retained = authenticated.as_ref().map(|authenticated| authenticated.retain(out));
            let call = Call {
                names: &self.parts.names,
                writer: &self.key,
                seen,
                exact: authenticated.is_some() && out.sequence > 0,
                sequence: out.sequence,
                count: out.count,
                frame: authenticated.as_ref().map_or(out.frame, |both| &both.frame),
                requests: out.requests,
                retain: retained.as_deref().unwrap_or(out.retain),
            };
            let asking = asked.is_some();
            let why = match asked.take().or_else(|| self.parts.topology.master(self.parts.shard)) {
                None => String::from("no server is known to own the shard"),
                Some(server) => {
                    let limit = attempts.limit(self.parts.settings.response_timeout);
                    match call.send(&server, &self.parts.settings, asking, limit).await {
                        // Another gateway was first: the next position may be free.
                        Ok(Answer::EpochOver(tip)) if tip.epoch == epoch && call.exact => {
                            self.state.tip = tip;
                            if attempts.may_go_on() {
                                continue;
                            }
                            return Err("other gateways were always first".into());
                        }
                        Ok(answer) => {
                            self.update_tip(&answer, out.count);
                            return Ok(answer);
                        }
                        Err(Failure::NotConnected(error)) => error.to_string(),
                        Err(Failure::Refused(why) | Failure::NotOwner(why)) => why,
                        Err(Failure::AskAt(address)) => {
                            asked = self.parts.topology.server(&address);
                            if asked.is_some() && attempts.redirect() {
                                continue;
                            }
                            format!("the shard is moving to {address}")
                        }
                        Err(Failure::Unknown(why)) => {
                            if !attempts.resend() {
                                return Err(why);
                            }
                            why
                        }
                    }
                }
            };
            tracing::debug!(shard = %self.parts.shard, why, "append: trying again");
            if !attempts.wait().await {
                return Err(why);
            }
            // If the refresh fails, so does the next attempt, with a reason.
            let _ = self.parts.topology.refresh().await;
        }
    }

    /// The position after which the next authenticated frame is to be appended: the last one known.
    /// The first epoch is one for which nobody has made a tag before.
    fn authenticated_after(&self, seen: Position) -> Result<Position, String> {
        if self.state.epoch == Epoch::NONE {
            return Ok(Position { epoch: auth::first_epoch(), offset: Offset(0) });
        }
        if auth::is_beyond(seen.epoch) {
            let why = "the shard's epoch is far beyond this gateway's clock: the clocks differ, or \
                       an unknown writer changed it";
            return Err(why.into());
        }
        Ok(if self.state.tip.epoch == seen.epoch { seen.max(self.state.tip) } else { seen })
    }

    /// Updates the known end of the shard.
    fn update_tip(&mut self, answer: &Answer, count: u64) {
        match answer {
            Answer::Appended(appended) if count > 0 => {
                let last =
                    Position { epoch: appended.epoch, offset: appended.first.plus(count - 1) };
                self.state.tip = self.state.tip.max(last);
            }
            Answer::EpochOver(tip) | Answer::Tip(tip) => self.state.tip = *tip,
            _ => {}
        }
    }
}

impl Authenticated {
    fn new(auth: &Authenticator, out: &Outgoing<'_>, seen: Position) -> Authenticated {
        if out.sequence == 0 {
            let frame = with_tag(auth, Kind::Probe, Position::UNKNOWN, out.frame);
            return Authenticated { frame, retain: vec![] };
        }
        let at = |events: u64| Position { epoch: seen.epoch, offset: seen.offset.plus(events) };
        let retain = out.retain.iter().map(|retain| {
            let parts = [&[retain.key][..], retain.event];
            let tag = auth.tag(Kind::Retained, at(retain.index + 1), &parts);
            [&tag[..], retain.event].concat()
        });
        Authenticated {
            frame: with_tag(auth, Kind::Frame, at(out.count), out.frame),
            retain: retain.collect(),
        }
    }

    fn retain<'a>(&'a self, out: &Outgoing<'_>) -> Vec<Retain<'a>> {
        let pairs = out.retain.iter().zip(&self.retain);
        pairs
            .map(|(retain, event)| Retain { key: retain.key, index: retain.index, event })
            .collect()
    }
}
