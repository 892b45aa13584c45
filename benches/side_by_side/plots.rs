//! The plots: fan-out as bars, latency by percentile, growth as lines.

use super::{
    report::{Report, Row, Spread, short},
    svg::{Drawing, Frame, Line, Style, Tick},
};

/// A plot.
pub struct Plot {
    /// File name, without its ending.
    pub name: String,
    /// Its title.
    pub title: String,
    /// The content of the file.
    pub svg: String,
}

const WIDTH: f64 = 880.0;

/// All plots for which something was measured.
pub fn all(report: &Report) -> Vec<Plot> {
    [fan_out(report, 100), fan_out(report, 1), latency(report), growth(report)]
        .into_iter()
        .flatten()
        .collect()
}

/// The style of a contestant in every plot.
fn style(contestant: &str) -> Style {
    const NAMES: [&str; 9] = [
        "trunkline redis",
        "trunkline redis, 2 gateways",
        "trunkline embedded",
        "trunkline cluster",
        "trunkline cluster, 2 gateways",
        "plain redis",
        "plain cluster, classic",
        "plain cluster, sharded",
        "nats core",
    ];
    let floor = match contestant {
        name if name.contains("unary") => 1,
        name if name.contains("redis") => 2,
        _ => 3,
    };
    NAMES.iter().position(|name| *name == contestant).map_or(Style(9, floor), |at| Style(at, 0))
}

fn number(text: &str, after: &str) -> Option<f64> {
    let (_, rest) = text.split_once(after)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Delivered events a second, a panel for each number of subscribers.
fn fan_out(report: &Report, batch: u32) -> Option<Plot> {
    const ROW: f64 = 17.0;
    const LABEL: f64 = 178.0;
    const VALUE: f64 = 64.0;
    let ending = format!(", {batch} a request, mailbox changes");
    let mut scenarios = report.scenarios();
    scenarios.retain(|name| name.starts_with("fan-out, 1 to ") && name.ends_with(&ending));
    scenarios.sort_by_key(|name| number(name, "1 to ").map_or(0, f64::to_bits));
    let panels: Vec<(&str, Vec<(&Row, Spread)>)> = scenarios
        .into_iter()
        .map(|name| {
            // Floors, which publish nothing, would dwarf the others.
            let rows = report.of(name).filter(|row| !row.contestant.starts_with("floor"));
            let mut rows: Vec<_> =
                rows.filter_map(|row| Some((row, row.spread("delivered_per_second")?))).collect();
            rows.sort_by_key(|(row, _)| style(&row.contestant).0);
            (name, rows)
        })
        .collect();
    if panels.is_empty() {
        return None;
    }
    let title = format!("Delivered events a second, 1 publisher, {batch} a request");
    let lines: Vec<usize> =
        panels.chunks(2).map(|pair| pair.iter().map(|p| p.1.len()).max().unwrap_or(0)).collect();
    #[allow(clippy::cast_precision_loss)] // a dozen
    let heights: Vec<f64> = lines.iter().map(|rows| 48.0 + *rows as f64 * ROW).collect();
    let mut drawing = Drawing::new(WIDTH, 56.0 + heights.iter().sum::<f64>(), &title);
    let note = "medians; the thin line reaches from the least to the greatest round; each panel \
                has its own scale";
    drawing.text(16.0, 41.0, "quiet", "start", note);
    let mut top = 64.0;
    for (pair, height) in panels.chunks(2).zip(heights) {
        let mut left = 16.0;
        for (name, rows) in pair {
            let subscribers = number(name, "1 to ").unwrap_or(0.0);
            let head =
                format!("to {subscribers} subscriber{}", if subscribers < 2.0 { "" } else { "s" });
            drawing.text(left, top + 8.0, "head", "start", &head);
            let max = rows.iter().map(|(_, spread)| spread.max).fold(1.0, f64::max);
            let width = WIDTH / 2.0 - 24.0 - LABEL - VALUE;
            let mut y = top + 18.0;
            for (row, spread) in rows {
                let of = |value: f64| left + LABEL + value / max * width;
                drawing.text(left + LABEL - 6.0, y + 11.0, "label", "end", &row.contestant);
                let bar =
                    Frame { x: left + LABEL, y, w: spread.median / max * width, h: ROW - 5.0 };
                drawing.bar(bar, style(&row.contestant));
                let middle = y + (ROW - 5.0) / 2.0;
                drawing.rule((of(spread.min), middle), (of(spread.max), middle), "spread");
                drawing.text(
                    of(spread.max) + 6.0,
                    y + 11.0,
                    "label",
                    "start",
                    &short(spread.median),
                );
                y += ROW;
            }
            left += WIDTH / 2.0;
        }
        top += height;
    }
    Some(Plot { name: format!("fan-out-{batch}"), title, svg: drawing.finish() })
}

/// Latency by percentile, a panel for each rate and number of subscribers.
fn latency(report: &Report) -> Option<Plot> {
    const TICKS: [(f64, &str); 5] =
        [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];
    // Each nine has the same width.
    let across = |quantile: f64| -(1.0 - quantile).log10() / 3.0;
    let mut scenarios = report.scenarios();
    scenarios.retain(|name| name.starts_with("latency, "));
    scenarios.sort_by_key(|name| {
        [number(name, "latency, "), number(name, "1 to ")].map(|n| n.unwrap_or(0.0).to_bits())
    });
    let panels: Vec<Panel> = scenarios
        .into_iter()
        .filter_map(|name| {
            let rate = number(name, "latency, ")?;
            let subscribers = number(name, "1 to ")?;
            let curves = report.of(name).map(|row| {
                let points = row.rounds.first().into_iter().flat_map(|round| round.keys());
                let mut points: Vec<(f64, f64)> = points
                    .filter_map(|key| {
                        let quantile: f64 = key.strip_prefix("us_at_")?.parse().ok()?;
                        let shown = (0.0..=0.999).contains(&quantile);
                        Some((across(quantile), row.spread(key).filter(|_| shown)?.median))
                    })
                    .collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                (row.contestant.clone(), points)
            });
            Some(Panel {
                title: format!("{rate} events/s to {subscribers}: microseconds"),
                curves: curves.collect(),
                ticks: TICKS.map(|(quantile, name)| (across(quantile), name.to_owned())).to_vec(),
            })
        })
        .collect();
    let title = "Latency by percentile, from when an event was to be sent".to_owned();
    Some(Plot { svg: panels_of(&title, &panels)?, name: "latency".into(), title })
}

/// The figures over a growing number of nodes.
fn growth(report: &Report) -> Option<Plot> {
    let mut scenarios: Vec<(f64, &str)> = report
        .scenarios()
        .into_iter()
        .filter_map(|name| Some((number(name, "growth, ")?, name)))
        .collect();
    scenarios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (first, last) = (scenarios.first()?.0, scenarios.last()?.0.max(scenarios.first()?.0 * 2.0));
    let across = |nodes: f64| (nodes / first).log10() / (last / first).log10();
    let ticks: Vec<Tick> =
        scenarios.iter().map(|(nodes, _)| (across(*nodes), format!("{nodes}"))).collect();
    let mut contestants: Vec<&str> = vec![];
    for (_, name) in &scenarios {
        for row in report.of(name) {
            if !contestants.contains(&row.contestant.as_str()) {
                contestants.push(&row.contestant);
            }
        }
    }
    let panel = |title: &str, figures: &[&str]| {
        let curves = contestants.iter().map(|contestant| {
            let points = scenarios.iter().filter_map(|(nodes, name)| {
                let values: Vec<f64> =
                    figures.iter().filter_map(|f| report.median(name, contestant, f)).collect();
                (!values.is_empty()).then(|| (across(*nodes), values.iter().sum()))
            });
            ((*contestant).to_owned(), points.collect())
        });
        Panel { title: title.to_owned(), curves: curves.collect(), ticks: ticks.clone() }
    };
    let cpu = ["server_cpu_seconds_per_million", "redis_cpu_seconds_per_million"];
    let panels = [
        panel("delivered events a second", &["delivered_per_second"]),
        panel("CPU microseconds a delivered event, all servers", &cpu),
        panel("latency p99 at 100 events/s, microseconds", &["p99_us"]),
        panel("connections at Redis", &["redis_connections"]),
    ];
    let title = "As nodes become more (across: nodes)".to_owned();
    Some(Plot { svg: panels_of(&title, &panels)?, name: "growth".into(), title })
}

/// Curves over a logarithmic axis.
struct Panel {
    title: String,
    // Points: the position from 0 to 1 across, and the measured value.
    curves: Vec<(String, Vec<(f64, f64)>)>,
    ticks: Vec<Tick>,
}

/// Panels, two in a row, with one legend for all. None if nothing was measured.
fn panels_of(title: &str, panels: &[Panel]) -> Option<String> {
    const HEIGHT: f64 = 260.0;
    let mut names: Vec<&str> = vec![];
    for (name, points) in panels.iter().flat_map(|panel| &panel.curves) {
        if !points.is_empty() && !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return None;
    }
    names.sort_by_key(|name| style(name).0);
    #[allow(clippy::cast_precision_loss)] // a dozen
    let (legend, rows) = (names.len().div_ceil(4) as f64 * 18.0, panels.len().div_ceil(2) as f64);
    let mut drawing = Drawing::new(WIDTH, 50.0 + legend + rows * HEIGHT, title);
    for (index, name) in names.iter().enumerate() {
        #[allow(clippy::cast_precision_loss)] // a dozen
        let (across, down) = ((index % 4) as f64, (index / 4) as f64);
        drawing.legend(16.0 + across * 214.0, 48.0 + down * 18.0, style(name), name);
    }
    for (index, panel) in panels.iter().enumerate() {
        #[allow(clippy::cast_precision_loss)] // a handful
        let (across, down) = ((index % 2) as f64, (index / 2) as f64);
        let frame = Frame {
            x: 62.0 + across * (WIDTH / 2.0),
            y: 72.0 + legend + down * HEIGHT,
            w: WIDTH / 2.0 - 84.0,
            h: HEIGHT - 62.0,
        };
        panel.draw(&mut drawing, frame);
    }
    Some(drawing.finish())
}

impl Panel {
    fn draw(&self, drawing: &mut Drawing, frame: Frame) {
        let values = || self.curves.iter().flat_map(|(_, points)| points).map(|point| point.1);
        let positive = || values().filter(|value| *value > 0.0);
        if positive().next().is_none() {
            return;
        }
        let low = positive().fold(f64::MAX, f64::min).log10().floor();
        let high = positive().fold(0.0, f64::max).log10().ceil().max(low + 1.0);
        let up = |value: f64| (value.max(1e-12).log10() - low) / (high - low);
        let mut ticks: Vec<Tick> = vec![];
        #[allow(clippy::cast_possible_truncation)]
        // a power of ten between those of measured figures
        for power in low as i32..=high as i32 {
            let value = 10f64.powi(power);
            ticks.push((up(value), plain(value)));
            if high - low < 2.5 && f64::from(power) < high {
                ticks.push((up(value * 3.0), plain(value * 3.0)));
            }
        }
        let lines: Vec<Line> = self
            .curves
            .iter()
            .map(|(name, points)| Line {
                style: style(name),
                points: points.iter().map(|(across, value)| (*across, up(*value))).collect(),
            })
            .collect();
        drawing.plot(frame, &self.title, [&self.ticks, &ticks], &lines);
    }
}

/// A round number for an axis.
fn plain(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", value / 1e6),
        value if value >= 1e4 => format!("{} k", value / 1e3),
        value => format!("{}", (value * 1e6).round() / 1e6),
    }
}
