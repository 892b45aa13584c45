//! The report of one fault: a line of the table, and the check of every promise.

use std::{collections::HashSet, fs, path::PathBuf, time::Duration};

use crate::{
    history::History,
    promises::{all_acknowledged, in_gap, violations},
};

/// The columns of the table.
pub const HEAD: &str = "| fault | events acknowledged | deliveries | reported in gaps | lost | \
    repeated | longest without OK | serving again after |
|---|---|---|---|---|---|---|---|";

/// The report of one fault.
pub struct Report<'a> {
    fault: &'a str,
    history: &'a History,
    serving_after: Option<Duration>,
}

impl<'a> Report<'a> {
    pub fn of(fault: &'a str, history: &'a History) -> Report<'a> {
        Report { fault, history, serving_after: None }
    }

    /// Measures the time from `healed` until the next acknowledged event.
    #[must_use]
    pub fn healed(mut self, healed: Duration) -> Report<'a> {
        let after = |at: Duration| at.checked_sub(healed);
        self.serving_after = all_acknowledged(self.history)
            .filter_map(|(_, acknowledged)| after(acknowledged.at))
            .min();
        self
    }

    /// The time from the end of the fault until the next acknowledged event.
    pub fn serving_after(&self) -> Duration {
        self.serving_after.expect("an event was acknowledged after the fault")
    }

    /// Writes the line, and checks every promise.
    ///
    /// # Panics
    ///
    /// If a promise is broken.
    pub fn check(&self) {
        let line = self.line();
        println!("{HEAD}\n{line}");
        // One file a fault: tests run in processes of their own.
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("reliability");
        let file: String = self
            .fault
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
            .collect();
        fs::create_dir_all(&folder).expect("the folder of this build");
        fs::write(folder.join(file), format!("{line}\n")).expect("the folder of this build");
        let violations = violations(self.history);
        let shown: Vec<_> = violations.iter().take(20).collect();
        assert!(violations.is_empty(), "{}: {} breaches: {shown:#?}", self.fault, violations.len());
    }

    /// Checks that no publisher was refused: the fault was shorter than `timeout`.
    pub fn unseen_by_publishers(&self) {
        let refused = self.history.refused;
        assert_eq!(refused, 0, "{}: publishers were refused", self.fault);
    }

    /// Checks every promise, and that no node received a gap.
    pub fn check_without_gap(&self) {
        self.check();
        for node in &self.history.nodes {
            let gaps: Vec<_> = node.gaps().collect();
            assert!(gaps.is_empty(), "{}: {} received {gaps:?}", self.fault, node.node_id);
        }
    }

    fn line(&self) -> String {
        let history = self.history;
        let acknowledged = all_acknowledged(history).count();
        let (mut delivered, mut reported, mut repeated) = (0, 0, 0);
        for node in &history.nodes {
            let all = node.events().count();
            let seen: HashSet<&str> = node.events().collect();
            delivered += seen.len();
            repeated += all - seen.len();
            let gaps: HashSet<&str> = node.gaps().flat_map(|gap| in_gap(history, gap)).collect();
            reported += gaps.difference(&seen).count();
        }
        let lost = violations(history).iter().filter(|how| how.starts_with("NoSilentLoss")).count();
        let longest = seconds(self.longest_silence());
        let again = self.serving_after.map_or_else(|| "-".into(), seconds);
        format!(
            "| {} | {acknowledged} | {delivered} | {reported} | {lost} | {repeated} | {longest} | \
             {again} |",
            self.fault
        )
    }

    /// The longest time without an acknowledged event.
    fn longest_silence(&self) -> Duration {
        let mut times: Vec<Duration> =
            all_acknowledged(self.history).map(|(_, acknowledged)| acknowledged.at).collect();
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
