//! Access lines are letter by letter what the library writes for the same event, and one line whatever they hold.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tracing_subscriber::layer::SubscriberExt;

use super::lines::{Formatter, Style};
use super::writer::tests::Shared;
use crate::server::AccessLine;

const STYLES: [Style; 3] = [Style::Text, Style::Coloured, Style::Json];

fn ours(style: Style, line: &AccessLine) -> String {
    let mut out = Vec::new();
    let mut formatter = Formatter::new(style);
    formatter.begin();
    formatter.write(line, &mut out);
    String::from_utf8(out).unwrap()
}

/// The line as the library writes it.
fn theirs(style: Style, line: &AccessLine) -> String {
    let sink = Shared(Arc::new(Mutex::new(Vec::new())));
    let writer = {
        let sink = sink.clone();
        move || sink.clone()
    };
    let subscriber = tracing_subscriber::registry().with(super::log::layer(style, writer));
    // With one dispatcher alive tracing asks the thread that meets a callsite first, which may be one of another test, without any.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    tracing::subscriber::with_default(subscriber, || line.tell());
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// The line with its time made the same for all, after a look at its form.
fn without_time(text: &str) -> String {
    let start = text.find("20").expect("a year");
    let (before, rest) = text.split_at(start);
    let (time, after) = rest.split_at("2026-11-23T06:14:48.591539Z".len());
    let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(form, "0000-00-00T00:00:00.000000Z");
    format!("{before}{form}{after}")
}

fn assert_same(line: &AccessLine) {
    for style in STYLES {
        assert_eq!(without_time(&ours(style, line)), without_time(&theirs(style, line)));
    }
}

#[test]
fn lines_look_as_the_library_writes_them() {
    for line in AccessLine::examples() {
        assert_same(&line);
    }
}

#[test]
fn what_lines_look_like() {
    let [full, bare, ..] = &AccessLine::examples()[..] else { panic!("two examples") };
    assert_eq!(
        without_time(&ours(Style::Text, full)),
        "0000-00-00T00:00:00.000000Z  INFO roadstead::access: client=10.0.0.7 method=GET kind=\"manifest\" upstream=\"ghcr.io\" \
         repository=\"team/app\" reference=\"v1.2\" status=200 outcome=\"hit\" reason=\"limited\" bytes=1692 ms=1500 first_byte_ms=3 id=\"0ae67463-1\"\n"
    );
    assert_eq!(
        without_time(&ours(Style::Json, full)),
        "{\"timestamp\":\"0000-00-00T00:00:00.000000Z\",\"level\":\"INFO\",\"client\":\"10.0.0.7\",\"method\":\"GET\",\"kind\":\"manifest\",\
         \"upstream\":\"ghcr.io\",\"repository\":\"team/app\",\"reference\":\"v1.2\",\"status\":200,\"outcome\":\"hit\",\"reason\":\"limited\",\
         \"bytes\":1692,\"ms\":1500,\"first_byte_ms\":3,\"id\":\"0ae67463-1\",\"target\":\"roadstead::access\"}\n"
    );
    assert_eq!(
        without_time(&ours(Style::Text, bare)),
        "0000-00-00T00:00:00.000000Z  INFO roadstead::access: client=::1 method=HEAD kind=\"other\" status=499 outcome=\"error\" \
         reason=\"client_gone\" bytes=0 ms=0 id=\"0ae67463-2\"\n"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_breaks_a_line(
        path in prop_oneof![any::<String>(), "[\\x00-\\x7f\"\\\\]{0,60}", "[\u{80}-\u{9f}\u{2028}\u{202e}\\n\\r\u{1b}]{1,20}"],
        id in prop_oneof![any::<String>(), "[\\x00-\\x7f\"\\\\]{0,60}", "[\u{80}-\u{9f}\u{2028}\u{202e}\\n\\r\u{1b}]{1,20}"],
        numbers in any::<(u16, u64, u64)>(),
    ) {
        let line = AccessLine::odd(&path, &id, numbers);
        assert_same(&line);
        let text = ours(Style::Text, &line);
        prop_assert!(text.ends_with('\n'));
        prop_assert!(!text.trim_end_matches('\n').chars().any(char::is_control), "{:?}", text);
        let json = ours(Style::Json, &line);
        prop_assert!(!json.trim_end_matches('\n').bytes().any(|byte| byte < b' '), "{:?}", json);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&value["id"], &serde_json::Value::from(id));
        prop_assert_eq!(&value["status"], &serde_json::Value::from(numbers.0));
        prop_assert_eq!(&value["bytes"], &serde_json::Value::from(numbers.1));
        prop_assert_eq!(&value["target"], "roadstead::access");
    }
}
