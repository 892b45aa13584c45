//! Text of others, as a terminal shows it and does not act on it.
//!
//! Nodes choose their ids, and gateways their texts. A control character in them (`ESC`, or U+009B,
//! which is `ESC [` in one) would move the cursor or colour the screen, a mark of the direction of
//! writing would show a text as another one, and characters without a width would hide in it.

use std::{borrow::Cow, fmt::Write};

use serde_json::Value;

/// Text with every character escaped that would not be seen as it is: `\u{9b}`. Line feeds too.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |shown, hidden| {
        let _ = write!(shown, "\\u{{{:x}}}", u32::from(hidden));
    })
}

/// The same for JSON that was written already: the same value, with such characters as JSON
/// escapes them (`\u009b`). They can be in its strings alone, so line feeds of its layout stay.
pub(super) fn visible_json(json: &str) -> Cow<'_, str> {
    escaped(json, |shown, hidden| {
        if hidden == '\n' {
            shown.push(hidden);
            return;
        }
        for unit in hidden.encode_utf16(&mut [0; 2]) {
            let _ = write!(shown, "\\u{unit:04x}");
        }
    })
}

/// JSON as text: on one line, or indented over several.
pub(super) fn json_text(json: &Value, pretty: bool) -> String {
    let text = if pretty { format!("{json:#}") } else { json.to_string() };
    visible_json(&text).into_owned()
}

fn escaped(text: &str, mut escape: impl FnMut(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_hidden(character) {
            escape(&mut shown, character);
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Control characters, and those of Unicode that format text and are not seen themselves.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Every character that is escaped, and some that are not.
    fn hidden() -> impl Iterator<Item = char> {
        ('\0'..=char::MAX).filter(|character| is_hidden(*character))
    }

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        assert_eq!(visible("m\u{1b}[31mx\u{9b}2J\n\u{202e}"), r"m\u{1b}[31mx\u{9b}2J\u{a}\u{202e}");
        for plain in ["mx-1", "a b", "\u{e9}\u{4e2d}\u{1f600}", r#"{"a":1}"#] {
            assert!(matches!(visible(plain), Cow::Borrowed(_)), "{plain}");
        }
        for character in ["\u{7f}", "\u{85}", "\u{2066}", "\u{200b}", "\u{feff}", "\u{e0041}"] {
            assert!(visible(character).starts_with(r"\u{"), "{character:?}");
        }
        let all: String = hidden().collect();
        assert!(visible(&all).is_ascii() && visible_json(&all).is_ascii());
    }

    #[test]
    fn json_keeps_its_value_and_its_layout() {
        let all: String = hidden().chain("plain \u{e9}\u{1f600}".chars()).collect();
        let value = json!({ all.clone(): [all, 1] });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = visible_json(&text);
            assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value);
            assert!(!shown.contains(|c| c != '\n' && is_hidden(c)));
            assert_eq!(shown.lines().count(), text.matches('\n').count() + 1);
        }
    }
}
