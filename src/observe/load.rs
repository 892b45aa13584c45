//! The load of this gateway, for clients and load balancers that balance by it: ORCA reports.
//!
//! One report serves all that ask within a second: reading it costs a few files of the system.

use std::{
    collections::HashMap,
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use http::HeaderValue;
use parking_lot::Mutex;
use prost::Message;
use tonic::metadata::BinaryMetadataValue;

use super::Records;
use crate::{
    access::quota::Quotas,
    port::counters::Counters,
    presence::Nodes,
    process::{Stat, resident_bytes},
    proto::xds::data::orca::v3::OrcaLoadReport,
};

/// The time for which a report is good: less than the shortest interval of a stream of reports.
const GOOD_FOR: Duration = Duration::from_millis(900);

/// Makes load reports.
pub struct LoadReports {
    nodes: Arc<Nodes>,
    quotas: Arc<Quotas>,
    records: Arc<Records>,
    port: Arc<Counters>,
    /// The limit of this process's memory in bytes, where it is known.
    memory_limit: Option<f64>,
    state: Mutex<State>,
}

/// The last report, and the totals that it was made from.
#[derive(Default)]
struct State {
    last: Option<(Instant, Totals)>,
    message: OrcaLoadReport,
    header: Option<HeaderValue>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    requests: u64,
    errors: u64,
    cpu_seconds: f64,
}

impl LoadReports {
    /// Reports of what these rooms count.
    pub fn new(
        nodes: Arc<Nodes>,
        quotas: Arc<Quotas>,
        records: Arc<Records>,
        port: Arc<Counters>,
    ) -> LoadReports {
        let memory_limit = memory_limit();
        LoadReports { nodes, quotas, records, port, memory_limit, state: Mutex::default() }
    }

    /// The load now, at most a second old.
    pub fn report(&self) -> OrcaLoadReport {
        self.fresh().message.clone()
    }

    /// The same as the value of the trailer `endpoint-load-metrics-bin`.
    pub fn trailer(&self) -> Option<HeaderValue> {
        self.fresh().header.clone()
    }

    fn fresh(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.last.is_none_or(|(at, _)| now.duration_since(at) >= GOOD_FOR) {
            let totals = Totals {
                requests: self.port.requests(),
                errors: self.records.counters.errors_of_all_methods(),
                cpu_seconds: Stat::now().and_then(|stat| stat.cpu_seconds()).unwrap_or_default(),
            };
            state.message = self.made_of(totals, state.last, now);
            let bytes = BinaryMetadataValue::from_bytes(&state.message.encode_to_vec());
            state.header = HeaderValue::from_bytes(bytes.as_encoded_bytes()).ok();
            state.last = Some((now, totals));
        }
        state
    }

    // Counts are far below the numbers that a double does not hold exactly.
    #[allow(clippy::cast_precision_loss)]
    fn made_of(
        &self,
        totals: Totals,
        last: Option<(Instant, Totals)>,
        now: Instant,
    ) -> OrcaLoadReport {
        let part = |used: usize, limit: usize| used as f64 / limit.max(1) as f64;
        let streams = self.nodes.count();
        let of_streams = part(streams, self.nodes.max_streams());
        let of_bytes = part(self.quotas.bytes_in_flight(), self.quotas.max_bytes_in_flight());
        let mut report = OrcaLoadReport {
            application_utilization: of_streams.max(of_bytes),
            utilization: HashMap::from([
                ("streams".to_owned(), of_streams.min(1.0)),
                ("pending_bytes".to_owned(), of_bytes.min(1.0)),
            ]),
            named_metrics: HashMap::from([("streams".to_owned(), streams as f64)]),
            ..OrcaLoadReport::default()
        };
        if let (Some(limit), Some(used)) = (self.memory_limit, resident_bytes()) {
            report.mem_utilization = used as f64 / limit;
        }
        if let Some((at, before)) = last {
            let seconds = now.duration_since(at).as_secs_f64();
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
            report.rps_fractional = rate(totals.requests, before.requests);
            report.eps = rate(totals.errors, before.errors);
            let cores = thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
            let used = (totals.cpu_seconds - before.cpu_seconds).max(0.0);
            report.cpu_utilization = used / seconds / cores;
        }
        report
    }
}

/// The limit of this process's memory: that of its control group, of version 2 or 1.
fn memory_limit() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let files = [
        format!("/sys/fs/cgroup{own}/memory.max"),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    files.iter().find_map(|file| limit_in(&fs::read_to_string(file).ok()?))
}

/// Version 1 names a number near 2^63 where there is no limit, version 2 the word `max`.
fn limit_in(text: &str) -> Option<f64> {
    const NO_LIMIT: f64 = 1e18;
    text.trim().parse().ok().filter(|limit: &f64| *limit > 0.0 && *limit < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-9)
    }

    #[test]
    fn what_the_system_says_is_read() {
        assert!(is(limit_in("1048576\n"), 1_048_576.0));
        for none in ["max\n", "", "0", "9223372036854771712"] {
            assert_eq!(limit_in(none), None, "{none}");
        }
    }
}
