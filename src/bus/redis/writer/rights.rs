//! What the calls of a shard know of the rights of the user.

use std::time::{Duration, Instant};

use crate::{
    bus::redis::{names::ShardNames, script::Failure, server::Server},
    throttle::Throttle,
};

/// The wait before rights that were missing are tried again.
const RETRY: Duration = Duration::from_secs(1);

static REFUSED: Throttle = Throttle::repeated();

/// What one shard's calls know of the rights on the server that they go to.
#[derive(Debug, Default)]
pub(super) struct Rights {
    /// The server where no right was missing.
    tried: Option<String>,
    /// When rights were missing last, and the reason for people.
    missing: Option<(Instant, String)>,
}

impl Rights {
    /// Tries the rights on `server`, unless that was done before. While one is missing nothing is
    /// to be sent: the error says which, and its cure.
    pub(super) async fn check(
        &mut self,
        server: &Server,
        names: &ShardNames,
        limit: Duration,
    ) -> Result<(), Failure> {
        if self.tried.as_ref() == Some(&server.address) {
            return Ok(());
        }
        if let Some((at, why)) = &self.missing
            && at.elapsed() < RETRY
        {
            return Err(Failure::Refused(why.clone()));
        }
        let tried = tokio::time::timeout(limit, server.try_rights(Some(names))).await;
        let refusals = tried
            .unwrap_or_else(|_| Err(server.slow()))
            .map_err(|error| Failure::NotConnected(error.to_string()))?;
        let Some((seen, cure)) = refusals.missing(&server.about) else {
            if self.missing.take().is_some() {
                tracing::info!(server = server.address, "the missing rights were given");
            }
            self.tried = Some(server.address.clone());
            return Ok(());
        };
        let why = format!("{}: {seen} ({cure})", server.address);
        if let Some(left_out) = REFUSED.pass() {
            tracing::error!(why, left_out, "Redis refuses what this gateway needs");
        }
        self.missing = Some((Instant::now(), why.clone()));
        Err(Failure::Refused(why))
    }

    /// The server refused something for want of a right: they are tried again.
    pub(super) fn doubt(&mut self) {
        self.tried = None;
    }
}
