//! What was measured: each figure of each round, medians, a table, a JSON file.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use serde_json::json;

/// The figures of one run, by name; the unit is in the name.
pub type Metrics = BTreeMap<&'static str, f64>;

/// All the runs.
#[derive(Debug, Default)]
pub struct Report {
    // In the order of the first round.
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    scenario: String,
    contestant: String,
    rounds: Vec<Metrics>,
}

impl Report {
    /// Adds a run.
    pub fn add(&mut self, scenario: &str, contestant: &str, metrics: Metrics) {
        let found = self.rows.iter_mut().find(|row| row.is(scenario, contestant));
        if let Some(row) = found {
            row.rounds.push(metrics);
            return;
        }
        let (scenario, contestant) = (scenario.to_owned(), contestant.to_owned());
        self.rows.push(Row { scenario, contestant, rounds: vec![metrics] });
    }

    /// The median of a figure, if it was measured.
    pub fn median(&self, scenario: &str, contestant: &str, metric: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.is(scenario, contestant))?;
        row.rounds.first()?.get(metric)?;
        Some(row.spread(metric).1)
    }

    /// Tables in Markdown, one a scenario: the median, and the least and the greatest in brackets.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        let mut scenario = "";
        for row in &self.rows {
            let names: Vec<_> = row.rounds.iter().flat_map(BTreeMap::keys).collect();
            let names: std::collections::BTreeSet<_> = names.into_iter().collect();
            if row.scenario != scenario {
                scenario = &row.scenario;
                let _ = write!(text, "\n### {scenario}\n\n| |");
                for name in &names {
                    let _ = write!(text, " {} |", name.replace('_', " "));
                }
                let _ = write!(text, "\n|---|{}\n", "---|".repeat(names.len()));
            }
            let _ = write!(text, "| {} |", row.contestant);
            for name in &names {
                let (least, median, most) = row.spread(name);
                let _ = write!(text, " {} ({} to {}) |", short(median), short(least), short(most));
            }
            text.push('\n');
        }
        text
    }

    /// Writes every figure of every round.
    pub fn write_json(&self, file: &Path, conditions: &serde_json::Value) -> std::io::Result<()> {
        let rows = self.rows.iter().map(|row| {
            json!({ "scenario": row.scenario, "contestant": row.contestant, "rounds": row.rounds })
        });
        let all = json!({ "conditions": conditions, "results": rows.collect::<Vec<_>>() });
        std::fs::write(file, format!("{all:#}\n"))
    }
}

impl Row {
    fn is(&self, scenario: &str, contestant: &str) -> bool {
        self.scenario == scenario && self.contestant == contestant
    }

    /// The least, the median, the greatest.
    fn spread(&self, metric: &str) -> (f64, f64, f64) {
        let mut values: Vec<f64> =
            self.rounds.iter().filter_map(|round| round.get(metric).copied()).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        (values[0], median, values[values.len() - 1])
    }
}

/// A figure for people: three digits that count.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e4 => format!("{:.1} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}
