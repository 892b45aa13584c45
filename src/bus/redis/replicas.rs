//! Waiting until replicas have what was appended.
//!
//! WAIT holds up everything behind it on its connection, and counts only what was written on that
//! connection. So it has one of its own, to the same process, and a write of its own before it. One
//! wait is enough for everything that was appended before it began, of all shards.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use redis::{RedisResult, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use crate::bus::millis;

/// The time that one WAIT may take: those who have waited long enough are answered meanwhile.
const WAIT_SLICE: Duration = Duration::from_millis(100);

/// The field of a shard's state that is written before a WAIT.
const FIELD: &str = "waited";

/// The connection on which the replicas of a server are waited for.
pub(super) struct Replicas {
    connection: MultiplexedConnection,
    /// The number of replicas that are to have what was appended.
    needed: u32,
    /// The number of the last wait that was begun.
    begun: AtomicU64,
    /// The number of the last wait after which enough replicas had everything. Locked during one.
    done: Mutex<u64>,
}

impl Replicas {
    /// A connection beside that on which frames are appended. None if they lead to different
    /// processes: what one of them has says nothing of the other.
    pub(super) async fn beside(
        appends: &mut MultiplexedConnection,
        mut connection: MultiplexedConnection,
        needed: u32,
    ) -> RedisResult<Option<Replicas>> {
        let same = process(appends).await? == process(&mut connection).await?;
        let (begun, done) = (AtomicU64::new(0), Mutex::new(0));
        Ok(same.then_some(Replicas { connection, needed, begun, done }))
    }

    /// Waits until enough replicas have everything that the server has now. Returns how many have
    /// it when `limit` is over. The server owns the `key`, a hash.
    pub(super) async fn wait(&self, key: &str, limit: Duration) -> RedisResult<u32> {
        let mine = self.begun.load(Ordering::SeqCst) + 1;
        let mut have = 0;
        let waits = async {
            loop {
                let mut done = self.done.lock().await;
                if *done >= mine {
                    // Somebody else's began late enough.
                    return Ok(self.needed);
                }
                let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
                have = self.wait_once(key).await?;
                if have >= self.needed {
                    *done = number;
                    return Ok(have);
                }
            }
        };
        tokio::time::timeout(limit, waits).await.unwrap_or(Ok(have))
    }

    async fn wait_once(&self, key: &str) -> RedisResult<u32> {
        let mut pipe = redis::pipe();
        pipe.cmd("HSET").arg(key).arg(FIELD).arg(1).ignore();
        pipe.cmd("WAIT").arg(self.needed).arg(millis(WAIT_SLICE));
        let (have,) = pipe.query_async(&mut self.connection.clone()).await?;
        Ok(have)
    }
}

/// What tells the process at the other end of a connection from others.
async fn process(connection: &mut MultiplexedConnection) -> RedisResult<Option<String>> {
    let info: String = redis::cmd("INFO").arg("server").query_async(connection).await?;
    Ok(info.lines().find(|line| line.starts_with("run_id:")).map(str::to_owned))
}
