//! `trunkline explain`, and what `trunkline subscribe --explain` prints.

use std::io::{self, Write};

use clap::Args;
use prost::Message;
use trunkline::{
    hub::{event::EventView, filter},
    json,
};
use trunkline_proto::{
    kinds,
    v1::{Exclusion, Explanation, Position, Verdict},
};

use super::{Failure, NodeArgs, interest::InterestArgs, visible, visible_json};

#[derive(Args)]
#[command(after_help = "\
Evaluates the filter without a gateway. `subscribe --explain` explains the events that are really
published.

Examples:
  trunkline explain --account a1 --event '{\"mailboxChange\": {\"accountId\": \"a2\"}}'
  trunkline explain --role imap --event '{\"target\":{\"roles\":[\"mta\"]},\"queueRefresh\":{}}'")]
pub(super) struct Explain {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    interest: InterestArgs,
    /// The event, as `subscribe` prints it
    #[arg(long, value_name = "JSON")]
    event: String,
    /// Print a JSON object, errors too
    #[arg(long)]
    pub(super) json: bool,
}

impl Explain {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let parsed = serde_json::from_str(&self.event)
            .map_err(|error| Failure::Input(format!("--event: {error}")))?;
        let event = json::event_from_json(parsed)
            .map_err(|error| Failure::Input(format!("--event: {error}")))?;
        let bytes = event.encode_to_vec();
        let view =
            EventView::peek(&bytes).map_err(|error| Failure::Input(format!("--event: {error}")))?;
        let interest = &self.interest;
        let filter = filter::Filter::new(
            &interest.filter(),
            &self.node.id(),
            &interest.role,
            interest.include_own,
        );
        let exclusions: Vec<i32> = filter
            .explain(&view)
            .into_iter()
            .map(|exclusion| Exclusion::from(exclusion).into())
            .collect();
        let decision = Verdict {
            kind: view.kind().into(),
            event_id: event.event_id.clone(),
            source: view.source().to_owned(),
            account_id: view.account().unwrap_or_default().to_owned(),
            custom_type: view.custom_type().unwrap_or_default().to_owned(),
            delivered: exclusions.is_empty(),
            exclusions,
            position: None,
        };
        print(&decision, self.json)
    }
}

/// Prints an explanation: a line for each event, and on standard error the number of those left
/// out.
pub(super) fn print_all(explanation: &Explanation, as_json: bool) -> Result<(), Failure> {
    for decision in &explanation.verdicts {
        print(decision, as_json)?;
    }
    if explanation.omitted_verdicts > 0 {
        writeln!(
            io::stderr(),
            "{} more events are not listed; in total {} are delivered and {} are not",
            explanation.omitted_verdicts,
            explanation.delivered_events,
            explanation.withheld_events
        )?;
    }
    Ok(())
}

fn print(decision: &Verdict, as_json: bool) -> Result<(), Failure> {
    let line = if as_json {
        let json = json::to_json("Verdict", decision).map_err(Failure::Other)?.to_string();
        visible_json(&json).into_owned()
    } else {
        describe(decision)
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// The filter decision as one line of text.
fn describe(decision: &Verdict) -> String {
    let mut line = String::from(if decision.delivered { "delivered" } else { "withheld " });
    let mut add = |name: &str, value: &str| {
        if !value.is_empty() {
            line.push(' ');
            line.push_str(name);
            line.push_str(&visible(value));
        }
    };
    add("", &kinds::label(decision.kind).replace('_', "-"));
    add("type=", &decision.custom_type);
    add("account=", &decision.account_id);
    add("source=", &decision.source);
    add("id=", &decision.event_id);
    if let Some(Position { shard, epoch, offset }) = decision.position {
        add("at=", &format!("{shard}:{epoch}:{offset}"));
    }
    let reasons: Vec<_> = decision.exclusions().map(reason).collect();
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
        Exclusion::OwnEvent => "the node published it itself, and its own events are not included",
        Exclusion::Account => "its account is not in the filter",
        Exclusion::CustomType => "its type is not in the filter",
        Exclusion::Target => "its target names neither the node nor one of its roles",
        Exclusion::Rule => "a rule of the gateway does not allow it for the node",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_event_and_the_reasons() {
        let mut decision = Verdict {
            position: Some(Position { shard: 1, epoch: 2, offset: 3 }),
            kind: 20,
            event_id: "e\u{1b}1".into(),
            source: "n1".into(),
            custom_type: "com.x".into(),
            exclusions: vec![Exclusion::CustomType.into(), Exclusion::Target.into()],
            ..Verdict::default()
        };
        assert_eq!(
            describe(&decision),
            "withheld  custom type=com.x source=n1 id=e\\u{1b}1 at=1:2:3: its type is not in the \
             filter; its target names neither the node nor one of its roles"
        );
        decision =
            Verdict { kind: 42, account_id: "a".into(), delivered: true, ..Verdict::default() };
        assert_eq!(describe(&decision), "delivered kind 42 account=a");
    }
}
