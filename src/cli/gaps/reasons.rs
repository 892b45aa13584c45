//! The reasons of gaps, and what to do about each.

use trunkline_proto::v1::GapReason;

/// Each reason that a gateway gives.
const REASONS: [(GapReason, &str); 6] = [
    (
        GapReason::HistoryExpired,
        "the node was away, or slower than the events, for longer than history keeps. Raise \
         `history`, or find out why it is behind: trunkline nodes --node-id NODE",
    ),
    (
        GapReason::EpochChanged,
        "Redis lost its data, and no gateway had these events. Look for evictions, a restart \
         without persistence, or a FLUSHALL: trunkline doctor",
    ),
    (
        GapReason::UnknownEpoch,
        "the node resumed with a token of another deployment, or of before Redis lost its data. \
         Begin without a token there; if it comes again, compare the `prefix` of the gateways",
    ),
    (
        GapReason::Unreadable,
        "something in Redis is not from these gateways, or from one of a later version or with \
         another `frameKey`. Find what else uses this prefix: trunkline doctor",
    ),
    (
        GapReason::Link,
        "a link did not carry events of another deployment: see the log of `trunkline link`, and \
         the gaps there",
    ),
    (
        GapReason::NotPublished,
        "gateways gave up events about nodes, since the bus was away for too long. Nothing but \
         lists of nodes is concerned; one that begins anew is right",
    ),
];

/// The text after the help.
pub fn help() -> String {
    let mut text = String::from(
        "\
Each gateway keeps the last 100 gaps that it sent on streams, since it started. Each of the gateways
in --gateway is asked; one that cannot be is reported, and the exit code is 69. A node that gets a
gap loads again what the gap concerns: that is its own work. What to do by reason:

",
    );
    for (reason, advice) in REASONS {
        text.push_str(&name(reason.into()));
        text.push_str(":\n");
        text.push_str(&wrapped(advice));
    }
    text.push_str(
        "
Examples:
  trunkline gaps                                   the last gaps of a gateway
  trunkline gaps --gateway gw-a,gw-b --watch       those of two, and new ones
  trunkline gaps --node-id mx1
  trunkline gaps --json | jq -r 'select(.reason == \"GAP_REASON_LINK\") | .nodeId'",
    );
    text
}

/// The name of a reason, as in metrics: `history_expired`. One of a later version by its number.
pub fn name(reason: i32) -> String {
    match GapReason::try_from(reason) {
        Ok(known) => known.as_str_name().trim_start_matches("GAP_REASON_").to_lowercase(),
        Err(_) => format!("reason {reason}"),
    }
}

/// What to do about it.
pub fn advice(reason: i32) -> &'static str {
    let known = REASONS.iter().find(|(known, _)| i32::from(*known) == reason);
    known.map_or("a reason of a later version than this command", |(_, advice)| advice)
}

/// Lines of at most 98 characters, four spaces before each.
fn wrapped(text: &str) -> String {
    let (mut lines, mut line) = (String::new(), String::from("   "));
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > 98 {
            lines.push_str(&line);
            lines.push('\n');
            line = String::from("   ");
        }
        line.push(' ');
        line.push_str(word);
    }
    format!("{lines}{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_says_what_to_do_about_every_reason() {
        let text = help();
        for number in 1.. {
            let Ok(reason) = GapReason::try_from(number) else { break };
            let listed = REASONS.iter().filter(|(known, _)| *known == reason).count();
            assert_eq!(listed, 1, "{reason:?}");
            assert!(text.contains(&format!("\n{}:\n    ", name(number))), "{reason:?}: {text}");
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert_eq!((&*name(1), &*name(99)), ("history_expired", "reason 99"));
        assert!(advice(99).contains("later version"));
    }
}
