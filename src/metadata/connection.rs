//! Connections and their settings.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::OpenError;
use super::schema::{self, MIGRATIONS, sql_error};

/// What every SQLite database begins with (SQLite file format, "Magic header string").
pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// How long a statement waits for another program that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Page cache of a connection; beyond it the kernel's page cache serves.
const CACHE_KIB: i64 = 2 * 1024;
/// Pages in the write-ahead log (of 4 KiB) from which the writer moves them into the database.
const CHECKPOINT_PAGES: i64 = 2000;
/// The write-ahead log is cut to this after a checkpoint.
const JOURNAL_BYTES_MAX: i64 = 64 * 1024 * 1024;
/// Prepared statements kept per connection; more than the room has.
const STATEMENTS_MAX: usize = 192;
/// The rows tell who may have what, so the file is the owner's alone, whatever the directory lets through. SQLite gives the files
/// beside it the same mode.
const FILE_MODE: u32 = 0o600;

/// Opens the database for writing, makes or migrates its tables.
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    open_writer_with(path, &MIGRATIONS)
}

/// The same with the steps of another time.
pub(super) fn open_writer_with(path: &Path, migrations: &[&str]) -> Result<Connection, OpenError> {
    check_file(path)?;
    let failed = |error| sql_error(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    create_private(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    schema::prepare(&mut connection, path, migrations)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    if mode != "wal" {
        return Err(OpenError::Failed {
            path: path.to_owned(),
            reason: format!("the file system cannot hold a write-ahead log (journal mode {mode})"),
        });
    }
    configure(&connection).map_err(failed)?;
    Ok(connection)
}

/// Opens the database for reading; the writer must have opened it before.
pub(super) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let failed = |error| sql_error(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    configure(&connection).map_err(failed)?;
    connection.pragma_update(None, "query_only", true).map_err(failed)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    // In WAL mode NORMAL never corrupts and loses nothing on kill -9; a loss of power may take back the last commits, which a
    // cache survives. Groups with a tag move are committed with FULL: see `writer`.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // Never mapped: a page that the device cannot give would kill the process (SIGBUS), where a read only fails.
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_BYTES_MAX)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Plans never depend on the values that are bound. Otherwise a statement over a table with partial indexes is parsed and planned
    // again for each new value, which is half of what a look-up costs.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(())
}

/// Makes an empty file for the owner alone if there is none; an empty file is an empty database.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Refuses files that are no database, with the operating system's own words where it refuses us. Done before SQLite opens the
/// file, because closing any descriptor of it would drop SQLite's locks.
fn check_file(path: &Path) -> Result<(), OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let file: File = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
    };
    let mut start = Vec::with_capacity(MAGIC.len());
    file.take(u64::try_from(MAGIC.len()).expect("a small constant"))
        .read_to_end(&mut start)
        .map_err(io_error)?;
    // An empty file is what a start leaves that was cut short before its first transaction.
    if start.is_empty() || start == MAGIC {
        Ok(())
    } else {
        Err(OpenError::Damaged {
            path: path.to_owned(),
            reason: "it does not begin like one".to_owned(),
        })
    }
}
