//! What a piece of work belongs to in the systems around us: the id by which people follow it, and its distributed trace.
//!
//! Invariant: what is in one of these types can stand in a log line, a header and a column as it is: bounded, visible
//! ASCII, of the form that its standard gives it. It names and decides nothing; what is malformed is left out, and no
//! request is refused for it.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::ids::{InvalidName, text_newtype};

/// The longest correlation id. As long as an AMQP property may be, so that each of those can be kept.
const MOST_CORRELATION: usize = 255;

/// Bytes of a `tracestate` that are passed on; W3C asks for at least so many.
const MOST_TRACESTATE: usize = 512;

text_newtype!(
    /// The id by which a request and all that comes of it are found again: 1 to 255 visible ASCII characters.
    CorrelationId
);

impl CorrelationId {
    /// # Errors
    /// Empty, too long, or with anything but visible ASCII characters: it goes into log lines and headers.
    pub fn parse(raw: &str) -> Result<Self, InvalidName> {
        if (1..=MOST_CORRELATION).contains(&raw.len()) && raw.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(raw.to_owned()));
        }
        let raw = raw.chars().take(80).collect();
        Err(InvalidName { what: "correlation id", raw, rule: "1 to 255 visible ASCII characters, without spaces" })
    }

    /// One for what came with none.
    pub fn new() -> Self {
        Self(Uuid::now_v7().to_string())
    }
}

impl Default for CorrelationId {
    fn default() -> Self {
        Self::new()
    }
}

/// A place in a distributed trace, as W3C Trace Context writes it in two headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// `00-{trace id}-{span id}-{flags}`.
    traceparent: String,
    /// What tracing systems add for themselves.
    tracestate: Option<String>,
}

impl TraceContext {
    /// The header that names trace and span.
    pub const TRACEPARENT: &str = "traceparent";
    /// The header beside it.
    pub const TRACESTATE: &str = "tracestate";

    /// Reads the two headers. `None`: the first is not valid, and then the second means nothing. A `tracestate` that is not
    /// valid is left out alone. Of a later version only that is kept of which this one knows the meaning.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_id = |text: &str, length| text.len() == length && is_hex(text) && text.bytes().any(|byte| byte != b'0');
        let mut parts = traceparent.splitn(5, '-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_known = version == "00";
        let well_formed = version.len() == 2
            && is_hex(version)
            && version != "ff"
            && is_id(trace, 32)
            && is_id(span, 16)
            && flags.len() == 2
            && is_hex(flags)
            && (parts.next().is_none() || !is_known);
        if !well_formed {
            return None;
        }
        let flags =
            if is_known { u8::from_str_radix(flags, 16).ok()? } else { u8::from_str_radix(flags, 16).ok()? & 1 };
        let tracestate = tracestate.and_then(readable_state);
        Some(Self { traceparent: format!("00-{trace}-{span}-{flags:02x}"), tracestate })
    }

    /// The header `traceparent`.
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The header `tracestate`.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// The trace's id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        &self.traceparent[3..35]
    }

    /// Names and values of the headers that carry it on.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let state = self.tracestate().map(|state| (Self::TRACESTATE, state));
        std::iter::once((Self::TRACEPARENT, self.traceparent())).chain(state)
    }
}

/// The members of a `tracestate`, as many as are passed on. `None`: it is not valid, or empty.
fn readable_state(raw: &str) -> Option<String> {
    const MOST_MEMBERS: usize = 32;
    let mut kept = String::new();
    let mut keys = Vec::new();
    let members = raw.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty());
    for member in members {
        let (key, value) = member.split_once('=')?;
        if !is_state_key(key) || !is_state_value(value) || keys.contains(&key) || keys.len() == MOST_MEMBERS {
            return None;
        }
        keys.push(key);
        // the newest come first, and what is left out is left out whole
        if kept.len() + 1 + member.len() <= MOST_TRACESTATE {
            let comma = if kept.is_empty() { "" } else { "," };
            kept += &format!("{comma}{member}");
        }
    }
    (!kept.is_empty()).then_some(kept)
}

fn is_state_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    (1..=256).contains(&key.len())
        && key.bytes().all(allowed)
        && key.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
}

fn is_state_value(value: &str) -> bool {
    (1..=256).contains(&value.len()) && value.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
}

/// To what a piece of work belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// By what it is found again. `None`: from before there were such ids, or work of our own.
    pub correlation_id: Option<CorrelationId>,
    /// Its place in a trace; goes on in headers alone.
    #[serde(skip)]
    pub trace: Option<TraceContext>,
}

impl Cause {
    /// This one and, where it has no id of its own, the other's. Who brought an id and no trace has none.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        if self.correlation_id.is_some() {
            return self.clone();
        }
        let trace = self.trace.clone().or_else(|| other.trace.clone());
        Self { correlation_id: other.correlation_id.clone(), trace }
    }

    /// Takes it back from where the store has kept it.
    pub fn from_stored(correlation_id: Option<String>, traceparent: Option<&str>, tracestate: Option<&str>) -> Self {
        let trace = traceparent.and_then(|parent| TraceContext::parse(parent, tracestate));
        Self { correlation_id: correlation_id.and_then(|id| CorrelationId::parse(&id).ok()), trace }
    }

    /// The column `correlation_id`.
    pub fn correlation_id(&self) -> Option<&str> {
        self.correlation_id.as_ref().map(CorrelationId::as_str)
    }

    /// The column `traceparent`.
    pub fn traceparent(&self) -> Option<&str> {
        self.trace.as_ref().map(TraceContext::traceparent)
    }

    /// The column `tracestate`.
    pub fn tracestate(&self) -> Option<&str> {
        self.trace.as_ref().and_then(TraceContext::tracestate)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.traceparent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_trace_context_is_passed_on_as_it_came() {
        let context = TraceContext::parse(PARENT, Some("congo=t61rcWkgMzE, rojo=00f067aa0ba902b7")).unwrap();
        assert_eq!((context.traceparent(), context.trace_id()), (PARENT, "4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(context.tracestate(), Some("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"));
        let headers: Vec<_> = context.headers().collect();
        assert_eq!(headers[0], ("traceparent", PARENT));
    }

    #[test]
    fn an_invalid_traceparent_is_no_context() {
        for raw in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-00",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(raw, None), None, "{raw:?}");
        }
    }

    #[test]
    fn of_a_later_version_what_this_one_knows_is_kept() {
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-what-comes-then";
        assert_eq!(TraceContext::parse(later, None).unwrap().traceparent(), PARENT);
    }

    #[test]
    fn an_invalid_tracestate_goes_alone_and_a_long_one_loses_whole_members_from_its_end() {
        let state = |raw: &str| TraceContext::parse(PARENT, Some(raw)).unwrap().tracestate().map(str::to_owned);
        for raw in ["", " , ", "a", "A=1", "a=\u{7}", "a=b=c", "a=1,a=2", "=1", "a=ä"] {
            assert_eq!(state(raw), None, "{raw:?}");
        }
        let (first, second) = (format!("a={}", "x".repeat(250)), format!("b={}", "y".repeat(250)));
        assert_eq!(state(&format!("{first},{second},c=z{}", "z".repeat(20))), Some(format!("{first},{second}")));
    }

    #[test]
    fn who_brings_an_id_and_no_trace_does_not_get_anothers() {
        let trashed = Cause { correlation_id: Some(CorrelationId::new()), trace: TraceContext::parse(PARENT, None) };
        let restored = Cause { correlation_id: Some(CorrelationId::new()), trace: None };
        assert_eq!(restored.or(&trashed), restored);
        assert_eq!(Cause::default().or(&trashed), trashed);
    }

    proptest! {
        #[test]
        fn a_correlation_id_never_holds_what_could_end_a_line(raw in any::<String>()) {
            if let Ok(id) = CorrelationId::parse(&raw) {
                prop_assert!(id.as_str() == raw && raw.len() <= 255 && raw.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }

        #[test]
        fn what_is_passed_on_is_bounded_and_reads_back(parent in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,20})?", state in any::<String>()) {
            if let Some(context) = TraceContext::parse(&parent, Some(&state)) {
                prop_assert!(context.traceparent().len() == 55 && context.tracestate().is_none_or(|state| state.len() <= 512));
                let again = TraceContext::parse(context.traceparent(), context.tracestate());
                prop_assert_eq!(again, Some(context));
            }
        }
    }
}
