//! `roadstead ls` and `roadstead history`: lists, page by page, with no more in memory than a page.

use std::process::ExitCode;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::admin::{Ask, Client, Trouble};
use super::answer;
use super::arguments::{List, OneImage};
use super::command::{complain, print};
use super::reach::{Done, with_client};
use super::table::Table;
use crate::app::{Listed, Opening};
use crate::clock::{Clock, SystemClock};

/// Entries of a page.
const PAGE: &str = "500";

/// How a list is asked for and shown.
pub(super) struct Shown<T> {
    pub(super) ask: Ask,
    /// The parameter that takes the mark of the next page.
    pub(super) next: &'static str,
    pub(super) table: Table,
    pub(super) row: fn(&T) -> Vec<String>,
    /// What is said if there is nothing.
    pub(super) nothing: String,
}

pub(super) fn tags(arguments: &List) -> ExitCode {
    let within = arguments.within.as_deref();
    let shown = Shown {
        ask: Ask::get("/images").with_some("within", within),
        next: "after",
        table: answer::tag_table(),
        row: |tag| answer::tag_row(tag, SystemClock.now()),
        nothing: match within {
            Some(within) => format!("no tag is known in {within}"),
            None => "no tag is known yet; pull something".to_owned(),
        },
    };
    with_client(&arguments.store, Opening::AsItIs, async |client| {
        list(client, shown, arguments.store.json).await
    })
}

pub(super) fn history(arguments: &OneImage) -> ExitCode {
    let shown = Shown {
        ask: Ask::get("/history").with("image", &arguments.image),
        next: "before",
        table: answer::history_table(),
        row: |entry| answer::history_row(entry, SystemClock.now()),
        nothing: format!("nothing is known of {}", arguments.image),
    };
    with_client(&arguments.store, Opening::AsItIs, async |client| {
        list(client, shown, arguments.store.json).await
    })
}

/// Follows the pages to the end.
pub(super) async fn list<T: DeserializeOwned>(
    client: &Client<'_>,
    mut shown: Shown<T>,
    json: bool,
) -> Done {
    let first = shown.ask.with("limit", PAGE);
    let mut after: Option<String> = None;
    let mut empty = true;
    loop {
        let ask = first.clone().with_some(shown.next, after.as_deref());
        let (items, next, text) = if json {
            let (_, page) = client.ask::<Listed<Value>>(ask).await?;
            let lines = page.items.iter().map(|item| format!("{item}\n"));
            (page.items.len(), page.next, lines.collect::<String>())
        } else {
            let (_, page) = client.ask::<Listed<T>>(ask).await?;
            let rows: Vec<_> = page.items.iter().map(shown.row).collect();
            (rows.len(), page.next, shown.table.page(&rows))
        };
        empty &= items == 0;
        print(&text)?;
        match next {
            None => break,
            // A list that does not move on would never end.
            Some(next) if after.as_ref() == Some(&next) => return Err(Trouble::Strange.into()),
            Some(next) => after = Some(next),
        }
    }
    if empty && !json {
        complain(&shown.nothing);
    }
    Ok(ExitCode::SUCCESS)
}
