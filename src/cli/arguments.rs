//! The order of arguments: a flag of a command may stand before the command's name, and one of
//! `publish` after the kind (`trunkline --gateway a publish queue-refresh --to-role mta`).
//!
//! clap takes the second as it is. For the first, flags are moved behind the name of the command,
//! so that a flag which the command does not have is refused as it would be there.

use std::ffi::OsString;

use clap::Command;

/// The command that runs if none is named.
const DEFAULT: &str = "serve";

/// The arguments, without the name of the program, in the order in which clap takes them.
pub(super) fn in_order(command: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    match moved(command, &arguments) {
        Moved::Ordered(ordered) => ordered,
        Moved::NoCommand { known: true } => [vec![DEFAULT.into()], arguments].concat(),
        Moved::NoCommand { known: false } => arguments,
    }
}

/// True if these arguments ask for output as JSON.
pub(super) fn ask_for_json(arguments: &[OsString]) -> bool {
    // The flag of `publish` is an event.
    !arguments.iter().any(|argument| argument == "publish")
        && arguments.iter().any(|argument| argument == "--json")
}

enum Moved {
    Ordered(Vec<OsString>),
    /// No subcommand is named. `known`: all flags are of some subcommand.
    NoCommand {
        known: bool,
    },
}

fn moved(command: &Command, arguments: &[OsString]) -> Moved {
    let (mut own, mut later) = (Vec::new(), Vec::new());
    let mut rest = arguments;
    while let Some((argument, after)) = rest.split_first() {
        let text = argument.to_string_lossy();
        let Some(flag) = text.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            let Some(sub) = command.find_subcommand(&*text) else { break };
            let inner = [later, after.to_vec()].concat();
            let inner = match moved(sub, &inner) {
                Moved::Ordered(ordered) => ordered,
                Moved::NoCommand { .. } => inner,
            };
            return Moved::Ordered([own, vec![argument.clone()], inner].concat());
        };
        let Some(name) = flag.strip_prefix('-').filter(|name| !name.is_empty()) else {
            // `-h`, `-V` and `--`.
            break;
        };
        let (name, has_value) =
            name.split_once('=').map_or((name, false), |(name, _)| (name, true));
        let is_own = takes_value(command, name);
        let mut forms = vec![];
        let form = is_own.or_else(|| {
            forms_below(command, name, &mut forms);
            let next = after.first().map(|next| next.to_string_lossy());
            let ends =
                |next: &str| next.starts_with('-') || command.find_subcommand(next).is_some();
            let is_last = next.is_none_or(|next| ends(&next));
            // The flag of some commands takes a value, and that of others none.
            let both = forms.contains(&true) && forms.contains(&false);
            forms.first().map(|form| if both { !is_last } else { *form })
        });
        let Some(form) = form else { break };
        let end = if form && !has_value { 2.min(rest.len()) } else { 1 };
        let taken = if is_own.is_some() { &mut own } else { &mut later };
        taken.extend_from_slice(&rest[..end]);
        rest = &rest[end..];
    }
    Moved::NoCommand { known: rest.is_empty() && own.is_empty() }
}

/// Whether a flag of this command takes a value; none if the command has no such flag.
fn takes_value(command: &Command, name: &str) -> Option<bool> {
    let mut flags = command.get_arguments().filter(|flag| flag.get_long() == Some(name));
    flags.next().map(|flag| flag.get_action().takes_values())
}

fn forms_below(command: &Command, name: &str, forms: &mut Vec<bool>) {
    for sub in command.get_subcommands() {
        forms.extend(takes_value(sub, name));
        forms_below(sub, name, forms);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn ordered(arguments: &str) -> String {
        let arguments = arguments.split_whitespace().map(OsString::from).collect();
        let ordered = in_order(&Cli::command(), arguments);
        ordered.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn flags_may_stand_before_the_name_of_their_command() {
        for (given, expected) in [
            ("", "serve"),
            ("--config a", "serve --config a"),
            ("--gateway a status", "status --gateway a"),
            ("--gateway=a --json status", "status --gateway=a --json"),
            ("--json --gateway a nodes", "nodes --json --gateway a"),
            ("--json {} publish", "publish --json {}"),
            ("--json nodes --of g", "nodes --json --of g"),
            ("--config a config show", "config show --config a"),
            ("config --config a show", "config show --config a"),
            ("--gateway a publish queue-refresh", "publish --gateway a queue-refresh"),
            ("publish --account a mailbox-change", "publish mailbox-change --account a"),
            ("--account a publish mailbox-change", "publish mailbox-change --account a"),
            ("--account a subscribe", "subscribe --account a"),
        ] {
            assert_eq!(ordered(given), expected, "{given}");
        }
        // What is right, or is not understood, stays as it is.
        for given in [
            "--version",
            "-h",
            "help status",
            "status --gateway a",
            "publish - --gateway a",
            "publish queue-refresh --to-role mta",
            "--no-such-flag status",
            "subscrib --gateway a",
            "-- status",
        ] {
            assert_eq!(ordered(given), given);
        }
    }

    #[test]
    fn json_is_asked_for_by_its_flag() {
        let asks = |text: &str| {
            let arguments: Vec<_> = text.split_whitespace().map(OsString::from).collect();
            ask_for_json(&arguments)
        };
        assert!(asks("status --json --x") && asks("--json nodes"));
        assert!(!asks("publish --json {}") && !asks("status"));
    }
}
