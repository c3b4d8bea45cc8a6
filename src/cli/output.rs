//! What commands print: tables for people, one JSON document for programs.
//!
//! Invariant: a reader that goes away (`reprieve list | head`) is no failure.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;
use time::{OffsetDateTime, macros::format_description};

use super::CliError;
pub(super) use crate::domain::words::counted;
use crate::trash::{Count, Uploads};

/// Where and how to print.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints `document` for programs, or what `text` makes of it for people.
    pub(super) fn print<T: Serialize>(self, document: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        self.document(document)?;
        self.say(|| text(document))
    }

    /// Prints `document` for programs alone. A command does so once.
    pub(super) fn document<T: Serialize>(self, document: &T) -> Result<(), CliError> {
        if !self.json {
            return Ok(());
        }
        write(&serde_json::to_string_pretty(document).map_err(|error| CliError::Failed(error.to_string()))?)
    }

    /// Prints `text` for people alone, as often as there is something to say.
    pub(super) fn say(self, text: impl FnOnce() -> String) -> Result<(), CliError> {
        if self.json { Ok(()) } else { write(&text()) }
    }

    /// Prints how a command ended badly.
    pub(super) fn fail(self, error: &CliError) -> ExitCode {
        let printed = if self.json && matches!(error, CliError::Check(_)) {
            // the findings are the one document, and have been printed
            Ok(())
        } else if self.json {
            writeln!(io::stdout().lock(), "{:#}", error.to_json())
        } else {
            let advice = error.advice();
            let advice = if advice.is_empty() { String::new() } else { format!("\n  {advice}") };
            // a message of several lines is our own; each of them shows what it quotes as plain text
            let lines = error.to_string().lines().map(plain).collect::<Vec<_>>().join("\n");
            writeln!(io::stderr().lock(), "error: {lines}{advice}")
        };
        // there is nobody left to tell
        drop(printed);
        ExitCode::from(error.exit_code())
    }
}

fn write(rendered: &str) -> Result<(), CliError> {
    match writeln!(io::stdout().lock(), "{}", rendered.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::Failed(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// A table without frames; as wide as the terminal, if there is one.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    aligned(header, rows, &[])
}

/// As [`table`], the first columns at least so wide, so that several make one.
pub(super) fn aligned(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>, widths: &[usize]) -> String {
    let mut table = Table::new();
    let rows = rows.into_iter().map(|cells| cells.iter().map(|cell| plain(cell)).collect::<Vec<_>>());
    table.load_preset(presets::NOTHING).add_rows(rows);
    if !header.is_empty() {
        table.set_header(header);
    }
    for (column, width) in table.column_iter_mut().zip(widths) {
        let width = u16::try_from(*width).unwrap_or(u16::MAX).saturating_add(column.padding_width());
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Text from elsewhere, as one line that cannot move the cursor, change the title or turn its direction.
pub(super) fn plain(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c }).collect()
}

/// A time in UTC, to the second.
pub(super) fn at(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    time.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_else(|_| time.to_string())
}

/// How far away a time is: `in 13d 23h`, `2m 5s ago`.
pub(super) fn distance(time: OffsetDateTime) -> String {
    let seconds = (time - OffsetDateTime::now_utc()).whole_seconds();
    let whole = seconds.unsigned_abs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(unit, _)| whole >= *unit).unwrap_or(units.len() - 1);
    let mut rest = whole;
    let parts = units[first..].iter().take(2).map(|(unit, name)| {
        let count = rest / unit;
        rest %= unit;
        format!("{count}{name}")
    });
    let short = parts.collect::<Vec<_>>().join(" ");
    if seconds >= 0 { format!("in {short}") } else { format!("{short} ago") }
}

/// What lies below some prefixes, a line for each.
pub(super) fn below(counts: &[Count]) -> String {
    let line = |count: &Count| {
        let least = |at_least: bool| if at_least { "at least " } else { "" };
        let objects = match &count.error {
            Some(error) => format!("unknown: {error}"),
            None => format!("{}{}{}", least(count.at_least), count.objects, of_which(count)),
        };
        let size = count.error.is_none().then(|| format!("{}{}", least(count.at_least), bytes(count.bytes)));
        let Uploads { count: number, at_least, error } = &count.uploads;
        let uploads = match error {
            // said once is enough
            Some(_) if count.error.is_some() => String::new(),
            Some(error) => format!("unknown: {error}"),
            None => format!("{}{number}", least(*at_least)),
        };
        let place = format!("s3://{}/{}", count.location.bucket, count.location.prefix);
        vec![place, count.location.store.to_string(), objects, size.unwrap_or_default(), uploads]
    };
    table(&["prefix", "store", "objects", "size", "unfinished uploads"], counts.iter().map(line))
}

/// Only where versions are kept are there any.
fn of_which(count: &Count) -> String {
    let parts = [(count.older_versions, "older version"), (count.delete_markers, "delete marker")];
    let parts: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, noun)| counted(*n, noun)).collect();
    if parts.is_empty() { String::new() } else { format!(", of which {}", parts.join(" and ")) }
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_stays_on_its_line_and_moves_nothing() {
        let shown = table(&["reason"], [vec!["a\u{1b}[2J\u{7}b\nforged line \u{202e}x".to_owned()]]);
        assert_eq!(shown.lines().count(), 2, "{shown:?}");
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{shown:?}");
    }
}
