//! The configuration file: TOML into entries with their lines.
//!
//! The document is walked by hand and not through serde, because serde stops at the first mistake and forgets where values stood.

use std::ops::Range;
use std::path::Path as FilePath;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::oci::RegistryName;

use super::draft::{Entry, Path};
use super::error::{Mistake, Place};
use super::hints;
use super::keys::{Scope, is_section, key};
use super::values::Raw;

/// The largest configuration file; a larger one is some other file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What a file says, and what is wrong with it.
#[derive(Default)]
pub(super) struct Document {
    pub(super) entries: Vec<Entry>,
    /// Upstream tables, which count even when they are empty.
    pub(super) tables: Vec<(RegistryName, Place)>,
    pub(super) mistakes: Vec<Mistake>,
}

/// Reads a file from disk.
pub(super) fn read_file(file: &FilePath) -> Document {
    let refuse = |text: String| Document {
        mistakes: vec![Mistake::new(Place::File { path: file.to_owned(), line: 0 }, "", text)],
        ..Document::default()
    };
    let is_yaml =
        file.extension().is_some_and(|extension| extension == "yml" || extension == "yaml");
    if is_yaml {
        return refuse(
            "the configuration is TOML, not YAML; begin with config/roadstead.toml".to_owned(),
        );
    }
    match std::fs::metadata(file) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return refuse("too large for a configuration file".to_owned());
        }
        Ok(_) => {}
        Err(error) => return refuse(format!("cannot be read: {error}")),
    }
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => return refuse(format!("cannot be read: {error}")),
    };
    match String::from_utf8(bytes) {
        Ok(text) => parse(file, &text),
        Err(_not_text) => refuse("is not UTF-8 text".to_owned()),
    }
}

/// Reads a file's text.
pub(super) fn parse(file: &FilePath, text: &str) -> Document {
    let mut walk = Walk { file, text, found: Document::default() };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        walk.mistake(error.span().unwrap_or(0..0), String::new(), error.message().to_owned());
    }
    // What the parser guessed around a broken line would be reported as further mistakes that nobody made.
    if errors.is_empty() {
        walk.document(table.get_ref());
    }
    walk.found
}

struct Walk<'a> {
    file: &'a FilePath,
    text: &'a str,
    found: Document,
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;
type Value<'a> = Spanned<DeValue<'a>>;

impl Walk<'_> {
    fn place(&self, span: Range<usize>) -> Place {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Place::File { path: self.file.to_owned(), line }
    }

    fn mistake(&mut self, span: Range<usize>, key: String, text: String) {
        let place = self.place(span);
        self.found.mistakes.push(Mistake::new(place, key, text));
    }

    fn document(&mut self, table: &DeTable<'_>) {
        for (key, value) in table {
            if key.get_ref() == "upstream" {
                self.upstreams(key, value);
            } else if key.get_ref() == "warm" {
                self.lists(key, value);
            } else {
                self.member(Scope::Top, "", key, value, &Path::Top);
            }
        }
    }

    /// Lists of images that are followed.
    fn lists(&mut self, key: &Key<'_>, value: &Value<'_>) {
        let Some(lists) = value.get_ref().as_array() else {
            let text = "images to follow are a list: [[warm]] with two brackets";
            return self.mistake(key.span(), "warm".to_owned(), text.to_owned());
        };
        for (index, list) in lists.iter().enumerate() {
            let Some(table) = list.get_ref().as_table() else {
                let text = "want a table with `images`".to_owned();
                self.mistake(list.span(), format!("warm[{index}]"), text);
                continue;
            };
            let path = |key: String| Path::Warm(index, key);
            if table.is_empty() {
                let text = "names no images".to_owned();
                self.mistake(list.span(), format!("warm[{index}]"), text);
            }
            for (key, value) in table {
                self.member(Scope::Warm, "", key, value, &path);
            }
        }
    }

    fn upstreams(&mut self, key: &Key<'_>, value: &Value<'_>) {
        let Some(tables) = value.get_ref().as_table() else {
            let text = "want a table for each registry, such as [upstream.\"ghcr.io\"]";
            return self.mistake(key.span(), "upstream".to_owned(), text.to_owned());
        };
        for (name, value) in tables {
            let shown = format!("upstream.\"{}\"", name.get_ref());
            let Some(table) = value.get_ref().as_table() else {
                let text = "want a table with the registry's name, such as [upstream.\"ghcr.io\"]";
                self.mistake(name.span(), format!("upstream.{}", name.get_ref()), text.to_owned());
                continue;
            };
            if let Some(quoted) = dotted(name.get_ref(), table) {
                let text = format!("a name with dots needs quotes: [upstream.\"{quoted}\"]");
                self.mistake(name.span(), format!("upstream.{quoted}"), text);
                continue;
            }
            match name.get_ref().parse::<RegistryName>() {
                Ok(registry) => {
                    let place = self.place(name.span());
                    let tables = &self.found.tables;
                    if let Some((_, first)) = tables.iter().find(|(known, _)| *known == registry) {
                        let text = format!("the same registry as at {first}: names have no case");
                        self.mistake(name.span(), shown, text);
                        continue;
                    }
                    self.found.tables.push((registry.clone(), place));
                    self.upstream(&registry, table);
                }
                Err(_) if name.get_ref().contains('*') => {
                    let text = "a family of hosts is a table with a plain name and `patterns`: [upstream.\"pkg.dev\"] patterns = [\"*.pkg.dev\"]";
                    self.mistake(name.span(), shown, text.to_owned());
                }
                Err(invalid) => self.mistake(name.span(), shown, invalid.to_string()),
            }
        }
    }

    fn upstream(&mut self, name: &RegistryName, table: &DeTable<'_>) {
        let path = |key: String| Path::Upstream(name.clone(), key);
        for (key, value) in table {
            if key.get_ref() != "tag" {
                self.member(Scope::Upstream, "", key, value, &path);
                continue;
            }
            let Some(rules) = value.get_ref().as_array() else {
                let text = format!(
                    "rules for tags are a list: [[upstream.\"{name}\".tag]] with two brackets"
                );
                self.mistake(key.span(), path("tag".to_owned()).display(), text);
                continue;
            };
            for (index, rule) in rules.iter().enumerate() {
                let rule_path = |key: String| Path::Rule(name.clone(), index, key);
                let Some(rule) = rule.get_ref().as_table() else {
                    let text = "want a table with a `pattern`".to_owned();
                    self.mistake(rule.span(), path("tag".to_owned()).display(), text);
                    continue;
                };
                for (key, value) in rule {
                    self.member(Scope::Rule, "", key, value, &rule_path);
                }
            }
        }
    }

    /// A key of a table, or a table in it.
    fn member(
        &mut self,
        scope: Scope,
        prefix: &str,
        member: &Key<'_>,
        value: &Value<'_>,
        path: &dyn Fn(String) -> Path,
    ) {
        let name = format!("{prefix}{}", member.get_ref());
        let table = value.get_ref().as_table();
        if key(scope, &name).is_some() {
            let place = self.place(member.span());
            self.found.entries.push(Entry { path: path(name), raw: raw(value.get_ref()), place });
        } else if !is_section(scope, &name) {
            self.unknown(scope, &name, member, value, path);
        } else if let Some(table) = table {
            for (key, value) in table {
                self.member(scope, &format!("{name}."), key, value, path);
            }
        } else {
            let text = format!("want a table, found {}", value.get_ref().type_str());
            self.mistake(member.span(), path(name).display(), text);
        }
    }

    /// An unknown key is one mistake; in an unknown table each word that another program knows is one.
    fn unknown(
        &mut self,
        scope: Scope,
        name: &str,
        member: &Key<'_>,
        value: &Value<'_>,
        path: &dyn Fn(String) -> Path,
    ) {
        let mut leaves = Vec::new();
        leaves_of(name, member.span(), value, &mut leaves);
        let translated = leaves.iter().filter(|(leaf, _)| hints::translation(leaf).is_some());
        let translated: Vec<_> = translated.cloned().collect();
        if translated.is_empty() {
            self.mistake(
                member.span(),
                path(name.to_owned()).display(),
                hints::unknown(scope, name),
            );
        }
        for (leaf, span) in translated {
            let text = hints::unknown(scope, &leaf);
            self.mistake(span, path(leaf).display(), text);
        }
    }
}

/// `[upstream.ghcr.io]` without quotes is a table `io` in a table `ghcr`: the name that was meant, if this is such a table.
fn dotted(name: &str, table: &DeTable<'_>) -> Option<String> {
    let mut entries = table.iter();
    let (only, value) = entries.next()?;
    let inner = value.get_ref().as_table()?;
    let is_ours = only.get_ref() == "tag" || is_section(Scope::Upstream, only.get_ref());
    if entries.next().is_some() || is_ours || name.contains('.') {
        return None;
    }
    let joined = format!("{name}.{}", only.get_ref());
    // One more label (`registry.k8s.io`) is the same again.
    Some(dotted(only.get_ref(), inner).map_or(joined, |rest| format!("{name}.{rest}")))
}

/// All values below a key, with dotted names.
fn leaves_of(
    name: &str,
    span: Range<usize>,
    value: &Value<'_>,
    leaves: &mut Vec<(String, Range<usize>)>,
) {
    match value.get_ref().as_table() {
        Some(table) => {
            for (key, value) in table {
                leaves_of(&format!("{name}.{}", key.get_ref()), key.span(), value, leaves);
            }
        }
        None => leaves.push((name.to_owned(), span)),
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(integer) if integer.radix() == 10 => {
            Raw::Integer(integer.as_str().to_owned())
        }
        DeValue::Integer(_) => Raw::Other("an integer that is not decimal"),
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}
