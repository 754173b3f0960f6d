//! The command line.
//!
//! Values are taken as they are typed and checked together with the file and the environment, so that all mistakes are told at once.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::app::{Overrides, Sources};

/// A pull-through caching proxy registry for container images.
#[derive(Debug, Parser)]
#[command(name = "roadstead", version, about, disable_help_subcommand = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve clients until SIGTERM. Works without any option: data in ./roadstead-data, port 5000 of this machine.
    Serve(Options),
    /// Check the configuration, tell every mistake, and do nothing else.
    CheckConfig(Options),
    /// Read everything that is stored and tell what is damaged or missing. Works beside a running server and without one.
    Verify(Verify),
    /// Take in stored files that the metadata does not know, after it was lost. Works beside a running server and without one.
    Reindex(Store),
}

/// Which store, and how the result is told.
#[derive(Debug, Args)]
pub(super) struct Store {
    /// Configuration file (TOML) that names the data directory; ROADSTEAD_CONFIG names it too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory [default: roadstead-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print one JSON object per line, as the admin API sends them
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Put damaged files aside, correct the metadata, and take in files that it does not know; the next pull fetches what is missing
    #[arg(long)]
    pub(super) repair: bool,
    #[command(flatten)]
    pub(super) store: Store,
}

/// Every option is also a key of the configuration file and a ROADSTEAD_ variable; options win.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Configuration file (TOML); ROADSTEAD_CONFIG names it too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients pull [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where /metrics, /livez and /readyz are [default: 127.0.0.1:5010]
    #[arg(long, value_name = "ADDR")]
    observe: Option<String>,
    /// Directory of everything that is kept [default: roadstead-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Serve this registry, or serve it from this address; may be repeated
    #[arg(long = "upstream", value_name = "NAME[=URL]")]
    upstreams: Vec<String>,
    /// Registry of names that say none [default: docker.io]
    #[arg(long, value_name = "NAME")]
    default_upstream: Option<String>,
    /// Time that a tag is believed without asking, for all registries
    #[arg(long, value_name = "DURATION")]
    tag_fresh_for: Option<String>,
    /// Never ask any registry; serve what is here
    #[arg(long)]
    offline: bool,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Options {
    /// The sources of the configuration: these options, the file that they name, and the environment.
    pub(super) fn into_sources(self) -> Sources {
        let overrides = Overrides {
            listen: self.listen,
            observe: self.observe,
            data: self.data,
            upstreams: self.upstreams,
            default_upstream: self.default_upstream,
            tag_fresh_for: self.tag_fresh_for,
            offline: self.offline,
            log_format: self.log_format,
        };
        Sources::of_process(self.config, overrides)
    }
}

impl Store {
    /// The sources of the configuration: these options, the file that they name, and the environment.
    pub(super) fn sources(&self) -> Sources {
        let overrides = Overrides { data: self.data.clone(), ..Overrides::default() };
        Sources::of_process(self.config.clone(), overrides)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_become_overrides() {
        let line = [
            "roadstead",
            "serve",
            "--upstream",
            "ghcr.io",
            "--upstream",
            "a.example=http://b:1",
            "--offline",
            "--data",
            "/d",
        ];
        let Command::Serve(options) = Cli::try_parse_from(line).unwrap().command else {
            panic!("another command");
        };
        let overrides = options.into_sources().arguments;
        assert_eq!(overrides.upstreams, ["ghcr.io", "a.example=http://b:1"]);
        assert!(overrides.offline);
        assert_eq!(overrides.data, Some(PathBuf::from("/d")));
        assert_eq!(overrides.listen, None);
    }
}
