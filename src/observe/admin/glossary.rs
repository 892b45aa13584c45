//! The words of the page and their meaning: docs/glossary.md as a page of its own, at `/words`.
//!
//! That file is Markdown of a simple kind: headings, and paragraphs that begin with the words that
//! they explain, in bold. Each word is an anchor, to which the page links.

use std::{collections::HashSet, fmt::Write, sync::LazyLock};

static PAGE: LazyLock<String> = LazyLock::new(|| render(include_str!("../../../docs/glossary.md")));

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Words · Trunkline</title>
<link rel="icon" href="/icon.svg">
<link rel="stylesheet" href="/page.css">
</head>
<body class="words">
<header>
<h1>Words</h1>
<p class="about"><a href="/">Back to the gateway</a></p>
</header>
<main>
"#;

/// The page.
pub fn page() -> &'static str {
    &PAGE
}

/// The page for a glossary.
fn render(markdown: &str) -> String {
    let mut page = String::from(HEAD);
    let mut anchors = HashSet::new();
    let mut is_list = false;
    for block in markdown.split("\n\n") {
        let block = block.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_term = block.starts_with("**");
        if is_list && !is_term {
            page.push_str("</dl>\n");
            is_list = false;
        }
        // Writing to a String does not fail.
        if let Some(title) = block.strip_prefix("## ") {
            let _ = writeln!(page, "<h2>{}</h2>", inline(title));
        } else if let Some((terms, meaning)) =
            block.strip_prefix("**").and_then(|rest| rest.split_once(".**"))
        {
            if !is_list {
                page.push_str("<dl>\n");
                is_list = true;
            }
            let (first, others) = terms.split_once(", ").unwrap_or((terms, ""));
            let _ = write!(page, "<div id=\"{}\"><dt>", anchor(first, &mut anchors));
            page.push_str(&inline(first));
            for other in others.split(", ").filter(|other| !other.is_empty()) {
                let id = anchor(other, &mut anchors);
                let _ = write!(page, ", <span id=\"{id}\">{}</span>", inline(other));
            }
            let _ = writeln!(page, "</dt><dd>{}</dd></div>", inline(meaning.trim()));
        } else if !block.is_empty() && !block.starts_with("# ") {
            let _ = writeln!(page, "<p>{}</p>", inline(&block));
        }
    }
    if is_list {
        page.push_str("</dl>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// The anchor of a word: `Resume token` is at `#resume-token`. The second of the same is another.
fn anchor(term: &str, taken: &mut HashSet<String>) -> String {
    let of = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let first: String = term.chars().map(of).collect();
    let mut anchor = first.clone();
    for nth in 2.. {
        if taken.insert(anchor.clone()) {
            break;
        }
        anchor = format!("{first}-{nth}");
    }
    anchor
}

/// Text with code, emphasis and links. A link leads into the documents, which are not here: its
/// text is left.
fn inline(text: &str) -> String {
    let mut html = String::new();
    for (nth, part) in without_links(text).split('`').enumerate() {
        if nth % 2 == 1 {
            let _ = write!(html, "<code>{}</code>", escape(part));
        } else {
            html.push_str(&emphasis(part));
        }
    }
    html
}

fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let (text, label) = before.rsplit_once('[').unwrap_or((before, ""));
        plain.push_str(text);
        plain.push_str(label);
        rest = after.split_once(')').map_or(after, |(_, after)| after);
    }
    plain + rest
}

fn emphasis(text: &str) -> String {
    let mut html = String::new();
    for (mark, tag) in [("**", "strong"), ("*", "em")] {
        if text.contains(mark) {
            for (nth, part) in text.split(mark).enumerate() {
                let part = escape(part);
                let _ = if nth % 2 == 1 {
                    write!(html, "<{tag}>{part}</{tag}>")
                } else {
                    write!(html, "{part}")
                };
            }
            return html;
        }
    }
    escape(text)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_anchors_and_links_of_the_documents_are_texts() {
        let page = render(
            "# Glossary\n\nIntro of `a<b`.\n\n## One\n\n**Bad & good.** A *word*, see\n\
             [the rest](rest.md#x).\n\n**Two, three of it.** **Strong** [`code`](x.md).\n\n\
             ## Two\n\n**Two.** Again.",
        );
        let (_, body) = page.split_once("<main>\n").unwrap();
        assert_eq!(
            body,
            "<p>Intro of <code>a&lt;b</code>.</p>\n<h2>One</h2>\n<dl>\n\
             <div id=\"bad---good\"><dt>Bad &amp; good</dt><dd>A <em>word</em>, see the rest.</dd>\
             </div>\n\
             <div id=\"two\"><dt>Two, <span id=\"three-of-it\">three of it</span></dt>\
             <dd><strong>Strong</strong> <code>code</code>.</dd></div>\n</dl>\n\
             <h2>Two</h2>\n<dl>\n<div id=\"two-2\"><dt>Two</dt><dd>Again.</dd></div>\n</dl>\n\
             </main>\n</body>\n</html>\n"
        );
    }

    #[test]
    fn the_page_links_to_words_that_there_are() {
        let files = [include_str!("page/index.html"), include_str!("page/page.js")];
        let mut links = 0;
        for file in files.into_iter().chain([include_str!("page/timeline.js")]) {
            for (at, _) in file.match_indices("/words#") {
                let anchor: String = file[at + 7..]
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                    .collect();
                assert!(page().contains(&format!("id=\"{anchor}\"")), "{anchor}");
                links += 1;
            }
        }
        assert!(links >= 10, "{links}");
        assert!(!page().contains("]("), "a link is left");
    }
}
