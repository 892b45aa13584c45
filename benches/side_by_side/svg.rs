//! Drawings: bars and lines as SVG, readable on light and dark pages.

use std::fmt::Write;

/// Colours of the series, on a light and on a dark page.
const SERIES: [(&str, &str); 10] = [
    ("#0b5fd0", "#58a6ff"),
    ("#6ea8f7", "#a5d0ff"),
    ("#00808c", "#39c5cf"),
    ("#5e35b1", "#b99cff"),
    ("#9575cd", "#dccbff"),
    ("#c62828", "#ff7b72"),
    ("#d9730d", "#ffa657"),
    ("#8a6100", "#e3b341"),
    ("#2e7d32", "#56d364"),
    ("#6e7781", "#8b949e"),
];

/// Dashes of floors, which share a colour.
const DASHES: [&str; 4] = ["", "6 3", "2 3", "8 3 2 3"];

/// The style of a series: colour and dash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style(pub usize, pub usize);

/// A drawing to which elements are added.
pub struct Drawing {
    width: f64,
    height: f64,
    body: String,
}

/// A rectangle.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Left.
    pub x: f64,
    /// Top.
    pub y: f64,
    /// Width.
    pub w: f64,
    /// Height.
    pub h: f64,
}

/// A line of a plot.
pub struct Line {
    /// Its style.
    pub style: Style,
    /// Its points, both from 0 to 1: from the left, from the bottom.
    pub points: Vec<(f64, f64)>,
}

/// A tick on an axis: its position from 0 to 1, and its label.
pub type Tick = (f64, String);

impl Drawing {
    /// An empty one with a title.
    pub fn new(width: f64, height: f64, title: &str) -> Drawing {
        let mut drawing = Drawing { width, height, body: String::new() };
        drawing.text(16.0, 24.0, "title", "start", title);
        drawing
    }

    /// A text; `anchor` is start, middle or end.
    pub fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" \
             text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// A bar.
    pub fn bar(&mut self, frame: Frame, style: Style) {
        let Frame { x, y, w, h } = frame;
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{h:.1}\" rx=\"1.5\" \
             class=\"f{}\"/>",
            w.max(1.0),
            style.0
        );
    }

    /// A thin line.
    pub fn rule(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"{class}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// An entry of the legend: the line of a series and its name.
    pub fn legend(&mut self, x: f64, y: f64, style: Style, name: &str) {
        self.path(&[(x, y - 4.0), (x + 22.0, y - 4.0)], style);
        self.text(x + 28.0, y, "label", "start", name);
    }

    /// Axes with their ticks, and the lines within.
    pub fn plot(&mut self, frame: Frame, title: &str, ticks: [&[Tick]; 2], lines: &[Line]) {
        let Frame { x, y, w, h } = frame;
        self.text(x, y - 10.0, "head", "start", title);
        for (position, name) in ticks[0] {
            let at = x + position * w;
            self.rule((at, y), (at, y + h), "grid");
            self.text(at, y + h + 16.0, "label", "middle", name);
        }
        for (position, name) in ticks[1] {
            let at = y + h - position * h;
            self.rule((x, at), (x + w, at), "grid");
            self.text(x - 6.0, at + 4.0, "label", "end", name);
        }
        for line in lines {
            let points: Vec<(f64, f64)> = line
                .points
                .iter()
                .map(|(across, up)| (x + across * w, y + h - up.clamp(0.0, 1.0) * h))
                .collect();
            self.path(&points, line.style);
            // Only contestants that are not floors have their points marked.
            if line.style.1 == 0 {
                for (across, down) in points {
                    let _ = writeln!(
                        self.body,
                        "<circle cx=\"{across:.1}\" cy=\"{down:.1}\" r=\"2.4\" class=\"f{}\"/>",
                        line.style.0
                    );
                }
            }
        }
    }

    fn path(&mut self, points: &[(f64, f64)], style: Style) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dash = DASHES[style.1 % DASHES.len()];
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" class=\"l{}\" stroke-dasharray=\"{dash}\"/>",
            points.join(" "),
            style.0
        );
    }

    /// The file.
    pub fn finish(self) -> String {
        let Drawing { width, height, body } = self;
        let colours = |pick: fn(&(&'static str, &'static str)) -> &'static str| {
            let mut text = String::new();
            for (index, series) in SERIES.iter().enumerate() {
                let colour = pick(series);
                let _ = writeln!(text, ".f{index}{{fill:{colour}}} .l{index}{{stroke:{colour}}}");
            }
            text
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\">\n\
             <style>\n\
             text{{font:11px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#1f2328}}\n\
             .title{{font-size:15px;font-weight:600}} .head{{font-size:12px;font-weight:600}} \
             .quiet{{fill:#59636e}}\n\
             polyline{{fill:none;stroke-width:1.8;stroke-linejoin:round}}\n\
             .page{{fill:#ffffff}} .grid{{stroke:#d8dee4;stroke-width:1}} \
             .spread{{stroke:#1f2328;stroke-width:1}}\n\
             {}@media (prefers-color-scheme:dark){{\n\
             text{{fill:#e6edf3}} .quiet{{fill:#9198a1}} .page{{fill:#0d1117}} \
             .grid{{stroke:#30363d}} .spread{{stroke:#e6edf3}}\n\
             {}}}\n\
             </style>\n\
             <rect width=\"{width}\" height=\"{height}\" rx=\"6\" class=\"page\"/>\n{body}</svg>\n",
            colours(|series| series.0),
            colours(|series| series.1)
        )
    }
}
