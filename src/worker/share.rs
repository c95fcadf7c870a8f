//! Workers that several elements use: one per key, for as long as somebody holds it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use super::Worker;
use crate::error::{Error, Result};

/// Everybody's workers. Entries of workers that are gone are removed when the next comes.
static SHARED: LazyLock<Mutex<HashMap<String, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// A worker under a key. All who hold it see the same worker, also after [`Shared::swap`].
pub struct Shared {
    key: String,
    worker: Mutex<Arc<Worker>>,
}

/// The key of a worker that is shared by name, as `model-instance-id` names it.
pub fn instance_key(id: &str) -> String {
    format!("id {id}")
}

impl Shared {
    /// The worker under `key`, or the one that `start` makes. Of two that start one at the same time, one wins and both get
    /// that.
    ///
    /// # Errors
    /// Those of `start`; when the worker under `key` runs another model than `digest`.
    pub fn join(key: &str, digest: &str, start: impl FnOnce() -> Result<Worker>) -> Result<Arc<Self>> {
        let found = find(&lock(&SHARED), key); // the lock ends here: what follows may end a worker
        if let Some(found) = found {
            return found.with(digest);
        }
        let worker = Arc::new(start()?);
        let fresh = Arc::new(Self { key: key.to_owned(), worker: Mutex::new(worker) });
        let found = {
            let mut all = lock(&SHARED);
            all.retain(|_, shared| shared.strong_count() > 0);
            let found = find(&all, key);
            if found.is_none() {
                all.insert(key.to_owned(), Arc::downgrade(&fresh));
            }
            found
        };
        // A worker that lost is dropped here, outside of the lock.
        found.unwrap_or(fresh).with(digest)
    }

    fn with(self: Arc<Self>, digest: &str) -> Result<Arc<Self>> {
        let worker = self.worker();
        if worker.digest() == digest {
            return Ok(self);
        }
        Err(Error::Usage(format!(
            "model-instance-id = {:?}: is in use with another model ({}); expected the same model ({}) or another id",
            self.key,
            short(worker.digest()),
            short(digest)
        )))
    }

    /// How many hold it.
    pub fn users(self: &Arc<Self>) -> usize {
        Arc::strong_count(self)
    }

    /// The worker of this moment.
    pub fn worker(&self) -> Arc<Worker> {
        lock(&self.worker).clone()
    }

    /// Another worker from now on; the old one answers what it has accepted.
    pub fn swap(&self, worker: Arc<Worker>) -> Arc<Worker> {
        std::mem::replace(&mut *lock(&self.worker), worker)
    }
}

fn find(all: &HashMap<String, Weak<Shared>>, key: &str) -> Option<Arc<Shared>> {
    all.get(key).and_then(Weak::upgrade)
}

/// The first digits of a digest: enough to tell models apart by eye.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every statement, so a panic elsewhere does not make it wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
