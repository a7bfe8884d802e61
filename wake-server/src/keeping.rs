//! Hands what is to outlive a restart to a thread of its own: a disk may be slow, and nobody has to wait for it who does not want to.
//!
//! Owns the thread, which ends with it once everything is written. Never decides what is kept.

use std::{
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use tokio::sync::oneshot;

use crate::{
    clock::wall_clock,
    store::{Batch, Store},
};

/// Whoever waits for a batch.
type Tell = oneshot::Sender<()>;

/// The thread.
#[derive(Debug)]
pub struct Keeping {
    batches: Option<mpsc::Sender<(Batch, Tell)>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeping {
    /// Starts it.
    pub fn new(store: Arc<Store>) -> Self {
        let (batches, handed) = mpsc::channel();
        Self {
            batches: Some(batches),
            thread: Some(thread::spawn(move || keep(&store, &handed))),
        }
    }

    /// Keeps this, in the order of the calls. Ends, for whoever wants to wait for it, once this is on the disk; or once the disk has not
    /// taken it, which the log says.
    pub fn keep(&self, batch: Batch) -> impl Future<Output = ()> + Send + use<> {
        let (tell, told) = oneshot::channel();
        if let Some(batches) = &self.batches {
            // The thread ends only after this.
            let _handed = batches.send((batch, tell));
        }
        async move {
            // It is told, or the thread is gone and nothing more comes.
            let _told = told.await;
        }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // It has told of its own end by then.
            let _ended = thread.join();
        }
    }
}

fn keep(store: &Store, handed: &mpsc::Receiver<(Batch, Tell)>) {
    let mut fails = false;
    while let Ok((mut batch, tell)) = handed.recv() {
        let mut waiting = vec![tell];
        // What has gathered meanwhile goes in the same transaction.
        while let Ok((more, tell)) = handed.try_recv() {
            waiting.push(tell);
            batch.nodes.extend(more.nodes);
            batch.forgotten.extend(more.forgotten);
            batch.changes.extend(more.changes);
            batch.wakes.extend(more.wakes);
        }
        match store.write(batch, wall_clock()) {
            Ok(()) if fails => {
                fails = false;
                tracing::info!("the state is written again");
            }
            Ok(()) => {}
            Err(error) if !fails => {
                fails = true;
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the state is not written; it goes on in memory"
                );
            }
            Err(_as_before) => {}
        }
        for tell in waiting {
            // Most do not wait.
            let _heard = tell.send(());
        }
    }
}
