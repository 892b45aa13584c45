//! What the system says of this process, in files of `/proc`; none of it where there are none.

use std::fs;

/// Clock ticks a second there: the same on all Linux systems that Rust supports.
const TICKS: f64 = 100.0;

/// What `/proc/self/stat` says, by the numbers of its fields in proc(5).
#[derive(Debug)]
pub struct Stat(Vec<u64>);

/// The number of the first field behind the state of the process.
const FIRST: usize = 4;

impl Stat {
    /// That of this process now.
    pub fn now() -> Option<Stat> {
        Stat::read(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// The name of the program stands in parentheses and may hold anything, also parentheses.
    fn read(text: &str) -> Option<Stat> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields = fields.split_ascii_whitespace().skip(1);
        // Some are negative, and none of those is asked for.
        Some(Stat(fields.map(|field| field.parse().unwrap_or_default()).collect()))
    }

    fn field(&self, number: usize) -> Option<u64> {
        self.0.get(number - FIRST).copied()
    }

    #[allow(clippy::cast_precision_loss)] // far below 2^53
    fn seconds(ticks: u64) -> f64 {
        ticks as f64 / TICKS
    }

    /// Processor time, in seconds.
    pub fn cpu_seconds(&self) -> Option<f64> {
        Some(Stat::seconds(self.field(14)? + self.field(15)?))
    }

    /// Threads.
    pub fn threads(&self) -> Option<u64> {
        self.field(20)
    }

    /// When it started, in seconds since the system was booted.
    fn start_seconds(&self) -> Option<f64> {
        self.field(22).map(Stat::seconds)
    }

    /// When it started, in seconds since 1970.
    pub fn start_time(&self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(booted.trim().parse::<f64>().ok()? + self.start_seconds()?)
    }

    /// Virtual memory, in bytes.
    pub fn virtual_bytes(&self) -> Option<u64> {
        self.field(23)
    }
}

/// Resident memory, in bytes.
pub fn resident_bytes() -> Option<u64> {
    resident_bytes_in(&fs::read_to_string("/proc/self/status").ok()?)
}

fn resident_bytes_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Open files.
pub fn open_files() -> Option<usize> {
    // One of them is the folder itself.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

/// The number of files that it may open.
pub fn max_open_files() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_read_whatever_the_program_is_called() {
        let text = "42 (a b) c) S 1 1 1 0 -1 4194304 9 0 0 0 70 30 0 0 20 0 5 0 99 1048576 200";
        let stat = Stat::read(text).unwrap();
        let is = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-9;
        assert!(is(stat.cpu_seconds(), 1.0) && is(stat.start_seconds(), 0.99), "{stat:?}");
        assert_eq!((stat.threads(), stat.virtual_bytes()), (Some(5), Some(1_048_576)));
        let text = "12 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 3 0 99";
        assert!(is(Stat::read(text).unwrap().cpu_seconds(), 3.0));
        let short = Stat::read("42 (a) S 1").unwrap();
        assert_eq!((short.cpu_seconds(), short.virtual_bytes()), (None, None));
        assert!(Stat::read("").is_none());
    }

    #[test]
    fn resident_memory_is_read() {
        let status = "Name:\tx\nVmRSS:\t   2048 kB\nThreads:\t1\n";
        assert_eq!(resident_bytes_in(status), Some(2_097_152));
        assert_eq!(resident_bytes_in("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_has_used_memory() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 4096));
        assert!(Stat::now().and_then(|stat| stat.cpu_seconds()).is_some());
        assert!(max_open_files() > open_files());
    }
}
