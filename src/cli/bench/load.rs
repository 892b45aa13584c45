//! The load: publishers and subscribers over gRPC, run for a time and summed up.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{
    ANSWER_TIMEOUT, Bench, outcome::Outcome, publishers::Publishers, received::take_latencies,
    subscribers::Subscribers,
};
use crate::cli::Failure;

/// Connected publishers and subscribers.
pub(super) struct Load {
    publishers: Publishers,
    subscribers: Subscribers,
}

impl Load {
    /// Connects all publishers and subscribers; returns when every subscription is confirmed.
    pub(super) async fn start(bench: &Bench, id: &str) -> Result<Load, Failure> {
        let publishers = Publishers::connect(bench, id).await?;
        let subscribers = Subscribers::connect(bench, id).await?;
        Ok(Load { publishers, subscribers })
    }

    /// Publishes for this time or until Ctrl-C, and reports progress each second. Returns the time
    /// that it took.
    pub(super) async fn measure(&self, length: Duration) -> Duration {
        let begun = Instant::now();
        let tasks = TaskTracker::new();
        let pacing = self.publishers.rate;
        let pacing = pacing.map(|rate| self.publishers.start_at_rate(rate, length, &tasks));
        if pacing.is_none() {
            self.publishers.start_closed_loop(!self.subscribers.all.is_empty(), &tasks);
        }
        tokio::select! {
            () = sleep(length) => {}
            _ = tokio::signal::ctrl_c() => {}
            () = self.report_progress(begun) => {}
        }
        self.publishers.progress.stop.store(true, Ordering::Relaxed);
        let took = begun.elapsed();
        if let Some(pacing) = pacing {
            // It notices the stop within 50 ms.
            let _ = tokio::task::spawn_blocking(|| pacing.join()).await;
        }
        tasks.close();
        let _ = timeout(ANSWER_TIMEOUT, tasks.wait()).await;
        took
    }

    /// Waits for the events that are still on their way, and sums up.
    pub(super) async fn finish(self, took: Duration) -> Outcome {
        let Load { publishers, subscribers } = self;
        let (progress, all) = (&publishers.progress, &subscribers.all);
        let acknowledged = get(&progress.acknowledged);
        let lost = subscribers.wait_for(acknowledged).await;
        let outcome = Outcome {
            took,
            publishers: publishers.count(),
            subscribers: all.len(),
            rate: publishers.rate,
            batch: progress.batch,
            acknowledged,
            unsent: get(&progress.unsent),
            failed: get(&progress.failed),
            first_failure: progress.first_failure.lock().clone(),
            delivered: subscribers.delivered(),
            messages: all.iter().map(|received| received.messages()).sum(),
            gaps: all.iter().map(|received| received.gaps()).sum(),
            missed: get(&subscribers.totals.missed),
            ended: get(&subscribers.totals.ended),
            lost,
            latency: take_latencies(all),
            answers: progress.answers.lock().clone(),
        };
        subscribers.close().await;
        outcome
    }

    /// Reports progress each second, and keeps publishers informed how far subscribers are. Never
    /// ends.
    async fn report_progress(&self, begun: Instant) {
        let progress = &self.publishers.progress;
        let (mut last, mut reported) = ((0, 0), Instant::now());
        let mut tick = interval(Duration::from_millis(1));
        loop {
            tick.tick().await;
            let delivered = self.subscribers.delivered();
            let subscribers = self.subscribers.all.len() as u64;
            let average = delivered.checked_div(subscribers).unwrap_or(0);
            progress.received.store(average, Ordering::Relaxed);
            if reported.elapsed() < Duration::from_secs(1) {
                continue;
            }
            reported = Instant::now();
            let now = (get(&progress.acknowledged), delivered);
            eprintln!(
                "{:>4.0} s  {:>9} acknowledged/s  {:>11} delivered/s{}",
                begun.elapsed().as_secs_f64(),
                now.0 - last.0,
                now.1 - last.1,
                match get(&progress.failed) {
                    0 => String::new(),
                    failed => format!("  {failed} requests failed"),
                }
            );
            last = now;
        }
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
