//! What tests of the program share: how it is run, and drawn parts with a model that knows them.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use diad::data::draw::{DatasetSpec, Kind, write_dataset};

/// The program under test.
pub(crate) const DIAD: &str = env!("CARGO_BIN_EXE_diad");

/// What a run left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// It ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// It ended with this code and with one message that names all of `what`.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, what: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        let messages = self.stderr.lines().filter(|line| line.starts_with("diad: error: ")).count();
        assert_eq!(messages, 1, "{self:#?}");
        for what in what {
            assert!(self.stderr.contains(what), "{what:?} is not in {self:#?}");
        }
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains("internal error"), "{self:#?}");
        self
    }
}

/// The program with arguments separated by spaces; `{}` stands for the next of `paths`.
pub(crate) fn command(line: &str, paths: &[&Path]) -> Command {
    let mut paths = paths.iter();
    let mut command = Command::new(DIAD);
    for word in line.split_whitespace() {
        if word == "{}" {
            command.arg(paths.next().expect("a path for every {}"));
        } else {
            command.arg(word);
        }
    }
    assert!(paths.next().is_none(), "a {{}} for every path");
    command.stdin(Stdio::null()).env_remove("DIAD_LOG").env_remove("RUST_BACKTRACE");
    command
}

/// Runs it to its end.
pub(crate) fn diad(line: &str, paths: &[&Path]) -> Run {
    let output = command(line, paths).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Run { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The configuration that trains in a second.
pub(crate) fn smoke() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/smoke.toml")
}

/// Drawn parts, and a model that was trained on them with [`smoke`].
pub(crate) struct Shop {
    pub(crate) parts: PathBuf,
    pub(crate) model: PathBuf,
}

/// The shop of this build of the program; made once, whichever test process comes first.
pub(crate) fn shop() -> &'static Shop {
    static SHOP: OnceLock<Shop> = OnceLock::new();
    SHOP.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = fs::metadata(DIAD).expect("the program is there");
        let built = program.modified().expect("a time").duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
        let place = folder.join(format!("shop-{built}-{}", program.len()));
        if !place.is_dir() {
            // Several processes may do this at once; the first that is ready wins, the others agree with it.
            let workshop = tempfile::tempdir_in(folder).expect("a folder");
            let fresh = workshop.path().join("shop");
            fs::create_dir(&fresh).expect("a folder");
            draw(&fresh.join("parts"));
            diad("train --data {} --out {} --config {}", &[&fresh.join("parts"), &fresh.join("m.diad"), &smoke()]).ok();
            let _ = fs::rename(&fresh, &place);
        }
        Shop { parts: place.join("parts"), model: place.join("m.diad") }
    })
}

/// Two products of the smallest useful size.
fn draw(folder: &Path) {
    let kinds = vec![Kind::Washer, Kind::Blister];
    let spec = DatasetSpec { kinds, train: 30, test_good: 6, test_defect: 7, size: 64, seed: 5 };
    write_dataset(folder, &spec, &|_, _| {}).expect("drawn");
}

/// All file and folder names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
