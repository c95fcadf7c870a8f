//! What a denoiser is made of: its stages, its parameters, and how each parameter starts.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::{ClassStrategy, Config, DenoiserConfig, Position, Size};
use crate::ops::{AttentionShape, ConvNextShape};

/// Frequencies of the noise-level embedding.
pub(super) const FREQUENCIES: usize = 32;

/// Waves over the frame along each side that tell where a cell lies, each twice as short as the one before.
const WAVES: usize = 7;

/// Everything that fixes the shapes of a denoiser.
#[derive(Clone, Debug, PartialEq)]
pub struct DenoiserShape {
    /// Widths and depths.
    pub config: DenoiserConfig,
    /// The grid; a square where there are several levels or a guide.
    pub grid: Size,
    /// The part of the grid that it looks at at a time: all of it, or in training a window.
    pub view: Size,
    /// Channels D of a cell.
    pub dim: usize,
    /// Number of classes that the network can be told, without the null class.
    pub classes: usize,
    /// Output layers: 1 for all, or one per class.
    pub heads: usize,
    /// What the names of parameters end with that belong to the grid: nothing where a model has one only.
    pub suffix: String,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zero,
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in +- this.
    Uniform(f64),
}

/// One trainable tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name in the model file.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Start values: (length, rule) per part of the flattened tensor.
    pub init: Vec<(usize, Init)>,
    /// Weight decay applies (matrices and kernels, not biases, positions and embeddings).
    pub decay: bool,
}

/// A stage by its name, in the order of the way through the network.
pub(super) enum Stage {
    Block(String, ConvNextShape),
    Attention(String, AttentionShape, Size),
    /// From `side` to half of it.
    Shrink {
        level: usize,
        side: usize,
        widths: [usize; 2],
    },
    /// From half of `side` to it.
    Grow {
        level: usize,
        side: usize,
        widths: [usize; 2],
    },
}

fn uniform(fan_in: usize) -> Init {
    Init::Uniform(1.0 / (fan_in as f64).sqrt())
}

impl DenoiserShape {
    /// The network of a configuration for a number of classes; where each class has a network of its own, one of them.
    pub fn of(config: &Config, classes: usize) -> Self {
        let (told, heads) = match config.denoiser.classes {
            ClassStrategy::Conditional => (classes, 1),
            ClassStrategy::Heads => (0, classes),
            ClassStrategy::Separate => (0, 1),
        };
        let (grid, dim) = (config.grid(), config.dim());
        let suffix = String::new();
        Self { config: config.denoiser.clone(), grid, view: grid, dim, classes: told, heads, suffix }
    }

    /// The same, with this at the end of the names of what belongs to the grid.
    pub fn named(self, suffix: String) -> Self {
        Self { suffix, ..self }
    }

    /// The same network, looking at a window of the grid at a time.
    pub fn looking_at(self, view: Size) -> Self {
        Self { view, ..self }
    }

    fn tokens(&self) -> usize {
        self.grid.area()
    }

    fn size(&self, level: usize) -> Size {
        self.view.map(|side| side >> level)
    }

    fn width(&self, level: usize) -> usize {
        self.config.width * self.config.growth.pow(level as u32)
    }

    fn block(&self, level: usize) -> ConvNextShape {
        let (size, width) = (self.size(level), self.width(level));
        let hidden = width * self.config.mlp_ratio;
        ConvNextShape { height: size.height, width: size.width, channels: width, hidden, kernel: self.config.kernel }
    }

    /// Name and number of the vectors that say where cells lie: one per cell, or one per wave for grids of any size.
    pub(super) fn position(&self) -> (String, usize) {
        match self.config.position {
            Position::Learned => (format!("input.position{}", self.suffix), self.tokens()),
            Position::Fourier => ("input.waves".into(), 4 * WAVES),
        }
    }

    /// For each cell of the grid the values of the waves where it lies, `[T, 4 WAVES]`: sine and cosine, along rows and along
    /// columns. From half a wave over the frame to a wave every two cells of a grid of 64.
    pub(super) fn waves(&self) -> Vec<f32> {
        let at = |i: usize, n: usize| (i as f32 + 0.5) / n as f32;
        let along = |at: f32| {
            (0..WAVES).flat_map(move |wave| {
                let (sin, cos) = (std::f32::consts::PI * (1 << wave) as f32 * at).sin_cos();
                [sin, cos]
            })
        };
        let Size { width, height } = self.grid;
        let cell = |t: usize| along(at(t % width, width)).chain(along(at(t / width, height)));
        (0..self.tokens()).flat_map(cell).collect()
    }

    /// For each cell of the grid the part of the guide that it lies in.
    pub(super) fn guide_cells(&self) -> Vec<u32> {
        let cells = self.config.guide.max(1);
        let side = self.grid.width;
        let factor = side / cells;
        (0..self.tokens()).map(|t| (t / side / factor * cells + t % side / factor) as u32).collect()
    }

    pub(super) fn stages(&self) -> Vec<Stage> {
        let DenoiserConfig { levels, blocks, attention_every, heads, .. } = self.config;
        let last = levels - 1;
        let side_blocks = |way: &'static str, level: usize| {
            (0..blocks).map(move |i| Stage::Block(format!("{way}.{level}.{i}"), self.block(level)))
        };
        let mut all = Vec::new();
        for level in 0..last {
            all.extend(side_blocks("down", level));
            let widths = [self.width(level), self.width(level + 1)];
            all.push(Stage::Shrink { level, side: self.size(level).width, widths });
        }
        for i in 0..blocks {
            all.push(Stage::Block(format!("block.{i}"), self.block(last)));
            if attention_every > 0 && (i + 1).is_multiple_of(attention_every) {
                let size = self.size(last);
                let shape = AttentionShape { tokens: size.area(), channels: self.width(last), heads };
                all.push(Stage::Attention(format!("attention.{i}"), shape, size));
            }
        }
        for level in (0..last).rev() {
            let widths = [self.width(level + 1), self.width(level)];
            all.push(Stage::Grow { level, side: self.size(level).width, widths });
            all.extend(side_blocks("up", level));
        }
        all
    }

    /// All trainable tensors, in the order of the model file's construction.
    pub fn parameters(&self) -> Vec<Parameter> {
        let (w, d) = (self.config.width, self.dim);
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize], init: Vec<(usize, Init)>, decay: bool| {
            all.push(Parameter { name, shape: shape.to_vec(), init, decay });
        };
        add("input.weight".into(), &[d + 1, w], vec![(d * w, uniform(d)), (w, Init::Zero)], true);
        let (position, rows) = self.position();
        add(position, &[rows, w], vec![(rows * w, Init::Normal(0.02))], false);
        if self.config.guide > 0 {
            add("guide.weight".into(), &[d, w], vec![(d * w, uniform(d))], true);
            add("guide.bias".into(), &[w], vec![(w, Init::Zero)], false);
        }
        let frequencies = 2 * FREQUENCIES;
        add("noise.0.weight".into(), &[frequencies, w], vec![(frequencies * w, uniform(frequencies))], true);
        add("noise.0.bias".into(), &[w], vec![(w, uniform(frequencies))], false);
        add("noise.1.weight".into(), &[w, w], vec![(w * w, uniform(w))], true);
        add("noise.1.bias".into(), &[w], vec![(w, uniform(w))], false);
        let classes = self.classes + 1;
        add("class.embedding".into(), &[classes, w], vec![(classes * w, Init::Normal(0.02))], false);
        for stage in self.stages() {
            let mut pair = |name: String, [from, to]: [usize; 2], init: Init| {
                add(format!("{name}.weight"), &[from, to], vec![(from * to, init)], true);
                add(format!("{name}.bias"), &[to], vec![(to, Init::Zero)], false);
            };
            match stage {
                Stage::Block(name, shape) => {
                    pair(format!("{name}.modulation"), [w, 3 * shape.channels], Init::Zero);
                    let (taps, width, hidden) = (shape.kernel * shape.kernel, shape.channels, shape.hidden);
                    let init = vec![
                        (taps * width + width, uniform(taps)),
                        (width * hidden + hidden, uniform(width)),
                        (hidden * width + width, uniform(hidden)),
                    ];
                    add(format!("{name}.convnext"), &[shape.parameters()], init, true);
                }
                Stage::Attention(name, shape, _) => {
                    pair(format!("{name}.modulation"), [w, 3 * shape.channels], Init::Zero);
                    let n = shape.parameters();
                    add(format!("{name}.layer"), &[n], vec![(n, uniform(shape.channels))], true);
                }
                Stage::Shrink { level, widths: [from, to], .. } => {
                    pair(format!("down.{level}.shrink"), [4 * from, to], uniform(4 * from));
                }
                Stage::Grow { level, widths: [from, to], .. } => {
                    pair(format!("up.{level}.grow"), [from, 4 * to], uniform(from));
                    pair(format!("up.{level}.join"), [to, to], uniform(to));
                }
            }
        }
        add("output.modulation.weight".into(), &[w, 2 * w], vec![(2 * w * w, Init::Zero)], true);
        add("output.modulation.bias".into(), &[2 * w], vec![(2 * w, Init::Zero)], false);
        let heads: &[usize] = if self.heads == 1 { &[] } else { &[self.heads] };
        add("output.weight".into(), &[heads, &[w, d]].concat(), vec![(self.heads * w * d, Init::Zero)], true);
        add("output.bias".into(), &[heads, &[d]].concat(), vec![(self.heads * d, Init::Zero)], false);
        all
    }
}

impl Parameter {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Start values; they depend on the seed and on the name alone.
    pub fn start(&self, seed: u64) -> Vec<f32> {
        let name =
            self.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)); // FNV-1a
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ name);
        let mut values = Vec::with_capacity(self.elements());
        for &(n, init) in &self.init {
            match init {
                Init::Zero => values.resize(values.len() + n, 0.0),
                Init::Uniform(limit) => values.extend((0..n).map(|_| rng.random_range(-limit..limit) as f32)),
                Init::Normal(deviation) => values.extend((0..n).map(|_| (normal(&mut rng) * deviation) as f32)),
            }
        }
        values
    }
}

/// A standard normal number (Box & Muller 1958).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>(); // in (0, 1]
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
