//! Texts that several parts of the view use.

use ratatui::{style::Stylize, text::Span};

use crate::cli::{nodes, visible};

/// The name of a state: in capitals where an operator should act.
pub fn state_name(full: &str, prefix: &str) -> String {
    nodes::name(full, prefix)
}

/// A number that should be zero, highlighted if it is not.
pub fn warned(number: u64) -> Span<'static> {
    let text = number.to_string();
    if number > 0 { text.yellow().bold() } else { text.into() }
}

/// A rate in a few characters.
pub fn rate_text(rate: f64) -> String {
    if rate >= 100.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

/// Text that a node or a gateway chose.
pub fn clean(text: &str) -> String {
    visible(text).into_owned()
}
