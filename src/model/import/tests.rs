//! Small PyTorch files, read and broken.
//!
//! The fixtures were made with PyTorch 2:
//!
//! ```python
//! state = OrderedDict(
//!     turned=torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
//!     part=torch.arange(10, dtype=torch.float64)[3:8:2],
//!     half=torch.tensor([0.5, -2.0], dtype=torch.float16),
//!     brain=torch.tensor([1.5], dtype=torch.bfloat16),
//!     parameter=torch.nn.Parameter(torch.tensor([[7.0]])),
//!     steps=torch.tensor(41),
//! )
//! torch.save(state, "state_dict.archive.pth")
//! torch.save({"epoch": 3, "loss": 0.25, "state_dict": state}, "state_dict.stream.pth",
//!            _use_new_zipfile_serialization=False)
//! ```

use proptest::prelude::*;

use super::pickle::{Node, Pickle};
use super::*;

#[path = "../../../tests/fuzz/damage.rs"]
mod damage;

const ARCHIVE: &[u8] = include_bytes!("../../../tests/fixtures/state_dict.archive.pth");
const STREAM: &[u8] = include_bytes!("../../../tests/fixtures/state_dict.stream.pth");

/// Reads every tensor of a file; whatever the file, this returns.
fn read(bytes: &[u8]) -> Result<Vec<Vec<f32>>, Reason> {
    let mut source = Source::open(bytes)?;
    ["turned", "part", "half", "brain", "parameter"].into_iter().map(|name| source.values(name)).collect()
}

#[track_caller]
fn assert_refused<T>(result: Result<T, Reason>, words: &str) {
    let reason = result.err().expect("expected an error");
    assert!(reason.contains(words), "'{reason}' does not say '{words}'");
}

/// A pickle of protocol 2 with these operations.
fn pickle(operations: &[u8]) -> Vec<u8> {
    [&[0x80, 2], operations, b"."].concat()
}

/// The operations that make `torch.FloatStorage` "0" with `len` numbers.
fn storage(class: &str, len: u8) -> Vec<u8> {
    let class = format!("(X\x07\0\0\0storagectorch\n{class}\nX\x01\0\0\x000X\x03\0\0\0cpuK");
    [class.as_bytes(), &[len], b"tQ"].concat()
}

#[test]
fn both_formats_of_pytorch_are_read() {
    for bytes in [ARCHIVE, STREAM] {
        let mut source = Source::open(bytes).unwrap();
        assert_eq!(source.shape("turned"), Some(vec![3, 2]));
        assert_eq!(source.values("turned").unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(source.shape("part"), Some(vec![3]));
        assert_eq!(source.values("part").unwrap(), [3.0, 5.0, 7.0]);
        assert_eq!(source.values("half").unwrap(), [0.5, -2.0]);
        assert_eq!(source.values("brain").unwrap(), [1.5]);
        assert_eq!(source.shape("parameter"), Some(vec![1, 1]));
        assert_eq!(source.values("parameter").unwrap(), [7.0]);
        assert_eq!(source.shape("steps"), Some(vec![]));
        assert_refused(source.values("steps"), "whole numbers");
        assert_eq!(source.shape("absent"), None);
        assert_refused(source.values("absent"), "is missing");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for bytes in [ARCHIVE, STREAM] {
        assert!(read(bytes).is_ok());
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn pickles_of_other_things_run_nothing_and_say_so() {
    // os.system("id"): read as a call that nobody makes.
    let call = pickle(b"cos\nsystem\nX\x02\0\0\0id\x85R");
    let (parsed, taken) = Pickle::parse(&call).unwrap();
    assert!(matches!(parsed.root(), Node::Other));
    assert_eq!(taken, call.len());
    let mut stream = LEGACY_MAGIC.to_vec();
    stream.extend([pickle(b"M\xe9\x03"), pickle(b"}"), call, pickle(b"]")].concat());
    assert_refused(read(&stream), "holds no state dict");
    assert_refused(read(&[&LEGACY_MAGIC[..], &pickle(b"M\xe8\x03")].concat()), "unknown version");
}

#[test]
fn impossible_pickles_are_refused() {
    let parse = |operations: &[u8]| Pickle::parse(&pickle(operations)).map(|_| ());
    assert_refused(parse(b""), "a value is missing");
    assert_refused(parse(b"(."), "a value is missing");
    assert_refused(parse(b"t"), "a mark is missing");
    assert_refused(parse(b"h\x05"), "value 5 is used before it is made");
    assert_refused(parse(b"}K\x01s"), "a value is missing");
    assert_refused(parse(b"]K\x01K\x02s"), "not a dict");
    assert_refused(parse(b"}(K\x01u"), "has no value");
    assert_refused(parse(b"}K\x01a"), "not a list");
    assert_refused(parse(b"X\xff\xff\xff\xffabc"), "cut off");
    assert_refused(parse(b"X\x01\0\0\0\xff"), "not UTF-8");
    assert_refused(parse(b"cnowhere"), "cut off");
    assert_refused(parse(b"i"), "operation 0x69");
    assert_refused(parse(b"NQ"), "not a tuple");
    assert_refused(parse(&storage("QInt8Storage", 4)), "QInt8Storage is not supported");
    let rebuild = |rest: &[u8]| {
        let start = b"ctorch._utils\n_rebuild_tensor_v2\n(";
        parse(&[&start[..], &storage("FloatStorage", 4), rest, b"tR"].concat())
    };
    assert_eq!(rebuild(b"K\0K\x04\x85K\x01\x85"), Ok(()));
    assert_refused(rebuild(b"K\0K\x04\x85)"), "with strides");
    assert_refused(rebuild(b"K\0J\xff\xff\xff\xff\x85K\x01\x85"), "a size is -1");
    assert_refused(rebuild(b"NK\x04\x85K\x01\x85"), "not a whole number");
    assert_refused(rebuild(b"K\0(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01tK\x01\x85"), "up to 8");
    let endless = b"N0".repeat(1 << 20);
    assert_refused(Pickle::parse(&pickle(&endless)).map(|_| ()), "operation 0x30");
    let long = b"N".repeat((1 << 20) + 1);
    assert_refused(Pickle::parse(&pickle(&long)).map(|_| ()), "more than 1048576 operations");
}

#[test]
fn nesting_as_deep_as_a_file_can_be_costs_no_stack() {
    let deep = [&b")"[..], &b"\x85".repeat(1 << 19)].concat();
    assert!(Pickle::parse(&pickle(&deep)).is_ok());
}

#[test]
fn tensors_that_reach_beyond_their_storage_are_refused() {
    // A stream with one storage of four numbers and a tensor x that looks into it.
    let stream = |view: &[u8]| {
        let rebuild = b"}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n(";
        let state = [&rebuild[..], &storage("FloatStorage", 4), view, b"\x89NtRs"].concat();
        let parts = [pickle(b"M\xe9\x03"), pickle(b"}"), pickle(&state), pickle(b"]X\x01\0\0\x000a")].concat();
        let numbers = [1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
        [&LEGACY_MAGIC[..], &parts, &4u64.to_le_bytes(), &numbers].concat()
    };
    let values = |view: &[u8]| Source::open(&stream(view)).and_then(|mut source| source.values("x"));
    assert_eq!(values(b"K\0K\x02K\x02\x86K\x01K\x02\x86"), Ok(vec![1.0, 3.0, 2.0, 4.0]));
    assert_eq!(values(b"K\x03K\x01\x85J\xff\xff\xff\x7f\x85"), Ok(vec![4.0]));
    assert_eq!(values(b"K\0K\0\x85K\x01\x85"), Ok(vec![]));
    assert_refused(values(b"K\x01K\x04\x85K\x01\x85"), "beyond its storage");
    assert_refused(values(b"K\0K\x02\x85K\x04\x85"), "beyond its storage");
    assert_refused(values(b"K\0K\x05\x85K\0\x85"), "beyond its storage");
    assert_refused(values(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x02\x85K\x01\x85"), "beyond its storage");
    let huge = b"K\0\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x86K\0K\0\x86";
    assert_refused(values(huge), "beyond its storage");
}

/// What the fuzz target tries, guided by coverage: see `tests/fuzz`.
fn kept() -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut kept = damage::files(&tests.join("fuzz/corpus/import"));
    assert!(!kept.is_empty());
    kept.extend(damage::files(&tests.join("fixtures/fuzz/import")));
    kept.extend([ARCHIVE.to_vec(), STREAM.to_vec()]);
    kept
}

/// Whatever the file, this returns, and what it says is plain.
fn read_or_refused(bytes: &[u8]) {
    if let Err(error) = read_all(bytes, Path::new("x.pth")) {
        let message = error.to_string();
        let plain = message.starts_with("x.pth: ") && message.len() < 9000 && !message.chars().any(char::is_control);
        assert!(plain, "{message:?}");
    }
}

#[test]
fn kept_files_are_read_or_refused() {
    kept().iter().for_each(|bytes| read_or_refused(bytes));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn damaged_files_are_read_or_refused(
        mut bytes in prop::sample::select(kept()),
        damage in prop::collection::vec(
            damage::Damage::any(damage::tokens(include_str!("../../../tests/fuzz/dictionaries/import.dict"))),
            1..5,
        ),
    ) {
        damage.iter().for_each(|damage| damage.apply(&mut bytes));
        read_or_refused(&bytes);
    }

    #[test]
    fn random_operations_are_read_or_refused(
        operations in prop::collection::vec(
            prop::sample::select(&b"().GJKMNQRTUX]abcehjqrtsu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95\n\0\x01\xffx"[..]),
            0..200,
        ),
    ) {
        let _ = Pickle::parse(&operations);
    }
}
