//! The picture that parts are found with, from good parts.

use rayon::prelude::*;

use super::{Copies, Pose, Template};
use crate::config::{InputConfig, Size};
use crate::error::{Error, Result};

/// Makes the picture that parts are compared with: the mean of some good parts, laid over each other. `reference` is one that lies
/// as it should; without, that of the parts which the others are most like shows the turn, and the parts' median the place. All
/// copies have one size. Returns how many of the parts were found as well.
///
/// # Errors
/// When there is no part, copies differ in size, or none is like the others.
pub(crate) fn learn(
    input: &InputConfig,
    size: Size,
    parts: &[Copies],
    reference: Option<&Copies>,
) -> Result<(Template, usize)> {
    let lost = |why: &str| Error::Usage(format!("input.align: {why}"));
    let template = |copies: &Copies| Template::new(input, size, copies.0[0].values.clone());
    let found = |template: &Template| -> Vec<Option<Pose>> {
        let locate = |part: &Copies| {
            let pose = template.locate(part, [1.0; 2]);
            template.is_found(&pose, [1.0; 2]).then_some(pose)
        };
        parts.par_iter().map(locate).collect()
    };
    let score = |poses: &[Option<Pose>]| poses.iter().flatten().map(|pose| pose.score).sum::<f64>();
    let mut best = match reference {
        Some(reference) => template(reference)?,
        None => {
            const TRIED: usize = 3;
            let step = parts.len().div_ceil(TRIED).max(1);
            let tried = parts.iter().step_by(step).map(template).collect::<Result<Vec<_>>>()?;
            let scored = tried.into_iter().map(|template| (score(&found(&template)), template));
            let best = scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, template)| template);
            best.ok_or_else(|| lost("there is no picture of a good part"))?
        }
    };
    for round in 0..2 {
        let poses = found(&best);
        let near: Vec<(&Copies, Pose)> =
            parts.iter().zip(&poses).filter_map(|(part, pose)| Some((part, (*pose)?))).collect();
        if near.len() < 2 {
            return Err(lost(
                "good parts are not like each other, whatever their pose (input.min_match, input.max_shift)",
            ));
        }
        let middle = |f: &dyn Fn(&Pose) -> f64| {
            let mut values: Vec<f64> = near.iter().map(|(_, pose)| f(pose)).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        // Where the parts lie on average is where the picture has its part; all turns have no middle.
        let free = reference.is_none() && round == 0;
        let turn = if free && input.max_turn <= 45.0 { middle(&|pose| pose.turn) } else { 0.0 };
        let [dx, dy] = if free { [middle(&|pose| pose.dx), middle(&|pose| pose.dy)] } else { [0.0; 2] };
        let centre = Pose { dx, dy, turn, score: 1.0 };
        best = Template::new(input, size, mean(&near, size, &centre, &best))?;
    }
    let count = found(&best).iter().flatten().count();
    Ok((best, count))
}

/// The mean of parts that lie as `centre` does against the template by which their poses were found.
fn mean(parts: &[(&Copies, Pose)], size: Size, centre: &Pose, known: &Template) -> Vec<f32> {
    let middle = size.sides().map(|side| side as f64 / 2.0);
    let value = |t: usize| {
        let (x, y) = ((t % size.width) as f64 + 0.5 - middle[0], (t / size.width) as f64 + 0.5 - middle[1]);
        let [x, y] = centre.origin(x, y);
        let seen = parts.iter().filter_map(|(part, pose)| {
            let [x, y] = pose.place(x, y);
            part.0[0].sample(x + middle[0], y + middle[1]).map(|[value, ..]| value)
        });
        let (sum, count) = seen.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
        if count > 0 { (sum / count as f64) as f32 } else { known.values()[t] }
    };
    (0..size.area()).into_par_iter().map(value).collect()
}
