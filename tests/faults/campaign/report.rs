//! How a campaign came out, in words, and how to play it again.
//!
//! Invariant: one that broke no promise passes only if everything happened that the promises are about. Where too little
//! did, that is what is said: it shows nothing, for or against them.

use std::fmt;

use super::settings::Settings;
use super::tally::Tally;

/// What the names of counts begin with that must not be 0, or there was nothing to judge.
const MUST_HAPPEN: [&str; 18] = [
    "fault: broker",
    "fault: database",
    "fault: store",
    "fault: kill -9 of a process",
    "use: begun",
    "use: refused, in the trash",
    "use: all objects seen",
    "judged: holds",
    "judged: acknowledged as Trashed",
    "judged: acknowledged as Restored",
    "judged: requests whose reply was heard",
    "ended: purged",
    "ended: restored",
    "judged: receipts",
    "judged: rows that went",
    "judged: events",
    "judged: requests carried out",
    "messages: ",
];

/// The end of a campaign. Its text ends with the command that plays it again.
pub struct Report {
    broken: Vec<String>,
    missing: Vec<&'static str>,
    settings: Settings,
}

impl Report {
    pub fn of(tally: &Tally, settings: Settings) -> Report {
        let missing = MUST_HAPPEN.into_iter().filter(|name| tally.count_all(name) == 0).collect();
        Report { broken: tally.broken_promises(), missing, settings }
    }

    pub fn is_good(&self) -> bool {
        self.broken.is_empty() && self.missing.is_empty()
    }

    /// Leaves it to `scripts/faults`, if that has started us, to show it last of all.
    pub fn hand_over(&self) {
        if let Some(path) = std::env::var_os("FAULTS_VERDICT") {
            std::fs::write(path, format!("{self}\n")).expect("the script's own file");
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.broken.len() {
            0 if self.missing.is_empty() => f.write_str("no promise was broken")?,
            0 => {}
            1 => writeln!(f, "a promise was broken:")?,
            n => writeln!(f, "{n} promises were broken:")?,
        }
        self.broken.iter().try_for_each(|promise| writeln!(f, "  {promise}"))?;
        if !self.missing.is_empty() {
            let missing = self.missing.join("\", \"");
            write!(
                f,
                "too little happened to judge: nothing is counted as \"{missing}\"; play longer, or with more datasets"
            )?;
        }
        if !self.broken.is_empty() && self.missing.is_empty() {
            write!(f, "repeat with: {}", self.settings)
        } else {
            write!(f, "; repeat with: {}", self.settings)
        }
    }
}

#[test]
fn a_report_tells_broken_promises_from_too_little_to_judge() {
    let settings = Settings { seed: 7, faults: std::time::Duration::from_secs(90), datasets: 40 };
    let told = |broken: &[&str], happened: &[&str]| {
        let tally = Tally::default();
        happened.iter().for_each(|name| tally.add(*name));
        // not by way of the tally, which cries out
        let broken = broken.iter().map(|promise| (*promise).to_owned()).collect();
        let report = Report { broken, ..Report::of(&tally, settings) };
        (report.is_good(), report.to_string())
    };
    let again = "repeat with: scripts/faults --seed 7 --duration 90s --count 40";
    let (few, one) = MUST_HAPPEN.split_at(17);
    assert_eq!(one, ["messages: "]);
    assert_eq!(told(&[], &MUST_HAPPEN), (true, format!("no promise was broken; {again}")));
    assert_eq!(told(&["a", "b"], &MUST_HAPPEN), (false, format!("2 promises were broken:\n  a\n  b\n{again}")));
    let little =
        "too little happened to judge: nothing is counted as \"messages: \"; play longer, or with more datasets";
    assert_eq!(told(&[], few), (false, format!("{little}; {again}")));
    assert_eq!(told(&["a"], few), (false, format!("a promise was broken:\n  a\n{little}; {again}")));
}
