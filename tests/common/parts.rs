//! What tests of the program and of the plugin share: drawn parts, and folders that are made once per build.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use diad::synthetic::{DatasetSpec, Kind, write_dataset};

/// A folder in `tmp` that `make` fills, once for this build of `program`. Several processes may do this at once; the first that
/// is ready wins, the others agree with it.
pub(crate) fn made_once(tmp: &Path, name: &str, program: &Path, make: impl FnOnce(&Path)) -> PathBuf {
    let program = fs::metadata(program).expect("the program is there");
    let built = program.modified().expect("a time").duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let place = tmp.join(format!("{name}-{built}-{}", program.len()));
    if !place.is_dir() {
        let workshop = tempfile::tempdir_in(tmp).expect("a folder");
        let fresh = workshop.path().join(name);
        fs::create_dir(&fresh).expect("a folder");
        make(&fresh);
        let _ = fs::rename(&fresh, &place);
    }
    place
}

/// Two products of the smallest useful size.
pub(crate) fn draw(folder: &Path) {
    let kinds = vec![Kind::Washer, Kind::Blister];
    let spec = DatasetSpec { kinds, train: 30, test_good: 6, test_defect: 7, size: 64, seed: 5 };
    write_dataset(folder, &spec, &|_, _| {}).expect("drawn");
}
