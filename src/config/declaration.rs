//! Declared keys as data: the reference, the JSON Schema, the environment variables and the
//! suggestions for unknown keys are made from it.

use serde_json::Value;

/// One key of an object.
pub(super) struct Declaration {
    pub(super) name: &'static str,
    /// Its meaning: Markdown, one paragraph.
    pub(super) meaning: String,
    pub(super) shape: Shape,
}

/// The shape of a key's value.
pub(super) enum Shape {
    /// A single value, or a set.
    Value(ValueShape),
    /// An object.
    Group {
        keys: Vec<Declaration>,
        /// The meaning of a missing object, where that is not the same as an empty one.
        default: Option<Value>,
    },
    /// An object whose `@type` says which keys it has.
    Variants(Variants),
    /// An array, in the configuration file only.
    List {
        /// The shape of its objects.
        item: Box<Shape>,
        /// The pattern of the strings that are accepted in place of objects.
        text: Option<&'static str>,
    },
    /// Anything. Other programs write the key, and Trunkline has no use for it.
    Ignored,
}

/// A single value, or a set.
pub(super) struct ValueShape {
    /// `duration`, `size`, `text`, ...
    pub(super) type_name: &'static str,
    /// None: the key is required where its group is.
    pub(super) default: Option<Value>,
    /// `1s to 1h`.
    pub(super) range: Option<String>,
    /// JSON Schema of the value, without its description and its default.
    pub(super) schema: Value,
}

/// An object whose `@type` says which keys it has.
pub(super) struct Variants {
    /// The meaning of `@type`.
    pub(super) meaning: &'static str,
    /// The variant where the whole object is missing, if that is one of them.
    pub(super) default: Option<&'static str>,
    /// Keys of every variant.
    pub(super) common: Vec<Declaration>,
    pub(super) known: Vec<Variant>,
    /// True when objects of any other `@type`, with any keys, are accepted too.
    pub(super) open: bool,
}

/// One `@type` and its keys.
pub(super) struct Variant {
    pub(super) name: &'static str,
    pub(super) meaning: &'static str,
    /// None: the name is known and refused, with an error that says why.
    pub(super) keys: Option<Vec<Declaration>>,
}

impl Variants {
    /// The names of all known variants.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.known.iter().map(|variant| variant.name).collect()
    }
}

impl Declaration {
    /// A declaration with the text of a doc comment as its meaning.
    pub(super) fn new(name: &'static str, doc: &str, shape: Shape) -> Declaration {
        let words: Vec<&str> = doc.split_whitespace().collect();
        Declaration { name, meaning: words.join(" "), shape }
    }
}

/// Markdown without its links and code marks, for the schema and the help of flags.
pub(super) fn plain_text(markdown: &str) -> String {
    let mut plain = String::with_capacity(markdown.len());
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once("](") {
        // The text of a link begins after the last opening bracket.
        let (prefix, text) = before.rsplit_once('[').unwrap_or((before, ""));
        plain.push_str(prefix);
        plain.push_str(text);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    plain.push_str(rest);
    plain.replace('`', "")
}
