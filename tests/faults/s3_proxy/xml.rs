//! The XML of DeleteObjects, both ways, and the little of a listing's that a page is cut short by.
//!
//! Invariant: a key is read as it was written, spaces at its ends included.

use std::collections::BTreeSet;
use std::fmt::Write;

use quick_xml::Reader;
use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::Event;

/// One entry of a request or an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// `Object`, `Deleted` or `Error`.
    pub element: String,
    pub key: String,
    pub version: Option<String>,
    pub code: String,
    pub message: String,
}

/// The entries of a `Delete` or a `DeleteResult`; `None` if it is not XML.
pub fn entries(xml: &[u8]) -> Option<Vec<Entry>> {
    let mut reader = Reader::from_reader(xml);
    let (mut path, mut text) = (Vec::<String>::new(), String::new());
    let (mut entries, mut entry) = (Vec::new(), Entry::default());
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                path.push(String::from_utf8(start.local_name().as_ref().to_vec()).ok()?);
                text.clear();
                if path.len() == 2 {
                    entry = Entry { element: path[1].clone(), ..Entry::default() };
                }
            }
            Event::Text(part) => text.push_str(&part.decode().ok()?),
            Event::CData(part) => text.push_str(&part.decode().ok()?),
            Event::GeneralRef(reference) => match reference.resolve_char_ref().ok()? {
                Some(char) => text.push(char),
                None => text.push_str(resolve_predefined_entity(&reference.decode().ok()?)?),
            },
            Event::End(_) => {
                match (path.len(), path.last()?.as_str()) {
                    (3, "Key") => entry.key = std::mem::take(&mut text),
                    (3, "VersionId") => entry.version = Some(std::mem::take(&mut text)).filter(|id| !id.is_empty()),
                    (3, "Code") => entry.code = std::mem::take(&mut text),
                    (3, "Message") => entry.message = std::mem::take(&mut text),
                    (2, "Object" | "Deleted" | "Error") => entries.push(std::mem::take(&mut entry)),
                    _ => {}
                }
                path.pop();
            }
            Event::Eof => return Some(entries),
            _ => {}
        }
    }
}

/// A `DeleteResult` with these entries.
pub fn delete_result(entries: &[Entry]) -> String {
    let mut xml = String::from(r#"<?xml version="1.0" encoding="UTF-8"?>"#);
    xml.push_str(r#"<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">"#);
    for Entry { element, key, version, code, message } in entries {
        let version = version.iter().map(|id| format!("<VersionId>{}</VersionId>", escape(id))).collect::<String>();
        let why = match code.as_str() {
            "" => String::new(),
            code => format!("<Code>{}</Code><Message>{}</Message>", escape(code), escape(message)),
        };
        write!(xml, "<{element}><Key>{}</Key>{version}{why}</{element}>", escape(key)).expect("into a string");
    }
    xml.push_str("</DeleteResult>");
    xml
}

/// The document of an error.
pub fn error(code: &str, message: &str) -> String {
    format!(r#"<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"#)
}

const ENTRIES: [(&str, &str); 3] =
    [("<Contents>", "</Contents>"), ("<Version>", "</Version>"), ("<DeleteMarker>", "</DeleteMarker>")];
const MORE: &str = "<IsTruncated>true</IsTruncated>";
const LAST: &str = "<IsTruncated>false</IsTruncated>";

/// What a listing's page shows, each entry as it stands in it.
pub fn page_entries(page: &str) -> BTreeSet<&str> {
    blocks(page).into_iter().map(|(from, to)| &page[from..to]).collect()
}

/// Whether the page says that more follow.
pub fn promises_more(page: &str) -> bool {
    page.contains(MORE)
}

/// The page with its first `keep` entries alone, which claims to be the last; `None` if that is what it is.
pub fn cut_short(page: &str, keep: usize) -> Option<String> {
    let blocks = blocks(page);
    if blocks.len() <= keep && !promises_more(page) {
        return None;
    }
    let mut kept = page.to_owned();
    for (from, to) in blocks.into_iter().skip(keep).rev() {
        kept.replace_range(from..to, "");
    }
    Some(kept.replace(MORE, LAST))
}

/// Where the entries are, in the order of the page.
fn blocks(page: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (open, close) in ENTRIES {
        let mut at = 0;
        while let Some(from) = page[at..].find(open).map(|n| at + n) {
            let Some(to) = page[from..].find(close).map(|n| from + n + close.len()) else { break };
            found.push((from, to));
            at = to;
        }
    }
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_through_xml_and_back_as_they_are() {
        let keys = ["a/b", " spaces ", "&<>\"'", "ünï/🗑", "a%2Fb+c", "]]>", "."];
        let asked: Vec<Entry> = keys
            .map(|key| Entry {
                element: "Deleted".into(),
                key: key.into(),
                version: Some("v".into()),
                ..Entry::default()
            })
            .into();
        assert_eq!(entries(delete_result(&asked).as_bytes()).expect("XML"), asked);
        let spelled = "<Delete><Object><Key> a&#x20;&amp;<![CDATA[&]]>b </Key></Object></Delete>";
        assert_eq!(entries(spelled.as_bytes()).expect("XML")[0].key, " a &&b ");
        assert_eq!(entries(b"<Delete><Object>"), Some(Vec::new()));
        assert_eq!(entries(b"<a></b>"), None);
    }

    #[test]
    fn a_page_is_cut_after_its_first_entries() {
        let entry = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let page = format!("<R><IsTruncated>true</IsTruncated>{}{}</R>", entry("a"), entry("b"));
        assert_eq!(page_entries(&page), BTreeSet::from([entry("a").as_str(), &entry("b")]));
        let cut = cut_short(&page, 1).expect("it is shorter");
        assert_eq!(cut, format!("<R><IsTruncated>false</IsTruncated>{}</R>", entry("a")));
        assert_eq!(cut_short(&cut, 1), None);
    }
}
