//! Reading `WWW-Authenticate` (RFC 9110, 11.6.1) as registries really send it.
//!
//! What must hold: no input panics or is refused as a whole; what cannot be understood is skipped. It only reads: whether a realm may
//! be asked is decided in `realm.rs`.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Longest header value that is looked at.
const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Most challenges that are kept of one answer.
const CHALLENGES_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Bearer,
    Basic,
    /// Digest, Negotiate and whatever else: never answered.
    Other,
}

/// One challenge. Parameters that are empty count as missing (zot sends `scope=""`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: Scheme,
    pub(super) realm: Option<String>,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) error: Option<String>,
}

/// All challenges of an answer, in order, over all header lines.
pub(super) fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let bytes = value.as_bytes();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(VALUE_BYTES_MAX)]);
        parse_value(&text, &mut challenges);
    }
    challenges.truncate(CHALLENGES_MAX);
    challenges
}

/// The challenge to answer: Bearer with a realm before Basic; others are ignored.
pub(super) fn choose(challenges: &[Challenge]) -> Option<&Challenge> {
    bearer(challenges)
        .or_else(|| challenges.iter().find(|challenge| challenge.scheme == Scheme::Basic))
}

/// The first Bearer challenge that names a realm.
pub(super) fn bearer(challenges: &[Challenge]) -> Option<&Challenge> {
    challenges
        .iter()
        .find(|challenge| challenge.scheme == Scheme::Bearer && challenge.realm.is_some())
}

/// One header line. A word that no `=` follows begins a challenge; a word with `=` is a parameter of the current one. This reads
/// every list of the RFC, and also lists whose commas are missing.
fn parse_value(text: &str, challenges: &mut Vec<Challenge>) {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(is_separator);
        if rest.is_empty() || challenges.len() > CHALLENGES_MAX {
            return;
        }
        let end =
            rest.find(|c: char| is_separator(c) || c == '=' || c == '"').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        if word.is_empty() {
            // A stray quote or equals sign: skip it.
            let mut characters = rest.chars();
            characters.next();
            rest = characters.as_str();
        } else if let Some(value) = after.strip_prefix('=') {
            let (value, left) = read_value(value.trim_start());
            if let Some(challenge) = challenges.last_mut() {
                challenge.set(word, value);
            }
            rest = left;
        } else {
            challenges.push(Challenge::of_scheme(word));
            rest = after;
        }
    }
}

fn is_separator(c: char) -> bool {
    c == ',' || c.is_whitespace()
}

/// A quoted string (a missing closing quote ends at the end) or a token; gives the value and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(is_separator).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return (value, characters.as_str()),
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    (value, "")
}

impl Challenge {
    fn of_scheme(word: &str) -> Self {
        let scheme = match word {
            word if word.eq_ignore_ascii_case("bearer") => Scheme::Bearer,
            word if word.eq_ignore_ascii_case("basic") => Scheme::Basic,
            _ => Scheme::Other,
        };
        Self { scheme, realm: None, service: None, scope: None, error: None }
    }

    /// The first value of a parameter wins.
    fn set(&mut self, name: &str, value: String) {
        let slot = match name.to_ascii_lowercase().as_str() {
            "realm" => &mut self.realm,
            "service" => &mut self.service,
            "scope" => &mut self.scope,
            "error" => &mut self.error,
            _ => return,
        };
        if slot.is_none() && !value.trim().is_empty() {
            *slot = Some(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        parse(&headers)
    }

    fn chosen(lines: &[&str]) -> Challenge {
        choose(&read(lines)).expect("a challenge").clone()
    }

    fn bearer_of(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge {
            scheme: Scheme::Bearer,
            realm: Some(realm.into()),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
            error: None,
        }
    }

    #[test]
    fn a_comma_within_quotes_is_no_separator() {
        let line = r#"Bearer realm="https://a/token",service="a",scope="repository:a/b:pull,push""#;
        let want = bearer_of("https://a/token", Some("a"), Some("repository:a/b:pull,push"));
        assert_eq!(chosen(&[line]), want);
    }

    #[test]
    fn several_challenges_in_one_line() {
        let line = r#"Bearer realm="https://codeberg.org/v2/token",service="container_registry",scope="*",Basic realm="x",service="y""#;
        let challenges = read(&[line]);
        assert_eq!(challenges.len(), 2);
        let want =
            bearer_of("https://codeberg.org/v2/token", Some("container_registry"), Some("*"));
        assert_eq!(challenges[0], want);
        assert_eq!(challenges[1].scheme, Scheme::Basic);
        let reversed = r#"Basic realm="x", Bearer realm="https://a/t""#;
        assert_eq!(chosen(&[reversed]), bearer_of("https://a/t", None, None));
    }

    #[test]
    fn two_lines_and_a_scheme_without_parameters() {
        let lines = [r#"Bearer realm="https://g/v2/token""#, "Basic"];
        assert_eq!(chosen(&lines), bearer_of("https://g/v2/token", None, None));
        assert_eq!(chosen(&["Basic"]).scheme, Scheme::Basic);
        let lines = ["Basic", r#"Bearer realm="https://g/v2/token""#];
        assert_eq!(chosen(&lines).scheme, Scheme::Bearer);
    }

    #[test]
    fn lower_case_and_unquoted() {
        assert_eq!(chosen(&["bearer realm=x"]), bearer_of("x", None, None));
        assert_eq!(chosen(&["basic realm=x"]).scheme, Scheme::Basic);
        let line = "BEARER REALM=https://a/t,Service=s";
        assert_eq!(chosen(&[line]), bearer_of("https://a/t", Some("s"), None));
    }

    #[test]
    fn empty_parameters_are_missing() {
        let line = r#"Bearer realm="https://z/t",service="z",scope="""#;
        assert_eq!(chosen(&[line]), bearer_of("https://z/t", Some("z"), None));
        assert_eq!(choose(&read(&[r#"Bearer realm="""#])), None);
    }

    #[test]
    fn an_empty_header_and_no_header_are_no_challenge() {
        assert_eq!(read(&[""]), vec![]);
        assert_eq!(read(&[]), vec![]);
        assert_eq!(read(&[" , ,"]), vec![]);
    }

    #[test]
    fn basic_realms_are_no_urls() {
        let line = r#"Basic realm="https://1.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#;
        assert_eq!(chosen(&[line]).scheme, Scheme::Basic);
        let line = r#"Basic realm="Artifactory Realm""#;
        assert_eq!(chosen(&[line]).realm.as_deref(), Some("Artifactory Realm"));
    }

    #[test]
    fn digest_and_negotiate_are_ignored() {
        let line = r#"Negotiate YWJj==, Digest realm="d", nonce="n""#;
        assert_eq!(choose(&read(&[line])), None);
        let line = r#"Negotiate abc=, Basic realm="b""#;
        assert_eq!(chosen(&[line]).scheme, Scheme::Basic);
    }

    #[test]
    fn the_error_is_kept() {
        let line =
            r#"Bearer realm="https://a/t",scope="repository:x:pull",error="insufficient_scope""#;
        assert_eq!(chosen(&[line]).error.as_deref(), Some("insufficient_scope"));
    }

    #[test]
    fn odd_scopes_and_realms_pass_as_they_are() {
        let line = r#"Bearer realm="https://a/t?x=1&y=2",service="s",scope="::""#;
        assert_eq!(chosen(&[line]), bearer_of("https://a/t?x=1&y=2", Some("s"), Some("::")));
        let line = r#"Bearer realm="/v2/token",scope="repository:user/image:pull""#;
        assert_eq!(chosen(&[line]).realm.as_deref(), Some("/v2/token"));
    }

    #[test]
    fn broken_syntax_keeps_what_can_be_read() {
        let line = r#"Bearer realm="https://a/t" service="s" scope="open"#;
        assert_eq!(chosen(&[line]), bearer_of("https://a/t", Some("s"), Some("open")));
        let line = r#"="x", Bearer realm="a\"b\\c""#;
        assert_eq!(chosen(&[line]).realm.as_deref(), Some(r#"a"b\c"#));
        let line = "Bearer realm = \"https://a/t\" , service = s";
        assert_eq!(chosen(&[line]), bearer_of("https://a/t", Some("s"), None));
    }

    #[test]
    fn long_and_foreign_values_do_no_harm() {
        let long = format!(r#"Bearer realm="https://a/{}",service="s""#, "x".repeat(9 * 1024));
        assert_eq!(chosen(&[&long]).service.as_deref(), Some("s"));
        let mut headers = HeaderMap::new();
        let bytes = b"Bearer realm=\"https://a/t\",service=\"\xff\xfe\"";
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(bytes).unwrap());
        assert_eq!(parse(&headers)[0].realm.as_deref(), Some("https://a/t"));
        let many = "Digest, ".repeat(1000);
        assert!(read(&[&many]).len() <= CHALLENGES_MAX);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.append(WWW_AUTHENTICATE, value);
                let challenges = parse(&headers);
                prop_assert!(challenges.len() <= CHALLENGES_MAX);
                let _chosen = choose(&challenges);
            }
        }

        #[test]
        fn no_text_of_the_grammar_panics(text in r#"(Bearer|basic|realm|scope|=|,|"|\\| |x|é|;){0,40}"#) {
            let mut challenges = Vec::new();
            parse_value(&text, &mut challenges);
        }

        #[test]
        fn what_is_quoted_comes_back(realm in "[ -~]{1,60}", scope in "[ -~]{1,60}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let mut challenges = Vec::new();
            parse_value(&format!(r#"Bearer realm="{}",scope="{}""#, quote(&realm), quote(&scope)), &mut challenges);
            prop_assert_eq!(challenges.len(), 1);
            prop_assert_eq!(challenges[0].realm.clone().unwrap_or_default().trim().is_empty(), realm.trim().is_empty());
            if !scope.trim().is_empty() {
                prop_assert_eq!(challenges[0].scope.clone(), Some(scope));
            }
        }
    }
}
