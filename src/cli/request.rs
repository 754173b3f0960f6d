//! The commands of one request and one answer.

use std::process::ExitCode;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::admin::{Ask, Client};
use super::answer;
use super::arguments::{Delete, OneImage, Rule, RuleGone, Store};
use super::command::{FAILED, complain, print};
use super::reach::{Failure, with_client};
use crate::app::{Deletion, Explanation, Inspection, Opening, Refreshed, RuleInfo, UsageInfo};
use crate::clock::{Clock, SystemClock};
use crate::oci::Digest;

/// Two kinds of rule, with the same commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleKind {
    Pin,
    Freeze,
}

impl RuleKind {
    fn path(self) -> &'static str {
        match self {
            Self::Pin => "/pins",
            Self::Freeze => "/freezes",
        }
    }

    /// What one is called, and what it makes of a scope.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Pin => ("pin", "pinned"),
            Self::Freeze => ("freeze", "frozen"),
        }
    }
}

#[derive(Deserialize)]
struct Rules<T> {
    rules: Vec<T>,
}

#[derive(Deserialize)]
pub(super) struct Removed {
    pub(super) removed: u64,
}

pub(super) fn inspect(arguments: &OneImage) -> ExitCode {
    let ask = Ask::get("/inspect").with("image", &arguments.image);
    simply(&arguments.store, ask, |inspection: &Inspection| answer::inspection(inspection))
}

pub(super) fn explain(arguments: &OneImage) -> ExitCode {
    let ask = Ask::get("/explain").with("image", &arguments.image);
    simply(&arguments.store, ask, |explanation: &Explanation| {
        answer::explanation(explanation, SystemClock.now())
    })
}

pub(super) fn usage(arguments: &Store) -> ExitCode {
    simply(arguments, Ask::get("/usage"), |usage: &UsageInfo| answer::usage(usage))
}

pub(super) fn delete(arguments: &Delete) -> ExitCode {
    let Delete { target, force, store } = arguments;
    // No image has a name that is a digest.
    let ask = match target.parse::<Digest>() {
        Ok(_digest) => Ask::delete("/blobs").with("digest", target),
        Err(_image) => Ask::delete("/images").with("image", target),
    };
    let ask = ask.with_flag("force", *force);
    simply(store, ask, |deletion: &Deletion| answer::deletion(deletion, SystemClock.now()))
}

pub(super) fn refresh(arguments: &OneImage) -> ExitCode {
    let ask = Ask::post("/refresh").with("image", &arguments.image);
    let store = &arguments.store;
    with_client(store, Opening::AsItIs, async |client| {
        let refreshed: Refreshed = show(client, store, ask, answer::refreshed).await?;
        match refreshed.outcome.as_str() {
            "confirmed" | "moved" | "first_seen" => Ok(ExitCode::SUCCESS),
            _ => Ok(ExitCode::from(FAILED)),
        }
    })
}

/// Makes a rule, or lists those that there are.
pub(super) fn rule(kind: RuleKind, arguments: &Rule) -> ExitCode {
    let store = &arguments.store;
    let Some(scope) = &arguments.scope else {
        return rules(kind, store);
    };
    let until = arguments.until.map(|until| until.to_string());
    // As a span: the clock of the server decides, which need not be that of this machine.
    let period = arguments.period.map(|period| format!("{}ms", period.as_millis()));
    let ask = Ask::post(kind.path())
        .with("scope", scope)
        .with_some("until", until.as_deref())
        .with_some("for", period.as_deref())
        .with_some("reason", arguments.reason.as_deref());
    simply(store, ask, |rule: &RuleInfo| answer::rule(kind, rule, SystemClock.now()))
}

fn rules(kind: RuleKind, store: &Store) -> ExitCode {
    with_client(store, Opening::AsItIs, async |client| {
        let ask = Ask::get(kind.path());
        if store.json {
            let (_, Rules { rules }) = client.ask::<Rules<Value>>(ask).await?;
            print(&rules.iter().map(|rule| format!("{rule}\n")).collect::<String>())?;
        } else {
            let (_, Rules { rules }) = client.ask::<Rules<RuleInfo>>(ask).await?;
            print(&answer::rules(&rules, SystemClock.now()))?;
            if rules.is_empty() {
                complain(&format!("there is no {}", kind.words().0));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn rule_gone(kind: RuleKind, arguments: &RuleGone) -> ExitCode {
    let RuleGone { which, store } = arguments;
    let is_id = which.bytes().all(|byte| byte.is_ascii_digit());
    let ask = Ask::delete(kind.path()).with(if is_id { "id" } else { "scope" }, which);
    let (noun, _) = kind.words();
    with_client(store, Opening::AsItIs, async |client| {
        let removed: Removed = show(client, store, ask, |removed: &Removed| {
            format!("{} taken back\n", super::words::count(removed.removed, noun))
        })
        .await?;
        if removed.removed == 0 {
            let line = format!("there is no {noun} {which}; `roadstead {noun}` lists them");
            return Err(Failure::Told { code: FAILED, line });
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Asks and shows the answer, and that is all.
pub(super) fn simply<T: DeserializeOwned>(
    store: &Store,
    ask: Ask,
    words: impl FnOnce(&T) -> String,
) -> ExitCode {
    with_client(store, Opening::AsItIs, async |client| {
        show(client, store, ask, words).await.map(|_answer: T| ExitCode::SUCCESS)
    })
}

/// Asks, and shows the answer: for programs as it came, for people in `words`.
pub(super) async fn show<T: DeserializeOwned>(
    client: &Client<'_>,
    store: &Store,
    ask: Ask,
    words: impl FnOnce(&T) -> String,
) -> Result<T, Failure> {
    let (text, answer) = client.ask(ask).await?;
    if store.json {
        print(&format!("{text}\n"))?;
    } else {
        print(&words(&answer))?;
    }
    Ok(answer)
}
