//! The flags that say which events a node wants, of `trunkline subscribe` and `trunkline explain`.

use clap::Args;
use trunkline_proto::{kinds, v1::Filter};

use super::kinds::unknown_kind;

/// The events that a node is interested in.
#[derive(Args)]
pub(super) struct InterestArgs {
    /// Only these kinds: mailbox-change, email-delivery, ... or a number
    #[arg(long, value_parser = parse_kind)]
    kind: Vec<i32>,
    /// Only these accounts; applies to kinds that concern an account
    #[arg(long)]
    account: Vec<String>,
    /// Only these types of custom events: the type, or a prefix with * at the end
    #[arg(long)]
    custom_type: Vec<String>,
    /// A role of this node
    #[arg(long)]
    pub(super) role: Vec<String>,
    /// Include this node's own events
    #[arg(long)]
    pub(super) include_own: bool,
}

impl InterestArgs {
    /// The filter of the request.
    pub(super) fn filter(&self) -> Filter {
        Filter {
            kinds: self.kind.clone(),
            accounts: self.account.clone(),
            custom_types: self.custom_type.clone(),
        }
    }
}

/// The number of a kind, by its name or as it is.
fn parse_kind(text: &str) -> Result<i32, String> {
    let named = kinds::named(text).map(|row| row.kind.into());
    named
        .or_else(|| text.parse().ok())
        .ok_or_else(|| unknown_kind(text, kinds::TABLE.iter().map(kinds::Row::cli_name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_given_by_name_or_by_number() {
        assert_eq!(parse_kind("mailbox-change"), Ok(10));
        assert_eq!(parse_kind("custom"), Ok(20));
        assert_eq!(parse_kind("42"), Ok(42));
        assert!(parse_kind("mailbox").is_err());
    }
}
