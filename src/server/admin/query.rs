//! The parameters of a request to the admin API: percent-encoded, each at most once, none that is not asked for.
//!
//! What must hold: what is misspelt, repeated or out of range is refused by its name, because an order that is half understood does the
//! wrong thing. A `+` is a plus, as in RFC 3986, so that times with an offset need no care.

use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::clock::{Timestamp, parse_duration};

/// Longest query string, in bytes as they come.
pub(super) const QUERY_BYTES_MAX: usize = 12 * 1024;
/// Parameters of one request, repeated ones included.
const PARAMETERS_MAX: usize = 100;

/// What is wrong with the parameters, in words for people.
pub(super) type Read<T> = Result<T, String>;

/// The parameters that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Takes a query string apart.
    pub(super) fn read(text: &str) -> Read<Self> {
        if text.len() > QUERY_BYTES_MAX {
            return Err(format!("the parameters are longer than {QUERY_BYTES_MAX} bytes"));
        }
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        if text.split('&').count() > PARAMETERS_MAX {
            return Err(format!("there are more than {PARAMETERS_MAX} parameters"));
        }
        text.split('&').map(parameter).collect::<Read<Vec<_>>>().map(Self)
    }

    /// The value of a parameter that may be left out.
    pub(super) fn optional(&mut self, name: &str) -> Read<Option<String>> {
        let mut values = self.all(name).into_iter();
        let first = values.next();
        if values.next().is_some() {
            Err(format!("{name} is given more than once"))
        } else {
            Ok(first)
        }
    }

    pub(super) fn required(&mut self, name: &str) -> Read<String> {
        self.optional(name)?.ok_or_else(|| format!("the parameter {name} is missing"))
    }

    /// All values of a parameter that may be repeated, in order.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        let taken = self.0.extract_if(.., |(found, _)| found == name);
        taken.map(|(_, value)| value).collect()
    }

    /// `true` or `false`, and `false` if it is left out.
    pub(super) fn flag(&mut self, name: &str) -> Read<bool> {
        match self.optional(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(format!("{name} is true or false")),
        }
    }

    /// A number between two others, or the default.
    pub(super) fn limit(&mut self, name: &str, default: u32, max: u32) -> Read<u32> {
        let Some(text) = self.optional(name)? else {
            return Ok(default);
        };
        let number = text.parse().ok().filter(|number| (1..=max).contains(number));
        number.ok_or_else(|| format!("{name} is a number from 1 to {max}"))
    }

    /// The number of a row.
    pub(super) fn id(&mut self, name: &str) -> Read<Option<i64>> {
        let Some(text) = self.optional(name)? else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| *number > 0);
        number.map(Some).ok_or_else(|| format!("{name} is a whole number above zero"))
    }

    pub(super) fn moment(&mut self, name: &str) -> Read<Option<Timestamp>> {
        let Some(text) = self.optional(name)? else {
            return Ok(None);
        };
        let refuse = |error| format!("{name}={text:?}: {error}");
        Timestamp::from_str(&text).map(Some).map_err(refuse)
    }

    pub(super) fn duration(&mut self, name: &str) -> Read<Option<Duration>> {
        let Some(text) = self.optional(name)? else {
            return Ok(None);
        };
        parse_duration(&text).map(Some).map_err(|error| format!("{name}: {error}"))
    }

    /// Nothing may be left that is none of the `known` parameters.
    pub(super) fn end(self, known: &[&str]) -> Read<()> {
        let Some((name, _)) = self.0.first() else {
            return Ok(());
        };
        let name: String = name.chars().take(100).collect();
        Err(match known {
            [] => format!("{name:?} is no parameter here; there are none"),
            known => format!("{name:?} is no parameter here; there are: {}", known.join(", ")),
        })
    }
}

fn parameter(text: &str) -> Read<(String, String)> {
    let decoded = |text: &str| {
        let is_broken = text.split('%').skip(1).any(|rest| {
            !rest.get(..2).is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        });
        let bytes = percent_decode_str(text).decode_utf8().ok().filter(|_| !is_broken);
        let text = bytes.filter(|text| !text.contains('\0'));
        text.map(|text| text.into_owned())
            .ok_or_else(|| "the parameters are not percent-encoded UTF-8".to_owned())
    };
    match text.split_once('=') {
        Some((name, value)) => Ok((decoded(name)?, decoded(value)?)),
        None => {
            let name: String = decoded(text)?.chars().take(100).collect();
            Err(format!("the parameter {name:?} has no value; want NAME=VALUE"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::read(text).unwrap()
    }

    #[test]
    fn values_are_decoded_and_a_plus_is_a_plus() {
        let mut read = query("image=ghcr.io%2Fo%2Fr%3Av1&at=2026-11-01T13:00:00+01:00&empty=");
        assert_eq!(read.required("image").unwrap(), "ghcr.io/o/r:v1");
        assert_eq!(read.required("empty").unwrap(), "");
        assert_eq!(read.moment("at").unwrap().unwrap().to_string(), "2026-11-01T12:00:00Z");
        read.end(&[]).unwrap();
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert!(query("image=a&image=b").optional("image").unwrap_err().contains("image"));
        assert!(query("").required("image").unwrap_err().contains("image"));
        assert!(query("imgae=a").end(&["image", "force"]).unwrap_err().contains("imgae"));
        for text in ["image", "a=b&", "&", "a=%", "a=%zz", "a=%ff", "a=%00", "%e4=1"] {
            assert!(Query::read(text).is_err(), "{text}");
        }
        assert!(Query::read(&format!("a={}", "x".repeat(QUERY_BYTES_MAX))).is_err());
        assert!(Query::read(&"a=1&".repeat(PARAMETERS_MAX + 1)).is_err());
    }

    #[test]
    fn numbers_flags_and_times_have_bounds() {
        assert_eq!(query("").limit("limit", 100, 1000), Ok(100));
        assert_eq!(query("limit=1000").limit("limit", 100, 1000), Ok(1000));
        for text in [
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=",
            "limit=1e3",
            "limit=99999999999999999999",
        ] {
            assert!(query(text).limit("limit", 100, 1000).is_err(), "{text}");
        }
        for text in ["id=0", "id=-4", "id=x", "id=99999999999999999999"] {
            assert!(query(text).id("id").is_err(), "{text}");
        }
        assert_eq!(query("force=true").flag("force"), Ok(true));
        assert!(query("force=yes").flag("force").is_err());
        for text in ["until=", "until=yesterday", "until=2026-13-01", "until=1793534400"] {
            assert!(query(text).moment("until").is_err(), "{text}");
        }
        for text in ["for=", "for=-5d", "for=5", "for=1000000d"] {
            assert!(query(text).duration("for").is_err(), "{text}");
        }
    }
}
