//! `roadstead check-offline`: can images be replayed with the cable cut?

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;

use super::arguments::Check;
use super::lists;
use crate::app::Opening;
use crate::app::images::{CheckedImage, MissingPart};
use crate::cli::admin::{Ask, Trouble};
use crate::cli::command::{FAILED, WRONG_USAGE, complain, print, say};
use crate::cli::lock::fitting;
use crate::cli::reach::with_client;
use crate::cli::words::{clean, count, size};

/// Parts of one image that are named one by one; the rest are a number.
const MISSING_SHOWN: usize = 20;

#[derive(Deserialize)]
struct Answer {
    images: Vec<Value>,
}

pub(in crate::cli) fn check(arguments: &Check) -> ExitCode {
    let Check { images, file, set, platforms, store } = arguments;
    let list = match lists::images(images, file.as_deref()) {
        Ok(list) => list,
        Err(line) => {
            complain(&line);
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let names: Vec<String> = list.names().map(str::to_owned).collect();
    let asks = asks(&names, set.iter().map(|set| ("set", set.as_str())));
    with_client(store, Opening::AsItIs, async |client| {
        let (mut all, mut good) = (0_u64, 0_u64);
        for mut ask in asks {
            for platform in platforms {
                ask = ask.with("platform", &platform.to_string());
            }
            let (_, Answer { images }) = client.ask::<Answer>(ask).await?;
            for image in images {
                let strange = |_invalid| Trouble::Strange;
                let checked = CheckedImage::deserialize(&image).map_err(strange)?;
                all += 1;
                good += u64::from(is_good(&checked));
                let text = if store.json { format!("{image}\n") } else { told(&checked) };
                print(&text)?;
            }
        }
        if !store.json {
            say(&format!("{}, {good} complete", count(all, "image")));
        }
        Ok(if good == all { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
    })
}

/// As many requests as it takes: a request line is short.
fn asks<'a>(names: &[String], sets: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Ask> {
    let mut asks = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        let (some, others) = rest.split_at(fitting(rest));
        rest = others;
        asks.push(some.iter().fold(Ask::get("/check"), |ask, image| ask.with("image", image)));
    }
    asks.extend(sets.map(|(key, set)| Ask::get("/check").with(key, set)));
    asks
}

/// Complete, and served.
fn is_good(checked: &CheckedImage) -> bool {
    checked.complete && checked.reason.is_none()
}

/// One image, with what is missing if it is not complete.
fn told(checked: &CheckedImage) -> String {
    let CheckedImage { image, complete, platforms, missing, reason, .. } = checked;
    let word = if *complete { "complete" } else { "incomplete" };
    let mut text = format!("{word:<10}  {}  {} here", clean(image), size(checked.bytes_present));
    if checked.bytes_missing > 0 {
        add(&mut text, format_args!(", {} missing", size(checked.bytes_missing)));
    }
    if checked.referrers > 0 {
        add(&mut text, format_args!(", {}", count(checked.referrers, "referrer")));
    }
    if let Some(reason) = reason {
        add(&mut text, format_args!("  ({})", clean(reason)));
    }
    text.push('\n');
    for platform in platforms {
        let word = if platform.complete { "complete" } else { "incomplete" };
        add(&mut text, format_args!("  {word:<10}  {}", clean(&platform.platform)));
        let missing = platform.bytes_missing;
        if missing > 0 {
            add(&mut text, format_args!("  {} missing", size(missing)));
        }
        text.push('\n');
    }
    // What other platforms lack is no matter if one is enough.
    let wanted = |part: &&MissingPart| !complete || part.role == "referrer";
    let missing: Vec<&MissingPart> = missing.iter().filter(wanted).collect();
    for part in missing.iter().take(MISSING_SHOWN) {
        add(&mut text, format_args!("  {}\n", clean(&part_told(part))));
    }
    if let Some(more) = missing.len().checked_sub(MISSING_SHOWN).filter(|more| *more > 0) {
        add(&mut text, format_args!("  and {more} more\n"));
    }
    text
}

fn part_told(part: &MissingPart) -> String {
    let MissingPart { digest, role, platform, size: bytes, state } = part;
    let mut line = format!("{state:<10}  {role}  {digest}");
    if let Some(platform) = platform {
        line.push_str(&format!("  {platform}"));
    }
    if let Some(bytes) = bytes {
        line.push_str(&format!("  {}", size(*bytes)));
    }
    line
}

fn add(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::images::CheckedPlatform;

    fn checked(complete: bool, platforms: &[(&str, u64)]) -> CheckedImage {
        let platform = |(name, missing): &(&str, u64)| CheckedPlatform {
            platform: (*name).to_owned(),
            digest: "sha256:ab".to_owned(),
            complete: *missing == 0,
            bytes_present: 7,
            bytes_missing: *missing,
        };
        let part = |role: &str| MissingPart {
            digest: "sha256:cd".to_owned(),
            role: role.to_owned(),
            platform: Some("linux/arm64".to_owned()),
            size: Some(2048),
            state: "absent".to_owned(),
        };
        CheckedImage {
            image: "a.b/c:1".to_owned(),
            digest: Some("sha256:ef".to_owned()),
            complete,
            platforms: platforms.iter().map(platform).collect(),
            missing: vec![part("layer"), part("referrer")],
            bytes_present: 1 << 20,
            bytes_missing: 2048,
            referrers: 1,
            reason: None,
        }
    }

    #[test]
    fn what_is_missing_is_told_where_it_matters() {
        let image = checked(false, &[("linux/amd64", 0), ("linux/arm64", 2048)]);
        insta::assert_snapshot!(told(&image), @r"
        incomplete  a.b/c:1  1.00 MiB here, 2.00 KiB missing, 1 referrer
          complete    linux/amd64
          incomplete  linux/arm64  2.00 KiB missing
          absent      layer  sha256:cd  linux/arm64  2.00 KiB
          absent      referrer  sha256:cd  linux/arm64  2.00 KiB
        ");
        let image = checked(true, &[("linux/amd64", 0)]);
        let text = told(&image);
        assert!(!text.contains("layer") && text.contains("referrer  sha256:cd"), "{text}");
        let mut image = checked(false, &[]);
        image.missing = vec![image.missing[0].clone(); MISSING_SHOWN + 2];
        assert!(told(&image).ends_with("  and 2 more\n"));
    }

    #[test]
    fn what_would_not_be_served_is_not_good() {
        let mut image = checked(true, &[]);
        assert!(is_good(&image));
        image.reason = Some("it is not public\u{1b}".to_owned());
        assert!(!is_good(&image));
        assert!(told(&image).contains("(it is not public\u{fffd})"));
    }

    #[test]
    fn many_names_are_many_requests() {
        let names = vec!["x".repeat(1000); 9];
        assert_eq!(asks(&names, [("set", "a"), ("set", "b")].into_iter()).len(), 5);
    }
}
