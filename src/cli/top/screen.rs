//! The terminal: taken over while the view is shown, and restored in every case.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use tokio::sync::mpsc;

use super::{draw, view::View};
use crate::cli::Failure;

/// Interval at which the thread that waits for keys checks whether to end.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The time that the end waits for that thread. crossterm never returns once the terminal was
/// closed by its other side.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// A terminal in raw mode, on its alternate screen. Dropping it restores the terminal; so does a
/// panic.
pub struct Screen {
    terminal: DefaultTerminal,
    events: mpsc::Receiver<Event>,
    keys: Keys,
}

/// The thread that waits for keys, which cannot be done asynchronously.
struct Keys {
    ended: Arc<AtomicBool>,
    /// Disconnected when it has ended.
    running: std_mpsc::Receiver<()>,
}

impl Screen {
    /// Takes over the terminal.
    pub fn open() -> Result<Screen, Failure> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        let (to, events) = mpsc::channel(16);
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let (runs, running) = std_mpsc::channel();
        std::thread::spawn(move || {
            let _runs = runs;
            while !until.load(Ordering::Relaxed) {
                let event = match event::poll(CHECK_INTERVAL) {
                    Ok(true) => event::read(),
                    Ok(false) => continue,
                    Err(error) => Err(error),
                };
                // The terminal is closed for good.
                let Ok(event) = event else { return };
                if to.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Screen { terminal, events, keys: Keys { ended, running } })
    }

    /// Draws the view in the current size of the terminal.
    pub fn draw(&mut self, view: &mut View) -> Result<(), Failure> {
        self.terminal.draw(|frame| draw::draw(view, frame.area(), frame.buffer_mut()))?;
        Ok(())
    }

    /// The next event of the terminal; none once it is closed.
    pub async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The thread must not take input that is meant for the next program in this terminal.
        self.keys.ended.store(true, Ordering::Relaxed);
        self.events.close();
        let _ = self.keys.running.recv_timeout(MAX_WAIT);
        ratatui::restore();
    }
}

/// Waits for a signal that terminates the process. Ctrl-C is not one: in raw mode it is a key.
#[cfg(unix)]
pub async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};

    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    let each = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(each).await;
}

/// Waits for a signal that terminates the process.
#[cfg(not(unix))]
pub async fn signal() {
    let _ = tokio::signal::ctrl_c().await;
}
