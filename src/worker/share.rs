//! Workers that several elements use: one per key, for as long as somebody holds it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use super::{Worker, lock};
use crate::error::{Error, Result};

/// Everybody's workers. Entries of workers that are gone are removed when the next comes.
static SHARED: LazyLock<Mutex<HashMap<SharedKey, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// What users of one worker agree in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SharedKey {
    /// A name that users give the worker: those with one never share with those without.
    pub id: Option<String>,
    /// Digest of the model.
    pub digest: String,
    /// Where it runs, and in which precision.
    pub device: String,
    /// Frames per batch, at most.
    pub batch_size: usize,
    /// How long a batch that is not full waits after its first frame.
    pub batch_timeout: Duration,
}

/// A worker that others may use as well. It never becomes another worker or gets another model.
pub struct Shared {
    worker: Worker,
}

impl Shared {
    /// The worker under `key`, or the one that `start` makes. Of two that start one at the same time, one wins and both get
    /// that.
    ///
    /// # Errors
    /// Those of `start`; when the model runs under the same id on another device or with other batches.
    pub fn join(key: &SharedKey, start: impl FnOnce() -> Result<Worker>) -> Result<Arc<Self>> {
        if let Some(found) = find(&lock(&SHARED), key)? {
            return Ok(found);
        }
        let fresh = Arc::new(Self { worker: start()? });
        let found = {
            let mut all = lock(&SHARED);
            all.retain(|_, shared| shared.strong_count() > 0);
            let found = find(&all, key);
            if matches!(found, Ok(None)) {
                all.insert(key.clone(), Arc::downgrade(&fresh));
            }
            found
        };
        Ok(found?.unwrap_or(fresh)) // one that lost ends here, outside of the lock
    }

    /// How many hold it.
    pub fn users(this: &Arc<Self>) -> usize {
        Arc::strong_count(this)
    }

    /// The worker.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }
}

fn find(all: &HashMap<SharedKey, Weak<Shared>>, key: &SharedKey) -> Result<Option<Arc<Shared>>> {
    if let Some(found) = all.get(key).and_then(Weak::upgrade) {
        return Ok(Some(found));
    }
    let Some(id) = &key.id else { return Ok(None) };
    let same = |other: &&SharedKey| other.id == key.id && other.digest == key.digest && all[*other].strong_count() > 0;
    let Some(other) = all.keys().find(same) else { return Ok(None) };
    let milliseconds = |key: &SharedKey| key.batch_timeout.as_secs_f64() * 1e3;
    let (what, there, here) = if other.device != key.device {
        ("device and precision", other.device.clone(), key.device.clone())
    } else if other.batch_size != key.batch_size {
        ("batch-size", other.batch_size.to_string(), key.batch_size.to_string())
    } else {
        ("batch-timeout", format!("{} ms", milliseconds(other)), format!("{} ms", milliseconds(key)))
    };
    Err(Error::Usage(format!(
        "model-instance-id = {id:?}: its worker has {what} {there}, this element asks for {here}; expected the same, or another id"
    )))
}
