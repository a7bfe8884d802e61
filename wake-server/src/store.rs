//! Keeps what outlives a restart: where each node stands, how wakes went, and the timeline of each node, in one file below the state
//! folder.
//!
//! Owns the file, and what a failing disk has not taken yet. Blocking: to be called from where blocking is allowed. Never decides
//! anything, and never ends the server: without a disk, everything goes on in memory, bounded, and is written once that works again.
//!
//! Each write is one transaction that is on the disk when it returns; a power cut leaves what was before it or what is after it (F1).
//! A file that cannot be understood is set aside as `wake.redb.corrupt`.

mod pending;
mod tables;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use redb::{Builder, Database, DatabaseError, StorageError};
use thiserror::Error;
use vmstation_protocol::{NodeName, NodeState, WakeDocument};

use self::pending::Pending;
use crate::presence::{Change, Saved};

/// Name of the file.
pub const FILE: &str = "wake.redb";
/// Wakes that are kept.
pub const WAKES: usize = 10_000;
/// For how long they are kept.
pub const WAKES_FOR: Duration = Duration::from_hours(90 * 24);
/// Transitions of one node that are kept.
pub const TRANSITIONS: usize = 1000;
/// For how long they are kept. The last one before is kept as well: it says how the time began.
pub const TRANSITIONS_FOR: Duration = Duration::from_hours(7 * 24);
/// Memory for pages of the file, bytes.
const CACHE: usize = 4 << 20;
/// What lies further ahead than this was written by a clock that was wrong.
const AHEAD: Duration = Duration::from_hours(24);

/// What is to be written at once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Nodes whose standing changed.
    pub nodes: Vec<Saved>,
    /// Nodes that are to be forgotten, with their timelines.
    pub forgotten: Vec<NodeName>,
    /// Changes of state, for the timelines.
    pub changes: Vec<Change>,
    /// Wakes that have ended.
    pub wakes: Vec<WakeDocument>,
}

/// A point of a node's timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Timestamp,
    /// What the node became.
    pub to: NodeState,
}

/// What was kept.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Where each node stood.
    pub nodes: Vec<Saved>,
    /// The last wake of each node that was ever woken.
    pub last_wakes: BTreeMap<NodeName, WakeDocument>,
    /// What was lost, in words.
    pub warnings: Vec<String>,
}

/// Why something could not be kept or read. What was to be kept is written with what comes next.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The folder.
    #[error("cannot make use of the state folder {folder}: create it, writable for this server")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has the file.
    #[error("{path} is in use: another wake server has this state folder")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file.
    #[error("cannot {what} {path}: see to space and permissions of its folder")]
    File {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
}

/// The file, opened when it is needed and again after each failure.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    disk: Box<dyn Disk>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    database: Option<Database>,
    pending: Pending,
    warnings: Vec<String>,
}

/// Where the file lies.
trait Disk: std::fmt::Debug + Send + Sync {
    fn open(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError>;
}

#[derive(Debug)]
struct FileSystem;

/// Why a file is not made use of.
enum Unusable {
    /// It is to be set aside, for this reason.
    Damaged(String),
    /// It cannot be got at.
    Unreachable(redb::Error),
}

impl Disk for FileSystem {
    fn open(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        builder.create(path)
    }
}

impl Store {
    /// Below this folder. Touches nothing yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self::on(folder, FileSystem)
    }

    fn on(folder: impl Into<PathBuf>, disk: impl Disk + 'static) -> Self {
        Self {
            folder: folder.into(),
            disk: Box::new(disk),
            inner: Mutex::default(),
        }
    }

    /// What was kept. Throws away what is too old and gives its space back: to be called once, at the start.
    ///
    /// # Errors
    /// The folder or the file cannot be got at. The server goes on without.
    pub fn load(&self, now: Timestamp) -> Result<Loaded, StoreError> {
        let mut inner = self.inner();
        let mut loaded = self.with(&mut inner, "read", |database| {
            tables::sweep(database, now)?;
            // Without the space back it is as good.
            if let Err(error) = database.compact() {
                tracing::warn!(%error, "the state file could not be made smaller");
            }
            tables::load(database)
        })?;
        loaded.warnings.extend(inner.warnings.iter().cloned());
        Ok(loaded)
    }

    /// Writes a batch, and what earlier failures left over.
    ///
    /// # Errors
    /// Nothing of it is on the disk; it is remembered for the next write, the newest of it, up to a bound.
    pub fn write(&self, batch: Batch, now: Timestamp) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.pending.add(batch);
        if inner.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut inner.pending);
        let written = self.with(&mut inner, "write", |database| tables::write(database, &pending, now));
        if written.is_err() {
            inner.pending = pending;
        }
        written
    }

    /// The newest wakes, the newest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn wakes(&self, limit: usize) -> Result<Vec<WakeDocument>, StoreError> {
        self.with(&mut self.inner(), "read", |database| {
            tables::wakes(database, limit, |_| true)
        })
    }

    /// The newest wakes of one node, the newest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn wakes_of(&self, node: &NodeName, limit: usize) -> Result<Vec<WakeDocument>, StoreError> {
        let is_of_it = |wake: &WakeDocument| wake.node == *node;
        self.with(&mut self.inner(), "read", |database| {
            tables::wakes(database, limit, is_of_it)
        })
    }

    /// What a node became and when, the oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn timeline(&self, node: &NodeName) -> Result<Vec<Transition>, StoreError> {
        self.with(&mut self.inner(), "read", |database| tables::timeline(database, node))
    }

    /// What each node became and when, the oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn timelines(&self) -> Result<BTreeMap<NodeName, Vec<Transition>>, StoreError> {
        self.with(&mut self.inner(), "read", |database| tables::timelines(database))
    }

    /// What was told since the start: files that were set aside, in words.
    pub fn warnings(&self) -> Vec<String> {
        self.inner().warnings.clone()
    }

    /// Acts on the file. After a failure it is opened anew: the library refuses every further use of one that failed.
    fn with<T>(
        &self,
        inner: &mut Inner,
        what: &'static str,
        act: impl FnOnce(&mut Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let mut database = match inner.database.take() {
            Some(database) => database,
            None => self.open(&mut inner.warnings)?,
        };
        let result = act(&mut database).map_err(|source| self.failure(what, source))?;
        inner.database = Some(database);
        Ok(result)
    }

    fn open(&self, warnings: &mut Vec<String>) -> Result<Database, StoreError> {
        fs::create_dir_all(&self.folder).map_err(|source| self.no_folder(source))?;
        match self.open_file() {
            Ok(database) => Ok(database),
            Err(Unusable::Unreachable(source)) => Err(self.failure("open", source)),
            Err(Unusable::Damaged(why)) => {
                let (path, aside) = (self.path(), self.folder.join(format!("{FILE}.corrupt")));
                fs::rename(&path, &aside).map_err(|source| self.no_folder(source))?;
                let (path, aside) = (path.display(), aside.display());
                tracing::error!(%path, %aside, why, "the state file was set aside");
                // One that happens again and again fills no memory.
                warnings.clear();
                warnings.push(format!(
                    "{path} could not be understood ({why}) and was set aside as {aside}: nodes are unknown until they report, and \
                     the history of wakes begins anew"
                ));
                self.open_file().map_err(|unusable| match unusable {
                    Unusable::Unreachable(source) => self.failure("open", source),
                    Unusable::Damaged(why) => self.failure("open", redb::Error::Corrupted(why)),
                })
            }
        }
    }

    fn open_file(&self) -> Result<Database, Unusable> {
        let mut builder = Builder::new();
        // A file that was damaged by others is then told from a good one when it is opened, not by a panic later.
        builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
        let database = self.disk.open(&builder, &self.path()).map_err(Unusable::from)?;
        match tables::found(&database) {
            Ok(tables::VERSION) => Ok(database),
            Ok(other) => Err(Unusable::Damaged(format!(
                "it has version {other}, this server knows {}",
                tables::VERSION
            ))),
            Err(error) => Err(Unusable::from(error)),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_folder(&self, source: io::Error) -> StoreError {
        let folder = self.folder.clone();
        StoreError::Folder { folder, source }
    }

    fn failure(&self, what: &'static str, source: redb::Error) -> StoreError {
        let path = self.path();
        match source {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::InUse { path },
            source => StoreError::File {
                what,
                path,
                source: Box::new(source),
            },
        }
    }
}

impl From<DatabaseError> for Unusable {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::UpgradeRequired(_) | DatabaseError::RepairAborted => Self::Damaged(error.to_string()),
            DatabaseError::Storage(StorageError::Io(error)) => Self::from(redb::Error::Io(error)),
            error => Self::from(redb::Error::from(error)),
        }
    }
}

impl From<redb::Error> for Unusable {
    fn from(error: redb::Error) -> Self {
        let is_damage = match &error {
            redb::Error::Corrupted(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => true,
            redb::Error::Io(error) => {
                matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
            }
            // The library's list grows; what it does not call damage is not set aside.
            _ => false,
        };
        if is_damage {
            Self::Damaged(error.to_string())
        } else {
            Self::Unreachable(error)
        }
    }
}

/// So long before a time; the beginning of time at the earliest.
fn before(time: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    time.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// So long after a time; the end of time at the latest.
fn after(time: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
