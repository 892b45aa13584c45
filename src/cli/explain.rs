//! `trunkline explain`, and what `trunkline subscribe --explain` prints.

use std::io::{self, Write};

use clap::Args;
use prost::Message;
use trunkline::hub::{event::EventView, filter};
use trunkline_proto::{
    kinds,
    v1::{Exclusion, Explanation, Position, Verdict},
};

use super::{Failure, Node, json, subscribe::Wanted};

#[derive(Args)]
#[command(after_help = "\
It asks the filter itself, and no gateway. `subscribe --explain` tells of the events that really come.

Examples:
  trunkline explain --account a1 --event '{\"mailboxChange\": {\"accountId\": \"a2\"}}'
  trunkline explain --node-id mx1 --role imap --event '{\"source\": \"mx2\", \"target\": {\"roles\": [\"mta\"]}, \"queueRefresh\": {}}'")]
pub(super) struct Explain {
    #[command(flatten)]
    node: Node,
    #[command(flatten)]
    wanted: Wanted,
    /// The event, as `subscribe` prints it
    #[arg(long, value_name = "JSON")]
    event: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let given = serde_json::from_str(&self.event)
            .map_err(|error| Failure::Input(format!("--event: {error}")))?;
        let event = json::event_from_json(given)
            .map_err(|error| Failure::Input(format!("--event: {error}")))?;
        let bytes = event.encode_to_vec();
        let view =
            EventView::peek(&bytes).map_err(|error| Failure::Input(format!("--event: {error}")))?;
        let wanted = &self.wanted;
        let filter = filter::Filter::new(
            &wanted.filter(),
            &self.node.id(),
            &wanted.role,
            wanted.include_own,
        );
        let exclusions: Vec<i32> = filter
            .explain(&view)
            .into_iter()
            .map(|exclusion| Exclusion::from(exclusion).into())
            .collect();
        let verdict = Verdict {
            kind: view.kind().into(),
            event_id: event.event_id.clone(),
            source: view.source().to_owned(),
            account_id: view.account().unwrap_or_default().to_owned(),
            custom_type: view.custom_type().unwrap_or_default().to_owned(),
            delivered: exclusions.is_empty(),
            exclusions,
            position: None,
        };
        print(&verdict, self.json)
    }
}

/// Prints an explanation: a line for each event, and on standard error how many there were besides.
pub(super) fn print_all(explanation: &Explanation, as_json: bool) -> Result<(), Failure> {
    for verdict in &explanation.verdicts {
        print(verdict, as_json)?;
    }
    if explanation.omitted_verdicts > 0 {
        writeln!(
            io::stderr(),
            "and {} more events, too many to tell of each; of all, {} are delivered and {} are not",
            explanation.omitted_verdicts,
            explanation.delivered_events,
            explanation.withheld_events
        )?;
    }
    Ok(())
}

fn print(verdict: &Verdict, as_json: bool) -> Result<(), Failure> {
    let line = if as_json {
        json::to_json("Verdict", verdict).map_err(Failure::Other)?.to_string()
    } else {
        describe(verdict)
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// One line for people.
fn describe(verdict: &Verdict) -> String {
    let mut line = String::from(if verdict.delivered { "delivered" } else { "withheld " });
    let mut add = |name: &str, value: &str| {
        if !value.is_empty() {
            line.push(' ');
            line.push_str(name);
            // What nodes call themselves and their accounts must not write to a terminal.
            line.extend(value.chars().filter(|c| !c.is_control()));
        }
    };
    add("", &kinds::label(verdict.kind).replace('_', "-"));
    add("type=", &verdict.custom_type);
    add("account=", &verdict.account_id);
    add("source=", &verdict.source);
    add("id=", &verdict.event_id);
    if let Some(Position { shard, epoch, offset }) = verdict.position {
        add("at=", &format!("{shard}:{epoch}:{offset}"));
    }
    let reasons: Vec<_> = verdict.exclusions().map(reason).collect();
    if !reasons.is_empty() {
        line.push_str(": ");
        line.push_str(&reasons.join("; "));
    }
    line
}

fn reason(exclusion: Exclusion) -> &'static str {
    match exclusion {
        Exclusion::Unspecified => "for a reason that this version does not know",
        Exclusion::Kind => "its kind is not in the filter",
        Exclusion::OwnEvent => "the node published it itself, and does not ask for its own events",
        Exclusion::Account => "its account is not in the filter",
        Exclusion::CustomType => "its type is not in the filter",
        Exclusion::Target => "its target names neither the node nor one of its roles",
        Exclusion::Rule => "a rule of the gateway keeps it from the node",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_which_event_and_why() {
        let mut verdict = Verdict {
            position: Some(Position { shard: 1, epoch: 2, offset: 3 }),
            kind: 20,
            event_id: "e\u{1b}1".into(),
            source: "n1".into(),
            custom_type: "com.x".into(),
            exclusions: vec![Exclusion::CustomType.into(), Exclusion::Target.into()],
            ..Verdict::default()
        };
        assert_eq!(
            describe(&verdict),
            "withheld  custom type=com.x source=n1 id=e1 at=1:2:3: its type is not in the filter; \
             its target names neither the node nor one of its roles"
        );
        verdict =
            Verdict { kind: 42, account_id: "a".into(), delivered: true, ..Verdict::default() };
        assert_eq!(describe(&verdict), "delivered kind 42 account=a");
    }
}
