//! Bearer tokens, of which only the SHA-256 hashes are kept.

use std::{fmt, path::PathBuf};

use serde_json::{Map, Value, json};

use crate::config::{
    declaration::{Declaration, Shape},
    error::{Problem, wrong_type},
    fields::{Element, Fields},
    secret::{MASK, SecretSource, is_mask},
    secret_key,
    settings::Declared,
};

/// A shorter token could be guessed.
const MIN_BYTES: usize = 16;
const MAX_BYTES: usize = 1024;

/// The prefix of a hash that is given in place of a token.
const HASH_PREFIX: &str = "sha256:";

/// The SHA-256 hash of a token. `Debug` shows nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenHash([u8; 32]);

/// One entry of an identity's `tokens`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The hashes of its tokens: at least one; more than one in a file only.
    pub hashes: Vec<TokenHash>,
    /// The source of the tokens.
    pub source: TokenSource,
}

/// The source of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// The configuration has its hash.
    Hash,
    /// The configuration has the token itself.
    Value,
    /// In the environment variable of this name.
    EnvironmentVariable(String),
    /// In this file, one token or hash a line.
    File(PathBuf),
}

impl TokenHash {
    /// The hash of a token.
    pub fn of(token: &[u8]) -> TokenHash {
        let digest = ring::digest::digest(&ring::digest::SHA256, token);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        TokenHash(hash)
    }

    /// Its bytes, for a comparison in constant time.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads a token, or `sha256:` and its hash in 64 hexadecimal digits. The error repeats nothing
    /// of it.
    pub(super) fn parse(text: &str) -> Result<TokenHash, String> {
        if let Some(digits) = text.strip_prefix(HASH_PREFIX) {
            if is_mask(digits) {
                return Err("the hash is masked: put the real one in its place".to_owned());
            }
            return hex(digits)
                .map(TokenHash)
                .ok_or_else(|| format!("{HASH_PREFIX} must be followed by 64 hexadecimal digits"));
        }
        if !(MIN_BYTES..=MAX_BYTES).contains(&text.len()) {
            let length = text.len();
            return Err(format!(
                "the token has {length} bytes; it must have {MIN_BYTES} to {MAX_BYTES}"
            ));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token must be of visible ASCII characters, without spaces".to_owned());
        }
        Ok(TokenHash::of(text.as_bytes()))
    }

    /// The tokens of a file: one token or hash a line; empty lines and those that begin with `#`
    /// are ignored. There may be none. The error names the line, and repeats nothing of it.
    pub fn parse_file(text: &str) -> Result<Vec<TokenHash>, String> {
        let lines = text.lines().map(str::trim).zip(1..);
        lines
            .filter(|(line, _)| !line.is_empty() && !line.starts_with('#'))
            .map(|(line, number)| {
                TokenHash::parse(line).map_err(|why| format!("line {number}: {why}"))
            })
            .collect()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HASH_PREFIX}{MASK}")
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A key with a list of tokens.
pub(super) struct Tokens(pub(super) &'static str);

const EXPECTED: &str =
    "a secret such as {\"@type\": \"File\", \"filePath\": ...}, or sha256: and a hash";

impl Declared for Tokens {
    type Value = Vec<Token>;

    fn read(&self, fields: &mut Fields<'_>) -> Vec<Token> {
        let tokens = fields.list(self.0, EXPECTED, |element| match element {
            Element::Text(fields, text) if text.starts_with(HASH_PREFIX) => {
                let hash = TokenHash::parse(text).map_err(|why| {
                    fields.fail("", Problem::Invalid(why));
                });
                Some(Token { hashes: vec![hash.ok()?], source: TokenSource::Hash })
            }
            // The text may be a token, so it is not repeated.
            Element::Text(fields, _) => {
                fields.fail("", wrong_type("a string", EXPECTED));
                None
            }
            Element::Object(fields) => read_token(fields),
        });
        tokens.into_iter().flatten().flatten().collect()
    }

    fn show(&self, value: &Vec<Token>, object: &mut Map<String, Value>) {
        let shown = value.iter().map(|token| match &token.source {
            TokenSource::Hash => json!(format!("{HASH_PREFIX}{MASK}")),
            TokenSource::Value => secret_key::show_source(Some(&SecretSource::Value)),
            TokenSource::EnvironmentVariable(name) => {
                secret_key::show_source(Some(&SecretSource::EnvironmentVariable(name.clone())))
            }
            TokenSource::File(path) => {
                secret_key::show_source(Some(&SecretSource::File(path.clone())))
            }
        });
        object.insert(self.0.to_owned(), shown.collect());
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        let item = Box::new(Shape::Variants(secret_key::variants(false)));
        let text = Some("^sha256:[0-9A-Fa-f]{64}$");
        vec![Declaration::new(self.0, doc, Shape::List { item, text })]
    }
}

fn read_token(fields: &mut Fields<'_>) -> Option<Token> {
    let secret = secret_key::read(fields)?;
    let one = || TokenHash::parse(secret.expose()).map(|hash| vec![hash]);
    let (key, hashes) = match secret.source() {
        SecretSource::File(_) => ("filePath", TokenHash::parse_file(secret.expose())),
        SecretSource::EnvironmentVariable(_) => ("variableName", one()),
        SecretSource::Value => ("secret", one()),
    };
    let hashes = hashes.and_then(|hashes| {
        if hashes.is_empty() { Err("the file holds no token".to_owned()) } else { Ok(hashes) }
    });
    let hashes = hashes.map_err(|why| fields.fail(key, Problem::Invalid(why))).ok()?;
    Some(Token { hashes, source: TokenSource::from(secret.source()) })
}

impl From<&SecretSource> for TokenSource {
    fn from(source: &SecretSource) -> TokenSource {
        match source {
            SecretSource::Value => TokenSource::Value,
            SecretSource::EnvironmentVariable(name) => {
                TokenSource::EnvironmentVariable(name.clone())
            }
            SecretSource::File(path) => TokenSource::File(path.clone()),
        }
    }
}

fn hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `echo -n correct-horse-battery | sha256sum`.
    const HASH: &str = "sha256:95bbbfbb56c5af2b3eac9b6c4d4ab5dfb0b2a0d1b39dc2bfbdcf9f33d2cd2a3a";

    #[test]
    fn short_tokens_and_those_that_no_header_can_carry_are_refused() {
        for token in ["", "short", "fifteen-letters", "has a space in it", "umlauts-f\u{fc}r-alle"]
        {
            let why = TokenHash::parse(token).unwrap_err();
            assert!(token.is_empty() || !why.contains(token), "{why}");
        }
        assert!(TokenHash::parse(&"x".repeat(16)).is_ok());
        assert!(TokenHash::parse(&"x".repeat(1025)).is_err());
        for hash in ["sha256:", "sha256:00", "sha256:***", &HASH.replace('f', "g")] {
            TokenHash::parse(hash).unwrap_err();
        }
    }

    #[test]
    fn a_hash_is_that_of_its_token_and_is_masked() {
        // The published test vector of SHA-256 for "abc".
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TokenHash::parse(abc).unwrap(), TokenHash::of(b"abc"));
        assert_eq!(format!("{:?}", TokenHash::of(b"abc")), "sha256:***");
    }

    #[test]
    fn a_token_file_has_one_token_a_line() {
        let text = format!("# of May\nfirst-token-of-the-file\r\n\n  {HASH}\n");
        let hashes = TokenHash::parse_file(&text).unwrap();
        assert_eq!(hashes.len(), 2);
        assert_eq!(hashes[0], TokenHash::of(b"first-token-of-the-file"));
        assert_eq!(TokenHash::parse_file("\n#\n"), Ok(vec![]));
        let why = TokenHash::parse_file("first-token-of-the-file\nshort").unwrap_err();
        assert_eq!(why, "line 2: the token has 5 bytes; it must have 16 to 1024");
    }
}
