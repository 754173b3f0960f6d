//! The tables, and how older ones become them.
//!
//! Versions count from 1 in `user_version`; version N is reached by the first N steps of [`MIGRATIONS`]. A step is never edited once
//! released, a new one is appended. Each step is one transaction, and before the first step a copy of the old database is left
//! beside it (`roadstead.db.v<N>.bak`).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::connection::create_private;
use super::error::OpenError;

/// "RdSt": tells our databases from those of other programs (SQLite file format, "Application ID").
const APPLICATION_ID: i64 = 0x5264_5374;

/// The steps from an empty database to the current schema.
pub(super) const MIGRATIONS: [&str; 6] =
    [VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6];

/// The schema that this program reads and writes.
pub const SCHEMA_VERSION: i64 = 6;

const _: () = assert!(MIGRATIONS.len() == 6 && SCHEMA_VERSION == 6);

/// - `objects`: everything with a digest (1 byte algorithm, then the raw hash). `state`: 0 known but not here, 1 present, 2 damaged
///   and put aside. `size` is the verified length and stays when the content goes; what manifests claim stands in `membership`,
///   so that a lie in one repository is no harm to another. `kind`: 0 blob, 1 manifest, 2 index. `modified` and `inode` are the
///   file's at the time it was stored.
/// - `objects_lru`: the eviction queue until version 4. `edges.role`: 0 config, 1 layer, 2 child of an index.
/// - `membership`: upstream showed this object under this repository. `revisions`: it is a manifest of the repository.
/// - `timeline`: appended only; `until` is set when the next row comes; a NULL object is "absent upstream". One row per tag is open.
/// - `usage`: one row with the sum over `state = 1`, changed in the transactions that change states.
const VERSION_1: &str = "
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY,
    upstream TEXT NOT NULL,
    name TEXT NOT NULL,
    public INTEGER,
    public_checked INTEGER,
    UNIQUE (upstream, name)
) STRICT;

CREATE TABLE objects (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL,
    size INTEGER,
    media_type TEXT,
    artifact_type TEXT,
    subject BLOB,
    created INTEGER NOT NULL,
    verified INTEGER,
    accessed INTEGER NOT NULL,
    modified INTEGER,
    inode INTEGER
) STRICT;
CREATE INDEX objects_lru ON objects (accessed) WHERE state = 1;
CREATE INDEX objects_subject ON objects (subject) WHERE subject IS NOT NULL;

CREATE TABLE edges (
    parent INTEGER NOT NULL REFERENCES objects,
    child INTEGER NOT NULL REFERENCES objects,
    role INTEGER NOT NULL,
    position INTEGER NOT NULL,
    is_foreign INTEGER NOT NULL,
    platform TEXT,
    PRIMARY KEY (parent, child, role)
) STRICT, WITHOUT ROWID;
CREATE INDEX edges_child ON edges (child);

CREATE TABLE membership (
    object INTEGER NOT NULL REFERENCES objects,
    repository INTEGER NOT NULL REFERENCES repositories,
    proved INTEGER NOT NULL,
    credential BLOB,
    size INTEGER,
    PRIMARY KEY (object, repository)
) STRICT, WITHOUT ROWID;
CREATE INDEX membership_repository ON membership (repository);

CREATE TABLE revisions (
    repository INTEGER NOT NULL REFERENCES repositories,
    object INTEGER NOT NULL REFERENCES objects,
    media_type TEXT NOT NULL,
    committed INTEGER NOT NULL,
    PRIMARY KEY (repository, object)
) STRICT, WITHOUT ROWID;
CREATE INDEX revisions_object ON revisions (object);

CREATE TABLE tags (
    repository INTEGER NOT NULL REFERENCES repositories,
    name TEXT NOT NULL,
    object INTEGER REFERENCES objects,
    moved INTEGER NOT NULL,
    confirmed INTEGER NOT NULL,
    source TEXT NOT NULL,
    PRIMARY KEY (repository, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_object ON tags (object);

CREATE TABLE timeline (
    id INTEGER PRIMARY KEY,
    repository INTEGER NOT NULL REFERENCES repositories,
    tag TEXT NOT NULL,
    object INTEGER REFERENCES objects,
    since INTEGER NOT NULL,
    until INTEGER,
    source TEXT NOT NULL
) STRICT;
CREATE INDEX timeline_tag ON timeline (repository, tag, id);
CREATE UNIQUE INDEX timeline_open ON timeline (repository, tag) WHERE until IS NULL;
CREATE INDEX timeline_object ON timeline (object);

CREATE TABLE referrers (
    repository INTEGER NOT NULL REFERENCES repositories,
    subject BLOB NOT NULL,
    object INTEGER NOT NULL REFERENCES objects,
    learned INTEGER NOT NULL,
    PRIMARY KEY (repository, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX referrers_object ON referrers (object);

CREATE TABLE usage (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    objects INTEGER NOT NULL CHECK (objects >= 0),
    bytes INTEGER NOT NULL CHECK (bytes >= 0)
) STRICT;
INSERT INTO usage VALUES (1, 0, 0);
";

/// `objects_verified`: the queue of the scrub. `verified` is set from here on whenever content is here.
const VERSION_2: &str = "
UPDATE objects SET verified = created WHERE state = 1 AND verified IS NULL;
CREATE INDEX objects_verified ON objects (verified) WHERE state = 1;
";

/// `repositories_public`: the list of those that anybody may read, beside which there may be any number of others: a verdict "private"
/// is a row for each name that somebody asks for.
const VERSION_3: &str = "
CREATE INDEX repositories_public ON repositories (upstream, name) WHERE public = 1;
";

/// - `objects.idle`: the place in the queue of what is unused, which takes the place of `accessed` there: last use, or when it was looked at
///   and kept. `origin`: through which upstream the bytes came that are here; `origins` has the sums, changed in the transactions
///   that change states. `removed`: when an operator took the bytes away although something needed them.
/// - `revisions.unlinked`: since when no tag links to the revision and it waits for its end. `doomed`: objects that lost something that held
///   them. `rules`: pins (kind 0) and freezes (kind 1).
const VERSION_4: &str = "
CREATE TABLE origins (
    id INTEGER PRIMARY KEY,
    upstream TEXT NOT NULL UNIQUE,
    objects INTEGER NOT NULL CHECK (objects >= 0),
    bytes INTEGER NOT NULL CHECK (bytes >= 0)
) STRICT;
INSERT INTO origins (upstream, objects, bytes) SELECT DISTINCT upstream, 0, 0 FROM repositories;

DROP INDEX objects_lru;
ALTER TABLE objects ADD COLUMN idle INTEGER NOT NULL DEFAULT 0;
ALTER TABLE objects ADD COLUMN origin INTEGER REFERENCES origins;
ALTER TABLE objects ADD COLUMN removed INTEGER;
UPDATE objects SET idle = accessed, origin = CASE state WHEN 1 THEN
    (SELECT n.id FROM membership m JOIN repositories p ON p.id = m.repository
     JOIN origins n ON n.upstream = p.upstream
     WHERE m.object = objects.id ORDER BY m.proved DESC LIMIT 1) END;
CREATE INDEX objects_idle ON objects (idle) WHERE state = 1;
CREATE INDEX objects_origin ON objects (origin, idle) WHERE state = 1;
UPDATE origins SET (objects, bytes) = (SELECT count(*), coalesce(sum(o.size), 0) FROM objects o
    WHERE o.origin = origins.id AND o.state = 1);

ALTER TABLE revisions ADD COLUMN unlinked INTEGER;

CREATE TABLE doomed (
    object INTEGER PRIMARY KEY REFERENCES objects,
    since INTEGER NOT NULL
) STRICT;
CREATE INDEX doomed_since ON doomed (since, object);

CREATE TABLE rules (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind INTEGER NOT NULL,
    scope TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER,
    reason TEXT NOT NULL
) STRICT;
";

/// - `sets`: kind 0 a recording, 1 an import; `members` counts the rows of `set_members`, changed in the transactions that change those.
///   A member is a link to a revision as a tag's is; one without a tag has the empty one.
/// - `wanted`: what was asked for in vain; `kind` 0 a tag, 1 a revision, 2 a blob; `what` is the tag's text or the digest.
///   `usage.wanted` counts its rows.
/// - `switches`: upstreams that are switched off, the empty name for all of them.
const VERSION_5: &str = "
CREATE TABLE sets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER,
    kept INTEGER NOT NULL,
    members INTEGER NOT NULL CHECK (members >= 0),
    detail TEXT NOT NULL
) STRICT;

CREATE TABLE set_members (
    belongs INTEGER NOT NULL REFERENCES sets,
    repository INTEGER NOT NULL REFERENCES repositories,
    tag TEXT NOT NULL,
    object INTEGER NOT NULL REFERENCES objects,
    added INTEGER NOT NULL,
    PRIMARY KEY (belongs, repository, tag, object)
) STRICT, WITHOUT ROWID;
CREATE INDEX set_members_object ON set_members (object, repository);
CREATE INDEX set_members_repository ON set_members (repository);

CREATE TABLE wanted (
    upstream TEXT NOT NULL,
    name TEXT NOT NULL,
    kind INTEGER NOT NULL,
    what BLOB NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    times INTEGER NOT NULL,
    unreachable INTEGER NOT NULL,
    PRIMARY KEY (upstream, name, kind, what)
) STRICT, WITHOUT ROWID;
CREATE INDEX wanted_last ON wanted (last);
ALTER TABLE usage ADD COLUMN wanted INTEGER NOT NULL DEFAULT 0 CHECK (wanted >= 0);

CREATE TABLE switches (
    upstream TEXT PRIMARY KEY,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// - `timeline.told`: when the move was by the clock of whoever saw it, where that was later than our now and `since` is cut to it; or when
///   the tag came back there, of which an import told and we saw nothing.
/// - `clock`: one row, of what was seen of our own clock; `since` when it went on without a step until `last`.
const VERSION_6: &str = "
ALTER TABLE timeline ADD COLUMN told INTEGER;

CREATE TABLE clock (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    since INTEGER NOT NULL,
    last INTEGER NOT NULL
) STRICT;
";

/// Brings the database up to the last of `migrations`, making the tables if it is new.
pub(super) fn prepare(
    connection: &mut Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<(), OpenError> {
    let failed = |error| sql_error(path, error);
    let supported = i64::try_from(migrations.len()).expect("a few steps");
    let id = pragma(connection, "application_id").map_err(failed)?;
    let found = pragma(connection, "user_version").map_err(failed)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    let new = id == 0 && found == 0 && tables == 0;
    if !new && id != APPLICATION_ID {
        let path = path.to_owned();
        return Err(OpenError::Foreign { path });
    }
    if found > supported {
        return Err(OpenError::NewerSchema { path: path.to_owned(), found, supported });
    }
    if !new && found < supported {
        let copy = copy_path(path, found);
        copy_to(connection, path, &copy)?;
        tracing::info!(from = found, to = supported, copy = %copy.display(), "migrating the metadata store");
    }
    let first = usize::try_from(found).map_err(|_negative| OpenError::Damaged {
        path: path.to_owned(),
        reason: format!("schema version {found}"),
    })?;
    for (step, sql) in migrations.iter().enumerate().skip(first) {
        migrate(connection, step + 1, sql).map_err(failed)?;
    }
    Ok(())
}

/// One step: tables, version and application id change together or not at all.
fn migrate(connection: &mut Connection, version: usize, sql: &str) -> rusqlite::Result<()> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)?;
    transaction.execute_batch(sql)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(
        None,
        "user_version",
        i64::try_from(version).expect("a few steps"),
    )?;
    transaction.commit()
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// Where the copy of a database of an older version is kept.
fn copy_path(path: &Path, version: i64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".v{version}.bak"));
    PathBuf::from(name)
}

/// Writes a durable copy; one of an earlier attempt is replaced only by a whole one.
fn copy_to(connection: &Connection, path: &Path, copy: &Path) -> Result<(), OpenError> {
    let unfinished = copy.with_extension("bak.partial");
    let at = |source| OpenError::Io { path: copy.to_owned(), source };
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    let text = unfinished.to_str().ok_or_else(|| {
        at(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of the data directory is not UTF-8",
        ))
    })?;
    create_private(&unfinished).map_err(at)?;
    if let Err(error) = connection.execute("VACUUM INTO ?1", [text]) {
        // Most likely for want of room: what was written of it must not take more.
        drop(fs::remove_file(&unfinished));
        return Err(sql_error(path, error));
    }
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(at)?;
    fs::rename(&unfinished, copy).map_err(at)?;
    let directory = copy.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at)
}

/// What a failing statement means for the opening of the database.
pub(super) fn sql_error(path: &Path, error: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode;
    let path = path.to_owned();
    let reason = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            OpenError::Damaged { path, reason }
        }
        _ => OpenError::Failed { path, reason },
    }
}
