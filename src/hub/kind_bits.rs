//! Sets of kinds as bits of one number, as filters, scopes and summaries of frames compare them.

use trunkline_proto::kinds::{self, concerns_account};

/// The bit of a kind. A number that is no kind's has bit 0, which no filter includes.
pub(super) const fn kind_bit(kind: u8) -> u128 {
    if kinds::is_number(kind) { 1 << kind } else { 1 }
}

/// The bits of the kinds that concern an account.
pub(super) const ACCOUNT_KINDS: u128 = {
    let (mut kind, mut bits) = (*kinds::NUMBERS.start(), 0);
    while kind <= *kinds::NUMBERS.end() {
        if concerns_account(kind) {
            bits |= kind_bit(kind);
        }
        kind += 1;
    }
    bits
};

/// The bits of the kinds whose last value is kept.
pub(super) const LAST_VALUE_KINDS: u128 = {
    let (mut index, mut bits) = (0, 0);
    while index < kinds::TABLE.len() {
        if kinds::TABLE[index].keeps_last {
            bits |= kind_bit(kinds::TABLE[index].number);
        }
        index += 1;
    }
    bits
};

/// The bits of the kinds that a filter includes only if it names them.
pub(super) const NODE_KINDS: u128 = kind_bit(kinds::NODE_JOINED) | kind_bit(kinds::NODE_LEFT);

/// The bits of the kinds that a filter includes that names none.
pub(super) const fn default_kinds() -> u128 {
    all_kinds() & !NODE_KINDS
}

/// The bits of all numbers that a kind may have.
pub(super) const fn all_kinds() -> u128 {
    const fn below(kind: u8) -> u128 {
        (1 << kind) - 1
    }
    below(*kinds::NUMBERS.end() + 1) & !below(*kinds::NUMBERS.start())
}
