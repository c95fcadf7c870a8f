//! The shape that the frames of a class are looked at in: a model has one for all its classes, or, with `input.scale`, one for
//! each kind of frame.

use serde::{Deserialize, Serialize};

use super::{Align, Config, Size};

/// Frames are not reduced below this many pixels along their shorter side: the backbone would see little of them.
const SHORTER_SIDE: usize = 256;

/// Longest side of an input in pixels.
const LONGEST: usize = 4096;

/// Side of the windows of cells that are left out where a mask covers them.
const WINDOW: usize = 16;

/// A frame belongs to a shape if its aspect is within this factor of those that were seen in training.
const ASPECT_MARGIN: f64 = 1.2;

/// What the frames of a class become.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// The model input in pixels.
    pub input: Size,
    /// The feature grid in cells.
    pub grid: Size,
    /// Side of the squares of cells that share a covariance.
    pub covariance_cells: usize,
    /// Smallest and largest aspect, width / height, of what was looked at of the good images.
    pub aspects: [f64; 2],
    /// The part of the frame that is looked at, `[x, y, width, height]` as fractions, in place of `input.roi`: where `input.mask`
    /// leaves whole windows of cells at the edges nothing to look at, they are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roi: Option<[f64; 4]>,
    /// Where parts are found before they are looked at (`input.align`): size of the small picture that they are compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Size>,
}

/// The shapes of a model, and which of them is that of each class.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes {
    distinct: Vec<Shape>,
    of: Vec<usize>,
}

/// The shapes that a frame is tried in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Their numbers, at least one.
    pub shapes: Vec<usize>,
    /// Whether frames like this one were seen in training, as far as their aspect tells; where not, it is that of the nearest.
    pub fits: bool,
}

impl Shapes {
    /// From the shape of each class. Classes that are looked at alike share a shape, but where parts are found: each by a picture of its
    /// own.
    pub fn new(classes: Vec<Shape>) -> Self {
        let (mut distinct, mut of) = (Vec::<Shape>::new(), Vec::with_capacity(classes.len()));
        for shape in classes {
            let known = distinct.iter().position(|known| known.is_alike(&shape));
            let number = known.unwrap_or_else(|| {
                distinct.push(shape);
                distinct.len() - 1
            });
            let [least, most] = distinct[number].aspects;
            distinct[number].aspects = [least.min(shape.aspects[0]), most.max(shape.aspects[1])];
            of.push(number);
        }
        Self { distinct, of }
    }

    /// One shape, that of a configuration, for some classes.
    pub fn one(config: &Config, classes: usize) -> Self {
        Self::new(vec![config.shape(); classes])
    }

    /// Each shape there is.
    pub fn distinct(&self) -> &[Shape] {
        &self.distinct
    }

    /// Number of the shape of a class.
    pub fn of(&self, class: usize) -> usize {
        self.of[class]
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.of.len()
    }

    /// The classes that are looked at in the shape of this number.
    pub fn members(&self, shape: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.of.len()).filter(move |class| self.of[*class] == shape)
    }

    /// The configuration of a model in each of its shapes.
    pub fn configs(&self, config: &Config) -> Vec<Config> {
        self.distinct.iter().map(|shape| config.in_shape(shape)).collect()
    }

    /// What the name of a tensor ends with that belongs to a shape: nothing where there is one shape only.
    pub fn suffix(&self, shape: usize) -> String {
        if self.distinct.len() == 1 { String::new() } else { format!(".{shape}") }
    }

    /// The shapes to try a frame of this aspect (width / height of what is looked at) in: that of its class where it is known, else
    /// all that have seen such frames.
    pub fn tried(&self, class: Option<usize>, aspect: f64) -> Tried {
        let off = |shape: &Shape| (shape.aspects[0] / aspect).max(aspect / shape.aspects[1]).max(1.0);
        let near = |shape: &Shape| off(shape) <= ASPECT_MARGIN;
        if let Some(&shape) = class.and_then(|class| self.of.get(class)) {
            return Tried { shapes: vec![shape], fits: near(&self.distinct[shape]) };
        }
        let shapes: Vec<usize> = (0..self.distinct.len()).filter(|&shape| near(&self.distinct[shape])).collect();
        if !shapes.is_empty() {
            return Tried { shapes, fits: true };
        }
        let nearest =
            (0..self.distinct.len()).min_by(|&a, &b| off(&self.distinct[a]).total_cmp(&off(&self.distinct[b])));
        Tried { shapes: nearest.into_iter().collect(), fits: false }
    }
}

impl Shape {
    /// Whether frames become the same in both. Parts are found by a picture of their own class: nothing is alike then.
    fn is_alike(&self, other: &Self) -> bool {
        let of = |shape: &Self| (shape.input, shape.grid, shape.covariance_cells, shape.roi);
        of(self) == of(other) && self.template.is_none() && other.template.is_none()
    }

    /// The same without the windows at its edges that have no cell in `bounds`, `[left, top, right, bottom]` of the cells that count;
    /// `roi` is what it shows of a frame.
    pub fn within(&self, [left, top, right, bottom]: [usize; 4], roi: Option<[f64; 4]>) -> Self {
        let sides = self.grid.sides();
        let start = [left, top].map(|cell| cell / WINDOW * WINDOW);
        let end = [0, 1].map(|i| [right, bottom][i].next_multiple_of(WINDOW).min(sides[i]));
        if start == [0; 2] && end == sides {
            return *self;
        }
        let cells = [0, 1].map(|i| end[i] - start[i]);
        let pixels = [0, 1].map(|i| cells[i] * (self.input.sides()[i] / sides[i]));
        let [x, y, width, height] = roi.unwrap_or([0.0, 0.0, 1.0, 1.0]);
        let part = |from: f64, length: f64, i: usize| from + length * start[i] as f64 / sides[i] as f64;
        let share = |length: f64, i: usize| length * cells[i] as f64 / sides[i] as f64;
        let roi = Some([part(x, width, 0), part(y, height, 1), share(width, 0), share(height, 1)]);
        Self { input: Size::new(pixels[0], pixels[1]), grid: Size::new(cells[0], cells[1]), roi, ..*self }
    }
}

impl Config {
    /// The shape that it states for all classes. Any aspect belongs to it.
    pub fn shape(&self) -> Shape {
        let covariance_cells = self.covariances().side;
        let (input, grid, aspects) = (self.input.size, self.grid(), [0.0, f64::MAX]);
        Shape { input, grid, covariance_cells, aspects, roi: None, template: None }
    }

    /// The same in one shape.
    pub fn in_shape(&self, shape: &Shape) -> Self {
        let mut config = self.clone();
        (config.input.size, config.input.scale) = (shape.input, None);
        config.features.cell = None;
        config.input.roi = shape.roi.or(config.input.roi);
        (config.features.grid, config.detection.covariance_cells) = (Some(shape.grid), Some(shape.covariance_cells));
        config
    }

    /// The shape of a class: `shown` are width and height of what is looked at of its good images, at least one. With `input.scale`
    /// it follows their medians, as does the picture that parts are found with.
    pub fn shape_of(&self, shown: &[[f64; 2]]) -> Shape {
        if !self.has_own_shapes() {
            return self.shape();
        }
        let median = |i: usize| {
            let mut sides: Vec<f64> = shown.iter().map(|sides| sides[i]).collect();
            sides.sort_by(f64::total_cmp);
            sides.get(sides.len() / 2).copied().unwrap_or(SHORTER_SIDE as f64)
        };
        let [width, height] = [median(0), median(1)];
        let (mut own, mut aspects) = (self.clone(), [f64::MAX, 0.0]);
        if let Some(scale) = self.input.scale {
            let shorter = width.min(height);
            let reduced = (scale * shorter).max(shorter.min(SHORTER_SIDE as f64));
            own.input.size = shaped([width, height], ((reduced / 32.0).round() as usize * 32).clamp(64, LONGEST));
        }
        for [width, height] in shown {
            aspects = [aspects[0].min(width / height), aspects[1].max(width / height)];
        }
        let template = (self.input.align != Align::None).then(|| template(width, height));
        Shape { aspects, template, ..own.shape() }
    }

    /// Whether each class has a shape of its own on the card.
    pub fn has_own_shapes(&self) -> bool {
        self.input.scale.is_some() || self.input.align != Align::None
    }
}

/// Size of the small picture that parts are found with, of frames of this width and height: no more than 256 pixels along the longer
/// side, and sides that can be halved.
fn template(width: f64, height: f64) -> Size {
    let scale = (256.0 / width.max(height)).min(1.0);
    let side = |side: f64| ((side * scale / 8.0).round() as usize * 8).max(8);
    Size::new(side(width), side(height))
}

/// The input that shows frames of this width and height as they are, `side` pixels along the shorter side: its sides can be divided
/// into about square cells.
pub fn shaped(shown: [f64; 2], side: usize) -> Size {
    let unit = (side / 16).next_multiple_of(32);
    let ratio = (shown[0] / shown[1]).clamp(1.0 / 8.0, 8.0);
    let longer = |ratio: f64| ((side as f64 * ratio / unit as f64).round() as usize * unit).clamp(side, LONGEST);
    if ratio >= 1.0 { Size::new(longer(ratio), side) } else { Size::new(side, longer(1.0 / ratio)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(scale: f64) -> Config {
        let mut config = Config::default();
        config.assign(&[format!("input.scale={scale}")]).unwrap();
        config
    }

    #[test]
    fn a_class_is_looked_at_as_its_frames_are() {
        for (shown, scale, input, grid) in [
            ([500.0, 1250.0], 0.5, [256, 640], [16, 40]),
            ([1130.0, 460.0], 0.5, [640, 256], [40, 16]),
            ([1024.0, 1024.0], 0.5, [512, 512], [16, 16]),
            ([300.0, 400.0], 0.5, [256, 352], [16, 22]), // not below 256
            ([300.0, 400.0], 1.0, [288, 384], [18, 24]),
            ([100.0, 100.0], 0.5, [96, 96], [24, 24]), // nor enlarged
            ([2448.0, 2048.0], 0.5, [1216, 1024], [19, 16]),
        ] {
            let shape = scaled(scale).shape_of(&[shown; 3]);
            assert_eq!((shape.input.sides(), shape.grid.sides()), (input, grid), "{shown:?} {scale}");
            let config = scaled(scale).in_shape(&shape);
            assert_eq!((config.input.size, config.grid(), config.input.scale), (shape.input, shape.grid, None));
            config.check("shape").unwrap();
        }
        let mut cells = scaled(1.0);
        cells.assign(&["features.cell=16"]).unwrap();
        assert_eq!(cells.shape_of(&[[500.0, 1250.0]]).grid.sides(), [32, 80], "of 512x1280 pixels");
        let mixed = scaled(1.0).shape_of(&[[256.0, 256.0], [300.0, 400.0], [400.0, 300.0]]);
        assert_eq!((mixed.input.sides(), mixed.aspects), ([288, 288], [0.75, 4.0 / 3.0]), "the medians of both sides");
        assert_eq!(Config::default().shape_of(&[[500.0, 1250.0]]), Config::default().shape(), "one size for all");
    }

    #[test]
    fn frames_are_tried_in_the_shapes_that_have_seen_such() {
        let config = scaled(0.5);
        let of = |shown: [f64; 2]| config.shape_of(&[shown]);
        let shapes =
            Shapes::new(vec![of([500.0, 1250.0]), of([512.0, 512.0]), of([1024.0, 1024.0]), of([505.0, 1245.0])]);
        assert_eq!(shapes.distinct().len(), 3);
        assert_eq!((0..4).map(|class| shapes.of(class)).collect::<Vec<_>>(), [0, 1, 2, 0]);
        assert_eq!(shapes.members(0).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(shapes.distinct()[0].aspects, [0.4, 505.0 / 1245.0]);
        let tried = |class, aspect| shapes.tried(class, aspect);
        assert_eq!(tried(None, 1.0), Tried { shapes: vec![1, 2], fits: true });
        assert_eq!(tried(None, 0.4), Tried { shapes: vec![0], fits: true });
        assert_eq!(tried(None, 0.34), Tried { shapes: vec![0], fits: true }, "within 20 %");
        assert_eq!(tried(None, 0.6), Tried { shapes: vec![0], fits: false }, "the nearest");
        assert_eq!(tried(None, 9.0), Tried { shapes: vec![1], fits: false });
        assert_eq!(tried(Some(2), 9.0), Tried { shapes: vec![2], fits: false }, "a class is taken at its word");
        let one = Shapes::one(&Config::default(), 2);
        assert_eq!(one.tried(None, 9.0), Tried { shapes: vec![0], fits: true }, "one for all");
    }

    #[test]
    fn windows_at_the_edge_that_do_not_count_are_left_out() {
        let mut config = Config::default();
        config.assign(&["input.size=[1280,1024]", "features.cell=16"]).unwrap();
        let shape = config.shape(); // 80x64 cells
        assert_eq!(shape.within([15, 3, 70, 64], None), shape, "no whole window");
        let half = shape.within([0, 0, 33, 64], Some([0.0, 0.5, 1.0, 0.5]));
        assert_eq!((half.grid.sides(), half.input.sides()), ([48, 64], [768, 1024]));
        assert_eq!(half.roi, Some([0.0, 0.5, 0.6, 0.5]));
        let middle = shape.within([20, 17, 40, 30], None);
        assert_eq!((middle.grid.sides(), middle.roi), ([32, 16], Some([0.2, 0.25, 0.4, 0.25])));
        config.in_shape(&middle).check("cropped").unwrap();
        assert_eq!(config.in_shape(&middle).input.roi, middle.roi);
    }

    #[test]
    fn inputs_keep_the_aspect_and_fit_the_grid() {
        for (shown, side, expected) in [
            ([500.0, 1250.0], 256, [256, 640]),
            ([1130.0, 460.0], 256, [640, 256]),
            ([2448.0, 2048.0], 1024, [1216, 1024]),
            ([900.0, 900.0], 512, [512, 512]),
            ([40_000.0, 100.0], 256, [2048, 256]),
        ] {
            let size = shaped(shown, side);
            assert_eq!(size.sides(), expected, "{shown:?}");
            let mut config = Config::default();
            config.input.size = size;
            config.check("size").unwrap();
        }
    }
}
