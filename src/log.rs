//! The way of log lines to standard error: a bounded queue, and one thread that writes. Whoever
//! logs never waits, and no error of standard error reaches it: a full disk, a closed pipe, and a
//! pipe that nobody reads cost lines, which are counted, and nothing else.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Lines, and bytes of them, that may wait to be written.
const MAX_LINES: usize = 8192;
const MAX_BYTES: usize = 4 << 20;

/// The pause before a write is tried again that would have blocked.
const RETRY: Duration = Duration::from_millis(10);

/// The least time between two lines about dropped lines.
const REPORT: Duration = Duration::from_secs(1);

/// Lines of the log that were dropped since the process started.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// The number of log lines that were not written since the process started.
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Takes lines, and never waits. Its clones share one queue.
#[derive(Clone, Debug)]
pub struct LogQueue {
    lines: SyncSender<Vec<u8>>,
    waiting: Arc<Waiting>,
}

/// What has been taken and not been written.
#[derive(Debug, Default)]
struct Waiting {
    lines: AtomicUsize,
    bytes: AtomicUsize,
}

impl LogQueue {
    /// A queue, and the thread that writes its lines to standard error.
    ///
    /// # Errors
    ///
    /// The thread cannot be made.
    pub fn to_standard_error() -> io::Result<LogQueue> {
        LogQueue::to(io::stderr())
    }

    fn to(output: impl Write + Send + 'static) -> io::Result<LogQueue> {
        let (sender, lines) = sync_channel(MAX_LINES);
        let queue = LogQueue { lines: sender, waiting: Arc::default() };
        let waiting = queue.waiting.clone();
        thread::Builder::new().name("log".into()).spawn(move || run(&lines, output, &waiting))?;
        Ok(queue)
    }

    /// Adds lines to the log, or counts them as dropped.
    pub fn add(&self, text: &[u8]) {
        let length = text.len();
        let before = self.waiting.bytes.fetch_add(length, Ordering::AcqRel);
        self.waiting.lines.fetch_add(1, Ordering::AcqRel);
        if before + length > MAX_BYTES || self.lines.try_send(text.to_vec()).is_err() {
            self.waiting.done(length);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything is written, but not longer than `limit`.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.waiting.lines.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Write for LogQueue {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.add(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Waiting {
    fn done(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.lines.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Writes lines until the last queue is dropped.
fn run(lines: &Receiver<Vec<u8>>, mut output: impl Write, waiting: &Waiting) {
    let (mut reported, mut reported_at) = (0, None::<Instant>);
    for line in lines {
        if write(&mut output, &line).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        waiting.done(line.len());
        let dropped = dropped_lines();
        if dropped > reported && reported_at.is_none_or(|at| at.elapsed() >= REPORT) {
            let count = dropped - reported;
            (reported, reported_at) = (dropped, Some(Instant::now()));
            tracing::warn!(count, "log lines were dropped: standard error did not take them");
        }
    }
}

/// Writes all of a line. A standard error that must not block is tried again.
fn write(output: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Fails, or takes one byte at a time, or blocks until it may go on.
    struct Output(Vec<io::ErrorKind>, mpsc::Sender<u8>, Option<Receiver<()>>);

    impl Write for Output {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            if let Some(go_on) = &self.2 {
                let _ = go_on.recv();
            }
            if let Some(error) = self.0.pop() {
                return Err(error.into());
            }
            let _ = self.1.send(text[0]);
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_written_is_dropped_and_counted_and_nobody_waits() {
        let (written, bytes) = mpsc::channel();
        let (go_on, blocked) = mpsc::channel();
        // From the last: it must not block, it is interrupted, its disk is full.
        let errors =
            [io::ErrorKind::StorageFull, io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock];
        let queue = LogQueue::to(Output(errors.to_vec(), written, Some(blocked))).unwrap();
        let before = dropped_lines();
        queue.add(b"lost\n");
        let started = Instant::now();
        for _ in 0..2 * MAX_LINES {
            queue.add(b"x");
        }
        queue.flush(Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(5));
        let dropped = dropped_lines() - before;
        assert!((MAX_LINES as u64..=1 + MAX_LINES as u64).contains(&dropped), "{dropped}");
        drop(go_on);
        queue.flush(Duration::from_secs(10));
        assert!(bytes.try_iter().all(|byte| byte == b'x'));
        assert!(dropped_lines() - before > dropped, "the line that was lost");

        // Bytes are limited too, and the queue takes lines again.
        let (written, bytes) = mpsc::channel();
        let queue = LogQueue::to(Output(vec![], written, None)).unwrap();
        queue.add(&vec![b'y'; MAX_BYTES + 1]);
        queue.add(b"z");
        queue.flush(Duration::from_secs(10));
        assert_eq!(bytes.try_iter().collect::<Vec<_>>(), b"z");
    }
}
