//! `diad sample`

use std::path::{Path, PathBuf};

use super::Context;
use super::args::SampleArgs;
use super::demo::sheet;
use super::images::{self, prepare};
use crate::config::Size;
use crate::data::{Dataset, ReadAhead};
use crate::detector::{Branch, ClassChoice, Network, Sampling};
use crate::error::{Error, Result};
use crate::files::{check_writable, write_atomic};
use crate::frame::Frame;
use crate::report::png;

/// Good images whose patches are used to show features, at most.
const PATCH_IMAGES: usize = 40;
/// Small pictures are enlarged to at least this side, for eyes.
const SIDE: usize = 128;

pub(super) fn run(context: &Context, args: &SampleArgs) -> Result<()> {
    check_writable(&args.out)?;
    if !(0.0..=1.0).contains(&args.eta) {
        return Err(Error::Usage(format!("--eta {}: expected a number from 0 to 1", args.eta)));
    }
    if !(0.0..=20.0).contains(&args.guidance) {
        return Err(Error::Usage(format!("--guidance {}: expected a number from 0 to 20", args.guidance)));
    }
    let detector = images::open_model(&args.model, &args.on)?;
    let network = detector.network();
    let class = args.class.as_deref().map(|name| ClassChoice::parse(name, detector.card())).transpose()?;
    let class = match class {
        Some(ClassChoice::Known(class)) => Some(class),
        Some(ClassChoice::Auto) => {
            return Err(Error::Usage("--class auto: expected a class; without --class it is a part in general".into()));
        }
        None => None,
    };
    // A part in general has the shape of the first class.
    let looked = class.unwrap_or(0);
    let branch = network.branch(looked);
    let like = args.like.as_deref();
    let like = like.map(|path| values(branch, &prepare(context, network, looked)(path)?.frame)).transpose()?;
    if network.config().denoiser.guide > 0 && like.is_none() {
        return Err(Error::Usage("this model is guided by an image: give one to go by with --like".into()));
    }
    let shows_pictures = branch.extractor().picture(&vec![0.0; branch.config().tokens() * branch.config().dim()]);
    let patches = match (shows_pictures, &args.data) {
        (Some(_), _) => None,
        (None, Some(root)) => Some(Patches::read(context, network, root, args.class.as_deref(), looked)?),
        (None, None) => {
            return Err(Error::Usage(
                "this model is one of features, which are shown by patches of good images: give some with --data"
                    .into(),
            ));
        }
    };
    let count = usize::from(args.count);
    let mut task = context.task("sample", count);
    let mut pictures = Vec::with_capacity(count);
    let numbers: Vec<u64> = (0..count as u64).collect();
    for group in numbers.chunks(rayon::current_num_threads()) {
        context.stop.check()?;
        let one = |&i: &u64| {
            let (steps, seed, like) = (usize::from(args.steps), args.seed.wrapping_add(i), like.as_deref());
            let (eta, guidance) = (args.eta, args.guidance);
            let values = branch.reconstructor().sample(&Sampling { class, like, steps, eta, guidance, seed })?;
            match &patches {
                Some(patches) => patches.picture(&values),
                None => branch.extractor().picture(&values).ok_or_else(|| Error::Internal("sample: no picture".into())),
            }
        };
        let drawn = network.device().spread(group, |some| some.iter().map(one).collect());
        pictures.extend(drawn.into_iter().collect::<Result<Vec<Frame>>>()?);
        task.set(pictures.len(), "");
    }
    task.finish();
    let enlarged = pictures.iter().map(enlarged).collect::<Result<Vec<_>>>()?;
    write_atomic(&args.out, &png(&sheet::grid(&enlarged)?)?)?;
    context.console.print(format_args!("{}", args.out.display()))
}

/// Values `[T, D]` of one prepared frame.
fn values(branch: &Branch, frame: &Frame) -> Result<Vec<f32>> {
    Ok(branch.extractor().extract(&[frame])?.flatten_all()?.to_vec1()?)
}

/// The picture at a whole multiple of its size that is large enough for eyes.
fn enlarged(picture: &Frame) -> Result<Frame> {
    let factor = SIDE.div_ceil(picture.width());
    let (width, height) = (picture.width() * factor, picture.height() * factor);
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let at = (y / factor * picture.width() + x / factor) * 3;
            rgb.extend_from_slice(&picture.rgb()[at..at + 3]);
        }
    }
    Frame::new(width, height, rgb)
}

/// Cells of good images: their features and their pixels.
struct Patches {
    grid: Size,
    dim: usize,
    /// `[N T, D]`
    values: Vec<f32>,
    /// The images, each of the model's input size.
    images: Vec<Frame>,
}

impl Patches {
    /// The cells of a few good images of every product, or of `class`.
    fn read(context: &Context, network: &Network, root: &Path, class: Option<&str>, looked: usize) -> Result<Self> {
        let branch = network.branch(looked);
        let data = Dataset::scan(root, &[])?;
        let named = |name: &str| data.categories.iter().any(|category| category.name == name);
        let wanted = class.filter(|class| named(class));
        let categories: Vec<_> =
            data.categories.iter().filter(|category| wanted.is_none_or(|class| category.name == class)).collect();
        let each = PATCH_IMAGES.div_ceil(categories.len().max(1));
        let paths: Vec<PathBuf> = categories.iter().flat_map(|c| c.train.iter().take(each).cloned()).collect();
        let (grid, dim) = (branch.config().grid(), branch.config().dim());
        let mut all = Self { grid, dim, values: Vec::new(), images: Vec::new() };
        let mut task = context.task("patches", paths.len());
        ReadAhead::new(8, &context.stop).each_group(&paths, prepare(context, network, looked), |group| {
            for (_, image) in group {
                let prepared = image?.frame;
                all.values.extend(values(branch, &prepared)?);
                all.images.push(prepared);
            }
            task.set(all.images.len(), "");
            Ok(())
        })?;
        task.finish();
        Ok(all)
    }

    /// A picture of features `[T, D]`: each cell shown as the patch whose features are nearest.
    fn picture(&self, values: &[f32]) -> Result<Frame> {
        let (tokens, columns) = (self.grid.area(), self.grid.width);
        let size = self.images.first().map_or(self.grid, |image| Size::new(image.width(), image.height()));
        let patch = Size::new(size.width / columns, size.height / self.grid.height);
        let mut rgb = vec![0; size.area() * 3];
        for (t, value) in values.chunks_exact(self.dim).enumerate() {
            let distance = |row: &[f32]| row.iter().zip(value).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
            let all = self.values.chunks_exact(self.dim).map(distance).enumerate();
            let Some((nearest, _)) = all.min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
            let (image, from) = (&self.images[nearest / tokens], nearest % tokens);
            for y in 0..patch.height {
                let row =
                    |cell: usize| ((cell / columns * patch.height + y) * size.width + cell % columns * patch.width) * 3;
                rgb[row(t)..][..patch.width * 3].copy_from_slice(&image.rgb()[row(from)..][..patch.width * 3]);
            }
        }
        Frame::new(size.width, size.height, rgb)
    }
}
