//! The pictures that parts are found with (`input.align`), made of good parts before any of them is looked at.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Context, Event};
use crate::config::{Align, Config, Size};
use crate::data::{Category, Dataset};
use crate::error::{Error, Result};
use crate::frame::{Copies, Preparation, Preprocess, Template, learn, read_bytes, read_frame};
use crate::text::hex;

/// Good parts that a picture is the mean of, at most.
const PARTS: usize = 64;

/// The pictures of all classes, none where parts are not looked for; and the digest of the reference, where one is named.
///
/// # Errors
/// When images cannot be read, or good parts of a class are not found by each other; `Error::Interrupted`.
pub(super) fn templates(
    config: &Config,
    data: &Dataset,
    preparation: &Preparation,
    context: Context<'_>,
) -> Result<(Vec<Arc<Template>>, Option<String>)> {
    if config.input.align == Align::None {
        return Ok((Vec::new(), None));
    }
    let reference = config.input.align_reference.as_deref().map(Path::new);
    if let Some(path) = reference.filter(|_| data.categories.len() > 1) {
        let classes = data.categories.len();
        return Err(Error::Usage(format!(
            "input.align_reference = {path:?}: expected one class to train, there are {classes}; each lies as its good parts do"
        )));
    }
    let template = |(class, category): (usize, &Category)| {
        let (way, shape) = (preparation.of_class(class), preparation.shapes().of(class));
        let size = preparation.shapes().distinct()[shape].template;
        let size = size.ok_or_else(|| Error::Internal("align: a shape without a picture".into()))?;
        let step = category.train.len().div_ceil(PARTS).max(1);
        let paths: Vec<&PathBuf> = category.train.iter().step_by(step).collect();
        // Whoever reads all images names those that cannot be read.
        let copies = |path: &&PathBuf| {
            context.stop.check()?;
            Ok(copies(path, way, size).ok())
        };
        let parts = paths.par_iter().map(copies).collect::<Result<Vec<_>>>()?;
        let parts: Vec<Copies> = parts.into_iter().flatten().collect();
        let reference = reference.map(|path| copies_of_reference(path, way, size));
        let (template, found) = learn(&config.input, size, &parts, reference.transpose()?.as_ref())
            .map_err(|error| Error::Usage(format!("class {}: {error}", category.name)))?;
        context.observer.event(&Event::Aligned { class: &category.name, found, of: parts.len() });
        Ok(Arc::new(template))
    };
    let templates = data.categories.iter().enumerate().map(template).collect::<Result<_>>()?;
    let digest = reference.map(|path| Ok::<_, Error>(hex(&Sha256::digest(read_bytes(path)?))));
    Ok((templates, digest.transpose()?))
}

fn copies(path: &Path, way: &Preprocess, size: Size) -> Result<Copies> {
    Ok(Copies::of(&way.small(&read_frame(path)?, size)?))
}

fn copies_of_reference(path: &Path, way: &Preprocess, size: Size) -> Result<Copies> {
    copies(path, way, size).map_err(|error| Error::Usage(format!("input.align_reference = {path:?}: {error}")))
}
