//! `roadstead set`: named sets of images.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;

use super::arguments::{OneSet, SetAction, Sets};
use crate::app::Opening;
use crate::app::images::{MemberInfo, SetInfo};
use crate::cli::admin::Ask;
use crate::cli::arguments::Store;
use crate::cli::command::{complain, print};
use crate::cli::list::{Shown, list};
use crate::cli::reach::with_client;
use crate::cli::request::{Removed, simply};
use crate::cli::table::{Side, Table};
use crate::cli::words::{clean, count, moment, moment_and_age};
use crate::clock::{Clock, SystemClock, Timestamp};

#[derive(Deserialize)]
struct All<T> {
    sets: Vec<T>,
}

pub(in crate::cli) fn sets(arguments: &Sets) -> ExitCode {
    match &arguments.action {
        SetAction::Ls { store } => ls(store),
        SetAction::Show(OneSet { name, store }) => {
            let shown = Shown {
                ask: Ask::get("/members").with("set", name.as_str()),
                next: "after",
                table: Table::new(&[
                    ("IMAGE", Side::Left),
                    ("DIGEST", Side::Left),
                    ("SINCE", Side::Left),
                ]),
                row: |member: &MemberInfo| {
                    let MemberInfo { image, digest, at } = member;
                    vec![image.clone(), digest.clone(), moment(*at)]
                },
                nothing: format!("there is no image in the set {name}"),
            };
            with_client(store, Opening::AsItIs, async |client| {
                list(client, shown, store.json).await
            })
        }
        SetAction::Pin(set) => pin(Ask::post("/sets/pin"), set),
        SetAction::Unpin(set) => pin(Ask::delete("/sets/pin"), set),
        SetAction::Rm(OneSet { name, store }) => {
            let ask = Ask::delete("/sets").with("set", name.as_str());
            simply(store, ask, |removed: &Removed| {
                format!("{} forgotten: {name}\n", count(removed.removed, "set"))
            })
        }
    }
}

fn pin(ask: Ask, OneSet { name, store }: &OneSet) -> ExitCode {
    simply(store, ask.with("set", name.as_str()), |set: &SetInfo| {
        let what = if set.pinned { "is kept, whatever limits say" } else { "is kept no longer" };
        clean(&format!("the content of {} ({}) {what}", set.name, count(set.images, "image")))
            .into_owned()
            + "\n"
    })
}

fn ls(store: &Store) -> ExitCode {
    with_client(store, Opening::AsItIs, async |client| {
        let ask = Ask::get("/sets");
        if store.json {
            let (_, All { sets }) = client.ask::<All<Value>>(ask).await?;
            print(&sets.iter().map(|set| format!("{set}\n")).collect::<String>())?;
        } else {
            let (_, All { sets }) = client.ask::<All<SetInfo>>(ask).await?;
            let now = SystemClock.now();
            let rows: Vec<_> = sets.iter().map(|set| row(set, now)).collect();
            print(&table().page(&rows))?;
            if rows.is_empty() {
                complain("there is no set");
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn table() -> Table {
    Table::new(&[
        ("NAME", Side::Left),
        ("KIND", Side::Left),
        ("IMAGES", Side::Right),
        ("SINCE", Side::Left),
        ("NOTES", Side::Left),
        ("OF", Side::Left),
    ])
}

fn row(set: &SetInfo, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(set.pinned.then_some("pinned"));
    notes.extend(set.until.is_none().then_some("recording"));
    vec![
        set.name.clone(),
        set.kind.clone(),
        set.images.to_string(),
        moment_and_age(set.since, now),
        notes.join(", "),
        set.detail.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_a_table() {
        let now: Timestamp = "2026-11-01T12:00:00Z".parse().unwrap();
        let set = SetInfo {
            name: "ci".to_owned(),
            kind: "record".to_owned(),
            since: now,
            until: None,
            pinned: true,
            images: 3,
            detail: "clients 10.0.0.0/8".to_owned(),
        };
        insta::assert_snapshot!(table().page(&[row(&set, now)]), @r"
        NAME  KIND    IMAGES  SINCE                            NOTES              OF
        ci    record       3  2026-11-01 12:00:00Z (just now)  pinned, recording  clients 10.0.0.0/8
        ");
    }
}
