//! Metrics as text: in the format of Prometheus, or of OpenMetrics.

use std::{
    fmt::{Display, Write},
    time::{Duration, SystemTime},
};

/// The prefix of our own names.
const PREFIX: &str = "trunkline_";

/// The media type of OpenMetrics, as a scraper asks for it.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// The form of the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// The text format of Prometheus, version 0.0.4.
    #[default]
    Prometheus,
    /// OpenMetrics 1.0, which has exemplars.
    OpenMetrics,
}

impl Form {
    /// The form that fits the header `Accept` of a scraper.
    pub fn accepted(accept: &str) -> Form {
        if accept.contains(OPEN_METRICS) { Form::OpenMetrics } else { Form::Prometheus }
    }

    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Form::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Labels with their values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Metrics, family by family.
#[derive(Default)]
pub struct Text {
    form: Form,
    text: String,
}

/// The same, for families whose names are those of others, such as `process_open_fds`.
pub struct StandardNames<'a>(&'a mut Text);

/// The durations of a histogram.
pub struct Durations<'a> {
    /// The upper bounds of its buckets but the last one, in microseconds.
    pub ends: &'a [u64],
    /// The number of durations up to each bound, and of all.
    pub cumulative: &'a [u64],
    /// The sum of all.
    pub sum: Duration,
    /// A sample of each bucket, or none at all.
    pub exemplars: &'a [Option<Exemplar>],
}

/// A duration of a bucket with the trace that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The duration, in seconds.
    pub seconds: f64,
    /// When it ended.
    pub time: SystemTime,
}

/// A family that takes samples.
pub struct Family<'a> {
    text: &'a mut String,
    name: String,
}

/// A family of histograms.
pub struct HistogramFamily<'a>(Family<'a>, Form);

impl Text {
    /// An empty text.
    pub fn new(form: Form) -> Text {
        Text { form, text: String::new() }
    }

    /// Begins a total that only rises. Its name ends with `_total`.
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(PREFIX, name, "counter", help)
    }

    /// Begins a value that rises and falls.
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(PREFIX, name, "gauge", help)
    }

    /// Begins histograms of durations. Their name ends with `_seconds`.
    pub fn histogram(&mut self, name: &str, help: &str) -> HistogramFamily<'_> {
        let form = self.form;
        HistogramFamily(self.family(PREFIX, name, "histogram", help), form)
    }

    /// For families with names of others.
    pub fn standard(&mut self) -> StandardNames<'_> {
        StandardNames(self)
    }

    /// The text of all families.
    pub fn finish(mut self) -> String {
        if self.form == Form::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn family(&mut self, prefix: &str, name: &str, kind: &str, help: &str) -> Family<'_> {
        let ending = match kind {
            "counter" => "_total",
            "histogram" => "_seconds",
            _ => "",
        };
        debug_assert!(name.ends_with(ending), "{name}");
        // In OpenMetrics a counter is called without what its sample ends with.
        let called = match self.form {
            Form::OpenMetrics if kind == "counter" => name.strip_suffix(ending).unwrap_or(name),
            _ => name,
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let text = &mut self.text;
        // Writing to a String does not fail.
        let _ = writeln!(text, "# HELP {prefix}{called} {help}\n# TYPE {prefix}{called} {kind}");
        Family { text, name: format!("{prefix}{name}") }
    }
}

impl StandardNames<'_> {
    /// See [`Text::counter`].
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.0.family("", name, "counter", help)
    }

    /// See [`Text::gauge`].
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.0.family("", name, "gauge", help)
    }

    /// See [`Text::histogram`].
    pub fn histogram(&mut self, name: &str, help: &str) -> HistogramFamily<'_> {
        let form = self.0.form;
        HistogramFamily(self.0.family("", name, "histogram", help), form)
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        line(self.text, &self.name, labels, value);
    }
}

impl HistogramFamily<'_> {
    /// Adds a histogram.
    pub fn sample(&mut self, labels: Labels<'_>, of: &Durations<'_>) {
        let HistogramFamily(Family { text, name }, form) = self;
        let ends = of.ends.iter().map(|end| seconds(*end, *form)).chain(["+Inf".to_owned()]);
        let bucket = format!("{name}_bucket");
        for (nth, (end, count)) in ends.zip(of.cumulative).enumerate() {
            let labels = [labels, &[("le", &*end)]].concat();
            line(text, &bucket, &labels, count);
            if let (Form::OpenMetrics, Some(Some(exemplar))) = (*form, of.exemplars.get(nth)) {
                text.pop();
                let _ = writeln!(text, "{}", exemplar.text());
            }
        }
        line(text, &format!("{name}_sum"), labels, of.sum.as_secs_f64());
        line(text, &format!("{name}_count"), labels, of.cumulative.last().unwrap_or(&0));
    }
}

impl Exemplar {
    /// What stands behind the value of a bucket.
    fn text(&self) -> String {
        let trace = u128::from_be_bytes(self.trace_id);
        let time = self.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, time) = (self.seconds, time.as_secs_f64());
        format!(" # {{trace_id=\"{trace:032x}\"}} {seconds} {time:.3}")
    }
}

fn line(text: &mut String, name: &str, labels: Labels<'_>, value: impl Display) {
    let _ = write!(text, "{name}");
    for (nth, (label, value)) in labels.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{}{label}=\"{value}\"", if nth == 0 { '{' } else { ',' });
    }
    let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

/// Microseconds as seconds, exactly. OpenMetrics writes whole ones as `1.0`.
fn seconds(micros: u64, form: Form) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let text = text.trim_end_matches('0');
    match form {
        Form::Prometheus => text.trim_end_matches('.').to_owned(),
        Form::OpenMetrics if text.ends_with('.') => format!("{text}0"),
        Form::OpenMetrics => text.to_owned(),
    }
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
        let ends = |form| [100, 2_500, 1_000_000, 10_000_000].map(|end| seconds(end, form));
        assert_eq!(ends(Form::Prometheus), ["0.0001", "0.0025", "1", "10"]);
        assert_eq!(ends(Form::OpenMetrics), ["0.0001", "0.0025", "1.0", "10.0"]);
    }

    #[test]
    fn open_metrics_has_exemplars_and_an_end() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let exemplar = Exemplar { trace_id: [0xab; 16], seconds: 0.5, time };
        let durations = Durations {
            ends: &[1_000_000],
            cumulative: &[1, 2],
            sum: Duration::from_millis(2_500),
            exemplars: &[Some(exemplar), None],
        };
        let mut text = Text::new(Form::OpenMetrics);
        text.counter("gaps_total", "Gaps.").sample(&[], 7);
        let labels = [("grpc_method", "Publish")];
        let mut standard = text.standard();
        standard.histogram("grpc_seconds", "Time.").sample(&labels, &durations);
        assert_eq!(
            text.finish(),
            "# HELP trunkline_gaps Gaps.\n\
             # TYPE trunkline_gaps counter\n\
             trunkline_gaps_total 7\n\
             # HELP grpc_seconds Time.\n\
             # TYPE grpc_seconds histogram\n\
             grpc_seconds_bucket{grpc_method=\"Publish\",le=\"1.0\"} 1 \
             # {trace_id=\"abababababababababababababababab\"} 0.5 1.500\n\
             grpc_seconds_bucket{grpc_method=\"Publish\",le=\"+Inf\"} 2\n\
             grpc_seconds_sum{grpc_method=\"Publish\"} 2.5\n\
             grpc_seconds_count{grpc_method=\"Publish\"} 2\n\
             # EOF\n"
        );
    }

    #[test]
    fn scrapers_get_the_form_that_they_ask_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5";
        assert_eq!(Form::accepted(prometheus), Form::OpenMetrics);
        for other in ["", "*/*", "text/plain;version=0.0.4"] {
            assert_eq!(Form::accepted(other), Form::Prometheus, "{other}");
        }
    }
}
