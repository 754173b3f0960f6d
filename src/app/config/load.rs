//! From the sources to a configuration: arguments win over the environment, which wins over the file, which wins over what is built in.

use std::fmt;
use std::path::PathBuf;

use crate::app::wellknown::WELL_KNOWN;
use crate::oci::RegistryName;
use crate::{content, registry, server, upkeep, upstream};

use super::document::{self, Document};
use super::draft::{Draft, Entry, Path};
use super::environment;
use super::error::{ConfigErrors, Mistake, Place, quotes_password};
use super::finish::finish;
use super::keys::{Key, Scope, Setter, key};
use super::model::*;
use super::values::{Parsed, Raw};

/// What the command line says; each value as it was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub listen: Option<String>,
    pub observe: Option<String>,
    pub data: Option<PathBuf>,
    /// `NAME` or `NAME=URL`, each.
    pub upstreams: Vec<String>,
    pub default_upstream: Option<String>,
    /// For every upstream, whatever its table says.
    pub tag_fresh_for: Option<String>,
    pub offline: bool,
    pub log_format: Option<String>,
}

/// Where a configuration comes from. Kept for the whole run, because SIGHUP reads the file again.
#[derive(Clone, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
    pub arguments: Overrides,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of the environment are passwords, ours and those of others.
        let names: Vec<&str> = self.environment.iter().map(|(name, _)| &**name).collect();
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("environment", &names)
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// The environment of this process with the given arguments. `ROADSTEAD_CONFIG` names the file if no argument does.
    pub fn of_process(file: Option<PathBuf>, arguments: Overrides) -> Self {
        // What is not UTF-8 is carried as replacement characters, which the reader of the variables refuses by name.
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value)));
        let from_environment =
            std::env::var_os(environment::CONFIG).filter(|path| !path.is_empty());
        Self {
            file: file.or_else(|| from_environment.map(PathBuf::from)),
            environment: environment.collect(),
            arguments,
        }
    }
}

impl Config {
    /// Reads and checks everything. Reads the configuration file and looks at the files that it names, so it may block on the disk.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let document = sources.file.as_deref().map_or_else(Document::default, document::read_file);
        Self::assemble(sources, document)
    }

    pub(super) fn assemble(sources: &Sources, document: Document) -> Result<Self, ConfigErrors> {
        let arguments = Arguments::of(&sources.arguments);
        let mut mistakes = document.mistakes;
        mistakes.extend(arguments.mistakes);
        let known = document.tables.iter().chain(&arguments.tables);
        let known: Vec<RegistryName> = known.map(|(name, _)| name.clone()).collect();
        let environment = environment::read(&sources.environment, &known);
        mistakes.extend(environment.mistakes);

        let mut draft = Draft::default();
        draft.config.system_proxy = environment.proxy;
        draft.config.search_path = environment::search_path(&sources.environment);
        draft.config.warnings = environment.warnings;
        let layers = [
            (document.tables, document.entries),
            (environment.tables, environment.entries),
            (arguments.tables, arguments.entries),
        ];
        for (tables, entries) in layers {
            for (name, place) in tables {
                draft.upstream(&name);
                draft.places.entry(Path::Table(name)).or_insert(place);
            }
            for entry in entries {
                apply(&mut draft, entry, &mut mistakes);
            }
        }
        if draft.builtin_upstreams {
            for known in &WELL_KNOWN {
                draft.upstream(&known.name.parse().expect("a built-in name is valid"));
            }
        }
        let config = finish(draft, &mut mistakes);
        ConfigErrors::of(mistakes).map_or(Ok(config), Err)
    }
}

impl Default for Config {
    /// What is built in.
    fn default() -> Self {
        Self::assemble(&Sources::default(), Document::default())
            .expect("the built-in configuration is valid")
    }
}

impl Default for Draft {
    fn default() -> Self {
        let server = server::Settings::default();
        let config = Config {
            listen: server.listen,
            observe: server.observe,
            admin_listen: None,
            admin_hosts: Vec::new(),
            clients: server.clients,
            fallback: server.fallback,
            limits: server.limits,
            drain: DRAIN,
            data: PathBuf::from(DATA),
            min_free: content::MinFree::default(),
            manifest_cache_bytes: content::MANIFEST_CACHE_BYTES_DEFAULT,
            scrub_period: upkeep::SCRUB_PERIOD_DEFAULT.into(),
            max_size: None,
            max_unused: None,
            young_for: upkeep::YOUNG_FOR_DEFAULT,
            delete_grace: upkeep::DELETE_GRACE_DEFAULT,
            default_upstream: DEFAULT_UPSTREAM.parse().expect("a built-in name is valid"),
            parent: None,
            upstreams: Vec::new(),
            offline: false,
            schedules: Vec::new(),
            catalog: registry::CatalogPolicy::default(),
            log: LogSettings::default(),
            system_proxy: upstream::ProxyEnv::default(),
            search_path: None,
            warnings: Vec::new(),
        };
        Self {
            config,
            builtin_upstreams: true,
            tag_fresh_for: None,
            parent: None,
            parent_ca_file: None,
            allow_addresses: Vec::new(),
            upstreams: std::collections::BTreeMap::new(),
            warm: std::collections::BTreeMap::new(),
            places: std::collections::BTreeMap::new(),
        }
    }
}

/// Sets one key, or notes why not.
fn apply(draft: &mut Draft, entry: Entry, mistakes: &mut Vec<Mistake>) {
    let Entry { path, raw, place } = entry;
    match set(draft, &path, &raw) {
        Ok(()) => {
            if let Some(name) = path.upstream() {
                let table = Path::Table(name.clone());
                draft.places.entry(table).or_insert_with(|| place.clone());
            }
            draft.places.insert(path, place);
        }
        Err((key, refusal)) => {
            let mistake = Mistake::new(place, path.display(), refusal);
            mistakes.push(match key {
                Some(key) => mistake.explained(key.doc),
                None => mistake,
            });
        }
    }
}

fn set(draft: &mut Draft, path: &Path, raw: &Raw) -> Result<(), (Option<&'static Key>, String)> {
    let (scope, name) = match path {
        Path::Top(name) => (Scope::Top, name),
        Path::Upstream(_, name) => (Scope::Upstream, name),
        Path::Rule(_, _, name) => (Scope::Rule, name),
        Path::Warm(_, name) => (Scope::Warm, name),
        Path::Table(_) => return Ok(()),
    };
    let Some(key) = key(scope, name) else {
        return Err((None, "unknown key".to_owned()));
    };
    let done: Parsed<()> = match (&key.set, path) {
        (Setter::Top(set), _) => set(draft, raw),
        (Setter::Upstream(set), Path::Upstream(upstream, _)) => set(draft.upstream(upstream), raw),
        (Setter::Tags(set), Path::Upstream(upstream, _)) => {
            set(&mut draft.upstream(upstream).tags, raw)
        }
        (Setter::Tags(set), Path::Rule(upstream, index, _)) => {
            let rules = &mut draft.upstream(upstream).rules;
            set(&mut rules.entry(*index).or_default().overrides, raw)
        }
        (Setter::Rule(set), Path::Rule(upstream, index, _)) => {
            let rules = &mut draft.upstream(upstream).rules;
            set(rules.entry(*index).or_default(), raw)
        }
        (Setter::Warm(set), Path::Warm(index, _)) => {
            set(draft.warm.entry(*index).or_default(), raw)
        }
        _ => Err("unknown key".to_owned()),
    };
    done.map_err(|refusal| (Some(key), refusal))
}

/// The command line as entries.
#[derive(Default)]
struct Arguments {
    entries: Vec<Entry>,
    tables: Vec<(RegistryName, Place)>,
    mistakes: Vec<Mistake>,
}

impl Arguments {
    fn of(overrides: &Overrides) -> Self {
        let mut arguments = Self::default();
        let data = overrides.data.as_ref().map(|path| path.to_string_lossy().into_owned());
        let offline = overrides.offline.then(|| "true".to_owned());
        let values = [
            ("--listen", "listen", overrides.listen.clone()),
            ("--observe", "observe", overrides.observe.clone()),
            ("--data", "data", data),
            ("--default-upstream", "default_upstream", overrides.default_upstream.clone()),
            ("--tag-fresh-for", "tag_fresh_for", overrides.tag_fresh_for.clone()),
            ("--offline", "offline", offline),
            ("--log-format", "log_format", overrides.log_format.clone()),
        ];
        for (argument, key, value) in values {
            if let Some(value) = value {
                arguments.entry(argument, Path::Top(key.to_owned()), value);
            }
        }
        for text in &overrides.upstreams {
            arguments.upstream(text);
        }
        arguments
    }

    fn entry(&mut self, argument: &'static str, path: Path, value: String) {
        self.entries.push(Entry { path, raw: Raw::Loose(value), place: Place::Argument(argument) });
    }

    fn upstream(&mut self, text: &str) {
        const ARGUMENT: &str = "--upstream";
        let (name, url) =
            text.split_once('=').map_or((text, None), |(name, url)| (name, Some(url)));
        match name.parse::<RegistryName>() {
            Ok(name) => {
                self.tables.push((name.clone(), Place::Argument(ARGUMENT)));
                if let Some(url) = url {
                    self.entry(ARGUMENT, Path::Upstream(name, "url".to_owned()), url.to_owned());
                }
            }
            Err(_) => {
                let shown = if quotes_password(text) { "..." } else { text };
                let text = format!(
                    "{shown:?} is no NAME or NAME=URL; want one such as ghcr.io or hub.example.com=https://10.0.0.5:5000"
                );
                self.mistakes.push(Mistake::new(Place::Argument(ARGUMENT), "", text));
            }
        }
    }
}
