//! Deliberate mistakes in the protocol: each must break a promise in some seed, or the judge is
//! blind for it.

use std::borrow::Cow;

use trunkline::bus::redis::script::SHARD;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// This text of the script is replaced by that.
    Script(&'static str, &'static str),
    /// The same with several texts, beside gateways of an earlier version.
    Mixed(&'static [(&'static str, &'static str)]),
    /// Frames that are sent again name no doubt.
    NoDoubts,
    /// Frames do not name the one before them.
    NoPredecessor,
    /// Frames get no other names.
    NoAliases,
    /// Copies have no name.
    NoNames,
    /// Only offers of frames report positions, and other calls only their tip.
    TipOnly,
    /// A gateway knows no clock but its own.
    ClocksNotLearned,
    /// A gateway goes where sentinels say, whatever the server there is.
    SentinelsBelieved,
    /// A gateway does not see which of two sentinels' configurations is the later one.
    ConfigurationsOfOneAge,
}

impl Mistake {
    /// True if frames are as their tags say.
    pub fn is_tagged(self) -> bool {
        matches!(self, Mistake::Script(..) | Mistake::Mixed(_) | Mistake::ClocksNotLearned)
    }

    /// The script of gateways that make this mistake.
    pub fn script(mistake: Option<Mistake>) -> Cow<'static, str> {
        let changes = match mistake {
            Some(Mistake::Script(right, wrong)) => &[(right, wrong)][..],
            Some(Mistake::Mixed(changes)) => changes,
            _ => return SHARD.into(),
        };
        let mut script = SHARD.to_owned();
        for (right, wrong) in changes {
            assert!(script.contains(right), "the script has changed: {right}");
            script = script.replacen(right, wrong, 1);
        }
        script.into()
    }
}

use Mistake::Script;

/// All mistakes that must be found, each with its name.
pub const MISTAKES: &[(&str, Mistake)] = &[
    ("no identity", Script("if not identity then", "identity = 'same' if not identity then")),
    ("no random bits", Script("* 4096 + tonumber(ARGV[5])", "* 4096")),
    ("epochs by the clock alone", Script("math.max(now, math.floor(most / 4096) + 1)", "now")),
    (
        "no pause",
        Script(
            "if op == 'append' then\n  if run ~= identity then return answer('recovering') end",
            "if op == 'append' then\n  if run ~= identity then run = identity end",
        ),
    ),
    ("no settling time", Script("return now - recovery.since >= SETTLE", "return true")),
    ("recoveries wait for nobody", Script("return waits ~= '' and waits or '?'", "return ''")),
    (
        "lost tails are not told",
        Script("note_all(merge_reported(recovery.reported, parse_reported(past)), epoch)", ""),
    ),
    (
        "what callers report is not kept",
        Script(
            "merge_reported(parse_reported(before[2] or ''), parse_reported(ARGV[6]))",
            "parse_reported(before[2] or '')",
        ),
    ),
    (
        "frames again in any order",
        Script(
            "local lacks = first_lacking(name_epoch, ranges) < name_first",
            "local lacks = false",
        ),
    ),
    (
        "older epochs not first",
        Script("lacks = lacks or e < name_epoch and first_lacking(e, entry[3]) <= last", ""),
    ),
    (
        "copies told as lost",
        Script(
            "local all = parse_ranges(ranges, {})\n  table.sort",
            "local all = {}\n  table.sort",
        ),
    ),
    (
        "frames again whatever writers have",
        Script("if count == 0 or has(sequences, sequence) then", "if count == 0 then"),
    ),
    (
        "records of writers not restored",
        Script(
            "keep_writer()\nlocal base_epoch",
            "if op == 'append' then keep_writer() end\nlocal base_epoch",
        ),
    ),
    (
        "only the last sequence of a writer",
        Script(
            "sequences = with_range(sequences, sequence, sequence)",
            "sequences = '1-' .. num(math.max(highest, sequence))",
        ),
    ),
    (
        "request ids not restored",
        Script(
            "for i = 5, #KEYS do\n  redis.call('SET'",
            "for i = 5, name_epoch and 0 or #KEYS do\n  redis.call('SET'",
        ),
    ),
    (
        "requests not taken out of frames again",
        Script("if #found > 0 then return", "if #found > 0 and not name_epoch then return"),
    ),
    (
        "request ids not compared",
        Script(
            "if requests[i] and requests[i] ~= own and is_here(requests[i]) then",
            "if false then",
        ),
    ),
    (
        "sequences not compared",
        Script("if has(sequences, sequence) then\n    -- It is", "if false then\n    -- It is"),
    ),
    (
        "frames again are not recorded",
        Script(
            "add_copies(first, offset)\n  set_end(name_epoch, name_last)",
            "add_copies(first, offset)",
        ),
    ),
    (
        "a release without knowing of the recovery",
        Script("if known ~= epoch then return answer('wait') end", ""),
    ),
    (
        "copies are not counted",
        Script(
            "local function add_copies(first, last)\n",
            "local function add_copies(first, last)\n  if true then return end\n",
        ),
    ),
    (
        "earlier epochs are forgotten",
        Script("local FORGET, MAX_ENDS = 3600000, 64", "local FORGET, MAX_ENDS = 3600000, 1"),
    ),
    ("sequences of publishers not compared", Script("if overlap(", "if false and overlap(")),
    (
        "publishers not restored",
        Script(
            "keep_writer()\nif #publishers > 0",
            "keep_writer()\nif #publishers > 0 and not name_epoch",
        ),
    ),
    (
        "only the last sequence of a publisher",
        Script(
            "had[publisher] = with_range(had[publisher], tonumber(ARGV[arg + 1]),",
            "had[publisher] = with_range('', 1,",
        ),
    ),
    (
        "events of publishers not taken out of frames again",
        Script("if #covered > 0 then", "if #covered > 0 and not name_epoch then"),
    ),
    (
        "streams not compared",
        Script(
            "elseif op == 'append' then\n        -- What was",
            "elseif false then\n        -- What was",
        ),
    ),
    (
        "streams not restored",
        Script("if later[publisher] then", "if later[publisher] and not name_epoch then"),
    ),
    (
        "streams numbered by the state alone",
        Script("math.max(last, epoch) + ARGV[12]", "last + ARGV[12]"),
    ),
    (
        "streams numbered while the shard recovers",
        Script(
            "-- Others may know of greater ones that this server has lost.\n  if run ~= identity",
            "if false",
        ),
    ),
    ("what went on on another line stays forgotten", Script("if forgot then", "if false then")),
    ("epochs below those of last values", Script("if of < MAX_EPOCH then", "if false then")),
    (
        "streams in the record that earlier versions read",
        Mistake::Mixed(&[
            ("= now .. ' ' .. ranges\n", "= now .. ' ' .. ranges .. ' ' .. streams[publisher]\n"),
            ("'^%d+ (.*)$') or ''", "'^%d+ (%S*)') or ''"),
        ]),
    ),
    (
        "a frame out of sequence",
        Script("not has(sequences, tonumber(ARGV[16])) then", "false then"),
    ),
    (
        "a frame that is there is answered with the last one's place",
        Script("'|' .. num(sequence) .. '(:[^|]*)'", "'(:[^|]*)$'"),
    ),
    ("frames do not name the one before", Mistake::NoPredecessor),
    ("no doubts", Mistake::NoDoubts),
    ("no aliases", Mistake::NoAliases),
    ("copies without names", Mistake::NoNames),
    ("only the tip is reported", Mistake::TipOnly),
    ("clocks are not learned", Mistake::ClocksNotLearned),
];

/// Mistakes that only show behind sentinels.
pub const MISTAKES_ABOUT_SENTINELS: &[(&str, Mistake)] = &[
    ("sentinels are believed", Mistake::SentinelsBelieved),
    ("all configurations are of one age", Mistake::ConfigurationsOfOneAge),
];
