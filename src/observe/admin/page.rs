//! The page at `/`: its files, which are part of the binary, and its security headers.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::glossary;

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Its media type.
    pub media_type: &'static str,
    text: &'static str,
}

/// Lets the page load its own files and ask its own server, and never turn text into markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// The file at a path.
pub fn asset(path: &str) -> Option<Asset> {
    let (media_type, text) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("page/index.html")),
        "/words" => ("text/html; charset=utf-8", glossary::page()),
        "/page.css" => ("text/css; charset=utf-8", include_str!("page/page.css")),
        "/page.js" => ("text/javascript; charset=utf-8", include_str!("page/page.js")),
        "/tables.js" => ("text/javascript; charset=utf-8", include_str!("page/tables.js")),
        "/plots.js" => ("text/javascript; charset=utf-8", include_str!("page/plots.js")),
        "/timeline.js" => ("text/javascript; charset=utf-8", include_str!("page/timeline.js")),
        "/words.js" => ("text/javascript; charset=utf-8", include_str!("page/words.js")),
        "/icon.svg" => ("image/svg+xml", include_str!("page/icon.svg")),
        _ => return None,
    };
    Some(Asset { media_type, text })
}

impl Asset {
    /// Its bytes.
    pub fn body(self) -> Bytes {
        Bytes::from_static(self.text.as_bytes())
    }
}

/// Adds the headers that keep the page and its data out of the reach of other pages.
pub fn guard(headers: &mut HeaderMap) {
    let guards: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in guards {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of everything that a browser loads to show the page, uncompressed.
    const MAX_BYTES: usize = 100_000;

    #[test]
    fn the_page_is_light_and_loads_its_own_files_only() {
        let (mut waiting, mut seen) = (vec!["/".to_owned()], Vec::new());
        let mut bytes = 0;
        while let Some(path) = waiting.pop() {
            let asset = asset(&path).unwrap_or_else(|| panic!("{path}"));
            bytes += asset.text.len();
            seen.push(path);
            let quoted = asset.text.split(['"', '\'']);
            let is_file = |text: &&str| {
                text.starts_with('/')
                    && [".js", ".css", ".svg"].iter().any(|end| text.ends_with(end))
            };
            for file in quoted.filter(is_file) {
                if !seen.iter().chain(&waiting).any(|other| other == file) {
                    waiting.push(file.to_owned());
                }
            }
            // The namespace of SVG is no address.
            let mut urls = asset.text.split("://").skip(1);
            assert!(urls.all(|url| url.starts_with("www.w3.org/")), "{}", asset.text);
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
        assert!(bytes < MAX_BYTES, "{bytes}");
    }
}
