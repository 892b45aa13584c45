//! The output of doctor and verify: each finding as it is made, or all of them as JSON.

use std::io::{IsTerminal, Write};

use serde_json::{Value, json};
use trunkline::bus::{Finding, Level};

use super::{Failure, visible, visible_json};

/// Prints findings and counts them.
pub(super) struct Report {
    json: bool,
    /// Standard error is a terminal, and not for a program: it shows the check that runs.
    interactive: bool,
    findings: Vec<Finding>,
    /// Members of the JSON beside the findings.
    figures: Vec<(&'static str, Value)>,
    /// The error of writing to standard output.
    broken: Option<std::io::Error>,
}

impl Report {
    pub(super) fn new(json: bool) -> Report {
        let interactive = !json && std::io::stderr().is_terminal();
        Report { json, interactive, findings: vec![], figures: vec![], broken: None }
    }

    /// Shows that a check begins.
    pub(super) fn begins(&mut self, check: &str) {
        if self.interactive {
            eprint!("\r\x1b[K... {check}");
        }
    }

    /// Records a finding, and prints it unless JSON is asked for.
    pub(super) fn found(&mut self, finding: Finding) {
        if self.interactive {
            eprint!("\r\x1b[K");
        }
        if !self.json
            && let Err(error) = print(&finding)
        {
            self.broken.get_or_insert(error);
        }
        self.findings.push(finding);
    }

    /// Adds figures to the JSON, under this name.
    pub(super) fn figures(&mut self, name: &'static str, figures: Value) {
        self.figures.push((name, figures));
    }

    /// Reports the checks of this list that have no finding as not checked.
    pub(super) fn expect(&mut self, checks: &[&'static str], why: &str) {
        for check in checks {
            if self.findings.iter().all(|finding| finding.check != *check) {
                let advice = "cure what is named above, and run this again";
                self.found(Finding::not_checked(check, why, advice));
            }
        }
    }

    /// Prints the JSON if it is asked for. An error if there was a failure.
    pub(super) fn finish(self) -> Result<(), Failure> {
        if self.interactive {
            eprint!("\r\x1b[K");
        }
        if let Some(error) = self.broken {
            return Err(error.into());
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let (failures, warnings) = (count(Level::Failure), count(Level::Warning));
        let not_checked = count(Level::NotChecked);
        if self.json {
            let findings: Vec<_> = self
                .findings
                .iter()
                .map(|finding| {
                    json!({
                        "check": finding.check,
                        "level": finding.level.to_string(),
                        "seen": finding.seen,
                        "advice": finding.advice,
                    })
                })
                .collect();
            let mut report = json!({
                "ok": failures == 0,
                "failures": failures,
                "warnings": warnings,
                "notChecked": not_checked,
                "findings": findings,
            });
            for (name, figures) in self.figures {
                report[name] = figures;
            }
            writeln!(std::io::stdout(), "{}", visible_json(&format!("{report:#}")))?;
        }
        let number = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let (found, warned) = (number(failures, "failure"), number(warnings, "warning"));
        let summary = format!("{found}, {warned}, {not_checked} not checked");
        if failures > 0 {
            return Err(Failure::Other(summary));
        }
        if !self.json {
            writeln!(std::io::stdout(), "{summary}")?;
        }
        Ok(())
    }
}

fn print(finding: &Finding) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let level = match finding.level {
        Level::Ok => "ok",
        Level::NotChecked => "not checked",
        Level::Warning => "WARNING",
        Level::Failure => "FAILURE",
    };
    let mut lines = finding.seen.lines().map(visible);
    writeln!(out, "{level:11} {:15} {}", finding.check, lines.next().unwrap_or_default())?;
    for line in lines {
        writeln!(out, "{:27} {line}", "")?;
    }
    if !finding.advice.is_empty() {
        writeln!(out, "{:27} -> {}", "", visible(&finding.advice))?;
    }
    Ok(())
}
