//! `diad bench --layers`: what each layer of a model costs on the CPU, for one frame.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::Context;
use super::args::BenchArgs;
use super::bench::{WARM_UP, frame_of};
use super::table::{Align, Table};
use crate::detector::Detector;
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::kernels::peak::peak;
use crate::model::{self, EfficientNetLite, Layer};
use crate::report::{Latency, json};

/// How long the most that the cores can do is looked for.
const PEAK_TIME: Duration = Duration::from_millis(500);

/// What `--report` writes.
#[derive(Serialize)]
struct Figures {
    schema: u32,
    tool: String,
    model: String,
    /// Width and height of the model's input in pixels.
    input: [usize; 2],
    frames: usize,
    threads: usize,
    precision: Precision,
    /// Multiply-adds per second of all threads in registers alone, in units of 10^9.
    peak: f64,
    layers: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    network: &'static str,
    layer: String,
    /// In units of 10^6.
    multiply_adds: f64,
    /// Weights, what goes in and what comes out, in units of 10^6 bytes.
    megabytes: f64,
    ms: Latency,
}

/// The layers of one network, and the times of each.
#[derive(Default)]
struct Watched {
    layers: Vec<Layer>,
    ms: Vec<Vec<f64>>,
}

impl Watched {
    /// Runs a network `rounds` times after `warm_up` others; it reports each of its layers as it is done.
    fn run(
        (warm_up, rounds): (usize, usize),
        context: &Context,
        network: impl Fn(&mut dyn FnMut(Layer)) -> Result<()>,
    ) -> Result<Self> {
        let mut watched = Self::default();
        for round in 0..warm_up + rounds {
            context.stop.check()?;
            let (mut index, mut last) = (0, Instant::now());
            network(&mut |layer| {
                let ms = 1e3 * last.elapsed().as_secs_f64();
                if index == watched.layers.len() {
                    watched.layers.push(layer);
                    watched.ms.push(Vec::new());
                }
                if round >= warm_up {
                    watched.ms[index].push(ms);
                }
                (index, last) = (index + 1, Instant::now());
            })?;
        }
        Ok(watched)
    }

    /// A row per layer, and one for all of them together.
    fn rows(self, network: &'static str) -> Vec<Row> {
        let rounds = self.ms.first().map_or(0, Vec::len);
        let all: Vec<f64> = (0..rounds).map(|round| self.ms.iter().map(|ms| ms[round]).sum()).collect();
        let sum = |f: fn(&Layer) -> usize| self.layers.iter().map(f).sum();
        let whole = Layer {
            name: "together".into(),
            multiply_adds: sum(|layer| layer.multiply_adds),
            bytes: sum(|layer| layer.bytes),
        };
        let row = |(layer, ms): (Layer, Vec<f64>)| Row {
            network,
            multiply_adds: 1e-6 * layer.multiply_adds as f64,
            megabytes: 1e-6 * layer.bytes as f64,
            layer: layer.name,
            ms: Latency::of(&ms),
        };
        self.layers.into_iter().zip(self.ms).chain([(whole, all)]).map(row).collect()
    }
}

pub(super) fn run(context: &Context, args: &BenchArgs) -> Result<()> {
    let device = Device::cpu().in_precision(args.on.precision)?;
    let detector = Detector::open_unmeasured(&args.model, &device)?;
    let network = detector.network();
    let (branch, name) = (network.branch(0), &network.config().features.backbone);
    let size = branch.input();
    let frame = frame_of(size)?;
    let (frames, threads) = (args.frames as usize, rayon::current_num_threads());
    context.console.note(format_args!("one frame of {size} at a time, {frames} times, {threads} threads"));
    let rounds = (frames.div_ceil(WARM_UP), frames);

    let weights = model::embedded(name)?.ok_or_else(|| {
        Error::Usage(format!(
            "--layers: the model's backbone is {name}; expected efficientnet-lite0, for which there are kernels"
        ))
    })?;
    let trunk = EfficientNetLite::new(name, &weights, &device)?;
    let pixels: Vec<f32> = frame.rgb().iter().map(|&byte| f32::from(byte)).collect();
    let layers = |watch: &mut dyn FnMut(Layer)| trunk.layers(&pixels, size.height, size.width, watch);
    let trunk = device.gathered(|| Watched::run(rounds, context, layers))?;

    let prepared = network.preparation().of_frame(&frame, 0)?;
    let (features, reconstructor) = (branch.extractor().extract(&[&prepared.frame])?, branch.reconstructor());
    let (plan, class) = (reconstructor.plan(1)?, reconstructor.condition_class(0));
    let layers = |watch: &mut dyn FnMut(Layer)| reconstructor.layers(&features, &plan, class, watch);
    let denoiser = device.gathered(|| Watched::run(rounds, context, layers))?;

    let figures = Figures {
        schema: 1,
        tool: detector.card().tool.clone(),
        model: args.model.display().to_string(),
        input: size.sides(),
        frames,
        threads,
        precision: device.arithmetic().precision(),
        peak: 1e-9 * peak(device.factors(), PEAK_TIME),
        layers: [trunk.rows("backbone"), denoiser.rows("denoiser")].into_iter().flatten().collect(),
    };
    if let Some(path) = &args.report {
        write_atomic(path, json(&figures, "bench")?.as_bytes())?;
    }
    context.console.print(figures.table())
}

impl Figures {
    fn table(&self) -> String {
        use Align::{Left, Right};

        let numbers = ["M multiply-adds", "MB", "p50 ms", "GFLOP/s", "% of peak"].map(|name| (name, Right));
        let mut rows = Table::new(&[&[("network", Left), ("layer", Left)][..], &numbers].concat());
        for row in &self.layers {
            let ms = row.ms.p50.unwrap_or(f64::NAN);
            let rate = row.multiply_adds / ms; // 10^9 per second
            rows.row(vec![
                row.network.to_owned(),
                row.layer.clone(),
                format!("{:.1}", row.multiply_adds),
                format!("{:.2}", row.megabytes),
                format!("{ms:.3}"),
                format!("{:.0}", 2.0 * rate),
                format!("{:.0}", 100.0 * rate / self.peak),
            ]);
        }
        let (threads, precision, most) = (self.threads, self.precision, 2.0 * self.peak);
        format!("{rows}\n\nthe most that {threads} threads reach in registers in {precision}: {most:.0} GFLOP/s")
    }
}
