//! `roadstead offline` and `roadstead online`: which upstreams are asked.

use std::process::ExitCode;

use super::arguments::Switch;
use crate::app::images::OfflineInfo;
use crate::cli::admin::Ask;
use crate::cli::request::simply;
use crate::cli::words::clean;

pub(in crate::cli) fn switch(arguments: &Switch, offline: bool) -> ExitCode {
    let Switch { upstream, show, store } = arguments;
    let ask = match (show, offline) {
        (true, _) => Ask::get("/offline"),
        (false, true) => Ask::post("/offline"),
        (false, false) => Ask::delete("/offline"),
    };
    simply(store, ask.with_some("upstream", upstream.as_deref()), told)
}

/// What is asked and what is not, in a line or two.
fn told(info: &OfflineInfo) -> String {
    let OfflineInfo { configured, all, upstreams } = info;
    let mut lines = Vec::new();
    if *configured {
        lines.push("no upstream is asked, by the configuration (offline = true)".to_owned());
    }
    if *all {
        lines.push(
            "no upstream is asked: switched off; `roadstead online` takes that back".to_owned(),
        );
    }
    if !upstreams.is_empty() {
        lines.push(clean(&format!("not asked: {}", upstreams.join(", "))).into_owned());
    }
    if lines.is_empty() {
        lines.push("all upstreams are asked".to_owned());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_is_told_with_the_reason() {
        let info = |configured, all, upstreams: &[&str]| OfflineInfo {
            configured,
            all,
            upstreams: upstreams.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(told(&info(false, false, &[])), "all upstreams are asked\n");
        assert_eq!(
            told(&info(false, false, &["docker.io", "ghcr.io"])),
            "not asked: docker.io, ghcr.io\n"
        );
        let both = told(&info(true, true, &[]));
        assert!(both.contains("configuration") && both.contains("roadstead online"), "{both}");
    }
}
