//! The known word that an unknown one most likely means.

/// Words that are less similar are not suggested: 0 is nothing in common, 1 the same.
const MIN_SIMILARITY: f64 = 0.5;

/// Longer words are not compared: it takes time and memory by the product of the lengths, and no
/// key is as long as this.
const MAX_LENGTH: usize = 100;

/// The one of `known` that is most similar to `given`, if any is similar. Case, `_` and `-` do not
/// count: `max_age` means `maxAge`.
pub fn nearest<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if given.len() > MAX_LENGTH {
        return None;
    }
    let given = plain(given);
    known
        .into_iter()
        .map(|word| (strsim::normalized_damerau_levenshtein(&given, &plain(word)), word))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        // The first of equals.
        .reduce(|best, other| if other.0 > best.0 { other } else { best })
        .map(|(_, word)| word)
}

/// True when both are the same word but for case, `_` and `-`.
pub(super) fn same(one: &str, other: &str) -> bool {
    plain(one) == plain(other)
}

fn plain(word: &str) -> String {
    word.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}
