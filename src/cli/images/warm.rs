//! `roadstead warm`: fetch images before anybody asks for them.

use std::process::ExitCode;

use super::arguments::Warm;
use super::{lists, story};
use crate::app::Opening;
use crate::cli::admin::Ask;
use crate::cli::command::{WRONG_USAGE, complain};
use crate::cli::reach::with_client;
use crate::cli::words::count;

pub(in crate::cli) fn warm(arguments: &Warm) -> ExitCode {
    let Warm { images, file, platforms, all_platforms, referrers, store } = arguments;
    let list = match lists::images(images, file.as_deref()) {
        Ok(list) => list,
        Err(line) => {
            complain(&line);
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let mut ask = Ask::post("/warm")
        .with_flag("all_platforms", *all_platforms)
        .with_flag("referrers", *referrers);
    for platform in platforms {
        ask = ask.with("platform", &platform.to_string());
    }
    let ask = ask.with_body(lists::text(&list));
    let images = u64::try_from(list.lines.len()).unwrap_or(u64::MAX);
    let title = format!("fetching what is missing of {}", count(images, "image"));
    with_client(store, Opening::AsItIs, async |client| {
        story::tell(client, ask, store.json, &title).await
    })
}
