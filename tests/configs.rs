//! The files in `configs/`, and the rules of the configuration, each broken once and its message read.

use std::collections::BTreeSet;
use std::path::PathBuf;

use diad::config::{BACKBONES, Config, DEFAULT_TARGET_FPR};
use diad::error::Error;
use proptest::prelude::*;
use serde_json::json;

fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
}

fn shipped_text(name: &str) -> String {
    std::fs::read_to_string(shipped(name)).unwrap()
}

/// Dotted names of all keys of the struct, optional ones included.
fn all_keys() -> BTreeSet<String> {
    let tree = serde_json::to_value(Config::default()).unwrap();
    let sections = tree.as_object().unwrap();
    sections
        .iter()
        .flat_map(|(section, keys)| keys.as_object().unwrap().keys().map(move |key| format!("{section}.{key}")))
        .collect()
}

fn mistakes(error: Error) -> Vec<String> {
    assert_eq!(error.exit_code(), 2, "{error}");
    match error {
        Error::Config { mistakes, .. } => mistakes,
        other => panic!("expected mistakes of a configuration, got {other:?}"),
    }
}

/// `text` has exactly these mistakes, in this order.
#[track_caller]
fn rejected(text: &str, expected: &[&str]) {
    assert_eq!(mistakes(Config::from_toml(text, "test.toml").unwrap_err()), expected);
}

/// The one assignment is refused with exactly this message.
#[track_caller]
fn refused(assignment: &str, expected: &str) {
    let mut config = Config::default();
    assert_eq!(mistakes(config.assign(&[assignment]).unwrap_err()), [expected]);
    assert_eq!(config, Config::default(), "a refused assignment changes nothing");
}

#[test]
fn every_shipped_file_loads() {
    let entries = std::fs::read_dir(shipped("")).unwrap();
    let names: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let seeds = ["conditional", "ddim", "ddpm", "guided", "heads", "literal", "per-class", "pixel", "sum", "unet"];
    let others = ["accurate-gpu.toml", "default.toml", "fast-cpu.toml", "smoke.toml"].map(str::to_owned);
    assert_eq!(names, seeds.map(|seed| format!("seed-{seed}.toml")).into_iter().chain(others).collect());
    for name in names {
        Config::from_file(shipped(&name)).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn default_file_equals_the_defaults_and_gives_every_key() {
    assert_eq!(Config::from_file(shipped("default.toml")).unwrap(), Config::default());
    assert_eq!(Config::from_toml("", "empty").unwrap(), Config::default());

    // Keys that have no value by default stand there as comments that can be uncommented.
    let uncommented: String = shipped_text("default.toml")
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => rest,
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    Config::from_toml(&uncommented, "uncommented").unwrap();
    let tree: toml::Table = uncommented.parse().unwrap();
    let given: BTreeSet<_> = tree
        .iter()
        .flat_map(|(section, keys)| keys.as_table().unwrap().keys().map(move |key| format!("{section}.{key}")))
        .collect();
    assert_eq!(given, all_keys());
    assert_eq!(tree["calibration"]["target_fpr"].as_float(), Some(DEFAULT_TARGET_FPR));
}

#[test]
fn every_key_of_the_default_file_has_a_comment() {
    let text = shipped_text("default.toml");
    let lines: Vec<_> = text.lines().collect();
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ") && !line.starts_with('#')) {
        assert!(i > 0 && lines[i - 1].starts_with("# "), "no comment above {line}");
    }
}

#[test]
fn other_files_give_only_what_differs() {
    let default: toml::Table = shipped_text("default.toml").parse().unwrap();
    for name in ["accurate-gpu.toml", "fast-cpu.toml", "smoke.toml"] {
        let tree: toml::Table = shipped_text(name).parse().unwrap();
        for (section, keys) in &tree {
            for (key, value) in keys.as_table().unwrap() {
                assert_ne!(default[section].get(key), Some(value), "{name}: {section}.{key} is the default");
            }
        }
    }
}

#[test]
fn every_key_has_a_rule() {
    // A string with a line break is right for no key; a key without a rule would be called unknown.
    for key in all_keys() {
        let message = mistakes(Config::default().assign(&[format!("{key}=a\nb")]).unwrap_err()).remove(0);
        assert!(message.starts_with(&format!("{key} = \"")) && message.contains(": expected "), "{message}");
    }
    for (name, _) in BACKBONES {
        Config::default().assign(&[format!("features.backbone={name}")]).unwrap();
    }
}

#[test]
fn a_configuration_survives_toml_and_json() {
    let mut config = Config::from_file(shipped("smoke.toml")).unwrap();
    config.assign(&["input.roi=[0.1, 0, 0.5, 1]", "calibration.target_fpr=0.02", "input.fit=pad"]).unwrap();
    let toml = toml::to_string(&config).unwrap();
    assert_eq!(Config::from_toml(&toml, "again").unwrap(), config);
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
}

#[test]
fn all_mistakes_are_told_at_once() {
    rejected(
        "[training]\nbatchsize = 8\nsteps = 0\nlearning_rate = \"fast\"\n[denoiser]\nwidth = 48\nheads = 5\n\
         [input]\nroi = [0, 0, 2, 1]\n[trainning]\nseed = -1\n",
        &[
            "line 2: training.batchsize: no such key; did you mean training.batch_size?",
            "line 3: training.steps = 0: expected an integer from 1 to 10000000",
            "line 4: training.learning_rate = \"fast\" (a string): expected a number x with 0 < x <= 1",
            "line 6: denoiser.width = 48, denoiser.heads = 5: expected width to be a multiple of heads",
            "line 9: input.roi = [0, 0, 2, 1]: expected [x, y, width, height] as fractions of the frame, \
             inside 0 to 1, with an area",
            "line 10: [trainning]: no such section; did you mean [training]?",
            "line 11: trainning.seed = -1: expected an integer, 0 or more",
        ],
    );
}

#[test]
fn message_begins_with_the_file() {
    let error = Config::from_toml("training.steps = 0", "line.toml").unwrap_err();
    assert_eq!(error.to_string(), "line.toml: line 1: training.steps = 0: expected an integer from 1 to 10000000");
}

#[test]
fn unknown_keys_get_the_one_that_was_meant() {
    rejected("[detection]\nstep = 3", &["line 2: detection.step: no such key; did you mean training.steps?"]);
    rejected("steps = 3", &["line 1: steps: no such key; did you mean training.steps?"]);
    rejected("[training]\ndropout = 0.5", &["line 2: training.dropout: no such key; did you mean denoiser.dropout?"]);
    rejected("[training]\nfrobnicate = 1", &["line 2: training.frobnicate: no such key"]);
    rejected("training = 3", &["line 1: training = 3 (an integer): expected a section, [training]"]);
    rejected(
        "[input]\nsize.width = 64",
        &[
            "line 2: input.size = { width = 64 } (a table): expected a multiple of 32 from 64 to 4096, or two of them as [width, height]",
        ],
    );
    rejected(
        "[frobnicate]\nx = 1",
        &["line 1: [frobnicate]: no such section; expected one of [input], [features], [denoiser], [diffusion], \
           [training], [detection], [calibration]"],
    );
    rejected(
        "[[training]]\nsteps = 3",
        &["line 1: training = [{ steps = 3 }] (an array): expected a section, [training]"],
    );
}

#[test]
fn syntax_errors_name_the_line() {
    let found = mistakes(Config::from_toml("[training]\nsteps = \nseed == 4\n", "x").unwrap_err());
    assert!(found.len() == 2 && found[0].starts_with("line 2: ") && found[1].starts_with("line 3: "), "{found:?}");
    let found = mistakes(Config::from_toml("[training]\nseed = 1\nseed = 2\n", "x").unwrap_err());
    assert!(found[0].starts_with("line 3: ") && found[0].contains("duplicate"), "{found:?}");
}

#[test]
fn wrong_types_and_values_are_refused() {
    let size = "expected a multiple of 32 from 64 to 4096, or two of them as [width, height]";
    refused("input.size=100", &format!("input.size = 100: {size}"));
    refused("input.size=32", &format!("input.size = 32: {size}"));
    refused("input.size=8192", &format!("input.size = 8192: {size}"));
    refused("input.size=[256, 100]", &format!("input.size = [256, 100]: {size}"));
    refused("input.size=[256, 256, 3]", &format!("input.size = [256, 256, 3]: {size}"));
    refused("input.size=256.0", &format!("input.size = 256.0 (a float): {size}"));
    refused("input.size=", &format!("input.size = \"\" (a string): {size}"));
    let scales = "expected [x, ...], one or more of 1, 0.5 and 0.25, each once";
    refused("features.scales=[1.0, 0.3]", &format!("features.scales = [1.0, 0.3]: {scales}"));
    refused("features.scales=[1.0, 1.0]", &format!("features.scales = [1.0, 1.0]: {scales}"));
    refused("features.scales=[]", &format!("features.scales = []: {scales}"));
    refused("denoiser.kernel=4", "denoiser.kernel = 4: expected one of 3, 5, 7");
    refused("denoiser.dropout=1", "denoiser.dropout = 1: expected a number x with 0 <= x < 1");
    refused("denoiser.dropout=true", "denoiser.dropout = true (a boolean): expected a number x with 0 <= x < 1");
    refused("training.seed=-1", "training.seed = -1: expected an integer, 0 or more");
    refused("features.whitening=1.1", "features.whitening = 1.1: expected a number x with 0 <= x <= 1");
    refused("calibration.target_fpr=0", "calibration.target_fpr = 0: expected a number x with 0 < x < 1");
    refused("input.fit=padd", "input.fit = \"padd\": expected one of stretch, pad; did you mean \"pad\"?");
    let error = Config::default().assign(&["features.backbone=resnet-18"]).unwrap_err().to_string();
    assert!(error.ends_with("; did you mean \"resnet18\"?"), "{error}");
    for bad in [
        "[0.5, 0, 0.6, 1]",
        "[0, 0, 0, 1]",
        "[0, 0, 1, -1]",
        "[-0.1, 0, 0.5, 1]",
        "[0, 0, 1]",
        "[0, 0, 1, \"x\"]",
        "[0, 0, 1, nan]",
    ] {
        refused(
            &format!("input.roi={bad}"),
            &format!(
                "input.roi = {bad}: expected [x, y, width, height] as fractions of the frame, inside 0 to 1, with an \
                 area"
            ),
        );
    }
}

#[test]
fn nan_and_infinity_are_refused_by_every_key() {
    for key in all_keys() {
        for text in ["nan", "-nan", "inf", "-inf", "[nan, nan, nan, nan]"] {
            assert!(Config::default().assign(&[format!("{key}={text}")]).is_err(), "{key} = {text}");
        }
    }
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    refused("denoiser.heads=3", "denoiser.width = 128, denoiser.heads = 3: expected width to be a multiple of heads");
    refused(
        "features.grid=12",
        "input.size = 256, features.grid = 12: expected grid to divide the sides of the feature maps (1/4, 1/8 and \
         1/16 of size) or to be a multiple of them, for instance size / 16",
    );
    refused(
        "denoiser.blocks=2",
        "denoiser.attention_every = 3, denoiser.blocks = 2: expected attention_every to be at most blocks (0 for no \
         attention)",
    );
    refused(
        "training.steps=50",
        "training.warmup_steps = 100, training.steps = 50: expected warmup_steps to be at most steps",
    );
    refused(
        "detection.start_alpha_bar=0.01",
        "detection.start_alpha_bar = 0.01, diffusion.log_snr_min = -3.0, diffusion.log_snr_max = 4.0: expected \
         ln(start_alpha_bar / (1 - start_alpha_bar)) to lie between log_snr_min and log_snr_max, the noise seen in \
         training",
    );
    refused(
        "diffusion.log_snr_center=5",
        "diffusion.log_snr_center = 5.0, diffusion.log_snr_min = -3.0, diffusion.log_snr_max = 4.0: expected \
         log_snr_center to lie between log_snr_min and log_snr_max",
    );
    refused(
        "diffusion.min_snr_floor=6",
        "diffusion.min_snr_floor = 6.0, diffusion.min_snr_gamma = 5.0: expected min_snr_floor to be at most \
         min_snr_gamma",
    );
    refused(
        "training.mask=0.9",
        "training.mask = 0.9, training.shuffle = 0.15: expected mask + shuffle to be less than 1, so that something \
         of the image is left",
    );
    refused(
        "calibration.warn_fpr=0.01",
        "calibration.warn_fpr = 0.01, calibration.target_fpr = absent: expected warn_fpr to be at least target_fpr \
         (0.05 if absent): a part that is rejected is one to warn of",
    );
    for (assignments, message) in [
        (&["features.space=pixel", "features.grid=24"][..], "input.size = 256, features.grid = 24, features.space"),
        (&["denoiser.levels=6"], "denoiser.levels = 6, features.grid = 16: expected a square grid, a multiple of 2"),
        (
            &["denoiser.levels=4", "denoiser.width=512", "denoiser.growth=4"],
            "denoiser.width = 512, denoiser.growth = 4,",
        ),
        (
            &["input.size=96", "features.scales=[1.0, 0.5]"],
            "input.size = 96, features.scales = [1.0, 0.5]: expected a size that is a multiple of 16, and at least 64 pix",
        ),
        (&["denoiser.guide=3"], "denoiser.guide = 3, features.grid = 16: expected a square grid, a multiple of g"),
        (&["diffusion.beta_start=0.02"], "diffusion.beta_start = 0.02, diffusion.beta_end = 0.02: expected beta_start"),
        (
            &["diffusion.schedule=linear", "diffusion.timesteps=2"],
            "detection.start_alpha_bar = 0.4, diffusion.schedule",
        ),
        (
            &["detection.score=sum", "diffusion.log_snr_min=-1"],
            "detection.diffusion_alpha_bars = [0.8, 0.5, 0.2], diff",
        ),
        (&["detection.eta=0.5"], "detection.eta = 0.5, detection.sampler = \"project\": expected eta to be 0"),
        (
            &["detection.sampler=ddpm"],
            "detection.sampler = \"ddpm\", diffusion.schedule = \"log-snr\": expected a sched",
        ),
        (
            &["denoiser.classes=heads", "detection.condition=class"],
            "detection.condition = \"class\", denoiser.classes =",
        ),
        (
            &["detection.guidance=2"],
            "detection.guidance = 2.0, detection.condition = \"none\": expected guidance to be",
        ),
        (
            &[
                "features.backbone=resnet50",
                "features.dim=1024",
                "input.size=1024",
                "features.grid=128",
                "detection.covariance_cells=1",
                "denoiser.attention_every=0",
            ],
            "features.grid = 128, features.dim = 1024, detection.covariance_cells = 1: expected covariances x dim^2 to be at",
        ),
        (
            &["features.space=pixel", "features.grid=128", "denoiser.window=0"],
            "features.grid = 128, denoiser.levels = 1, denoiser.attention_every = 3, denoiser.window = 0: expected at most",
        ),
        (
            &["diffusion.log_snr_max=0", "detection.start_alpha_bar=0.5"],
            "detection.start_alpha_bar = 0.5, diffusion.log_snr_min = -3.0, diffusion.log_snr_max = 0.0: expected",
        ),
        (
            &["diffusion.schedule=cosine", "diffusion.timesteps=3", "detection.score=sum", "detection.start=pure"],
            "detection.diffusion_alpha_bars = [0.8, 0.5, 0.2], diffusion.schedule = \"cosine\", diffusion.timesteps = 3",
        ),
        (&["training.class_drop=0"], "training.class_drop = 0.0, detection.condition = \"none\", detection.guidance ="),
        (
            &["training.class_drop=0", "detection.condition=class", "detection.guidance=2"],
            "training.class_drop = 0.0, detection.condition = \"class\", detection.guidance = 2.0: expected class_drop",
        ),
        (
            &["training.class_drop=1", "detection.condition=class"],
            "training.class_drop = 1.0, detection.condition = \"class\": expected class_drop to be less than 1",
        ),
        (
            &["diffusion.prediction=epsilon", "diffusion.schedule=cosine"],
            "diffusion.min_snr_floor = 0.3, diffusion.prediction = \"epsilon\", diffusion.schedule = \"cosine\", diffusion",
        ),
        (
            &["diffusion.prediction=epsilon", "diffusion.weighting=uniform"],
            "training.mask = 0.3, training.shuffle = 0.15, diffusion.prediction = \"epsilon\", diffusion.weighting =",
        ),
    ] {
        let found = mistakes(Config::default().assign(assignments).unwrap_err());
        assert!(found.len() == 1 && found[0].starts_with(message), "{found:?} not {message}");
    }
    // Two contradictions of one key are both told.
    rejected(
        "[diffusion]\nlog_snr_min = 4\nlog_snr_center = 4\n",
        &[
            "line 2: diffusion.log_snr_min = 4.0, diffusion.log_snr_max = 4.0: expected log_snr_min to be less than \
             log_snr_max",
            "line 2: detection.start_alpha_bar = 0.4, diffusion.log_snr_min = 4.0, diffusion.log_snr_max = 4.0: \
             expected ln(start_alpha_bar / (1 - start_alpha_bar)) to lie between log_snr_min and log_snr_max, the \
             noise seen in training",
        ],
    );
}

#[test]
fn features_are_no_wider_than_the_backbone() {
    let message = mistakes(Config::default().assign(&["features.dim=1000"]).unwrap_err()).remove(0);
    assert!(message.starts_with("features.dim = 1000, features.backbone = \"efficientnet-lite0\": expected dim to be"));
    for (name, channels) in BACKBONES {
        // The message says the widths in words.
        let short = name.strip_prefix("efficientnet").filter(|short| *short != "-lite0").unwrap_or(name);
        assert!(message.contains(short) && message.contains(&channels.to_string()), "{name} {channels}: {message}");
        let mut config = Config::default();
        config.assign(&[format!("features.backbone={name}"), format!("features.dim={}", channels.min(1024))]).unwrap();
        assert!(config.assign(&[format!("features.dim={}", channels + 1)]).is_err(), "{name}");
    }
}

#[test]
fn grids_that_fit_are_taken() {
    let try_grid =
        |size, grid| Config::default().assign(&[format!("input.size={size}"), format!("features.grid={grid}")]);
    for (size, grid) in [(64, 4), (64, 8), (64, 16), (192, 12), (224, 14), (224, 28), (320, 20), (512, 32), (1024, 64)]
    {
        try_grid(size, grid).unwrap();
    }
    for (size, grid) in [(64, 6), (224, 16), (320, 16), (320, 32), (96, 4)] {
        assert!(try_grid(size, grid).is_err(), "{size} {grid}");
    }
    let try_grid =
        |size, grid| Config::default().assign(&[format!("input.size={size:?}"), format!("features.grid={grid:?}")]);
    for (size, grid) in [([256, 640], [16, 40]), ([512, 1280], [16, 40]), ([640, 256], [80, 32])] {
        try_grid(size, grid).unwrap();
    }
    for (size, grid) in [([256, 640], [16, 16]), ([256, 640], [32, 20]), ([640, 256], [16, 40])] {
        assert!(try_grid(size, grid).is_err(), "{size:?} {grid:?}");
    }
}

/// About square cells, 16 along the shorter side or a few more, whatever the input.
#[test]
fn cells_follow_the_input() {
    for (size, grid) in [
        ([256, 256], [16, 16]),
        ([64, 64], [16, 16]),
        ([128, 128], [16, 16]),
        ([96, 96], [24, 24]),
        ([256, 640], [16, 40]),
        ([640, 256], [40, 16]),
        ([512, 1280], [16, 40]),
        ([1152, 480], [36, 15]),
        ([384, 384], [24, 24]),
        ([224, 224], [28, 28]),
        ([1024, 1024], [16, 16]),
        ([1280, 1024], [20, 16]),
        ([2464, 2048], [22, 16]),
    ] {
        let mut config = Config::default();
        config.assign(&[format!("input.size={size:?}")]).unwrap();
        assert_eq!(config.grid().sides(), grid, "{size:?}");
        let written = serde_json::to_value(&config).unwrap()["input"]["size"].clone();
        let expected = if size[0] == size[1] { json!(size[0]) } else { json!(size) };
        assert_eq!(written, expected, "one number stands for a square, as in files of schema 1");
    }
}

/// What a choice makes meaningless is not held against it.
#[test]
fn keys_that_say_nothing_contradict_nothing() {
    for assignments in [
        &["diffusion.schedule=cosine", "diffusion.log_snr_center=19", "diffusion.log_snr_min=5"][..],
        &["detection.start=pure", "diffusion.log_snr_min=0", "diffusion.log_snr_center=1"],
        &["features.space=pixel", "features.grid=32", "features.dim=1024"],
        &["training.class_drop=0", "detection.condition=class"],
        &["training.class_drop=0", "denoiser.classes=heads"],
        &["diffusion.prediction=epsilon", "diffusion.schedule=cosine", "diffusion.min_snr_floor=0"],
    ] {
        Config::default().assign(assignments).unwrap_or_else(|error| panic!("{assignments:?}: {error}"));
    }
}

#[test]
fn assignments_are_checked_together_and_reported_together() {
    let mut config = Config::default();
    // The first alone would contradict a default.
    config.assign(&["denoiser.heads=3", "denoiser.width=96"]).unwrap();
    assert_eq!((config.denoiser.heads, config.denoiser.width), (3, 96));

    let wrong = ["training.steps", "training.stps=5", "input.size=7", "denoiser.heads=5"];
    assert_eq!(
        mistakes(config.assign(&wrong).unwrap_err()),
        [
            "\"training.steps\": expected KEY=VALUE, for instance training.steps=500",
            "training.stps: no such key; did you mean training.steps?",
            "input.size = 7: expected a multiple of 32 from 64 to 4096, or two of them as [width, height]",
            "denoiser.width = 96, denoiser.heads = 5: expected width to be a multiple of heads",
        ]
    );
}

#[test]
fn values_on_the_command_line_need_no_quotes() {
    let mut config = Config::default();
    for (key, text) in [
        ("input.fit", "pad"),
        ("input.fit", "\"pad\""),
        ("input.fit", " 'pad' "),
        ("features.backbone", "wide-resnet50"),
        ("training.learning_rate", "1e-4"),
        ("training.learning_rate", "1"),
        ("training.seed", "9223372036854775807"),
        ("training.seed", "1_000"),
        ("input.roi", "[0, 0.5, 1, 0.5]"),
    ] {
        config.assign(&[format!("{key}={text}")]).unwrap_or_else(|error| panic!("{key} = {text}: {error}"));
    }
    assert_eq!(config.training.seed, 1000);
    assert_eq!(config.input.roi, Some([0.0, 0.5, 1.0, 0.5]));
    // A line break does not smuggle in a second key.
    for wrong in ["training.seed=1\nx = 2", "training=1", "=1", "training.seed"] {
        assert!(config.assign(&[wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn check_finds_what_was_put_together_by_hand() {
    let mut config = Config::default();
    config.check("test").unwrap();
    config.training.learning_rate = f64::NAN;
    config.input.roi = Some([0.0, 0.0, f64::INFINITY, 1.0]);
    config.denoiser.heads = 0;
    let found = mistakes(config.check("test").unwrap_err());
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().any(|text| text == "training.learning_rate = nan: expected a number x with 0 < x <= 1"));

    let mut config = Config::default();
    config.training.seed = u64::MAX;
    let found = mistakes(config.check("test").unwrap_err());
    assert!(found[0].starts_with("training.seed = 18446744073709551615: expected an integer from 0 to "), "{found:?}");
    assert!(config.assign(&["training.steps=5"]).is_err());
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let check = |path: PathBuf, words: &str| {
        let error = Config::from_file(&path).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with(&path.display().to_string()) && message.contains(words), "{message}");
        assert_eq!(error.exit_code(), 2);
    };
    check(path("missing.toml"), "cannot read: ");
    check(folder.path().to_path_buf(), "is a folder, expected a configuration file");
    std::fs::write(path("picture.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    check(path("picture.png"), "is not text (byte 0 is not UTF-8)");
    std::fs::write(path("long.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    check(path("long.toml"), "is larger than 1048576 bytes");
    #[cfg(unix)]
    check("/dev/zero".into(), "is not a regular file");
}

#[test]
fn hostile_text_gets_a_short_answer() {
    let many: String = (0..2000).map(|i| format!("key_{i} = 1\n")).collect();
    let found = mistakes(Config::from_toml(&many, "x").unwrap_err());
    assert_eq!((found.len(), found[50].as_str()), (51, "and 1950 more"));

    let long = format!(
        "\"{}\" = 1\n[training]\nsteps = \"{}\"\n\"\\u001b[2J\" = 1",
        "k".repeat(100_000),
        "v\\u001b".repeat(1000)
    );
    let error = Config::from_toml(&long, "x").unwrap_err().to_string();
    assert!(error.len() < 500 && !error.contains('\u{1b}'), "{error:?}");

    assert!(Config::from_toml(&format!("a = {}", "[".repeat(100_000)), "x").is_err());
    assert!(Config::from_toml(&"a.".repeat(100_000), "x").is_err());
}

proptest! {
    #[test]
    fn any_text_is_taken_or_refused_without_panic(text in "\\PC{0,200}", key in "\\PC{0,20}") {
        let _ = Config::from_toml(&text, "x");
        let _ = Config::default().assign(&[format!("{key}={text}")]);
        let _ = Config::default().assign(&[&text]);
    }

    #[test]
    fn whatever_is_taken_keeps_the_rules_and_whatever_is_refused_is_named(
        at in any::<prop::sample::Index>(),
        value in prop_oneof![
            any::<i64>().prop_map(|i| i.to_string()),
            (-5i64..300).prop_map(|i| i.to_string()),
            any::<f64>().prop_map(|x| format!("{x:?}")),
            (-1.0f64..2.0).prop_map(|x| format!("{x:?}")),
            Just("true".to_owned()),
            Just("[1, 2]".to_owned()),
            Just("{ a = 1 }".to_owned()),
            Just("1979-05-27".to_owned()),
        ],
    ) {
        let keys: Vec<_> = all_keys().into_iter().collect();
        let mut config = Config::default();
        let key = at.get(&keys);
        match config.assign(&[format!("{key}={value}")]) {
            Ok(()) => prop_assert!(config.check("x").is_ok()),
            Err(error) => {
                prop_assert!(error.to_string().contains(key.as_str()), "{}", error);
                prop_assert_eq!(config, Config::default());
            }
        }
    }
}
