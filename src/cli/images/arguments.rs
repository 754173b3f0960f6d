//! Their arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::arguments::{Store, moment};
use crate::clock::Timestamp;
use crate::oci::{InvalidPlatform, InvalidSetName, PlatformPattern, SetName};

#[derive(Debug, Args)]
pub(in crate::cli) struct Check {
    /// [REGISTRY/]REPOSITORY[:TAG][@DIGEST], as clients name them
    #[arg(value_name = "IMAGE", required_unless_present_any = ["file", "set"])]
    pub(super) images: Vec<String>,
    /// List of images, one per line, or a lockfile; - is standard input
    #[arg(long, value_name = "LIST")]
    pub(super) file: Option<PathBuf>,
    /// All images of a set
    #[arg(long, value_name = "NAME", value_parser = set_name)]
    pub(super) set: Vec<SetName>,
    /// os/architecture[/variant] that must be complete [default: any one]
    #[arg(long = "platform", value_name = "PLATFORM", value_parser = platform, value_delimiter = ',')]
    pub(super) platforms: Vec<PlatformPattern>,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Warm {
    /// [REGISTRY/]REPOSITORY[:TAG][@DIGEST], as clients name them
    #[arg(value_name = "IMAGE", required_unless_present = "file")]
    pub(super) images: Vec<String>,
    /// List of images, one per line, a lockfile, or what `roadstead wanted` prints; - is standard input
    #[arg(long, value_name = "LIST")]
    pub(super) file: Option<PathBuf>,
    /// os/architecture[/variant] [default: the one of the server's machine]
    #[arg(long = "platform", value_name = "PLATFORM", value_parser = platform, value_delimiter = ',', conflicts_with = "all_platforms")]
    pub(super) platforms: Vec<PlatformPattern>,
    /// Every platform that an image has
    #[arg(long)]
    pub(super) all_platforms: bool,
    /// Also signatures, attestations and whatever else refers to the images
    #[arg(long)]
    pub(super) referrers: bool,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Wanted {
    /// Only what was asked for since then: a date, or date and time (2026-12-24T18:00Z)
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "forget")]
    pub(super) since: Option<Timestamp>,
    /// Forget what was asked for so far
    #[arg(long)]
    pub(super) forget: bool,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Switch {
    /// Registry, as clients name it, or a family of hosts ('*.pkg.dev') [default: all of them]
    #[arg(value_name = "REGISTRY")]
    pub(super) upstream: Option<String>,
    /// Change nothing, tell what is offline
    #[arg(long, conflicts_with = "upstream")]
    pub(super) show: bool,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Record {
    #[command(subcommand)]
    pub(super) action: RecordAction,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RecordAction {
    /// Begin to collect what clients pull
    Start {
        #[arg(value_name = "NAME", value_parser = set_name)]
        name: SetName,
        /// Only these clients: an address or a network
        #[arg(long = "client", value_name = "CIDR")]
        clients: Vec<String>,
        /// Only these registries
        #[arg(long = "upstream", value_name = "REGISTRY")]
        upstreams: Vec<String>,
        #[command(flatten)]
        store: Store,
    },
    /// End it, and fetch what the images still need
    Stop {
        #[arg(value_name = "NAME", value_parser = set_name)]
        name: SetName,
        /// os/architecture[/variant] [default: those that clients asked for]
        #[arg(long = "platform", value_name = "PLATFORM", value_parser = platform, value_delimiter = ',')]
        platforms: Vec<PlatformPattern>,
        /// Ask no registry; only tell what is missing
        #[arg(long)]
        no_fetch: bool,
        #[command(flatten)]
        store: Store,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Sets {
    #[command(subcommand)]
    pub(super) action: SetAction,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SetAction {
    /// List the sets
    Ls {
        #[command(flatten)]
        store: Store,
    },
    /// List the images of a set
    Show(OneSet),
    /// Keep the content of a set, whatever limits say
    Pin(OneSet),
    /// Keep it no longer
    Unpin(OneSet),
    /// Forget a set; its images stay until nothing keeps them
    Rm(OneSet),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OneSet {
    #[arg(value_name = "NAME", value_parser = set_name)]
    pub(super) name: SetName,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Export {
    /// [REGISTRY/]REPOSITORY[:TAG][@DIGEST], as clients name them
    #[arg(value_name = "IMAGE", required_unless_present_any = ["file", "set"])]
    pub(super) images: Vec<String>,
    /// All images of a set
    #[arg(long, value_name = "NAME", value_parser = set_name)]
    pub(super) set: Vec<SetName>,
    /// List of images, one per line, or a lockfile; - is standard input
    #[arg(long, value_name = "LIST")]
    pub(super) file: Option<PathBuf>,
    /// A tar (NAME.tar), a directory (anything else), or - for a tar on standard output
    #[arg(long, short, value_name = "FILE|DIR", required_unless_present = "dry_run")]
    pub(super) output: Option<PathBuf>,
    /// os/architecture[/variant] [default: all that are complete here]
    #[arg(long = "platform", value_name = "PLATFORM", value_parser = platform, value_delimiter = ',')]
    pub(super) platforms: Vec<PlatformPattern>,
    /// Without signatures, attestations and whatever else refers to the images
    #[arg(long)]
    pub(super) no_referrers: bool,
    /// Receipt of what the other side has already; that is left out
    #[arg(long, value_name = "RECEIPT")]
    pub(super) base: Option<PathBuf>,
    /// Cut the tar into files of at most this size (such as 2GiB): NAME.tar.001 and so on
    #[arg(long, value_name = "SIZE", value_parser = crate::app::size)]
    pub(super) split: Option<u64>,
    /// Replace what an earlier export wrote there
    #[arg(long)]
    pub(super) force: bool,
    /// Only tell what it would hold and how large it would be
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) store: Store,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Import {
    /// A bundle (its first part if it was split), an OCI layout (directory or tar), what docker save wrote, - for a tar on standard
    /// input, or registry:FOLDER for the storage of registry:2 and 3
    #[arg(value_name = "SOURCE")]
    pub(super) source: String,
    /// Name of the set that the images become, which is pinned [default: from the source and the day]
    #[arg(long, value_name = "NAME", value_parser = set_name)]
    pub(super) set: Option<SetName>,
    /// Name of an image that the source does not name, such as ghcr.io/org/app:1
    #[arg(long = "as", value_name = "IMAGE")]
    pub(super) name: Option<String>,
    /// With registry:FOLDER: the registry whose images these are
    #[arg(long, value_name = "REGISTRY")]
    pub(super) upstream: Option<String>,
    /// With registry:FOLDER: copy the files, rather than linking them where that is possible
    #[arg(long)]
    pub(super) copy: bool,
    /// Take it on your word that anybody may read these repositories
    #[arg(long)]
    pub(super) public: bool,
    /// Write a receipt of what is here then, for `export --base` on the other side
    #[arg(long, value_name = "FILE")]
    pub(super) receipt: Option<PathBuf>,
    #[command(flatten)]
    pub(super) store: Store,
}

fn platform(text: &str) -> Result<PlatformPattern, InvalidPlatform> {
    text.parse()
}

fn set_name(text: &str) -> Result<SetName, InvalidSetName> {
    text.parse()
}
