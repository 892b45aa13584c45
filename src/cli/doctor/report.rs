//! The output of doctor: each finding as it is made, or all of them as JSON.

use std::io::{IsTerminal, Write};

use serde_json::json;
use trunkline::bus::{Finding, Level};

use crate::cli::{Failure, visible, visible_json};

/// Prints findings and counts them.
pub(super) struct Report {
    json: bool,
    /// Standard error is a terminal: it shows the check that runs.
    interactive: bool,
    findings: Vec<Finding>,
    /// The error of writing to standard output.
    broken: Option<std::io::Error>,
}

impl Report {
    pub(super) fn new(json: bool) -> Report {
        let interactive = std::io::stderr().is_terminal();
        Report { json, interactive, findings: vec![], broken: None }
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
            let report = json!({
                "ok": failures == 0,
                "failures": failures,
                "warnings": warnings,
                "findings": findings,
            });
            writeln!(std::io::stdout(), "{}", visible_json(&format!("{report:#}")))?;
        }
        match failures {
            0 => Ok(()),
            1 => Err(Failure::Other(format!("1 failure, {warnings} warnings"))),
            _ => Err(Failure::Other(format!("{failures} failures, {warnings} warnings"))),
        }
    }
}

fn print(finding: &Finding) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Warning => "WARNING",
        Level::Failure => "FAILURE",
    };
    let mut lines = finding.seen.lines().map(visible);
    writeln!(out, "{level:8} {:15} {}", finding.check, lines.next().unwrap_or_default())?;
    for line in lines {
        writeln!(out, "{:24} {line}", "")?;
    }
    if !finding.advice.is_empty() {
        writeln!(out, "{:24} -> {}", "", visible(&finding.advice))?;
    }
    Ok(())
}
