//! What a link carries, and what becomes of it: decisions without sockets, clocks and tasks.

use std::time::SystemTime;

use trunkline_client::v1::{Event, EventKind, Gap, GapReason, MissedEvents, Origin};

use super::{
    Options,
    journal::{Identity, LastValue},
};

/// Why an event is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeftOut {
    /// It has been in the destination.
    WasThere,
    /// Another link brought it to the source, and this one carries only what was published there.
    Transit,
}

impl LeftOut {
    /// All reasons, each at its index.
    pub(super) const ALL: [LeftOut; 2] = [LeftOut::WasThere, LeftOut::Transit];

    /// The reason as a label of metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            LeftOut::WasThere => "was_there",
            LeftOut::Transit => "transit",
        }
    }
}

/// The rules of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carry<'a> {
    pub identity: &'a Identity,
    pub options: &'a Options,
}

impl Carry<'_> {
    /// The event as it is published at the destination.
    pub(super) fn event(&self, mut event: Event) -> Result<Event, LeftOut> {
        let before = event.origin.take();
        let node_id = std::mem::take(&mut event.source);
        let first = before.is_none();
        let mut origin = self.way(before)?;
        if first {
            origin.node_id = node_id;
        }
        event.origin = Some(origin);
        Ok(event)
    }

    /// The report of a gap; none if it concerns what is left out.
    pub(super) fn gap(&self, gap: &Gap) -> Option<Event> {
        let before = gap.origin.clone().filter(|_| gap.reason() == GapReason::Link);
        let origin = self.way(before).ok()?;
        Some(self.report(origin, gap.missed_events))
    }

    /// The report of events of which the destination does not have, or may not have, so many; none
    /// if it has all.
    pub(super) fn missed(&self, events: u64) -> Vec<Event> {
        if events == 0 { vec![] } else { vec![self.report(self.first(), Some(events))] }
    }

    /// The report of what was published before the link began.
    pub(super) fn unknown(&self) -> Event {
        self.report(self.first(), None)
    }

    fn report(&self, origin: Origin, missed_events: Option<u64>) -> Event {
        let kinds = self.options.kinds.iter().map(|kind| i32::from(*kind)).collect();
        Event {
            publish_time: Some(SystemTime::now().into()),
            origin: Some(origin),
            ..MissedEvents { missed_events, kinds }.into()
        }
    }

    fn first(&self) -> Origin {
        Origin { deployments: vec![self.identity.from.clone()], ..Origin::default() }
    }

    /// The way of something that has come to the source by this one.
    fn way(&self, before: Option<Origin>) -> Result<Origin, LeftOut> {
        let Some(mut origin) = before else { return Ok(self.first()) };
        if origin.deployments.contains(&self.identity.to) {
            return Err(LeftOut::WasThere);
        }
        if !self.options.transit {
            return Err(LeftOut::Transit);
        }
        origin.deployments.push(self.identity.from.clone());
        Ok(origin)
    }
}

/// What is remembered of an event of a kind whose last value is kept.
pub(super) fn last_value(event: &Event) -> Option<LastValue> {
    let row = event.kind.as_ref()?.row();
    row.keeps_last.then(|| LastValue {
        kind: EventKind::into(row.kind),
        source: event.source.clone(),
        event_id: event.event_id.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use trunkline_client::v1::{MailboxChange, QueueStatus, event::Kind};

    use super::*;

    fn options(transit: bool) -> Options {
        Options {
            kinds: vec![EventKind::MailboxChange],
            accounts: vec![],
            transit,
            node_id: None,
            in_flight: 1,
            state: PathBuf::new(),
        }
    }

    fn identity(from: &str, to: &str) -> Identity {
        Identity { from: from.into(), to: to.into(), node_id: format!("link-{from}-{to}") }
    }

    /// Carries an event over links, one after the other.
    fn over(ways: &[(&str, &str)], transit: bool) -> Result<Event, LeftOut> {
        let event = MailboxChange { account_id: "a".into(), ..Default::default() };
        let event = Event { source: "mx1".into(), event_id: "e".into(), ..event.into() };
        ways.iter().try_fold(event, |event, (from, to)| {
            let (identity, options) = (identity(from, to), options(transit));
            let carried = Carry { identity: &identity, options: &options }.event(event)?;
            // As the gateway at the destination does.
            Ok(Event { source: identity.node_id, ..carried })
        })
    }

    #[test]
    fn an_event_goes_around_a_ring_once_and_says_where_it_was_published() {
        let event = over(&[("a", "b"), ("b", "c")], true).unwrap();
        let origin = event.origin.unwrap();
        assert_eq!((&*origin.node_id, &*event.event_id), ("mx1", "e"));
        assert_eq!(origin.deployments, ["a", "b"]);
        let around = over(&[("a", "b"), ("b", "c"), ("c", "a")], true);
        assert_eq!(around, Err(LeftOut::WasThere));
        assert_eq!(over(&[("a", "b"), ("b", "a")], true), Err(LeftOut::WasThere));
    }

    #[test]
    fn without_transit_only_what_was_published_at_the_source_is_carried() {
        assert!(over(&[("a", "b")], false).is_ok());
        assert_eq!(over(&[("a", "b"), ("b", "c")], false), Err(LeftOut::Transit));
        assert_eq!(over(&[("a", "b"), ("b", "a")], false), Err(LeftOut::WasThere));
    }

    #[test]
    fn a_gap_is_passed_on_with_its_count_and_comes_back_to_no_deployment() {
        let (first, second) = (identity("a", "b"), identity("b", "c"));
        let options = options(true);
        let gap = Gap { missed_events: Some(7), ..Default::default() };
        let report = Carry { identity: &first, options: &options }.gap(&gap).unwrap();
        let Some(Kind::MissedEvents(missed)) = report.kind else { panic!("{report:?}") };
        assert_eq!(missed.missed_events, Some(7));
        assert_eq!(missed.kinds, [i32::from(EventKind::MailboxChange)]);
        // As a stream of `b` gets it.
        let origin = report.origin;
        let gap = Gap { reason: GapReason::Link.into(), origin, ..gap };
        let report = Carry { identity: &second, options: &options }.gap(&gap).unwrap();
        assert_eq!(report.origin.unwrap().deployments, ["a", "b"]);
        let back = identity("b", "a");
        assert_eq!(Carry { identity: &back, options: &options }.gap(&gap), None);
        let alone = super::tests::options(false);
        assert_eq!(Carry { identity: &second, options: &alone }.gap(&gap), None);
    }

    #[test]
    fn nothing_is_reported_where_nothing_was_missed() {
        let (identity, options) = (identity("a", "b"), options(false));
        let carry = Carry { identity: &identity, options: &options };
        assert!(carry.missed(0).is_empty());
        assert_eq!(carry.missed(3).len(), 1);
    }

    #[test]
    fn only_kinds_whose_last_value_is_kept_are_remembered() {
        let status = Event { event_id: "7".into(), ..QueueStatus::default().into() };
        assert_eq!(last_value(&status).unwrap().event_id, "7");
        assert_eq!(last_value(&MailboxChange::default().into()), None);
        assert_eq!(last_value(&Event::default()), None);
    }
}
