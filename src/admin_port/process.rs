//! The process and its runtime, under the names that Prometheus' client libraries use
//! (`process_*`), and `tokio_*`. What the system does not say is left out.

use super::text::Text;
use crate::process::{self, Stat};

/// Adds the metrics of this process, and of the runtime that this is called in.
pub fn add(text: &mut Text) {
    process(text);
    runtime(text);
}

fn process(text: &mut Text) {
    let mut text = text.standard();
    let stat = Stat::now();
    if let Some(seconds) = stat.as_ref().and_then(Stat::cpu_seconds) {
        text.counter("process_cpu_seconds_total", "CPU time of the process, in seconds.")
            .sample(&[], seconds);
    }
    if let Some(seconds) = stat.as_ref().and_then(Stat::start_time) {
        text.gauge("process_start_time_seconds", "When the process started, since 1970.")
            .sample(&[], seconds);
    }
    let of_stat = |read: fn(&Stat) -> Option<u64>| stat.as_ref().and_then(read);
    let files = |files: Option<usize>| files.map(|files| files as u64);
    for (name, help, value) in [
        ("process_threads", "Threads of the process.", of_stat(Stat::threads)),
        (
            "process_virtual_memory_bytes",
            "Virtual memory of the process.",
            of_stat(Stat::virtual_bytes),
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory of the process.",
            process::resident_bytes(),
        ),
        ("process_open_fds", "Open files of the process.", files(process::open_files())),
        ("process_max_fds", "Files that the process may open.", files(process::max_open_files())),
    ] {
        if let Some(value) = value {
            text.gauge(name, help).sample(&[], value);
        }
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
