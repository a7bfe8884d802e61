//! A disk in memory that fills up, turns read-only and loses its power.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{Builder, Database, DatabaseError, StorageBackend};

use crate::store::Disk;

/// A disk that says when it was cut off, and of what was not synced by then keeps what it pleases.
#[derive(Clone, Default)]
pub(super) struct Platter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    was_cut: AtomicBool,
}

#[derive(Clone, Default)]
pub(super) struct State {
    /// As a program sees it.
    pub(super) seen: Vec<u8>,
    /// As it was at the last sync.
    durable: Vec<u8>,
    since: Vec<Operation>,
    refuses: Option<io::ErrorKind>,
    /// Operations until the power goes.
    left: Option<usize>,
}

#[derive(Clone)]
enum Operation {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Operation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length, 0),
            Self::Write(offset, data) => {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
        }
    }
}

impl Platter {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub(super) fn refuse(&self, kind: Option<io::ErrorKind>) {
        self.state().refuses = kind;
    }

    pub(super) fn was_cut(&self) -> bool {
        self.0.was_cut.load(Ordering::Relaxed)
    }

    pub(super) fn cut_after(&self, operations: usize) {
        self.state().left = Some(operations);
    }

    /// After the cut: what was synced, and any of the rest, the last of it torn.
    pub(super) fn after_the_cut(&self, kept: &[bool], torn: usize) -> Self {
        let state = self.state();
        let mut bytes = state.durable.clone();
        for (operation, kept) in state.since.iter().zip(kept.iter().cycle()) {
            if *kept {
                operation.apply(&mut bytes);
            }
        }
        if let Some(Operation::Write(offset, data)) = state.since.last() {
            Operation::Write(*offset, data[..torn.min(data.len())].to_vec()).apply(&mut bytes);
        }
        let after = Self::default();
        *after.state() = State {
            seen: bytes.clone(),
            durable: bytes,
            ..State::default()
        };
        after
    }

    fn operate(&self, operation: Option<Operation>) -> io::Result<()> {
        let mut state = self.state();
        if let Some(kind) = state.refuses {
            return Err(kind.into());
        }
        if state.left == Some(0) {
            self.0.was_cut.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.left = state.left.map(|left| left - 1);
        match operation {
            Some(operation) => {
                operation.apply(&mut state.seen);
                state.since.push(operation);
            }
            None => {
                state.durable = state.seen.clone();
                state.since.clear();
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Platter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Platter")
    }
}

impl Disk for Platter {
    fn open(&self, builder: &Builder, _: &Path) -> Result<Database, DatabaseError> {
        builder.create_with_backend(self.clone())
    }
}

impl StorageBackend for Platter {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let state = self.state();
        let bytes = state.seen.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(Some(Operation::Length(usize::try_from(len).unwrap())))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate(Some(Operation::Write(usize::try_from(offset).unwrap(), data.to_vec())))
    }
}
