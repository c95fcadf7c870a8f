//! Training state on disk: everything that a resumed run needs to go on as if it had never stopped.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use super::optimizer::Optimizer;
use crate::error::{Error, Result};

/// Name of the metadata entry that says which run a checkpoint belongs to.
const RUN: &str = "diad_run";
const STEP: &str = "diad_step";

/// Writes the state after `step` steps; `run` identifies configuration and data.
pub(super) fn save(path: &Path, optimizer: &Optimizer, step: usize, run: &str) -> Result<()> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for slot in &optimizer.slots {
        let name = &slot.parameter.name;
        for (part, values) in
            [("value", &slot.value), ("momentum", &slot.momentum), ("square", &slot.square), ("average", &slot.average)]
        {
            tensors.insert(format!("{part}.{name}"), Tensor::from_slice(values, values.len(), &Device::Cpu)?);
        }
    }
    let metadata = HashMap::from([(RUN.to_owned(), run.to_owned()), (STEP.to_owned(), step.to_string())]);
    let bytes =
        safetensors::serialize(&tensors, Some(metadata)).map_err(|e| Error::Internal(format!("checkpoint: {e}")))?;
    crate::files::write_atomic(path, &bytes)
}

/// Restores a state; returns the number of steps done.
pub(super) fn load(path: &Path, optimizer: &mut Optimizer, run: &str) -> Result<usize> {
    let damaged = |reason: String| Error::model(path, format!("not a checkpoint that can be resumed: {reason}"));
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the checkpoint", e))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    match metadata.get(RUN) {
        Some(found) if found == run => {}
        Some(_) => {
            return Err(Error::Usage(format!(
                "{}: the checkpoint is of another configuration, seed or set of images; train without --resume to start \
                 anew",
                path.display()
            )));
        }
        None => return Err(damaged(format!("no {RUN} entry"))),
    }
    let step = metadata.get(STEP).and_then(|s| s.parse().ok()).ok_or_else(|| damaged(format!("no {STEP} entry")))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    for slot in &mut optimizer.slots {
        let name = &slot.parameter.name;
        let n = slot.value.len();
        let get = |part: &str| -> Result<Vec<f32>> {
            let view = tensors.tensor(&format!("{part}.{name}")).map_err(|e| damaged(e.to_string()))?;
            let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if values.len() != n || !values.iter().all(|v| v.is_finite()) {
                return Err(damaged(format!("{part}.{name} has {} values, expected {n} finite ones", values.len())));
            }
            Ok(values)
        };
        (slot.value, slot.momentum) = (get("value")?, get("momentum")?);
        (slot.square, slot.average) = (get("square")?, get("average")?);
        slot.show()?;
    }
    Ok(step)
}
