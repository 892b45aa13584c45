//! The last values that Redis keeps, beside history.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Buf;
use redis::Value;

use super::{
    auth::{Kind, TAG_LENGTH},
    names::ShardNames,
    odd::OddFields,
    server::Server,
};
use crate::bus::Retained;

/// The time limit of one call.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the last values. Fields that no gateway wrote are skipped and counted, and so are those
/// whose tag does not verify.
pub(super) async fn read(
    server: &Server,
    names: &ShardNames,
    (odd, forged): (&OddFields, &AtomicU64),
) -> Result<Vec<Retained>, String> {
    let mut query = server.query().await.map_err(|error| error.to_string())?;
    let answer: Result<Value, _> =
        redis::cmd("HGETALL").arg(&names.retained).query_async(query.connection()).await;
    let kept = match answer {
        Ok(answer) => odd.last_values(&names.retained, answer),
        Err(error) if error.code() == Some("WRONGTYPE") => {
            odd.wrong_type(&names.retained);
            vec![]
        }
        Err(error) => return Err(error.to_string()),
    };
    let Some(auth) = &names.auth else { return Ok(kept) };
    let verified = |mut retained: Retained| {
        let Some((tag, event)) = retained.event.split_at_checked(TAG_LENGTH) else {
            forged.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if !auth.verify(tag, Kind::Retained, retained.position, &[&[retained.key], event]) {
            forged.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        retained.event.advance(TAG_LENGTH);
        Some(retained)
    };
    // One without a valid tag was not written by a gateway.
    Ok(kept.into_iter().filter_map(verified).collect())
}

/// Keeps values that Redis lost, each unless a newer one is there.
pub(super) async fn keep(
    server: &Server,
    names: &ShardNames,
    values: &[Retained],
) -> Result<(), String> {
    static SCRIPT: LazyLock<redis::Script> =
        LazyLock::new(|| redis::Script::new(include_str!("retain.lua")));
    let mut call = SCRIPT.key(&names.retained);
    for Retained { key, position, event } in values {
        call.arg(key).arg(position.epoch.0).arg(position.offset.0);
        match &names.auth {
            Some(auth) => {
                let tag = auth.tag(Kind::Retained, *position, &[&[*key], event]);
                call.arg([&tag[..], event].concat())
            }
            None => call.arg(&event[..]),
        };
    }
    let mut query = server.query().await.map_err(|error| error.to_string())?;
    let kept: Result<(), _> = call.invoke_async(query.connection()).await;
    kept.map_err(|error| error.to_string())
}
