//! The result of a benchmark: its figures, as text and as JSON, and whether it succeeded.

use std::{
    io::{self, Write},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tonic::Status;

use crate::cli::Failure;

/// The figures of a benchmark.
pub(super) struct Outcome {
    pub(super) took: Duration,
    pub(super) publishers: usize,
    pub(super) subscribers: usize,
    pub(super) rate: Option<u32>,
    pub(super) batch: u32,
    /// Events that were acknowledged.
    pub(super) acknowledged: u64,
    /// Events that were due and not sent, since too many requests were in flight.
    pub(super) unsent: u64,
    /// Requests that failed, and the error of the first.
    pub(super) failed: u64,
    pub(super) first_failure: Option<Status>,
    /// Events delivered, counted once per subscriber, and the messages in which they came.
    pub(super) delivered: u64,
    pub(super) messages: u64,
    /// Gaps, and the events that they reported as missed.
    pub(super) gaps: u64,
    pub(super) missed: u64,
    /// Streams that ended before the benchmark.
    pub(super) ended: u64,
    /// Deliveries that neither came nor were reported as missed.
    pub(super) lost: u64,
    /// Nanoseconds from the time at which an event was sent, or due, to its arrival.
    pub(super) latency: Histogram<u64>,
    /// Nanoseconds from a request to its answer.
    pub(super) answers: Histogram<u64>,
}

impl Outcome {
    /// Prints the figures as text or as JSON.
    pub(super) fn print(&self, as_json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if as_json {
            return writeln!(out, "{:#}", self.json());
        }
        let wanted = self.rate.map_or_else(
            || "as fast as it is acknowledged".to_owned(),
            |rate| format!("{rate} events/s"),
        );
        writeln!(
            out,
            "load          {} to {} subscribers, {} per request, {wanted}, {:.1} s",
            self.publishers,
            self.subscribers,
            self.batch,
            self.took.as_secs_f64()
        )?;
        writeln!(
            out,
            "acknowledged  {} events, {:.0}/s",
            self.acknowledged,
            self.per_second(self.acknowledged)
        )?;
        writeln!(
            out,
            "delivered     {} events, {:.0}/s",
            self.delivered,
            self.per_second(self.delivered)
        )?;
        if self.messages > 0 {
            writeln!(out, "per message   {:.1} events", ratio(self.delivered, self.messages))?;
        }
        for (name, histogram) in [("latency", &self.latency), ("answer", &self.answers)] {
            if !histogram.is_empty() {
                writeln!(out, "{name:<13} {}", percentiles(histogram))?;
            }
        }
        writeln!(
            out,
            "problems      {} lost, {} gaps ({} events), {} failed requests, {} streams ended, \
             {} events not sent in time",
            self.lost, self.gaps, self.missed, self.failed, self.ended, self.unsent
        )
    }

    /// An error if no request succeeded, a stream ended early or deliveries were lost.
    pub(super) fn result(self) -> Result<(), Failure> {
        match self.first_failure {
            Some(status) if self.acknowledged == 0 => return Err(status.into()),
            Some(status) => eprintln!(
                "trunkline: the first of {} failed requests: {:?}: {}",
                self.failed,
                status.code(),
                status.message()
            ),
            None => {}
        }
        if self.ended > 0 {
            let message = format!("{} streams ended before the benchmark", self.ended);
            return Err(Failure::Other(message));
        }
        if self.lost > 0 {
            return Err(Failure::Other(format!(
                "{} deliveries were lost: they neither arrived nor were reported in a gap",
                self.lost
            )));
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "seconds": self.took.as_secs_f64(),
            "publishers": self.publishers,
            "subscribers": self.subscribers,
            "batch": self.batch,
            "rate": self.rate,
            "acknowledgedEvents": self.acknowledged,
            "acknowledgedPerSecond": self.per_second(self.acknowledged),
            "deliveredEvents": self.delivered,
            "deliveredPerSecond": self.per_second(self.delivered),
            "messages": self.messages,
            "latencyMs": quantiles(&self.latency),
            "answerMs": quantiles(&self.answers),
            "lost": self.lost,
            "gaps": self.gaps,
            "missedEvents": self.missed,
            "failedRequests": self.failed,
            "endedStreams": self.ended,
            "unsentEvents": self.unsent,
        })
    }

    #[allow(clippy::cast_precision_loss)] // far below 2^52
    fn per_second(&self, count: u64) -> f64 {
        (count as f64 / self.took.as_secs_f64()).round()
    }
}

fn percentiles(histogram: &Histogram<u64>) -> String {
    let at = |quantile| milliseconds(histogram.value_at_quantile(quantile));
    format!(
        "p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, max {:.3} ms",
        at(0.5),
        at(0.99),
        at(0.999),
        milliseconds(histogram.max())
    )
}

/// The quantiles of nanoseconds as JSON, in milliseconds.
pub(in crate::cli) fn quantiles(histogram: &Histogram<u64>) -> Value {
    let at = |quantile| milliseconds(histogram.value_at_quantile(quantile));
    json!({
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
        "max": milliseconds(histogram.max()), "count": histogram.len(),
    })
}

/// Milliseconds of nanoseconds.
#[allow(clippy::cast_precision_loss)] // far below 2^52
pub(in crate::cli) fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}
