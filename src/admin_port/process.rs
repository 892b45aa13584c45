//! The process and its runtime, under the names that Prometheus' client libraries use
//! (`process_*`), and `tokio_*`. What the system does not say is left out.

use std::fs;

use super::text::Text;

/// Clock ticks a second in the files of `/proc`: the same on all Linux systems that Rust supports.
const TICKS: f64 = 100.0;

/// Adds the metrics of this process, and of the runtime that this is called in.
pub fn add(text: &mut Text) {
    process(text);
    runtime(text);
}

fn process(text: &mut Text) {
    let mut text = text.standard();
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::read) {
        text.counter("process_cpu_seconds_total", "CPU time of the process, in seconds.")
            .sample(&[], stat.cpu_ticks / TICKS);
        if let Some(booted) = boot_seconds() {
            text.gauge("process_start_time_seconds", "When the process started, since 1970.")
                .sample(&[], booted + stat.start_ticks / TICKS);
        }
        text.gauge("process_threads", "Threads of the process.").sample(&[], stat.threads);
        text.gauge("process_virtual_memory_bytes", "Virtual memory of the process.")
            .sample(&[], stat.virtual_bytes);
    }
    if let Some(bytes) = resident_bytes() {
        text.gauge("process_resident_memory_bytes", "Resident memory of the process.")
            .sample(&[], bytes);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        text.gauge("process_open_fds", "Open files of the process.")
            .sample(&[], files.count().saturating_sub(1));
    }
    if let Some(max) = max_files() {
        text.gauge("process_max_fds", "Files that the process may open.").sample(&[], max);
    }
}

fn runtime(text: &mut Text) {
    let Ok(handle) = tokio::runtime::Handle::try_current() else { return };
    let (metrics, mut text) = (handle.metrics(), text.standard());
    text.gauge("tokio_workers", "Worker threads of the runtime.")
        .sample(&[], metrics.num_workers());
    text.gauge("tokio_alive_tasks", "Tasks that have not ended.")
        .sample(&[], metrics.num_alive_tasks());
    text.gauge("tokio_global_queue_depth", "Tasks that wait in the queue of all workers.")
        .sample(&[], metrics.global_queue_depth());
    let mut busy = text.counter(
        "tokio_worker_busy_seconds_total",
        "Time in which a worker ran tasks: near one a second, it is the limit.",
    );
    for worker in 0..metrics.num_workers() {
        let seconds = metrics.worker_total_busy_duration(worker).as_secs_f64();
        busy.sample(&[("worker", &worker.to_string())], seconds);
    }
}

/// What `/proc/self/stat` says.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    /// Since the system was booted.
    start_ticks: f64,
    threads: u64,
    virtual_bytes: u64,
}

impl Stat {
    /// The name of the program stands in parentheses and may hold anything, also parentheses.
    fn read(text: &str) -> Option<Stat> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // proc(5): the first one here is field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        #[allow(clippy::cast_precision_loss)] // far below 2^53
        let ticks = |ticks: u64| ticks as f64;
        Some(Stat {
            cpu_ticks: ticks(field(14)? + field(15)?),
            start_ticks: ticks(field(22)?),
            threads: field(20)?,
            virtual_bytes: field(23)?,
        })
    }
}

/// When the system was booted, in seconds since 1970.
fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

fn max_files() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_read_whatever_the_program_is_called() {
        let text = "42 (a b) c) S 1 1 1 0 -1 4194304 9 0 0 0 70 30 0 0 20 0 5 0 99 1048576 200";
        let expected =
            Stat { cpu_ticks: 100.0, start_ticks: 99.0, threads: 5, virtual_bytes: 1_048_576 };
        assert_eq!(Stat::read(text), Some(expected));
        assert_eq!(Stat::read("42 (a) S 1"), None);
        assert_eq!(Stat::read(""), None);
    }
}
