//! The machine: its description, its load, and the CPU time of processes.

use std::{fs, process::Command};

use serde_json::{Value, json};

/// Open files, sockets included, that the benchmark and each server need: 10,000 connections, and
/// some.
const FILES: u64 = 12_000;

/// CPU seconds of a process so far, user and system: summed up over its threads in nanoseconds,
/// where the kernel has them.
pub fn cpu_of(pid: u32) -> f64 {
    by_thread(pid).unwrap_or_else(|| f64::from(ticks_of(pid)) / 100.0)
}

fn by_thread(pid: u32) -> Option<f64> {
    let mut seconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        seconds += text.split(' ').next()?.parse::<f64>().ok()? / 1e9;
    }
    (seconds > 0.0).then_some(seconds)
}

/// CPU time of a process in hundredths of a second, threads that have ended included.
fn ticks_of(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    let field = |field: usize| after.split(' ').nth(field).and_then(|text| text.parse().ok());
    field(11).unwrap_or(0) + field(12).unwrap_or(0)
}

/// CPU seconds that this process has used.
pub fn own_cpu() -> f64 {
    f64::from(ticks_of(std::process::id())) / 100.0
}

/// CPU seconds that the whole machine has used.
pub fn all_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<f64> =
        line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system; irq, softirq, steal; not idle and iowait (3, 4).
    let busy = |index: usize| fields.get(index).copied().unwrap_or(0.0);
    [0, 1, 2, 5, 6, 7].map(busy).iter().sum::<f64>() / 100.0
}

/// The load averages.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Raises the limit of open files for this process and those that it starts.
pub fn allow_files() -> Result<(), String> {
    let (soft, hard) = limits().ok_or("the limit of open files cannot be read")?;
    if soft >= FILES {
        return Ok(());
    }
    if hard < FILES {
        return Err(format!("only {hard} open files are allowed, {FILES} are needed"));
    }
    // The system call needs unsafe code; this program does it too.
    let pid = std::process::id().to_string();
    let limit = format!("--nofile={FILES}:{hard}");
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("prlimit did not raise the limit of open files: {other:?}")),
    }
}

/// The limits of open files: soft and hard.
fn limits() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut fields = line.split_whitespace().map(|field| field.parse().unwrap_or(u64::MAX));
    Some((fields.next()?, fields.next()?))
}

/// The machine and the versions of everything, for the report.
pub fn describe(nats: Option<&std::path::Path>) -> Value {
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    let first_line = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        Some(first(&String::from_utf8_lossy(&output.stdout)))
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name"));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok());
    let redis = super::support::tools::redis_server().display().to_string();
    let nats = nats.and_then(|nats| first_line(&nats.display().to_string(), &["--version"]));
    let dirty = first_line("git", &["status", "--porcelain", "--untracked-files=no"]);
    let commit = first_line("git", &["rev-parse", "--short=10", "HEAD"]).unwrap_or_default();
    let changed = if dirty.is_some_and(|text| !text.is_empty()) { ", with changes" } else { "" };
    json!({
        "date": first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        "commit": format!("{commit}{changed}"),
        "debug_build": cfg!(debug_assertions),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "cpu": model.and_then(|line| line.split_once(": ")).map(|(_, name)| name),
        "memory_gb": memory.map(|kb| (kb / 1e6).round()),
        "kernel": first_line("uname", &["-sr"]),
        "rustc": first_line("rustc", &["--version"]),
        "redis_server": first_line(&redis, &["--version"]),
        "nats_server": nats,
        "crates": crates(),
        "load_before": load(),
    })
}

/// The versions of the contestants' client crates, from Cargo.lock.
fn crates() -> Value {
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock");
    let lock = fs::read_to_string(lock).unwrap_or_default();
    let version = |name: &str| {
        let (_, after) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        Some(after.split('"').next()?.to_owned())
    };
    ["tonic", "h2", "tokio", "redis", "async-nats"]
        .into_iter()
        .map(|name| (name.to_owned(), json!(version(name))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
