//! W3C Trace Context: where in which trace an event, or a request, belongs.

use std::fmt::Write as _;

/// A longer `traceparent` is none of the versions that there are: the one of today has 55 bytes.
pub const MAX_TRACEPARENT: usize = 128;

/// What the recommendation asks everybody to carry; who writes more must expect to lose it.
pub const MAX_TRACESTATE: usize = 512;

/// The length of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace; not zero.
    pub trace_id: [u8; 16],
    /// The span that what follows belongs under; not zero.
    pub span_id: [u8; 8],
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// The context of a request, as it is carried by the events that have none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// What it says.
    pub context: Context,
    /// As it is written.
    pub traceparent: String,
    /// What tracing systems say beside it; empty where they say nothing.
    pub tracestate: String,
}

impl Context {
    /// Reads a `traceparent` of any version, as the recommendation wants it: of a newer version, what version 00 knows. `None` if
    /// it is malformed or empty.
    pub fn parse(text: &[u8]) -> Option<Context> {
        if text.len() < LENGTH || text.len() > MAX_TRACEPARENT {
            return None;
        }
        let (known, rest) = text.split_at(LENGTH);
        let dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        let [version] = hex(&known[..2])?;
        let ends = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        let trace_id = hex(&known[3..35])?;
        let span_id = hex(&known[36..52])?;
        let [flags] = hex(&known[53..])?;
        let valid = dashes && ends && trace_id != [0; 16] && span_id != [0; 8];
        valid.then_some(Context { trace_id, span_id, sampled: flags & 1 == 1 })
    }

    /// As it is written, in version 00.
    pub fn traceparent(&self) -> String {
        let mut text = String::with_capacity(LENGTH);
        text.push_str("00-");
        let mut put = |bytes: &[u8]| {
            for byte in bytes {
                // A String takes all that is written to it.
                let _ = write!(text, "{byte:02x}");
            }
            text.push('-');
        };
        put(&self.trace_id);
        put(&self.span_id);
        text.push_str(if self.sampled { "01" } else { "00" });
        text
    }
}

impl Carried {
    /// What the headers of a request say. Where they are malformed, or stand there twice, the request has no context: whoever
    /// publishes must not fail by its tracing.
    pub fn read<'a>(
        mut parents: impl Iterator<Item = &'a [u8]>,
        states: impl Iterator<Item = &'a [u8]>,
    ) -> Option<Carried> {
        let parent = parents.next()?;
        if parents.next().is_some() {
            return None;
        }
        let context = Context::parse(parent)?;
        let traceparent = String::from_utf8(parent.to_vec()).ok()?;
        Some(Carried { context, traceparent, tracestate: join(states) })
    }

    /// A context that begins here.
    pub fn new(context: Context) -> Carried {
        Carried { context, traceparent: context.traceparent(), tracestate: String::new() }
    }
}

/// Several `tracestate` headers are one list; one that is too long or not plain text is left out as a whole.
fn join<'a>(states: impl Iterator<Item = &'a [u8]>) -> String {
    let mut joined = String::new();
    for state in states {
        let plain = state.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
        let Some(text) = std::str::from_utf8(state).ok().filter(|_| plain) else {
            return String::new();
        };
        if text.trim().is_empty() {
            continue;
        }
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(text.trim());
        if joined.len() > MAX_TRACESTATE {
            return String::new();
        }
    }
    joined
}

/// Lower case only, says the recommendation.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(parents: &[&str], states: &[&str]) -> Option<Carried> {
        let bytes =
            |texts: &[&str]| texts.iter().map(|t| t.as_bytes().to_vec()).collect::<Vec<_>>();
        let (parents, states) = (bytes(parents), bytes(states));
        Carried::read(parents.iter().map(|p| &p[..]), states.iter().map(|s| &s[..]))
    }

    #[test]
    fn a_context_is_read_and_written() {
        let context = Context::parse(PARENT.as_bytes()).unwrap();
        assert_eq!(context.trace_id[..2], [0x4b, 0xf9]);
        assert_eq!(context.span_id[6..], [0x02, 0xb7]);
        assert!(context.sampled);
        assert_eq!(context.traceparent(), PARENT);
        let unsampled = PARENT.replace("-01", "-00");
        assert!(!Context::parse(unsampled.as_bytes()).unwrap().sampled);
        assert!(Context::parse(PARENT.replace("-01", "-03").as_bytes()).unwrap().sampled);
    }

    #[test]
    fn newer_versions_are_read_as_far_as_they_are_known() {
        for newer in ["cc-", "01-"] {
            let newer = PARENT.replacen("00-", newer, 1);
            assert!(Context::parse(newer.as_bytes()).is_some());
            assert!(Context::parse(format!("{newer}-more").as_bytes()).is_some());
            assert!(Context::parse(format!("{newer}more").as_bytes()).is_none());
        }
    }

    #[test]
    fn what_is_malformed_is_none() {
        let zero_trace = PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_span = PARENT.replace("00f067aa0ba902b7", &"0".repeat(16));
        for text in [
            "",
            "00",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &PARENT.replacen("00-", "ff-", 1),
            &PARENT.to_uppercase(),
            &PARENT.replace('-', "_"),
            &PARENT.replace("-01", "-0g"),
            &zero_trace,
            &zero_span,
            &format!("cc{}-{}", &PARENT[2..], "x".repeat(MAX_TRACEPARENT)),
        ] {
            assert_eq!(Context::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn headers_are_one_context_or_none() {
        let carried = read(&[PARENT], &["a=1", " b=2 ", ""]).unwrap();
        assert_eq!(
            (carried.traceparent.as_str(), carried.tracestate.as_str()),
            (PARENT, "a=1,b=2")
        );
        assert_eq!(read(&[], &["a=1"]), None);
        assert_eq!(read(&[PARENT, PARENT], &[]), None, "which one?");
        assert_eq!(read(&["nonsense"], &["a=1"]), None);
        let long = "a=".to_owned() + &"x".repeat(MAX_TRACESTATE);
        assert_eq!(read(&[PARENT], &[&long]).unwrap().tracestate, "");
        assert_eq!(read(&[PARENT], &["a=\u{e9}"]).unwrap().tracestate, "");
    }
}
