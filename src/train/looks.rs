//! How the frames of a run are looked at, settled before the first of them is: the shape of each class, what counts of it, and the
//! pictures that parts are found with.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Context, align};
use crate::bundle::MAX_SHAPES;
use crate::config::{Align, Config, Decision, Fit, Shape, Shapes, Size};
use crate::data::{self, Category, Dataset};
use crate::detector::Mask;
use crate::error::{Error, Result};
use crate::frame::{Frame, Geometry, Preparation, Preprocess, decode_frame, read_bytes, read_size};

/// What is settled.
pub(super) struct Looks {
    /// From frames to inputs.
    pub(super) preparation: Preparation,
    /// What counts, by the number of the shape, where not all does.
    pub(super) masks: Option<Vec<Mask>>,
    /// Of the files that were read for it.
    pub(super) digests: Vec<String>,
}

impl Looks {
    /// What a configuration asks for.
    ///
    /// # Errors
    /// When no image of a class tells its size, a shape breaks a rule, or a file that is named cannot be used; `Error::Interrupted`.
    pub(super) fn of(config: &Config, data: &Dataset, context: Context<'_>) -> Result<Self> {
        let shapes = shapes(config, data, context)?;
        let image = mask_image(config)?;
        let masks = |preparation: &Preparation| -> Result<Option<Vec<Mask>>> {
            let Some((image, _)) = &image else { return Ok(None) };
            let wrong = |error| {
                Error::Usage(format!("input.mask = {:?}: {error}", config.input.mask.as_deref().unwrap_or_default()))
            };
            Mask::in_shapes(image, preparation).map(Some).map_err(wrong)
        };
        let mut preparation = Preparation::new(&config.input, shapes.clone());
        let mut counted = masks(&preparation)?;
        if let Some(cropped) = counted.as_ref().and_then(|masks| cropped(config, &shapes, masks)) {
            preparation = Preparation::new(&config.input, cropped);
            counted = masks(&preparation)?;
        }
        let (templates, reference) = align::templates(config, data, &preparation, context)?;
        let digests = image.into_iter().map(|(_, digest)| digest).chain(reference).collect();
        Ok(Self { preparation: preparation.with_templates(templates), masks: counted, digests })
    }
}

/// The shapes without the windows at their edges that a mask covers, which cost nothing then; none where nothing can be left out.
fn cropped(config: &Config, shapes: &Shapes, masks: &[Mask]) -> Option<Shapes> {
    if config.input.fit != Fit::Stretch || config.input.align != Align::None {
        return None; // there the mask lies elsewhere in each frame
    }
    let left = |(shape, mask): (&Shape, &Mask)| {
        let left = shape.within(mask.bounds(), config.input.roi);
        if config.in_shape(&left).check("mask").is_ok() { left } else { *shape }
    };
    let left: Vec<Shape> = shapes.distinct().iter().zip(masks).map(left).collect();
    let changed = left != shapes.distinct();
    changed.then(|| Shapes::new((0..shapes.classes()).map(|class| left[shapes.of(class)]).collect()))
}

/// The shape of each class: with `input.scale` that of its median frame, of which only the sizes are read.
fn shapes(config: &Config, data: &Dataset, context: Context<'_>) -> Result<Shapes> {
    if !config.has_own_shapes() {
        return Ok(Shapes::one(config, data.categories.len()));
    }
    let whole = Preprocess::of(&config.input);
    let shape = |category: &Category| {
        context.stop.check()?;
        let shown = |path: &PathBuf| {
            let Size { width, height } = read_size(path).ok()?; // whoever reads the image says what is wrong with it
            whole.geometry(width, height).ok().map(|Geometry { shown: [_, _, width, height], .. }| [width, height])
        };
        let sizes: Vec<[f64; 2]> = category.train.par_iter().filter_map(shown).collect();
        if sizes.is_empty() {
            return Err(Error::data(&category.root, "no image has a size that can be read"));
        }
        let shape = config.shape_of(&sizes);
        let scale = config.input.scale.map(|scale| format!(", input.scale = {scale}")).unwrap_or_default();
        config.in_shape(&shape).check(&format!("class {}{scale}", category.name))?;
        Ok(shape)
    };
    let shapes = Shapes::new(data.categories.iter().map(shape).collect::<Result<_>>()?);
    if shapes.distinct().len() > MAX_SHAPES {
        let got = shapes.distinct().len();
        return Err(Error::Usage(format!(
            "the classes have {got} shapes (input.scale, input.align): expected at most {MAX_SHAPES}"
        )));
    }
    if shapes.distinct().len() > 1 && config.detection.decision == Decision::PixelMinimum {
        return Err(Error::Usage(format!(
            "detection.decision = {}: expected {} where classes have several shapes (input.scale, input.align)",
            Decision::PixelMinimum,
            Decision::Class
        )));
    }
    Ok(shapes)
}

/// The image that `input.mask` names, with the digest of its file.
fn mask_image(config: &Config) -> Result<Option<(Frame, String)>> {
    let Some(path) = &config.input.mask else { return Ok(None) };
    let file = Path::new(path);
    let bytes = read_bytes(file)?;
    let image = decode_frame(&bytes, file).map_err(|error| Error::Usage(format!("input.mask = {path:?}: {error}")))?;
    Ok(Some((image, data::data_sha256([(file, Sha256::digest(&bytes).into())]))))
}
