//! What agents report of themselves, and programs that use one id at two agents.
//!
//! A report stays encoded until somebody looks at it. An agent is known by its host and its start,
//! since one that changes its gateway has two streams for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prost::Message;

use super::Nodes;
use crate::proto::v1::AgentReport;

/// Bytes of a report, and of each of its texts.
const MAX_REPORT_BYTES: usize = 8192;
const MAX_TEXT_BYTES: usize = 128;

/// Programs of a report, and healings.
const MAX_PROGRAMS: usize = 32;
const MAX_HEALINGS: usize = 8;

/// Format and id of a program.
type ProgramKey = (String, String);

/// The ids that programs of two agents use.
pub(super) struct Agents {
    takeover: Duration,
    duplicates: Mutex<BTreeMap<ProgramKey, Duplicate>>,
}

struct Duplicate {
    /// When both were seen first.
    since: Instant,
    /// Both were seen for longer than a connection that is dead takes to be closed.
    certain: bool,
}

/// What the agents of this gateway report, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentSums {
    /// The number of agents.
    pub agents: u64,
    /// The programs that they serve.
    pub programs: u64,
    /// Events that wait for a gateway.
    pub waiting_events: u64,
}

/// Checks a report of an agent.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > MAX_REPORT_BYTES {
        return Err(format!("has {} bytes; the limit is {MAX_REPORT_BYTES}", bytes.len()));
    }
    let report = AgentReport::decode(bytes).map_err(|error| error.to_string())?;
    for (name, count, max) in [
        ("programs", report.programs.len(), MAX_PROGRAMS),
        ("last_healings", report.last_healings.len(), MAX_HEALINGS),
    ] {
        if count > max {
            return Err(format!("{name}: has {count}; the limit is {max}"));
        }
    }
    let of_programs = report.programs.iter().flat_map(|p| [&p.program_id, &p.version, &p.peer]);
    let reasons = report.last_healings.iter().map(|healing| &healing.reason);
    let of_channel = report.joined_channel.iter().flat_map(|of| [&of.channel, &of.server]);
    let texts = [&report.host, &report.format].into_iter().chain(of_programs).chain(reasons);
    let texts = texts.chain(of_channel);
    match texts.map(String::len).max() {
        Some(longest) if longest > MAX_TEXT_BYTES => {
            Err(format!("a text has {longest} bytes; the limit is {MAX_TEXT_BYTES}"))
        }
        _ => Ok(()),
    }
}

impl Agents {
    pub(super) fn new(takeover: Duration) -> Agents {
        Agents { takeover, duplicates: Mutex::default() }
    }

    /// A report, with the duplicates among its programs; none if it is empty.
    pub(super) fn report(&self, bytes: &[u8]) -> Option<AgentReport> {
        if bytes.is_empty() || check(bytes).is_err() {
            return None;
        }
        let mut report = AgentReport::decode(bytes).ok()?;
        let duplicates = self.duplicates.lock();
        for program in &mut report.programs {
            let key = (report.format.clone(), program.program_id.clone());
            program.duplicate |= duplicates.get(&key).is_some_and(|duplicate| duplicate.certain);
        }
        Some(report)
    }

    /// Takes the hosts of the programs that several agents have. Returns those that are new, and
    /// those that are over.
    fn found(
        &self,
        shared: &BTreeMap<ProgramKey, BTreeSet<String>>,
        now: Instant,
    ) -> (Vec<ProgramKey>, Vec<ProgramKey>) {
        let mut duplicates = self.duplicates.lock();
        let mut over = Vec::new();
        duplicates.retain(|key, duplicate| {
            let stays = shared.contains_key(key);
            if !stays && duplicate.certain {
                over.push(key.clone());
            }
            stays
        });
        let mut new = Vec::new();
        for key in shared.keys() {
            let duplicate =
                duplicates.entry(key.clone()).or_insert(Duplicate { since: now, certain: false });
            if !duplicate.certain && now.duration_since(duplicate.since) >= self.takeover {
                duplicate.certain = true;
                new.push(key.clone());
            }
        }
        (new, over)
    }
}

impl Nodes {
    /// What the agents that are connected to this gateway report, together.
    pub fn agents(&self) -> AgentSums {
        let mut sums = AgentSums::default();
        for entry in self.all() {
            let Some(report) = self.agents.report(&entry.agent()) else { continue };
            sums.agents += 1;
            sums.programs += report.programs.len() as u64;
            sums.waiting_events += report.waiting_events;
        }
        sums
    }

    /// The number of program ids that are used at two agents, on all gateways.
    pub fn duplicate_programs(&self) -> usize {
        self.agents.duplicates.lock().values().filter(|duplicate| duplicate.certain).count()
    }

    /// Looks for programs that use one id at two agents, and logs what has changed.
    pub fn find_duplicate_programs(&self, now: Instant) {
        let mut reports: Vec<AgentReport> =
            self.all().iter().filter_map(|entry| self.agents.report(&entry.agent())).collect();
        self.others.view(|view| {
            let agents = view.members.values().flat_map(|member| member.agents.values());
            reports.extend(agents.filter_map(|agent| self.agents.report(agent)));
        });
        let mut agents: BTreeMap<ProgramKey, BTreeSet<(String, i64, i32)>> = BTreeMap::new();
        for report in reports {
            let start = report.start_time.unwrap_or_default();
            for program in report.programs {
                let key = (report.format.clone(), program.program_id);
                let agent = (report.host.clone(), start.seconds, start.nanos);
                agents.entry(key).or_default().insert(agent);
            }
        }
        agents.retain(|_, agents| agents.len() > 1);
        let hosts = |agents: BTreeSet<(String, i64, i32)>| {
            agents.into_iter().map(|(host, ..)| host).collect::<BTreeSet<_>>()
        };
        let shared = agents.into_iter().map(|(key, agents)| (key, hosts(agents))).collect();
        let (new, over) = self.agents.found(&shared, now);
        for (format, program) in new {
            let hosts: Vec<&str> = shared
                .get(&(format.clone(), program.clone()))
                .map(|hosts| hosts.iter().map(String::as_str).collect())
                .unwrap_or_default();
            let hosts = hosts.join(", ");
            tracing::warn!(format, program, hosts, "two programs of two agents use one id");
        }
        for (format, program) in over {
            tracing::warn!(format, program, "the id belongs to one program again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{AgentChannel, AgentHealing, AgentProgram};

    #[test]
    fn a_report_is_bounded() {
        let program = |id: &str| AgentProgram { program_id: id.into(), ..Default::default() };
        let report = |programs| AgentReport { programs, ..Default::default() };
        let fits = report(vec![program("3"); MAX_PROGRAMS]);
        assert_eq!(check(&fits.encode_to_vec()), Ok(()));
        for (wrong, why) in [
            (report(vec![program("3"); MAX_PROGRAMS + 1]), "programs: has 33; the limit is 32"),
            (
                AgentReport {
                    last_healings: vec![AgentHealing::default(); 9],
                    ..Default::default()
                },
                "last_healings: has 9; the limit is 8",
            ),
            (
                AgentReport {
                    joined_channel: Some(AgentChannel {
                        server: "x".repeat(129),
                        ..Default::default()
                    }),
                    ..Default::default()
                },
                "a text has 129 bytes; the limit is 128",
            ),
            (report(vec![program(&"x".repeat(129))]), "a text has 129 bytes; the limit is 128"),
            (report(vec![program(&"x".repeat(9000))]), "has 9006 bytes; the limit is 8192"),
        ] {
            assert_eq!(check(&wrong.encode_to_vec()), Err(why.to_owned()));
        }
        assert!(check(b"\xff").is_err());
    }

    #[test]
    fn an_id_at_two_agents_is_certain_once_a_dead_connection_would_be_closed() {
        let agents = Agents::new(Duration::from_mins(1));
        let key = ("agora".to_owned(), "3".to_owned());
        let shared = BTreeMap::from([(key.clone(), BTreeSet::new())]);
        let begun = Instant::now();
        let program = AgentProgram { program_id: "3".into(), ..Default::default() };
        let report =
            AgentReport { format: "agora".into(), programs: vec![program], ..Default::default() };
        let report = report.encode_to_vec();
        let is_shown = || agents.report(&report).unwrap().programs[0].duplicate;
        assert_eq!(agents.found(&shared, begun), (vec![], vec![]));
        assert!(!is_shown());
        let later = begun + Duration::from_mins(1);
        assert_eq!(agents.found(&shared, later), (vec![key.clone()], vec![]));
        assert!(is_shown());
        assert_eq!(agents.found(&shared, later), (vec![], vec![]));
        assert_eq!(agents.found(&BTreeMap::new(), later), (vec![], vec![key]));
        assert!(!is_shown());
    }
}
