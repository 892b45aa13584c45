//! Tells the other gateways of this one, and reads what they say.
//!
//! One call of the store every few seconds, whatever the number of nodes; and pages, of which only those are written and read
//! that changed. What changes is told at once, but not more often than twice a second.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::Nodes;
use crate::presence::pages::{Draft, FIGURES};
use crate::{
    bus::{AppendError, MemberId, Members, Part, SharedBus, unix_ms},
    proto::bus_v1::{MemberRecord, MemberStats},
    rpc::service::Shared,
};

/// How often a gateway renews its part and reads the heads of the others.
const INTERVAL: Duration = Duration::from_secs(2);

/// After a change it does not wait so long, but at least this.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// A gateway of which nothing was heard for so long is forgotten, with its nodes.
pub const TTL: Duration = Duration::from_secs(10);

/// How often the figures of the nodes are told, if they changed.
const FIGURES_INTERVAL: Duration = Duration::from_secs(5);

/// Bytes of pages that one call carries.
const CALL_BYTES: usize = 512 * 1024;

/// Pages that one call reads.
const CALL_PAGES: usize = 32;

/// How long the last word of a gateway may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What is remembered between two exchanges.
struct Membership {
    shared: Arc<Shared>,
    bus: SharedBus,
    id: MemberId,
    /// The number of the last exchange, and of the last one that was taken.
    number: u64,
    taken: Option<u64>,
    figures: OwnFigures,
    /// Whether the last exchange failed: told once.
    failing: bool,
}

/// The figures of the own nodes, as they were last made.
#[derive(Default)]
struct OwnFigures {
    made: Option<Instant>,
    figures: MemberStats,
    bytes: Bytes,
    /// The revision that the others can read; zero: none.
    told: u64,
}

/// Runs until told to stop; then says that this gateway is gone.
pub async fn run(shared: Arc<Shared>, bus: SharedBus, stop: CancellationToken) {
    let mut drain = shared.drain.subscribe();
    let mut membership = Membership {
        shared: shared.clone(),
        bus,
        id: MemberId(rand::random()),
        number: 0,
        taken: None,
        figures: OwnFigures::default(),
        failing: false,
    };
    loop {
        let round = Instant::now();
        tokio::select! {
            () = membership.round() => {}
            () = stop.cancelled() => break,
        }
        shared.nodes.find_duplicates();
        tokio::select! {
            () = tokio::time::sleep_until((round + INTERVAL).into()) => {}
            () = shared.nodes.changed.notified() => {}
            _ = drain.changed() => {}
            () = stop.cancelled() => break,
        }
        tokio::select! {
            () = tokio::time::sleep_until((round + MIN_INTERVAL).into()) => {}
            () = stop.cancelled() => break,
        }
    }
    // Who does not hear it finds out when the time to live is over.
    let _ = tokio::time::timeout(LAST_WORD, membership.leave()).await;
}

impl Membership {
    /// Tells what is new, and reads what is. Where there is one gateway only, there is nobody to tell.
    async fn round(&mut self) {
        let bus = self.bus.clone();
        let Some(members) = bus.members() else { return };
        let result = self.exchange(members).await;
        match result {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("the other gateways' nodes are known again");
            }
            Err(why) if !self.failing => {
                self.failing = true;
                tracing::warn!(%why, "the other gateways' nodes cannot be read, nor this one's be told");
            }
            _ => {}
        }
    }

    async fn exchange(&mut self, members: &dyn Members) -> Result<(), AppendError> {
        let nodes = self.shared.nodes.clone();
        self.figures.refresh(&nodes);
        loop {
            let draft = nodes.local.lock().pages.draft(CALL_BYTES);
            let part = self.part(&draft);
            let figures_told = self.figures.figures.revision;
            let exchange = members.exchange(part).await?;
            let taken = exchange.taken;
            if taken {
                self.taken = Some(self.number);
                self.figures.told = figures_told;
                nodes.local.lock().pages.told(&draft);
            } else {
                self.taken = None;
                self.figures.told = 0;
                nodes.local.lock().pages.forgotten();
            }
            let wanted = nodes.others.heads(self.id, TTL, exchange, Instant::now());
            if taken && !draft.more {
                return self.read(members, &wanted).await;
            }
        }
    }

    /// What is to be put down, and the head that goes with it.
    fn part(&mut self, draft: &Draft) -> Part {
        let mut pages = draft.pages.clone();
        let revision = self.figures.figures.revision;
        if revision != self.figures.told {
            pages.push((FIGURES, Some(self.figures.bytes.clone())));
        }
        let readable = || [(FIGURES, revision)].into_iter().chain(draft.readable.iter().copied());
        let nodes = &self.shared.nodes;
        let head = MemberRecord {
            streams: u32::try_from(nodes.count()).unwrap_or(u32::MAX),
            unlisted_streams: u32::try_from(nodes.local.lock().pages.unlisted())
                .unwrap_or(u32::MAX),
            shards: readable().map(|(number, _)| number).collect(),
            revisions: readable().map(|(_, revision)| revision).collect(),
            ..self.head()
        };
        self.number += 1;
        Part {
            member: self.id,
            ttl: TTL,
            number: self.number,
            follows: self.taken,
            has_pages: self.taken.is_some(),
            head: head.encode_to_vec().into(),
            pages,
        }
    }

    fn head(&self) -> MemberRecord {
        let about = &self.shared.nodes.about;
        let since = about.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        MemberRecord {
            gateway_id: about.gateway_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            address: about.address.clone(),
            start_time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            state: self.shared.gateway_state().into(),
            ..Default::default()
        }
    }

    /// Reads pages of the others.
    async fn read(
        &self,
        members: &dyn Members,
        wanted: &[(MemberId, u32)],
    ) -> Result<(), AppendError> {
        let nodes = &self.shared.nodes;
        for of_member in wanted.chunk_by(|(a, _), (b, _)| a == b) {
            for some in of_member.chunks(CALL_PAGES) {
                let numbers = some.iter().map(|(_, page)| *page).collect();
                let pages = members.pages(some[0].0, numbers).await?;
                for (wanted, page) in some.iter().zip(pages) {
                    nodes.take_page(*wanted, page);
                }
            }
        }
        Ok(())
    }

    /// The last word: this gateway has no nodes any more.
    async fn leave(&mut self) {
        let Some(members) = self.bus.members() else { return };
        self.number += 1;
        let head = MemberRecord { left: true, ..self.head() };
        let part = Part {
            member: self.id,
            ttl: TTL,
            number: self.number,
            follows: None,
            has_pages: false,
            head: head.encode_to_vec().into(),
            pages: vec![],
        };
        if let Err(error) = members.exchange(part).await {
            tracing::debug!(%error, "the last word was not heard");
        }
    }
}

impl OwnFigures {
    /// Makes them again if it is time, under a new revision if they changed.
    fn refresh(&mut self, nodes: &Nodes) {
        if self.made.is_some_and(|made| made.elapsed() < FIGURES_INTERVAL) {
            return;
        }
        self.made = Some(Instant::now());
        let mut entries = nodes.all();
        entries.sort_by_key(|entry| entry.number);
        let now_ms = unix_ms();
        let mut figures = MemberStats { revision: self.figures.revision, ..Default::default() };
        let mut last = 0;
        for entry in entries {
            let figure = entry.figure(now_ms);
            figures.numbers.push(entry.number - last);
            last = entry.number;
            figures.delivered_events.push(figure.delivered);
            figures.behind_events.push(figure.behind);
            figures.lag_ms.push(figure.lag_ms);
        }
        if figures != self.figures || figures.revision == 0 {
            figures.revision += 1;
            self.bytes = figures.encode_to_vec().into();
            self.figures = figures;
        }
    }
}

impl Nodes {
    fn take_page(&self, wanted: (MemberId, u32), page: Option<Bytes>) {
        let mut new = Vec::new();
        self.others.page(wanted, page, Instant::now(), |node_id| new.push(node_id.to_owned()));
        // After they are known: one of two who come at once sees the other.
        for node_id in new {
            let here = self.local.lock().with_id(&node_id).next().is_some();
            if here || self.others.view(|view| view.with_id(&node_id).nth(1).is_some()) {
                self.duplicates.suspect(&node_id);
            }
        }
    }
}
