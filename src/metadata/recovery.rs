//! Opening a database that may be damaged.
//!
//! What must hold: what is certainly damaged is moved aside whole and never written again, and a new database begins in its place;
//! what may only be somebody else's, or newer, or not to be opened for another reason, is left as it is. The look is cheap: the
//! header, the schema, a row of each table; a full check would read everything before the first request. It is made only if damage
//! was met while the database was in use, which a mark beside it tells the next opening.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::connection;
use super::error::OpenError;
use super::model::Usage;
use super::query;
use super::rule_rows;
use super::rules::Rules;
use super::schema::sql_error;
use crate::clock::Timestamp;

/// What every store of ours has.
const TABLES: [&str; 17] = [
    "repositories",
    "objects",
    "edges",
    "membership",
    "revisions",
    "tags",
    "timeline",
    "referrers",
    "usage",
    "origins",
    "doomed",
    "rules",
    "sets",
    "set_members",
    "wanted",
    "switches",
    "clock",
];
/// Of a database that was moved aside; followed by milliseconds since 1970.
const DAMAGED_SUFFIX: &str = ".damaged-";
/// Of the mark that a database is to be read whole when it is opened next.
const SUSPECT_SUFFIX: &str = ".suspect";
/// What belongs to a database beside its file.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];
/// The part of the header that is looked at (SQLite file format, "The Database Header").
const HEADER_BYTES: usize = 32;

/// An open database, and what of it is kept in memory.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) connection: Connection,
    pub(super) usage: Usage,
    pub(super) rules: Rules,
}

/// Opens the database for writing, and looks into it.
pub(super) fn open(path: &Path) -> Result<Found, OpenError> {
    check_length(path)?;
    let connection = connection::open_writer(path)?;
    let (usage, rules) = probe(&connection).map_err(|error| match error.sqlite_error_code() {
        // It is ours, by its application id; a table or the one row of the sums is missing, or does not hold what it must.
        None | Some(rusqlite::ErrorCode::Unknown) => {
            OpenError::Damaged { path: path.to_owned(), reason: error.to_string() }
        }
        _ => sql_error(path, error),
    })?;
    check_suspect(path, &connection)?;
    Ok(Found { connection, usage, rules })
}

/// Damage was met in a database that is in use: the next opening reads it whole. Best effort; damage that is met again is told again.
pub(super) fn suspect(path: &Path) {
    if let Err(error) = File::create(companion(path, SUSPECT_SUFFIX)) {
        tracing::warn!(%error, "the next start cannot be told to look for damage in the metadata store");
    }
}

/// Reads all of a database in which damage was met.
fn check_suspect(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let mark = companion(path, SUSPECT_SUFFIX);
    if !mark.exists() {
        return Ok(());
    }
    tracing::warn!("damage was met in the metadata store; all of it is read before the start");
    let found: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| sql_error(path, error))?;
    if found != "ok" {
        // It comes in several lines, and errors are one.
        let reason = found.replace('\n', " ");
        return Err(OpenError::Damaged { path: path.to_owned(), reason });
    }
    fs::remove_file(&mark).map_err(|source| OpenError::Io { path: mark, source })
}

fn probe(connection: &Connection) -> rusqlite::Result<(Usage, Rules)> {
    for table in TABLES {
        let sql = format!("SELECT 1 FROM {table} LIMIT 1");
        connection.query_row(&sql, [], |_row| Ok(())).optional()?;
    }
    Ok((query::usage(connection)?, rule_rows::image(connection, 0)?))
}

/// A file with fewer pages than its header says was cut, unless the rest of it is still in the log.
fn check_length(path: &Path) -> Result<(), OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
    };
    let length = file.metadata().map_err(io_error)?.len();
    let mut header = [0; HEADER_BYTES];
    match file.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        other => other.map_err(io_error)?,
    }
    if !header.starts_with(connection::MAGIC) {
        // No database at all, which the opening says better.
        return Ok(());
    }
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    let log = fs::metadata(companion(path, COMPANIONS[0])).map_or(0, |log| log.len());
    if log == 0 && length < page.saturating_mul(u64::from(pages)) {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            reason: format!("it has {length} bytes instead of {pages} pages of {page}"),
        });
    }
    Ok(())
}

fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Gives a damaged database and what belongs to it another name, the database last: as long as it is there, the next start finds it
/// damaged again and goes on. Nobody has it open.
pub(super) fn move_aside(path: &Path, now: Timestamp) -> Result<PathBuf, OpenError> {
    let at = |source| OpenError::Io { path: path.to_owned(), source };
    let mut number = now.as_millis();
    let mut aside = companion(path, &format!("{DAMAGED_SUFFIX}{number}"));
    while aside.exists() {
        number = number.saturating_add(1);
        aside = companion(path, &format!("{DAMAGED_SUFFIX}{number}"));
    }
    for suffix in COMPANIONS {
        match fs::rename(companion(path, suffix), companion(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
            _ => {}
        }
    }
    fs::rename(path, &aside).map_err(at)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at)?;
    Ok(aside)
}

/// The one loud line.
pub(super) fn say_lost(aside: &Path, reason: &str) {
    tracing::error!(
        kept = %aside.display(),
        reason,
        "the metadata store was damaged and a new one is begun: tags, permissions and timelines are learned anew from the upstreams, \
         stored content is read and adopted again (roadstead reindex does it at once); delete the damaged file when you no longer \
         need it"
    );
}
