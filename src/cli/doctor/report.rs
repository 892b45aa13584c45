//! What doctor prints: each finding as it comes, or all of them as JSON.

use std::io::{IsTerminal, Write};

use serde_json::json;
use trunkline::bus::{Finding, Level};

use crate::cli::Failure;

/// Prints what is found, and counts it.
pub(super) struct Report {
    json: bool,
    /// Somebody watches: they are told what is being looked at.
    watched: bool,
    findings: Vec<Finding>,
    /// Nobody reads what is printed any more.
    broken: Option<std::io::Error>,
}

impl Report {
    pub(super) fn new(json: bool) -> Report {
        let watched = std::io::stderr().is_terminal();
        Report { json, watched, findings: vec![], broken: None }
    }

    /// A check begins.
    pub(super) fn begins(&mut self, check: &str) {
        if self.watched {
            eprint!("\r\x1b[K... {check}");
        }
    }

    pub(super) fn found(&mut self, finding: Finding) {
        if self.watched {
            eprint!("\r\x1b[K");
        }
        if !self.json
            && let Err(error) = print(&finding)
        {
            self.broken.get_or_insert(error);
        }
        self.findings.push(finding);
    }

    /// The end: an error if there was a failure.
    pub(super) fn end(self) -> Result<(), Failure> {
        if self.watched {
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
            writeln!(std::io::stdout(), "{report:#}")?;
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
    let mut lines = finding.seen.lines();
    writeln!(out, "{level:8} {:15} {}", finding.check, lines.next().unwrap_or_default())?;
    for line in lines {
        writeln!(out, "{:24} {line}", "")?;
    }
    if !finding.advice.is_empty() {
        writeln!(out, "{:24} -> {}", "", finding.advice)?;
    }
    Ok(())
}
