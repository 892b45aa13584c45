//! The measured figures of each round, and the file that keeps them.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

/// The figures of one run, by name; the unit is in the name.
pub type Metrics = BTreeMap<String, f64>;

/// All the runs.
#[derive(Debug, Default)]
pub struct Report {
    /// The machine, the versions, the command line, the load averages.
    pub conditions: Value,
    /// The rows in the order of the first round.
    pub rows: Vec<Row>,
    /// The failed runs, each with the reason.
    pub failures: Vec<String>,
}

/// The runs of one contestant in one scenario.
#[derive(Debug)]
pub struct Row {
    /// The name of the scenario.
    pub scenario: String,
    /// The name of the contestant.
    pub contestant: String,
    /// The figures of each round.
    pub rounds: Vec<Metrics>,
}

/// A median with the least and the greatest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The greatest.
    pub max: f64,
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

    /// The scenarios, each once, in order.
    pub fn scenarios(&self) -> Vec<&str> {
        let mut names: Vec<&str> = vec![];
        for row in &self.rows {
            if !names.contains(&row.scenario.as_str()) {
                names.push(&row.scenario);
            }
        }
        names
    }

    /// The rows of a scenario.
    pub fn of<'a>(&'a self, scenario: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.scenario == scenario)
    }

    /// The median of a figure, if it was measured.
    pub fn median(&self, scenario: &str, contestant: &str, metric: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.is(scenario, contestant))?;
        Some(row.spread(metric)?.median)
    }

    /// A figure of round number `round`, from 0; of the last round that there is, if one failed.
    pub fn figure(
        &self,
        scenario: &str,
        contestant: &str,
        round: usize,
        metric: &str,
    ) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.is(scenario, contestant))?;
        row.rounds.get(round).or(row.rounds.last())?.get(metric).copied()
    }

    /// Reads a file written by [`Report::write`].
    pub fn read(file: &Path) -> Result<Report, String> {
        let problem = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
        let text = fs::read_to_string(file).map_err(|error| problem(&error))?;
        Report::parse(&text).map_err(|error| problem(&error))
    }

    /// Parses the text of such a file.
    pub fn parse(text: &str) -> Result<Report, String> {
        let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut report = Report { conditions: all["conditions"].clone(), ..Report::default() };
        for row in all["results"].as_array().ok_or("no results")? {
            let name = |key: &str| row[key].as_str().ok_or(format!("a result without {key}"));
            let rounds = row["rounds"].as_array().ok_or("a result without rounds")?;
            for round in rounds {
                let figures = round.as_object().ok_or("a round that is not an object")?;
                let figures =
                    figures.iter().filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)));
                report.add(name("scenario")?, name("contestant")?, figures.collect());
            }
        }
        let failures = all["failures"].as_array().into_iter().flatten();
        report.failures = failures.filter_map(|f| Some(f.as_str()?.to_owned())).collect();
        Ok(report)
    }

    /// Every figure of every round, as JSON.
    pub fn to_json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            json!({ "scenario": row.scenario, "contestant": row.contestant, "rounds": row.rounds })
        });
        let all = json!({
            "conditions": self.conditions,
            "results": rows.collect::<Vec<_>>(),
            "failures": self.failures,
        });
        format!("{all:#}\n")
    }

    /// Writes [`Report::to_json`] to a file.
    pub fn write(&self, file: &Path) -> Result<(), String> {
        write(file, &self.to_json())
    }
}

impl Row {
    fn is(&self, scenario: &str, contestant: &str) -> bool {
        self.scenario == scenario && self.contestant == contestant
    }

    /// The median of a figure with the least and the greatest value, if it was measured.
    pub fn spread(&self, metric: &str) -> Option<Spread> {
        let figures = self.rounds.iter().filter_map(|round| round.get(metric).copied());
        let mut values: Vec<f64> = figures.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Spread { min, median, max })
    }
}

/// Writes a file, and creates its folder.
pub fn write(file: &Path, text: &str) -> Result<(), String> {
    let problem = |error: std::io::Error| format!("{}: {error}", file.display());
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(problem)?;
    }
    fs::write(file, text).map_err(problem)
}

/// A figure with three significant digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e4 => format!("{:.1} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        size if size >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}
