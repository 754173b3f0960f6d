//! `roadstead wanted`: what clients asked for and did not get, in a form that `roadstead warm --file` reads.

use std::collections::HashSet;
use std::process::ExitCode;

use serde_json::Value;

use super::arguments::Wanted;
use crate::app::images::WantedInfo;
use crate::app::{Listed, Opening};
use crate::cli::admin::{Ask, Client, Trouble};
use crate::cli::command::{complain, print};
use crate::cli::reach::{Done, with_client};
use crate::cli::request::{Removed, simply};
use crate::cli::words::{clean, count, moment};

/// Entries of a page.
const PAGE: &str = "500";

pub(in crate::cli) fn wanted(arguments: &Wanted) -> ExitCode {
    let Wanted { since, forget, store } = arguments;
    if *forget {
        return simply(store, Ask::delete("/wanted"), |removed: &Removed| {
            format!("{} forgotten\n", count(removed.removed, "entry"))
        });
    }
    let since = since.map(|since| since.to_string());
    let ask = Ask::get("/wanted").with_some("since", since.as_deref()).with("limit", PAGE);
    with_client(store, Opening::AsItIs, async |client| list(client, ask, store.json).await)
}

/// Follows the pages to the end. An image is printed once, whatever pages it is in.
async fn list(client: &Client<'_>, first: Ask, json: bool) -> Done {
    let (mut after, mut printed) = (None::<String>, HashSet::new());
    loop {
        let ask = first.clone().with_some("after", after.as_deref());
        let (_, page) = client.ask::<Listed<Value>>(ask).await?;
        let mut text = String::new();
        for item in page.items {
            let info: WantedInfo =
                serde_json::from_value(item.clone()).map_err(|_invalid| Trouble::Strange)?;
            if json {
                text.push_str(&format!("{item}\n"));
            } else if !printed.contains(&info.image) {
                text.push_str(&line(&info));
            }
            printed.insert(info.image);
        }
        print(&text)?;
        match page.next {
            None => break,
            // A list that does not move on would never end.
            Some(next) if after.as_ref() == Some(&next) => return Err(Trouble::Strange.into()),
            Some(next) => after = Some(next),
        }
    }
    if printed.is_empty() && !json {
        complain("nothing was asked for in vain");
    }
    Ok(ExitCode::SUCCESS)
}

/// An image with a comment behind it; a blob that belongs to no image that is known is all comment.
fn line(info: &WantedInfo) -> String {
    let WantedInfo { image, kind, times, last, reason, .. } = info;
    let what = if kind == "blob" { "# a blob of no known image: " } else { "" };
    let often = match times {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let line = format!("{what}{image} # asked for {often}, last {}, {reason}", moment(*last));
    format!("{}\n", clean(&line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn a_line_is_an_image_and_a_comment() {
        let mut info = WantedInfo {
            image: "docker.io/library/nginx:1.27".to_owned(),
            kind: "manifest".to_owned(),
            first: Timestamp::default(),
            last: "2026-11-01T12:00:00Z".parse().unwrap(),
            times: 1,
            reason: "offline".to_owned(),
        };
        insta::assert_snapshot!(line(&info), @"docker.io/library/nginx:1.27 # asked for once, last 2026-11-01 12:00:00Z, offline");
        (info.kind, info.times) = ("blob".to_owned(), 3);
        let line = line(&info);
        assert!(line.starts_with("# a blob") && line.contains("3 times"), "{line}");
    }
}
