//! `roadstead record`: collect what clients pull, and close it over what the images need.

use std::process::ExitCode;

use super::arguments::{Record, RecordAction};
use super::story;
use crate::app::Opening;
use crate::app::images::SetInfo;
use crate::cli::admin::Ask;
use crate::cli::reach::with_client;
use crate::cli::request::simply;
use crate::cli::words::clean;

pub(in crate::cli) fn record(arguments: &Record) -> ExitCode {
    match &arguments.action {
        RecordAction::Start { name, clients, upstreams, store } => {
            let mut ask = Ask::post("/records").with("name", name.as_str());
            for client in clients {
                ask = ask.with("client", client);
            }
            for upstream in upstreams {
                ask = ask.with("upstream", upstream);
            }
            simply(store, ask, begun)
        }
        RecordAction::Stop { name, platforms, no_fetch, store } => {
            let mut ask = Ask::post("/records/stop")
                .with("name", name.as_str())
                .with_flag("fetch", !no_fetch);
            for platform in platforms {
                ask = ask.with("platform", &platform.to_string());
            }
            let doing = if *no_fetch { "looking for" } else { "fetching" };
            let title = format!("recording of {name} ends, {doing} what its images still need");
            with_client(store, Opening::AsItIs, async |client| {
                story::tell(client, ask, store.json, &title).await
            })
        }
    }
}

fn begun(set: &SetInfo) -> String {
    let (name, filter) = (clean(&set.name), clean(&set.detail));
    let what = match &*filter {
        "" => "what all clients pull".to_owned(),
        filter => format!("what is pulled of {filter}"),
    };
    format!("recording {what} as {name}; `roadstead record stop {name}` ends it\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn the_begin_says_what_is_recorded_and_how_it_ends() {
        let set = |detail: &str| SetInfo {
            name: "ci".to_owned(),
            kind: "record".to_owned(),
            since: Timestamp::from_millis(0),
            until: None,
            pinned: false,
            images: 0,
            detail: detail.to_owned(),
        };
        assert_eq!(
            begun(&set("")),
            "recording what all clients pull as ci; `roadstead record stop ci` ends it\n"
        );
        let some = begun(&set("client=10.0.0.0/8 upstream=docker.io"));
        assert!(some.contains("pulled of client=10.0.0.0/8 upstream=docker.io as ci"), "{some}");
    }
}
