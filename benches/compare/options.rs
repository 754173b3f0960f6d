//! What the command line asks for, and the sizes that follow from it.
//!
//! Nothing here reads the environment. Unknown words are errors: a typing error must not become a run of ten minutes.

use std::path::PathBuf;
use std::time::Duration;

use crate::Result;

/// The help text.
pub(crate) const USAGE: &str = "\
usage: benches/run [options]

  --size full|tiny     full (the default) takes about ten minutes; tiny takes seconds and only shows that everything works
  --only MEASURE[,..]  manifests, blobs, cold, many, slow, image, start, growth (default: all)
  --rounds N           repetitions, interleaved over the servers; the table shows their medians
  --roadstead PATH     the program to measure (default: the one that was built with this)
  --also NAME=PATH     one more roadstead with a column of its own, to compare two builds in one run
  --without PEER[,..]  leave columns out: \"nginx\", \"nginx 2w\", \"registry\", \"registry cache\", \"nginx cache\", \"roadstead+log\"
  --markdown           print the table as it stands in docs/performance.md
  --json FILE          write all figures, with every sample
  --directory DIR      where contents and stores are put, on a disk with 20 GiB free (default: below the target directory)
";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// The groups of figures that can be asked for one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Measure {
    Manifests,
    Blobs,
    Cold,
    Many,
    Slow,
    Image,
    Start,
    Growth,
}

/// All of them, in the order in which they run and are shown.
pub(crate) const MEASURES: [(Measure, &str); 8] = [
    (Measure::Manifests, "manifests"),
    (Measure::Blobs, "blobs"),
    (Measure::Cold, "cold"),
    (Measure::Many, "many"),
    (Measure::Slow, "slow"),
    (Measure::Image, "image"),
    (Measure::Start, "start"),
    (Measure::Growth, "growth"),
];

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Bytes of the large layer, and of each blob of the cold measures.
    pub(crate) large: u64,
    /// Bytes of the other layers.
    pub(crate) small: u64,
    pub(crate) rounds: usize,
    /// Connections of a load of requests.
    pub(crate) connections: usize,
    /// How long one load of requests lasts; `wrk` takes whole seconds.
    pub(crate) load: Duration,
    /// How long one load of bodies lasts at least.
    pub(crate) drain: Duration,
    /// Blobs in store of the measure of starts.
    pub(crate) stored: u64,
    /// Blobs and tags of the measure of growth.
    pub(crate) grown: u64,
    pub(crate) grown_tags: u64,
}

const FULL: Scale = Scale {
    large: 256 * MIB,
    small: 4 * MIB,
    rounds: 3,
    connections: 64,
    load: Duration::from_secs(2),
    drain: Duration::from_secs(2),
    stored: 20_000,
    grown: 1_000_000,
    grown_tags: 200_000,
};
const TINY: Scale = Scale {
    large: 2 * MIB,
    small: 64 * KIB,
    rounds: 1,
    // Even the slowest peer on a busy machine answers some within a second.
    connections: 8,
    load: Duration::from_secs(1),
    drain: Duration::from_millis(200),
    stored: 50,
    grown: 500,
    grown_tags: 100,
};

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) scale: Scale,
    /// Seconds are enough, and what must hold in every run is held: a check, no measurement.
    pub(crate) tiny: bool,
    pub(crate) only: Vec<Measure>,
    /// The roadsteads to measure, the first of them under its own name.
    pub(crate) roadsteads: Vec<(String, PathBuf)>,
    pub(crate) without: Vec<String>,
    pub(crate) markdown: bool,
    pub(crate) json: Option<PathBuf>,
    pub(crate) directory: PathBuf,
    pub(crate) help: bool,
}

impl Options {
    /// Reads the arguments behind the name of the program. Cargo adds `--bench` of its own.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            scale: FULL,
            tiny: false,
            only: MEASURES.map(|(measure, _)| measure).to_vec(),
            roadsteads: vec![("roadstead".to_owned(), env!("CARGO_BIN_EXE_roadstead").into())],
            without: Vec::new(),
            markdown: false,
            json: None,
            directory: env!("CARGO_TARGET_TMPDIR").into(),
            help: false,
        };
        let mut rounds = None;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--bench" => {}
                "--help" | "-h" => options.help = true,
                "--size" => options.set_size(&value()?)?,
                "--only" => options.only = measures(&value()?)?,
                "--rounds" => rounds = Some(value()?.parse::<usize>()?.max(1)),
                "--roadstead" => options.roadsteads[0].1 = value()?.into(),
                "--also" => {
                    let value = value()?;
                    let (name, path) = value.split_once('=').ok_or("--also wants NAME=PATH")?;
                    options.roadsteads.push((name.to_owned(), path.into()));
                }
                "--without" => options.without.extend(value()?.split(',').map(str::to_owned)),
                "--markdown" => options.markdown = true,
                "--json" => options.json = Some(value()?.into()),
                "--directory" => options.directory = value()?.into(),
                other => return Err(format!("{other} is no option\n{USAGE}").into()),
            }
        }
        options.scale.rounds = rounds.unwrap_or(options.scale.rounds);
        Ok(options)
    }

    fn set_size(&mut self, size: &str) -> Result<()> {
        (self.tiny, self.scale) = match size {
            "full" => (false, FULL),
            "tiny" => (true, TINY),
            other => return Err(format!("--size is full or tiny, not {other}").into()),
        };
        Ok(())
    }
}

fn measures(text: &str) -> Result<Vec<Measure>> {
    let find = |word: &str| {
        let known = MEASURES.iter().find(|(_, name)| *name == word);
        known.map(|(measure, _)| *measure).ok_or(format!("{word} is no measure\n{USAGE}").into())
    };
    text.split(',').map(find).collect()
}
