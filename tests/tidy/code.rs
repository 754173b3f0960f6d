//! Reads Rust well enough for rules about paths: comments, texts and test items are blanked out.

use std::path::Path;

use crate::text_of;

/// The file with comments, texts and test items blanked out; lines stay where they are.
pub(crate) fn code_of(file: &Path) -> String {
    without_test_items(&without_comments_and_texts(&text_of(file)))
}

/// Blanks comments and the inside of texts and characters.
pub(crate) fn without_comments_and_texts(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = skipped(rest).unwrap_or(0);
        if end == 0 {
            // A word is taken whole, so that the `r` of `for` does not begin a raw text.
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let taken = word.max(first.len_utf8());
            out.push_str(&rest[..taken]);
            rest = &rest[taken..];
        } else {
            out.extend(rest[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[end..];
        }
    }
    out
}

/// The length of the comment, text or character that begins here.
fn skipped(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(rest.find("*/").map_or(rest.len(), |end| end + 2));
    }
    let raw = rest.trim_start_matches(['b', 'c']);
    if let Some(hashes) =
        raw.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len())
        && raw[1 + hashes..].starts_with('"')
        && rest.len() - raw.len() <= 1
    {
        let start = rest.len() - raw.len() + hashes + 2;
        let close = format!("\"{}", "#".repeat(hashes));
        return Some(
            rest[start..].find(&close).map_or(rest.len(), |end| start + end + close.len()),
        );
    }
    if rest.starts_with('"') || rest.starts_with("b\"") || rest.starts_with("c\"") {
        return Some(quoted(rest, '"'));
    }
    // A character, not a lifetime: 'x' or an escape.
    let mut characters = rest.chars();
    if characters.next() == Some('\'') {
        let second = characters.next();
        if second == Some('\\') || characters.next() == Some('\'') {
            return Some(quoted(rest, '\''));
        }
    }
    None
}

/// The length of a text with escapes.
fn quoted(rest: &str, quote: char) -> usize {
    let start = rest.find(quote).map_or(0, |at| at + 1);
    let mut escaped = false;
    for (at, c) in rest[start..].char_indices() {
        if c == quote && !escaped {
            return start + at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// Blanks every item under `#[cfg(test)]`.
fn without_test_items(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let end = at + item_length(&rest[at..]);
        out.extend(rest[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// The length of an item: up to its semicolon or its closing brace.
fn item_length(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in item.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

pub(crate) fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `path` stands in the code as a whole path, not as a part of a longer word. A path that ends with `::` may go on.
pub(crate) fn occurrences<'a>(code: &'a str, path: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(path).map(|(at, _)| at).filter(move |at| {
        let before = code[..*at].chars().next_back();
        let after = code[at + path.len()..].chars().next();
        !before.is_some_and(|c| is_word(c) || c == '.')
            && (path.ends_with(':') || !after.is_some_and(is_word))
    })
}

/// The rooms that the text after `crate::` names: one, or several in braces.
pub(crate) fn named_rooms(after: &str) -> Vec<String> {
    let word =
        |text: &str| text.trim_start().chars().take_while(|c| is_word(*c)).collect::<String>();
    let Some(list) = after.strip_prefix('{') else {
        return vec![word(after)];
    };
    let mut depth = 0_usize;
    let mut names = vec![word(list)];
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(word(&list[at + 1..])),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn the_reader_of_code_is_not_fooled() {
    let text = "let a = \"crate::server // \\\" x\"; // crate::app\nlet b = 'c'; fn f<'a>(x: &'a str) {} let q = '\"'; r#\"crate::cli \"\"#; crate::oci::x /* crate::app */";
    let code = without_comments_and_texts(text);
    assert!(!code.contains("server") && !code.contains("app") && !code.contains("cli"), "{code}");
    assert!(
        code.contains("crate::oci::x") && code.contains("&'a str") && code.lines().count() == 2,
        "{code}"
    );
    let code = without_test_items(
        "use a;\n#[cfg(test)]\nmod tests {\n fn f() {}\n}\nuse b;\n#[cfg(test)]\nuse c;\nuse d;",
    );
    assert_eq!(code.split_whitespace().collect::<String>(), "usea;useb;used;");
    assert_eq!(named_rooms("{oci::{A, B}, clock, span::Span};"), ["oci", "clock", "span"]);
    assert_eq!(named_rooms("proxy::x"), ["proxy"]);
    assert_eq!(occurrences("use crate::server::Server;", "crate::").count(), 1);
    assert_eq!(occurrences("super::super::super::a", "super::super::").count(), 1);
    assert_eq!(occurrences("hyper::x hyper_util a.hyper xhyper", "hyper").count(), 1);
}
