//! The command line.
//!
//! Values are taken as they are typed and checked together with the file and the environment, so that all mistakes are told at once.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::images::arguments as images;

use crate::app::{Overrides, Sources};
use crate::clock::{self, Timestamp};
use crate::oci::{InvalidName, RegistryName};

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
    /// List tags that are known: everything, a registry, or a repository.
    Ls(List),
    /// Tell what is known of an image: what it is made of, what of that is here, and what keeps it.
    Inspect(OneImage),
    /// Tell what a tag pointed at, and when.
    History(OneImage),
    /// Tell what would happen now if a client asked for an image, and why.
    Explain(OneImage),
    /// Keep what a scope covers, whatever limits say; without a scope, list the pins.
    Pin(Rule),
    /// Take pins back.
    Unpin(RuleGone),
    /// Serve the tags that a scope covers as they are now, whatever upstream does; without a scope, list the freezes.
    Freeze(Rule),
    /// Take freezes back.
    Unfreeze(RuleGone),
    /// Write down which digests images have now.
    Lock(Lock),
    /// Take an image out: a tag with its timeline, one revision of it, a revision, or the bytes of a digest.
    Delete(Delete),
    /// Take out everything that is known of a registry or a repository, for example after a credential was revoked.
    Purge(Purge),
    /// Ask upstream now what a tag points at.
    Refresh(OneImage),
    /// Take away what nothing needs any more, as the server does by itself, and tell why.
    Gc(Collect),
    /// Tell how much is stored, by the registry that it came from.
    Du(Store),
    /// Tell whether images can be replayed with the cable cut, for which platforms, and what is missing.
    CheckOffline(images::Check),
    /// Fetch images before anybody asks for them.
    #[command(visible_alias = "prefetch")]
    Warm(images::Warm),
    /// List what clients asked for and did not get because no registry was asked or reached; `warm --file` takes it.
    Wanted(images::Wanted),
    /// Ask no registry any more, or not this one; works on a running server and lasts until `online`.
    Offline(images::Switch),
    /// Take `offline` back.
    Online(images::Switch),
    /// Collect everything that clients pull between a start and a stop in a set.
    Record(images::Record),
    /// Named sets of images: list them, keep them, forget them.
    Set(images::Sets),
    /// Write images into a bundle that roadstead, skopeo and docker load read.
    Export(images::Export),
    /// Take in a bundle, an OCI layout, what docker save wrote, or the storage of another registry.
    Import(images::Import),
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
    /// Data directory, of a running server or of none [default: roadstead-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Admin API of a running server elsewhere (its admin_listen), such as http://127.0.0.1:5011
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "data"], requires = "token_file")]
    pub(super) admin: Option<String>,
    /// File that holds that server's token (admin-token in its data directory)
    #[arg(long, value_name = "FILE", requires = "admin")]
    pub(super) token_file: Option<PathBuf>,
    /// Print JSON, one object per line, as the admin API sends it
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// A registry (ghcr.io) or a repository (library/nginx, ghcr.io/org/app) [default: everything]
    #[arg(value_name = "WITHIN")]
    pub(super) within: Option<String>,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(super) struct OneImage {
    /// [REGISTRY/]REPOSITORY[:TAG][@DIGEST], as clients name it
    #[arg(value_name = "IMAGE")]
    pub(super) image: String,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(super) struct Rule {
    /// REGISTRY[/REPOSITORY][:TAG | @DIGEST], where repository and tag may be patterns ("ghcr.io/org/*:v1.*")
    #[arg(value_name = "SCOPE")]
    pub(super) scope: Option<String>,
    /// For how long, such as 12h or 30d [default: until it is taken back]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, conflicts_with = "until", requires = "scope")]
    pub(super) period: Option<Duration>,
    /// Until when: a date (its first moment in UTC), or date and time (2026-12-24T18:00Z)
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "scope")]
    pub(super) until: Option<Timestamp>,
    /// A note for whoever finds it later
    #[arg(long, value_name = "TEXT", requires = "scope")]
    pub(super) reason: Option<String>,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(super) struct RuleGone {
    /// The scope as it was given, or the number that the list has
    #[arg(value_name = "SCOPE|ID")]
    pub(super) which: String,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(super) struct Lock {
    /// Images in full or short; without any, those that FILE has are locked anew
    #[arg(value_name = "IMAGE", required_unless_present = "output")]
    pub(super) images: Vec<String>,
    /// Write to this file, whole or not at all [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// REPOSITORY:TAG with its timeline, REPOSITORY:TAG@DIGEST, REPOSITORY@DIGEST, or a DIGEST alone: its bytes
    #[arg(value_name = "IMAGE|DIGEST")]
    pub(super) target: String,
    /// Also if something needs it; that is incomplete then, and says so
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(super) struct Purge {
    /// A repository (library/nginx, ghcr.io/org/app)
    #[arg(
        value_name = "REPOSITORY",
        required_unless_present = "upstream",
        conflicts_with = "upstream"
    )]
    pub(super) repository: Option<String>,
    /// A whole registry
    #[arg(long, value_name = "NAME", value_parser = registry)]
    pub(super) upstream: Option<RegistryName>,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(super) struct Collect {
    /// Change nothing; tell what would go and what is kept, and why
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Put damaged files aside, correct the metadata, and take in files that it does not know; the next pull fetches what is missing
    #[arg(long)]
    pub(super) repair: bool,
    #[command(flatten)]
    pub(super) store: Store,
}

fn duration(text: &str) -> Result<Duration, String> {
    match clock::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it is over before it begins".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|error: clock::InvalidTimestamp| error.to_string())
}

fn registry(text: &str) -> Result<RegistryName, String> {
    text.parse().map_err(|error: InvalidName| error.to_string())
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

    #[test]
    fn what_is_malformed_is_refused_before_anything_is_asked() {
        for (line, said) in [
            (&["ls", "a", "b"][..], "unexpected argument"),
            (&["inspect"], "<IMAGE>"),
            (&["pin", "ghcr.io", "--for", "30"], "is no duration"),
            (&["pin", "ghcr.io", "--for", "0"], "over before it begins"),
            (&["pin", "ghcr.io", "--for", "1d", "--until", "2026-12-24"], "cannot be used with"),
            (&["pin", "--for", "1d"], "<SCOPE>"),
            (&["freeze", "ghcr.io", "--until", "christmas"], "want a date"),
            (&["freeze", "ghcr.io", "--until", "2026-13-24"], "want a date"),
            (&["unpin"], "<SCOPE|ID>"),
            (&["lock"], "<IMAGE>"),
            (&["delete", "--force"], "<IMAGE|DIGEST>"),
            (&["purge"], "<REPOSITORY>"),
            (&["purge", "a/b", "--upstream", "ghcr.io"], "cannot be used with"),
            (&["purge", "--upstream", "ghcr.io/a"], "not a registry name"),
            (&["gc", "--dryrun"], "--dry-run"),
            (&["du", "--admin", "http://a:1"], "--token-file"),
            (&["du", "--token-file", "t"], "--admin"),
            (
                &["du", "--admin", "http://a:1", "--token-file", "t", "--data", "d"],
                "cannot be used",
            ),
        ] {
            let line = ["roadstead"].iter().chain(line);
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn rules_have_an_end_or_none() {
        let rule = |line: &[&str]| match Cli::try_parse_from(line).unwrap().command {
            Command::Pin(rule) | Command::Freeze(rule) => rule,
            other => panic!("{other:?}"),
        };
        let pin = rule(&["roadstead", "pin", "ghcr.io", "--for", "30d", "--reason", "audit"]);
        assert_eq!(pin.period, Some(Duration::from_secs(30 * 86_400)));
        let freeze = rule(&["roadstead", "freeze", "ghcr.io/*:v*", "--until", "2026-12-24"]);
        assert_eq!(freeze.until, "2026-12-24T00:00Z".parse().ok());
        assert!(rule(&["roadstead", "freeze"]).scope.is_none());
    }
}
