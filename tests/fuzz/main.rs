//! The fuzz targets as ordinary tests: the corpus, what once broke something (`tests/fixtures/fuzz`), and damaged copies of both.
//! `run.sh` searches on, guided by coverage.

mod damage;
#[allow(unreachable_pub, reason = "a library of its own in the crate that libFuzzer runs")]
#[path = "src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

use damage::{Damage, files, tokens};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Tries a target on all inputs that are kept, and on `cases` damaged ones. An input that ends the process lies in
/// `target/tmp/fuzz` afterwards.
fn survives(name: &str, target: fn(&[u8]), cases: u32) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let last = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    fs::create_dir_all(&last).unwrap();
    let run = |bytes: &[u8]| {
        fs::write(last.join(name), bytes).unwrap();
        target(bytes);
    };
    let mut inputs = files(&tests.join("fuzz/corpus").join(name));
    assert!(!inputs.is_empty());
    inputs.extend(files(&tests.join("fixtures/fuzz").join(name)));
    inputs.iter().for_each(|input| run(input));
    let dictionary = fs::read_to_string(tests.join(format!("fuzz/dictionaries/{name}.dict"))).unwrap();
    let damage = prop::collection::vec(Damage::any(tokens(&dictionary)), 1..5);
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) });
    let tried = runner.run(&(prop::sample::select(inputs), damage), |(mut bytes, damage)| {
        damage.iter().for_each(|damage| damage.apply(&mut bytes));
        run(&bytes);
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn any_configuration_is_taken_or_refused() {
    survives("config", targets::config::target, 3000);
}

#[test]
fn any_image_is_read_or_refused() {
    survives("image", targets::image::target, 5000);
}

#[test]
fn any_model_file_is_read_or_refused() {
    survives("model", targets::model::target, 2000);
}

#[test]
fn any_sound_card_makes_a_model_that_runs() {
    survives("card", targets::card::target, 500);
}
