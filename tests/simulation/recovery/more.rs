//! What only some seeds have, drawn apart from the rest, so that it moves no other seed.

use super::{
    rng::Rng,
    world::{Act, FAULTS},
};

/// Limits of history, as `history` in the configuration.
pub const HISTORIES: &[&str] = &[
    "{}",
    r#"{"maxFrames": 4}"#,
    r#"{"maxFrames": 12}"#,
    r#"{"maxBytes": "1KiB"}"#,
    r#"{"maxAge": "1s"}"#,
];

/// What a seed has besides gateways, nodes and the usual faults.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // independent faults
pub struct More {
    /// The index of its limits in [`HISTORIES`].
    pub history: usize,
    /// Entries of a node of a stream: how exactly history is trimmed.
    pub node_entries: usize,
    /// Minutes, hours and days pass, in which records expire and epochs are forgotten.
    pub ages: bool,
    /// Keys beside state and history are evicted.
    pub evicts: bool,
    /// Some gateways take few messages at a time, and some nodes read seldom.
    pub slow: bool,
    /// A gateway of another deployment calls.
    pub joins: bool,
    /// Some events are the last value of a key.
    pub retains: bool,
    /// No request has an id.
    pub no_ids: bool,
    /// Faults that happen more often.
    pub often: Vec<Act>,
    /// Frames are authenticated: each is placed exactly, or not at all.
    pub key: bool,
    /// Clocks of gateways differ, by up to six days.
    pub clocks: bool,
    /// And they jump.
    pub clocks_jump: bool,
    /// Several requests come to a gateway at once: their frames are under way together.
    pub bursts: bool,
    /// Redis refuses some calls.
    pub refuses: bool,
    /// Some gateways have an earlier version.
    pub mixed: bool,
    /// Readings of history have at most so few entries.
    pub few_entries: Option<usize>,
}

impl More {
    /// What a seed has.
    pub fn of(seed: u64) -> More {
        let mut draw = Rng(seed ^ 0x6d6f_7265_0000_0000);
        let mut more = More { node_entries: 100, ..More::default() };
        if draw.percent(25) {
            return more;
        }
        if draw.percent(40) {
            more.history = 1 + draw.below(HISTORIES.len() - 1);
            more.node_entries = 1 + draw.below(4);
        }
        more.ages = draw.percent(25);
        more.evicts = draw.percent(30);
        more.slow = draw.percent(40);
        more.joins = draw.percent(15);
        more.key = draw.percent(20);
        more.retains = draw.percent(50);
        more.no_ids = draw.percent(15);
        if draw.percent(40) {
            more.often = (0..2).map(|_| FAULTS[draw.below(FAULTS.len())]).collect();
        }
        more.bursts = draw.percent(50);
        more.refuses = draw.percent(30);
        more.mixed = draw.percent(20);
        more.few_entries = draw.percent(20).then(|| 2 + draw.below(4));
        more.clocks = draw.percent(60);
        more.clocks_jump = draw.percent(30);
        more
    }

    /// How often a fault happens, where `weight` is what is usual.
    pub fn weight(&self, act: Act, weight: usize) -> usize {
        let often = self.often.iter().filter(|other| **other == act).count();
        weight * (1 + 4 * often)
    }

    /// How often something happens that no other seed has.
    pub fn acts(&self) -> Vec<(Act, usize)> {
        let mut acts = vec![];
        if self.ages {
            acts.push((Act::Age, 1));
        }
        if self.evicts {
            acts.push((Act::EvictKey, 2));
        }
        if self.joins {
            acts.push((Act::Join, 4));
        }
        if self.key && self.clocks && self.clocks_jump {
            acts.push((Act::GatewayClock, 1));
        }
        acts
    }
}
