//! Reads PromQL as far as it takes to say which series and labels an expression names; Prometheus itself says whether
//! it can be evaluated, and does not mind a name that nobody exports.
//!
//! Invariant: nothing is passed over. What this does not understand is an error, so that no name goes unread: functions
//! that make labels up, and `sum(…) by (…)`, whose labels come after what they belong to.

use std::ops::Range;

/// Aggregations that are followed by `by (…)`, `without (…)` or their operand.
const AGGREGATIONS: &[&str] =
    &["sum", "min", "max", "avg", "count", "group", "stddev", "stdvar", "topk", "bottomk", "quantile"];

/// They put labels into a result that no series has.
const MAKES_LABELS: &[&str] = &["label_replace", "label_join", "count_values"];

/// Words that are neither series nor functions.
const WORDS: &[&str] = &["and", "or", "unless", "offset", "bool", "inf", "nan"];

/// `metric{label="value"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    pub metric: String,
    pub matchers: Vec<Matcher>,
}

/// One of a selector's conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    pub label: String,
    /// `=~` or `!~`.
    pub regex: bool,
    pub value: String,
}

/// Labels that `by`, `on` and the like name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    pub labels: Vec<String>,
    /// Which of the selectors they are labels of.
    pub of: Range<usize>,
    /// Each of those has to have them (an aggregation), and not only one (a side of a binary operator).
    pub each: bool,
}

/// What an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub selectors: Vec<Selector>,
    pub groupings: Vec<Grouping>,
}

/// Why an expression could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
    /// `=`, `!=`, `=~`, `!~`, and the comparisons.
    Operator(String),
}

/// Everything that `expression` names.
///
/// # Errors
/// It is not PromQL, or a part of it that this does not know.
pub fn read(expression: &str) -> Result<Named, Unreadable> {
    let mut reader = Reader { tokens: tokens(expression)?, at: 0, named: Named::default(), open: Vec::new() };
    while reader.at < reader.tokens.len() {
        reader.step()?;
    }
    if !reader.open.is_empty() {
        return Err(Unreadable("a parenthesis is not closed".into()));
    }
    if reader.named.selectors.is_empty() {
        return Err(Unreadable("it names no series".into()));
    }
    let all = 0..reader.named.selectors.len();
    for grouping in reader.named.groupings.iter_mut().filter(|grouping| !grouping.each) {
        grouping.of = all.clone();
    }
    Ok(reader.named)
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    named: Named,
    /// For each open parenthesis the labels that its aggregation keeps, and the first selector in it.
    open: Vec<(Vec<String>, usize)>,
}

impl Reader {
    fn step(&mut self) -> Result<(), Unreadable> {
        match self.next() {
            Token::Word(word) => self.word(&word),
            Token::Sign('(') => {
                self.open.push((Vec::new(), self.named.selectors.len()));
                Ok(())
            }
            Token::Sign(')') => {
                let (labels, first) = self.open.pop().ok_or_else(|| Unreadable("a `)` too many".into()))?;
                if !labels.is_empty() {
                    let of = first..self.named.selectors.len();
                    self.named.groupings.push(Grouping { labels, of, each: true });
                }
                match self.peek() {
                    Some(Token::Word(word)) if word == "by" || word == "without" => {
                        Err(Unreadable(format!("write `{word}` before what is aggregated")))
                    }
                    _ => Ok(()),
                }
            }
            // a range or a subquery: durations only
            Token::Sign('[') => {
                while self.next_or("a `]`")? != Token::Sign(']') {}
                Ok(())
            }
            Token::Sign('{') => Err(Unreadable("a selector without a metric's name".into())),
            Token::Sign(_) | Token::Operator(_) | Token::Text(_) => Ok(()),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), Unreadable> {
        if MAKES_LABELS.contains(&word) {
            return Err(Unreadable(format!("{word} makes labels up, which nothing can check")));
        }
        if AGGREGATIONS.contains(&word) {
            let labels = match self.peek() {
                Some(Token::Word(how)) if how == "by" || how == "without" => {
                    self.at += 1;
                    self.labels()?
                }
                _ => Vec::new(),
            };
            self.expect('(')?;
            self.open.push((labels, self.named.selectors.len()));
            return Ok(());
        }
        if ["on", "ignoring", "group_left", "group_right"].contains(&word) {
            let labels = if self.peek() == Some(&Token::Sign('(')) { self.labels()? } else { Vec::new() };
            self.named.groupings.push(Grouping { labels, of: 0..0, each: false });
            return Ok(());
        }
        let number = word.starts_with(|c: char| c.is_ascii_digit());
        if number || WORDS.contains(&word.to_ascii_lowercase().as_str()) || self.peek() == Some(&Token::Sign('(')) {
            return Ok(());
        }
        let matchers = if self.peek() == Some(&Token::Sign('{')) { self.matchers()? } else { Vec::new() };
        self.named.selectors.push(Selector { metric: word.to_owned(), matchers });
        Ok(())
    }

    /// `(a, b)`.
    fn labels(&mut self) -> Result<Vec<String>, Unreadable> {
        self.expect('(')?;
        let mut labels = Vec::new();
        loop {
            match self.next_or("a `)`")? {
                Token::Sign(')') => return Ok(labels),
                Token::Sign(',') => {}
                Token::Word(label) => labels.push(label),
                other => return Err(Unreadable(format!("{other:?} is no label"))),
            }
        }
    }

    /// `{a="x", b=~"y|z"}`.
    fn matchers(&mut self) -> Result<Vec<Matcher>, Unreadable> {
        self.expect('{')?;
        let mut matchers = Vec::new();
        loop {
            match self.next_or("a `}`")? {
                Token::Sign('}') => return Ok(matchers),
                Token::Sign(',') => {}
                Token::Word(label) => {
                    let regex = match self.next_or("a matcher")? {
                        Token::Operator(sign) if ["=", "!="].contains(&sign.as_str()) => false,
                        Token::Operator(sign) if ["=~", "!~"].contains(&sign.as_str()) => true,
                        other => return Err(Unreadable(format!("{other:?} after the label {label}"))),
                    };
                    let Token::Text(value) = self.next_or("a text")? else {
                        return Err(Unreadable(format!("the label {label} without a text")));
                    };
                    matchers.push(Matcher { label, regex, value });
                }
                other => return Err(Unreadable(format!("{other:?} among matchers"))),
            }
        }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Token {
        self.at += 1;
        self.tokens[self.at - 1].clone()
    }

    fn next_or(&mut self, what: &str) -> Result<Token, Unreadable> {
        if self.at < self.tokens.len() { Ok(self.next()) } else { Err(Unreadable(format!("{what} is missing"))) }
    }

    fn expect(&mut self, sign: char) -> Result<(), Unreadable> {
        match self.next_or(&format!("a `{sign}`"))? {
            Token::Sign(found) if found == sign => Ok(()),
            other => Err(Unreadable(format!("{other:?} where a `{sign}` belongs"))),
        }
    }
}

fn tokens(expression: &str) -> Result<Vec<Token>, Unreadable> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => {
                let end = rest[1..].find(first).ok_or_else(|| Unreadable("a text is not closed".into()))?;
                let text = &rest[1..=end];
                if text.contains('\\') {
                    return Err(Unreadable("an escape in a text".into()));
                }
                found.push(Token::Text(text.to_owned()));
                end + 2
            }
            // `1e-3` and durations in one piece, and names
            c if c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '.' => {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.')));
                let length = end.unwrap_or(rest.len());
                found.push(Token::Word(rest[..length].to_owned()));
                length
            }
            '=' | '!' | '<' | '>' => {
                let length = 1 + usize::from(rest[1..].starts_with(['=', '~']));
                found.push(Token::Operator(rest[..length].to_owned()));
                length
            }
            c if c.is_whitespace() => c.len_utf8(),
            c if "(){}[],+-*/%^@".contains(c) => {
                found.push(Token::Sign(c));
                1
            }
            c => return Err(Unreadable(format!("{c:?} is no part of PromQL"))),
        };
        rest = &rest[length..];
    }
    Ok(found)
}

#[test]
fn an_expression_names_its_series_with_their_conditions_and_the_labels_it_groups_by() {
    let named = read(
        r#"sum by (store, outcome) (rate(a_total{outcome=~"failed|unknown", store!=""}[5m:1m] offset 1h)) # a comment
           / on (store) group_left 1e3 * max(b) > bool 0.5 unless time() - c_seconds < 3600"#,
    );
    let matcher = |label: &str, regex, value: &str| Matcher { label: label.into(), regex, value: value.into() };
    let plain = |metric: &str| Selector { metric: metric.into(), matchers: vec![] };
    let a = Selector {
        metric: "a_total".into(),
        matchers: vec![matcher("outcome", true, "failed|unknown"), matcher("store", false, "")],
    };
    let grouping = |labels: &[&str], of, each| Grouping {
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        of,
        each,
    };
    assert_eq!(
        named,
        Ok(Named {
            selectors: vec![a, plain("b"), plain("c_seconds")],
            groupings: vec![
                grouping(&["store", "outcome"], 0..1, true),
                grouping(&["store"], 0..3, false),
                grouping(&[], 0..3, false)
            ],
        })
    );
}

#[test]
fn what_it_does_not_understand_it_refuses() {
    for expression in [
        r#"label_replace(a, "x", "$1", "y", "(.*)")"#,
        "sum(a) by (x)",
        r#"{__name__="a"}"#,
        r#"a{x="b}"#,
        r#"a{x=~"b\\.c"}"#,
        "sum(a",
        "a)",
        "time() > 3",
        "a{x}",
        "a ; b",
    ] {
        assert!(read(expression).is_err(), "{expression}");
    }
}
