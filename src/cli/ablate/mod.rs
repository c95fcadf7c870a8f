//! `diad ablate`

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Context;
use super::args::AblateArgs;
use super::evaluate::{Settings, evaluate};
use super::images::check_exists;
use super::progress::{TrainingProgress, duration};
use super::table::{Align, Table};
use super::train::{configuration, describe};
use crate::bundle::sha256_hex;
use crate::config::{CalibrationConfig, Config, DetectionConfig, Grouping};
use crate::data::{self, Dataset};
use crate::detector::Detector;
use crate::device::{Device, DeviceSpec};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::frame::read_bytes;
use crate::report::{Ablation, AblationRow, json};
use crate::train::{self, Fit, TrainingSet};

mod rows;

use rows::{ROWS, Row};

/// Digests of everything that a row's figures depend on beside its configuration.
struct Sources {
    /// Device, backbone weights and training images.
    training: String,
    /// Test images and masks, and how they are evaluated.
    test: String,
}

impl Sources {
    fn of(args: &AblateArgs, data: &Dataset, device: DeviceSpec) -> Self {
        let weights = digest(args.backbone.as_slice());
        let (mut training, mut test) = (format!("{device} {weights}"), format!("{}", args.class_known));
        for category in &data.categories {
            let name = &category.name;
            training += &format!(" {name} {}", digest(&category.train));
            let mut labels: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
            for sample in &category.test {
                labels.entry(format!("{:?}", sample.label)).or_default().push(sample.path.clone());
                labels.entry(format!("{:?} masks", sample.label)).or_default().extend(sample.mask.clone());
            }
            for (label, files) in labels {
                test += &format!(" {name} {label} {}", digest(&files));
            }
        }
        Self { training, test }
    }
}

/// Digest of the files that can be read: the others are left out of everything, with a warning, once they are needed.
fn digest(files: &[PathBuf]) -> String {
    let read = |path: &PathBuf| Some((path.clone(), Sha256::digest(read_bytes(path).ok()?).into()));
    let read: Vec<(PathBuf, [u8; 32])> = files.par_iter().filter_map(read).collect();
    data::data_sha256(read.iter().map(|(path, digest)| (path.as_path(), *digest)))
}

/// A row of the table, with its configuration.
struct Work {
    group: String,
    name: String,
    /// The assignments that distinguish it, as arguments of `--set`.
    set: Vec<String>,
    config: Config,
    /// Digest of configuration and sources: tells whether a stored result is of this row.
    key: String,
    /// Digest of what training depends on: rows that differ in detection only share trained weights.
    fit_key: String,
}

pub(super) fn run(context: &Context, args: &AblateArgs) -> Result<()> {
    let rows = chosen(args)?;
    if args.list {
        let mut table = Table::new(&[("group", Align::Left), ("row", Align::Left), ("changes", Align::Left)]);
        for row in rows {
            table.row(vec![row.group.to_owned(), row.name.to_owned(), row.set.join(" ")]);
        }
        return context.console.print(table);
    }
    let names: Vec<String> =
        rows.iter().map(|row| row.name.to_owned()).chain(args.with.iter().map(|f| stem(f))).collect();
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(Error::Usage(format!(
            "--with: two rows would be called {}; expected files of different names",
            twice.1
        )));
    }
    let (Some(root), Some(out)) = (&args.data, &args.out) else {
        return Err(Error::Usage("--data and --out are needed (or --list)".into()));
    };
    let mut base = configuration(&args.config, Config::default())?;
    // What is compared are choices of the method: one network each, thresholds from images that are held out.
    (base.calibration.folds, base.calibration.groups) = (1, Grouping::None);
    if let Some(weights) = &args.backbone {
        check_exists(weights)?;
    }
    let data = Dataset::scan(root, &args.classes)?;
    data::check_trainable(&data)?;
    let found = args.place.find()?;
    let device = found.open()?;
    if data.categories.iter().all(|category| category.test.is_empty()) {
        let expected = "expected test images: test/good and test/DEFECT in each product's folder";
        return Err(Error::data(root, expected));
    }
    let sources = Sources::of(args, &data, found);
    let grid = rows.into_iter().map(|row| Work::of_row(row, &base, &sources));
    let files = args.with.iter().map(|file| Work::of_file(file, &args.config.set, &sources));
    let works = grid.chain(files).collect::<Result<Vec<_>>>()?;
    works.iter().try_for_each(|work| train::check_rates(&work.config, &data))?;
    for folder in [out.clone(), out.join("rows"), out.join("weights")] {
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "cannot make the folder", e))?;
    }
    describe(&context.console, &data, &base);
    let mut bench = Bench { context, args, data: &data, out, device: &device, found, set: None };
    let mut ablation = Ablation::new(root.display().to_string(), super::inspect::changes(&base), Vec::new());
    for (at, work) in works.iter().enumerate() {
        context.stop.check()?;
        let place = format!("{} of {}", at + 1, works.len());
        let row = match bench.known(work)? {
            Some(row) => {
                context.console.note(format_args!("{} ({place}): measured before", work.name));
                row
            }
            None => {
                context.console.note(format_args!("{} ({place})", work.name));
                bench.measure(work)?
            }
        };
        ablation.rows.push(row);
        // After every row, so that an interrupted run leaves its table.
        write_atomic(out.join("ablation.json"), ablation.to_json()?.as_bytes())?;
        write_atomic(out.join("ablation.md"), ablation.markdown().as_bytes())?;
        write_atomic(out.join("ablation.html"), ablation.html().as_bytes())?;
    }
    context.console.print(ablation.markdown().trim_end())?;
    context.console.note(format_args!("as a page: {}", out.join("ablation.html").display()));
    Ok(())
}

/// The rows that were asked for, in the order of the grid.
fn chosen(args: &AblateArgs) -> Result<Vec<Row>> {
    for wanted in &args.rows {
        if !ROWS.iter().any(|row| row.name == wanted || row.group == wanted) {
            let groups: BTreeSet<_> = ROWS.iter().map(|row| row.group).collect();
            let groups = groups.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::Usage(format!("--row {wanted}: no such row; see --list, or take a group: {groups}")));
        }
    }
    let all = args.rows.is_empty() && args.with.is_empty();
    let wanted = |row: &&Row| all || args.rows.iter().any(|w| w == row.name || w == row.group);
    Ok(ROWS.iter().filter(wanted).copied().collect())
}

/// The name of the row of a configuration file.
fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

impl Work {
    /// A row of the grid, which changes the configuration that all rows start from.
    fn of_row(row: Row, base: &Config, sources: &Sources) -> Result<Self> {
        let mut config = base.clone();
        let named = |error: Error| match error {
            Error::Config { mistakes, .. } => Error::Config { origin: format!("row {}", row.name), mistakes },
            other => other,
        };
        config.assign(row.set).map_err(named)?;
        let set = row.set.iter().map(|&set| set.to_owned()).collect();
        Self::new(row.group.to_owned(), row.name.to_owned(), set, config, sources)
    }

    /// A row of a configuration file, over which only `--set` takes precedence.
    fn of_file(file: &Path, set: &[String], sources: &Sources) -> Result<Self> {
        let mut config = Config::from_file(file)?;
        config.assign(set)?;
        let typed = vec![format!("--config {}", file.display())];
        Self::new("file".to_owned(), stem(file), typed, config, sources)
    }

    fn new(group: String, name: String, set: Vec<String>, config: Config, sources: &Sources) -> Result<Self> {
        let mask: Vec<PathBuf> = config.input.mask.iter().map(PathBuf::from).collect();
        let mask = digest(&mask);
        let key = |config: &Config, test: &str| {
            let text = serde_json::to_string(config).map_err(|e| Error::Internal(format!("configuration: {e}")))?;
            let all = [env!("CARGO_PKG_VERSION"), &sources.training, &mask, &text, test];
            Ok::<_, Error>(sha256_hex(all.join("\n").as_bytes()))
        };
        let (own, fit_key) = (key(&config, &sources.test)?, key(&trained(&config), "")?);
        Ok(Self { group, name, set, key: own, fit_key, config })
    }
}

/// The configuration with everything that training does not depend on at its default.
fn trained(config: &Config) -> Config {
    let calibration = CalibrationConfig { folds: 1, groups: Grouping::None, ..CalibrationConfig::default() };
    Config { detection: DetectionConfig::default(), calibration, ..config.clone() }
}

/// Runs the rows; keeps what they share.
struct Bench<'a> {
    context: &'a Context,
    args: &'a AblateArgs,
    data: &'a Dataset,
    out: &'a Path,
    device: &'a Device,
    found: DeviceSpec,
    /// The prepared images, and the configuration they were prepared with.
    set: Option<(Config, TrainingSet)>,
}

impl Bench<'_> {
    fn result(&self, work: &Work) -> PathBuf {
        self.out.join("rows").join(format!("{}.json", work.name))
    }

    /// The row's result, if it was measured before with the same configuration and data.
    fn known(&self, work: &Work) -> Result<Option<AblationRow>> {
        let path = self.result(work);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "cannot read", error)),
        };
        // One that cannot be understood is measured again.
        Ok(serde_json::from_str::<AblationRow>(&text).ok().filter(|row| row.key == work.key))
    }

    fn measure(&mut self, work: &Work) -> Result<AblationRow> {
        let config = &work.config;
        let fit = self.fit(work)?;
        let context = self.context;
        let model = self.out.join(".row.diad");
        {
            let set = self.training_set(config)?;
            let progress = TrainingProgress::new(context);
            let told = train::Context { observer: &progress, stop: &context.stop };
            train::finish(config, set, &fit.averages, &[], &model, told)?;
        }
        let detector = Detector::open_found(&model, self.found)?;
        let _ = fs::remove_file(&model); // its tensors are in memory
        let settings = Settings {
            model: work.name.clone(),
            batch: 8,
            class_known: self.args.class_known,
            ddim_steps: None,
            group_by: None,
            baselines: false,
        };
        let report = evaluate(context, &detector, self.data, &settings)?.report;
        let row = AblationRow {
            group: work.group.clone(),
            name: work.name.clone(),
            set: work.set.clone(),
            key: work.key.clone(),
            mean: report.mean.metrics,
            false_reject_rate: report.mean.false_reject_rate,
            escape_rate: report.mean.escape_rate,
            ms_per_image: report.ms_per_image,
            training_seconds: fit.seconds,
            parameters: fit.averages.values().map(candle_core::Tensor::elem_count).sum(),
        };
        write_atomic(self.result(work), json(&row, "ablation")?.as_bytes())?;
        Ok(row)
    }

    /// Trained weights: those of an earlier row or run, or new ones.
    fn fit(&mut self, work: &Work) -> Result<Fit> {
        let name = |ending: &str| self.out.join("weights").join(format!("{}.{ending}", &work.fit_key[..16]));
        let (weights, checkpoint) = (name("safetensors"), name("checkpoint"));
        if weights.exists() {
            return Fit::read(&weights);
        }
        let context = self.context;
        let set = self.training_set(&work.config)?;
        set.check_rates(&work.config)?;
        let progress = TrainingProgress::new(context);
        let told = train::Context { observer: &progress, stop: &context.stop };
        let fit = train::fit(&trained(&work.config), set, &checkpoint, checkpoint.exists(), told)?;
        drop(progress);
        fit.write(&weights)?;
        let _ = fs::remove_file(&checkpoint); // there may be none
        let spent = duration(Duration::from_secs_f64(fit.seconds));
        context.console.note(format_args!("trained in {spent} ({:.1} images/s)", fit.images_per_second));
        Ok(fit)
    }

    /// The images as this configuration prepares them; rows that prepare them alike share them.
    fn training_set(&mut self, config: &Config) -> Result<&TrainingSet> {
        let alike = |other: &Config| {
            let split = |c: &Config| (c.training.calibration_fraction, c.training.seed, c.training.cache_mib);
            other.input == config.input && other.features == config.features && split(other) == split(config)
        };
        let found = self.set.take().filter(|(other, _)| alike(other));
        let (config, set) = match found {
            Some(found) => found,
            None => {
                let progress = TrainingProgress::new(self.context);
                let told = train::Context { observer: &progress, stop: &self.context.stop };
                let backbone = self.args.backbone.as_deref();
                (config.clone(), TrainingSet::prepare(config, self.data, backbone, None, self.out, self.device, told)?)
            }
        };
        Ok(&self.set.insert((config, set)).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_configuration_of_its_own_with_a_name_of_its_own() {
        let mut names = BTreeSet::new();
        let mut configs: Vec<Config> = Vec::new();
        for row in ROWS {
            let mut config = Config::default();
            config.assign(row.set).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            assert!(names.insert(row.name) && !configs.contains(&config), "{}", row.name);
            assert!(ROWS.iter().all(|other| other.group != row.name) || row.name == "base", "{}", row.name);
            configs.push(config);
        }
        assert_eq!(ROWS[0].set, [""; 0], "the first row is what the others are compared with");
    }
}
