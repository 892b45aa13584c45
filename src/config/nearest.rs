//! What was probably meant.

/// Words that are less alike are not suggested: 0 is nothing in common, 1 the same.
const LEAST_LIKENESS: f64 = 0.5;

/// Comparing takes time and memory by the product of the lengths, and no key is as long as this.
const LONGEST: usize = 100;

/// The one of `known` that is most like `given`, if any is like it at all. Case, `_` and `-` do not count: `max_age` is
/// `maxAge` to the one who wrote it.
pub(super) fn nearest<'k>(
    given: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    if given.len() > LONGEST {
        return None;
    }
    let given = plain(given);
    known
        .into_iter()
        .map(|word| (strsim::normalized_damerau_levenshtein(&given, &plain(word)), word))
        .filter(|(likeness, _)| *likeness >= LEAST_LIKENESS)
        // The first of equals.
        .reduce(|best, other| if other.0 > best.0 { other } else { best })
        .map(|(_, word)| word)
}

/// Whether both are the same word but for case, `_` and `-`.
pub(super) fn same(one: &str, other: &str) -> bool {
    plain(one) == plain(other)
}

fn plain(word: &str) -> String {
    word.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}
