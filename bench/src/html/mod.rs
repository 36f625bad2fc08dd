//! Pages that show results: one file each, which needs no network and no other file. The pages draw; what they show is
//! the JSON that is put into them.

use anyhow::{Context, Result};
use serde::Serialize;

const STYLE: &str = include_str!("style.css");
const KIT: &str = include_str!("kit.js");
/// The page of `polyraft bench`.
pub const BENCH: &str = include_str!("bench.html");
/// The page of `polyraft tune`.
pub const TUNE: &str = include_str!("tune.html");

/// A page with its data as text.
pub fn fill(page: &str, data: &impl Serialize) -> Result<String> {
    // Within a script `<` could end it, or begin a comment; as an escape it means the same in JSON.
    let data = serde_json::to_string(data)?.replace('<', "\\u003c");
    let mut filled = String::with_capacity(page.len() + STYLE.len() + KIT.len() + data.len());
    let mut rest = page;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").context("a page is sound")?;
        filled.push_str(before);
        filled.push_str(match name {
            "style" => STYLE,
            "kit" => KIT,
            "data" => &data,
            other => anyhow::bail!("a page asks for {other}"),
        });
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn data_cannot_leave_its_place_in_the_page() {
        let data = json!({"text": "</script><script>alert(1)</script> {{kit}}"});
        let filled = fill("<a>{{style}}</a><script>{{data}}</script>", &data).unwrap();
        assert_eq!(filled.matches("</script>").count(), 1);
        let start = filled.find("<script>").unwrap() + "<script>".len();
        let inner = &filled[start..filled.rfind("</script>").unwrap()];
        let read: Value = serde_json::from_str(inner).unwrap();
        assert_eq!(read, data);
    }

    #[test]
    fn pages_ask_for_nothing_from_elsewhere() {
        for page in [BENCH, TUNE] {
            let filled = fill(page, &json!({})).unwrap();
            assert!(!filled.contains("{{"), "everything is filled in");
            for word in ["src=", "href=", "@import", "url(", "fetch(", "https:"] {
                assert!(!filled.contains(word), "{word}");
            }
        }
    }
}
