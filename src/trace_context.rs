//! W3C Trace Context: the trace that an event, or a request, belongs to.
//!
//! The bus and the hub carry contexts and look at one flag; `observe::trace` makes spans of them.

use std::fmt::Write as _;

/// Bytes of a `traceparent`. Version 00 has 55; a longer one is of no version that exists.
pub const MAX_TRACEPARENT: usize = 128;

/// Bytes of a `tracestate`: what the recommendation asks everybody to carry.
pub const MAX_TRACESTATE: usize = 512;

/// Links of one span to the traces of other events.
pub const MAX_LINKS: u32 = 32;

/// The length of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// A `traceparent`, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; not zero.
    pub trace_id: [u8; 16],
    /// The parent of the spans to come; not zero.
    pub span_id: [u8; 8],
    /// True when the trace is recorded.
    pub sampled: bool,
}

/// The trace context of a request. Its events that have none of their own carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingTrace {
    /// The `traceparent`, read.
    pub context: TraceContext,
    /// The `traceparent`, as it came.
    pub traceparent: String,
    /// The `tracestate`; empty if there is none.
    pub tracestate: String,
}

impl TraceContext {
    /// Reads a `traceparent` of any version; of a newer one the fields of version 00, as the
    /// recommendation wants it. `None` if it is malformed or empty.
    pub fn parse(text: &[u8]) -> Option<TraceContext> {
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
        valid.then_some(TraceContext { trace_id, span_id, sampled: flags & 1 == 1 })
    }

    /// The `traceparent` of version 00.
    pub fn traceparent(&self) -> String {
        let mut text = String::with_capacity(LENGTH);
        text.push_str("00-");
        let mut put = |bytes: &[u8]| {
            for byte in bytes {
                // Writing to a String does not fail.
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

impl IncomingTrace {
    /// Reads the headers of a request. Malformed or repeated ones count as none: a publish must not
    /// fail because of its trace.
    pub fn read<'a>(
        mut parents: impl Iterator<Item = &'a [u8]>,
        states: impl Iterator<Item = &'a [u8]>,
    ) -> Option<IncomingTrace> {
        let parent = parents.next()?;
        if parents.next().is_some() {
            return None;
        }
        let context = TraceContext::parse(parent)?;
        let traceparent = String::from_utf8(parent.to_vec()).ok()?;
        Some(IncomingTrace { context, traceparent, tracestate: join(states) })
    }

    /// A trace that begins at this gateway.
    pub fn new(context: TraceContext) -> IncomingTrace {
        IncomingTrace { context, traceparent: context.traceparent(), tracestate: String::new() }
    }
}

/// Joins several `tracestate` headers to one list. It is left out as a whole if it is too long or
/// not plain text.
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

/// Reads hexadecimal digits. The recommendation allows lower case only.
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

    fn read(parents: &[&str], states: &[&str]) -> Option<IncomingTrace> {
        let bytes =
            |texts: &[&str]| texts.iter().map(|t| t.as_bytes().to_vec()).collect::<Vec<_>>();
        let (parents, states) = (bytes(parents), bytes(states));
        IncomingTrace::read(parents.iter().map(|p| &p[..]), states.iter().map(|s| &s[..]))
    }

    #[test]
    fn a_traceparent_is_read_and_written_back() {
        let context = TraceContext::parse(PARENT.as_bytes()).unwrap();
        assert_eq!(context.trace_id[..2], [0x4b, 0xf9]);
        assert_eq!(context.span_id[6..], [0x02, 0xb7]);
        assert!(context.sampled);
        assert_eq!(context.traceparent(), PARENT);
        let unsampled = PARENT.replace("-01", "-00");
        assert!(!TraceContext::parse(unsampled.as_bytes()).unwrap().sampled);
        assert!(TraceContext::parse(PARENT.replace("-01", "-03").as_bytes()).unwrap().sampled);
    }

    #[test]
    fn newer_versions_are_read_up_to_the_known_fields() {
        for newer in ["cc-", "01-"] {
            let newer = PARENT.replacen("00-", newer, 1);
            assert!(TraceContext::parse(newer.as_bytes()).is_some());
            assert!(TraceContext::parse(format!("{newer}-more").as_bytes()).is_some());
            assert!(TraceContext::parse(format!("{newer}more").as_bytes()).is_none());
        }
    }

    #[test]
    fn a_malformed_traceparent_is_no_context() {
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
            assert_eq!(TraceContext::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn repeated_or_malformed_headers_are_no_context() {
        let incoming = read(&[PARENT], &["a=1", " b=2 ", ""]).unwrap();
        assert_eq!(
            (incoming.traceparent.as_str(), incoming.tracestate.as_str()),
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
