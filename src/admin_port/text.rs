//! The text format of Prometheus, version 0.0.4.

use std::{
    fmt::{Display, Write},
    time::Duration,
};

/// The media type of the format.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The prefix of all names.
const PREFIX: &str = "trunkline_";

/// Labels with their values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Metrics, family by family.
#[derive(Default)]
pub struct Text(String);

/// The durations of a histogram.
pub struct Durations<'a> {
    /// The upper bounds of its buckets but the last one, in microseconds.
    pub ends: &'a [u64],
    /// The number of durations up to each bound, and of all.
    pub cumulative: &'a [u64],
    /// The sum of all.
    pub sum: Duration,
}

/// A family that takes samples.
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Text {
    /// Begins a total that only rises. Its name ends with `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.family(name, "counter", help)
    }

    /// Begins a value that rises and falls.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    /// Adds a histogram of durations. Its name ends with `_seconds`.
    pub fn histogram(&mut self, name: &'static str, help: &str, of: &Durations<'_>) {
        debug_assert!(name.ends_with("_seconds"), "{name}");
        let Family { text, name } = self.family(name, "histogram", help);
        let ends = of.ends.iter().map(|end| seconds(*end)).chain(["+Inf".to_owned()]);
        for (end, count) in ends.zip(of.cumulative) {
            line(text, &format!("{name}_bucket"), &[("le", &end)], count);
        }
        line(text, &format!("{name}_sum"), &[], of.sum.as_secs_f64());
        line(text, &format!("{name}_count"), &[], of.cumulative.last().unwrap_or(&0));
    }

    /// The text of all families.
    pub fn finish(self) -> String {
        self.0
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let text = &mut self.0;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String does not fail.
        let _ = writeln!(text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
        Family { text, name }
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        line(self.text, self.name, labels, value);
    }
}

fn line(text: &mut String, name: &str, labels: Labels<'_>, value: impl Display) {
    let _ = write!(text, "{PREFIX}{name}");
    for (nth, (label, value)) in labels.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{}{label}=\"{value}\"", if nth == 0 { '{' } else { ',' });
    }
    let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

/// Microseconds as seconds, exactly.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stand_under_their_family_and_labels_are_escaped() {
        let mut text = Text::default();
        text.gauge("streams", "Streams\nopen \\ now.").sample(&[], 3);
        let mut family = text.counter("gaps_total", "Gaps.");
        family.sample(&[("reason", "a\"b\\c\nd"), ("shard", "0")], 7);
        family.sample(&[("reason", "e")], 0.5);
        assert_eq!(
            text.finish(),
            "# HELP trunkline_streams Streams\\nopen \\\\ now.\n\
             # TYPE trunkline_streams gauge\n\
             trunkline_streams 3\n\
             # HELP trunkline_gaps_total Gaps.\n\
             # TYPE trunkline_gaps_total counter\n\
             trunkline_gaps_total{reason=\"a\\\"b\\\\c\\nd\",shard=\"0\"} 7\n\
             trunkline_gaps_total{reason=\"e\"} 0.5\n"
        );
    }

    #[test]
    fn bucket_bounds_are_written_exactly() {
        let ends = [100, 2_500, 1_000_000, 10_000_000].map(seconds);
        assert_eq!(ends, ["0.0001", "0.0025", "1", "10"]);
    }
}
