//! What a fault did, in one line of the table; and the judgement.

use std::{collections::HashSet, fs, path::PathBuf, time::Duration};

use crate::{
    history::History,
    promises::{all_acknowledged, broken, in_gap},
};

/// The columns of the table.
pub const HEAD: &str = "| fault | events acknowledged | deliveries | told in gaps | lost | repeated | longest without OK | \
                        serving again after |\n|---|---|---|---|---|---|---|---|";

/// The judgement of one fault.
pub struct Report<'a> {
    fault: &'a str,
    history: &'a History,
    serving_again: Option<Duration>,
}

impl<'a> Report<'a> {
    pub fn of(fault: &'a str, history: &'a History) -> Report<'a> {
        Report { fault, history, serving_again: None }
    }

    /// Takes the time from `healed` until a publisher next was told OK.
    #[must_use]
    pub fn healed(mut self, healed: Duration) -> Report<'a> {
        let after = |at: Duration| at.checked_sub(healed);
        self.serving_again = all_acknowledged(self.history)
            .filter_map(|(_, acknowledged)| after(acknowledged.at))
            .min();
        self
    }

    /// How long it took until a publisher was told OK again.
    pub fn serving_again(&self) -> Duration {
        self.serving_again.expect("somebody was told OK after the fault")
    }

    /// Writes the line, and holds the history to every promise.
    ///
    /// # Panics
    ///
    /// If one is broken.
    pub fn judge(&self) {
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
        let broken = broken(self.history);
        let shown: Vec<_> = broken.iter().take(20).collect();
        assert!(broken.is_empty(), "{}: {} breaches: {shown:#?}", self.fault, broken.len());
    }

    /// Wants that the fault was shorter than `timeout`, so that no publisher saw it.
    pub fn unseen_by_publishers(&self) {
        let refused = self.history.refused;
        assert_eq!(refused, 0, "{}: publishers were refused", self.fault);
    }

    /// Judges, and wants no gap told to anybody.
    pub fn judge_without_gap(&self) {
        self.judge();
        for node in &self.history.nodes {
            let gaps: Vec<_> = node.gaps().collect();
            assert!(gaps.is_empty(), "{}: {} was told {gaps:?}", self.fault, node.node_id);
        }
    }

    fn line(&self) -> String {
        let history = self.history;
        let acknowledged = all_acknowledged(history).count();
        let (mut delivered, mut told, mut repeated) = (0, 0, 0);
        for node in &history.nodes {
            let all = node.events().count();
            let seen: HashSet<&str> = node.events().collect();
            delivered += seen.len();
            repeated += all - seen.len();
            let gaps: HashSet<&str> = node.gaps().flat_map(|gap| in_gap(history, gap)).collect();
            told += gaps.difference(&seen).count();
        }
        let lost = broken(history).iter().filter(|how| how.starts_with("NoSilentLoss")).count();
        let again = self.serving_again.map_or_else(|| "-".into(), seconds);
        format!(
            "| {} | {acknowledged} | {delivered} | {told} | {lost} | {repeated} | {} | {again} |",
            self.fault,
            seconds(self.longest_silence())
        )
    }

    /// The longest time in which no publisher was told OK.
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
