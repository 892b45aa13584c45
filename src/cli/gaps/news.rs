//! Which gaps of a gateway are new, and which ones belong together. Pure.

use std::collections::BTreeSet;

use prost_types::Timestamp;
use trunkline_proto::v1::{GetStatusResponse, SentGap};

/// Gaps of one stream for one cause come within this time, in seconds, one for each shard.
const TOGETHER: i64 = 1;

/// What was seen of a gateway.
#[derive(Debug, Default)]
pub struct News {
    /// The gateway that answered last, and when it started: its numbers are its own.
    start: Option<(String, Option<Timestamp>)>,
    /// The number of the last gap that was seen.
    last: u64,
}

/// What is new.
#[derive(Debug, PartialEq)]
pub struct New {
    /// New gaps, the oldest first.
    pub gaps: Vec<SentGap>,
    /// How many more there were, which the gateway lists no more.
    pub unlisted: u64,
}

/// Gaps of one node for one cause, at one time.
#[derive(Debug, PartialEq)]
pub struct Group {
    /// The time of the first of them.
    pub time: Timestamp,
    pub gateway_id: String,
    pub node_id: String,
    pub reason: i32,
    shards: BTreeSet<u32>,
    /// The number of missed events, of the shards where it is known.
    missed: u64,
    /// True if there are shards where it is not known.
    more: bool,
}

impl News {
    /// Takes an answer of the gateway.
    pub fn take(&mut self, status: &GetStatusResponse) -> New {
        let start = Some((status.gateway_id.clone(), status.start_time));
        if self.start != start {
            *self = News { start, last: 0 };
        }
        let last = self.last;
        let mut gaps: Vec<_> =
            status.recent_gaps.iter().filter(|gap| gap.number > last).cloned().collect();
        gaps.sort_by_key(|gap| gap.number);
        self.last = gaps.last().map_or(last, |gap| gap.number);
        let unlisted = gaps.first().map_or(0, |first| first.number - last - 1);
        New { gaps, unlisted }
    }
}

/// The gaps that a gateway lists, those of one node for one cause together, the oldest first.
pub fn grouped(status: &GetStatusResponse) -> Vec<Group> {
    let mut gaps: Vec<_> = status.recent_gaps.iter().collect();
    gaps.sort_by_key(|gap| gap.number);
    let mut groups: Vec<Group> = Vec::new();
    for gap in gaps {
        let time = gap.send_time.unwrap_or_default();
        let joined = groups.iter_mut().rev().find(|group| {
            group.node_id == gap.node_id
                && group.reason == gap.reason
                && time.seconds - group.time.seconds <= TOGETHER
                // A second gap of the same shard is another one.
                && !group.shards.contains(&gap.shard)
        });
        if let Some(group) = joined {
            group.add(gap);
            continue;
        }
        let mut group = Group {
            time,
            gateway_id: status.gateway_id.clone(),
            node_id: gap.node_id.clone(),
            reason: gap.reason,
            shards: BTreeSet::new(),
            missed: 0,
            more: false,
        };
        group.add(gap);
        groups.push(group);
    }
    groups
}

impl Group {
    fn add(&mut self, gap: &SentGap) {
        self.shards.insert(gap.shard);
        self.missed = self.missed.saturating_add(gap.missed_events.unwrap_or(0));
        self.more |= gap.missed_events.is_none();
    }

    /// Its shards: `0-3,7`.
    pub fn shards(&self) -> String {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for &shard in &self.shards {
            match ranges.last_mut() {
                Some((_, end)) if *end + 1 == shard => *end = shard,
                _ => ranges.push((shard, shard)),
            }
        }
        let text = ranges.into_iter().map(|(from, to)| match to - from {
            0 => from.to_string(),
            _ => format!("{from}-{to}"),
        });
        text.collect::<Vec<_>>().join(",")
    }

    /// How many events were missed: `17`, `17 or more`, or `unknown`.
    pub fn missed(&self) -> String {
        match (self.missed, self.more) {
            (missed, false) => missed.to_string(),
            (0, true) => "unknown".into(),
            (missed, true) => format!("{missed} or more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(number: u64, second: i64, node: &str, shard: u32, missed: Option<u64>) -> SentGap {
        SentGap {
            number,
            send_time: Some(Timestamp { seconds: second, nanos: 0 }),
            node_id: node.into(),
            shard,
            reason: 1,
            missed_events: missed,
        }
    }

    /// A gateway that started at this second, with gaps of these numbers.
    fn status(start: i64, numbers: impl DoubleEndedIterator<Item = u64>) -> GetStatusResponse {
        GetStatusResponse {
            gateway_id: "gw-a".into(),
            start_time: Some(Timestamp { seconds: start, nanos: 0 }),
            recent_gaps: numbers.rev().map(|nth| gap(nth, 1, "mx1", 0, Some(1))).collect(),
            ..GetStatusResponse::default()
        }
    }

    fn numbers(new: &New) -> Vec<u64> {
        new.gaps.iter().map(|gap| gap.number).collect()
    }

    #[test]
    fn each_gap_is_new_once_and_those_that_were_not_listed_are_counted() {
        let mut news = News::default();
        let new = news.take(&status(1, 1..=3));
        assert_eq!((numbers(&new), new.unlisted), (vec![1, 2, 3], 0));
        let new = news.take(&status(1, 1..=3));
        assert_eq!((numbers(&new), new.unlisted), (vec![], 0));
        let new = news.take(&status(1, 2..=4));
        assert_eq!((numbers(&new), new.unlisted), (vec![4], 0));
        // More than a gateway keeps.
        let new = news.take(&status(1, 10..=11));
        assert_eq!((numbers(&new), new.unlisted), (vec![10, 11], 5));
        // It started anew, and counts from 1.
        let new = news.take(&status(2, 1..=2));
        assert_eq!((numbers(&new), new.unlisted), (vec![1, 2], 0));
    }

    #[test]
    fn gaps_of_one_node_in_several_shards_are_one_group() {
        let listed = [
            gap(1, 10, "mx1", 0, Some(3)),
            gap(2, 10, "mx2", 0, None),
            gap(3, 10, "mx1", 1, Some(4)),
            gap(4, 11, "mx1", 2, None),
            gap(5, 11, "mx1", 7, Some(1)),
            // Another gap of the same shard, and a later one.
            gap(6, 11, "mx1", 7, Some(2)),
            gap(7, 60, "mx1", 1, Some(9)),
        ];
        let status = GetStatusResponse {
            recent_gaps: listed.into_iter().rev().collect(),
            ..GetStatusResponse::default()
        };
        let groups = grouped(&status);
        let shown: Vec<_> = groups
            .iter()
            .map(|group| {
                let time = group.time.seconds;
                (time, &*group.node_id, group.shards(), group.missed())
            })
            .collect();
        let expected = [
            (10, "mx1", "0-2,7", "8 or more"),
            (10, "mx2", "0", "unknown"),
            (11, "mx1", "7", "2"),
            (60, "mx1", "1", "9"),
        ];
        let expected = expected
            .map(|(time, node, shards, missed)| (time, node, shards.to_owned(), missed.to_owned()));
        assert_eq!(shown, expected);
    }
}
