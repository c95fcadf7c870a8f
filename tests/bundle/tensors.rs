//! Tensors, layouts and lengths that do not fit.

use super::*;

// Tensors that do not fit.

#[test]
fn tensors_that_do_not_fit_the_card_are_told_one_by_one() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), good()).unwrap();
    let refused =
        |wanted: Vec<TensorSpec>| refusal(&scratch.path(), bundle::load(&scratch.path(), |_| Ok(wanted.clone())));
    let message = refused(vec![
        spec("a.half", Dtype::F32, &[3]),
        spec("b.weight", Dtype::F32, &[3, 2]),
        spec("d.bias", Dtype::F32, &[4]),
    ]);
    assert!(
        message.ends_with(
            "tensor \"a.half\" is F16 [3], expected F32 [3]; \
             tensor \"b.weight\" is F32 [2, 3], expected F32 [3, 2]; \
             tensor \"d.bias\" is missing, expected F32 [4]; \
             tensor \"c.scale\" (F32 []) is unexpected, this model has none of that name"
        ),
        "{message}"
    );
    let message = refused((0..100).map(|i| spec(&format!("t{i}"), Dtype::F32, &[1])).collect());
    assert!(message.ends_with("; and 95 more"), "{message}");
    // What `expected` has to say is passed on.
    let error = bundle::load(&scratch.path(), |_| Err(Error::Usage("no such backbone".into()))).unwrap_err();
    assert_eq!(error.to_string(), "no such backbone");
}

#[test]
fn expected_sees_the_card() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), good()).unwrap();
    let model = bundle::load(&scratch.path(), |card| {
        assert_eq!(card.classes.len(), 2);
        expected(card)
    });
    assert!(model.is_ok());
}

#[test]
fn layout_that_is_not_the_one_of_the_format_is_refused() {
    let entry = |dtype: &str, shape: Value, start: u64, end: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
    entries_refused(
        |e| e[0].1 = entry("I64", json!([3]), 0, 24),
        "tensor \"b.weight\" is \"I64\", expected F32 or F16",
    );
    entries_refused(|e| e[0].1 = entry("F16", json!([12]), 0, 24), "tensor \"c.scale\" comes after \"b.weight\"");
    entries_refused(
        |e| e[0].1 = entry("F32", json!([2, 4]), 0, 24),
        "lies at bytes (0, 24), expected (0, 32) for F32 [2, 4]",
    );
    entries_refused(
        |e| e[0].1 = entry("F32", json!([2, 3]), 4, 28),
        "lies at bytes (4, 28), expected (0, 24) for F32 [2, 3]",
    );
    entries_refused(
        |e| e[1].1 = entry("F32", json!([]), 20, 24),
        "lies at bytes (20, 24), expected (24, 28) for F32 []",
    );
    entries_refused(
        |e| e[1].1 = entry("F32", json!([]), 28, 24),
        "lies at bytes (28, 24), expected (24, 28) for F32 []",
    );
    entries_refused(
        |e| e[0].1 = entry("F32", json!([0, 3]), 0, 0),
        "has shape [0, 3], expected at most 8 dimensions, none 0",
    );
    entries_refused(|e| e[0].1 = entry("F32", json!(vec![1; 9]), 0, 4), "expected at most 8 dimensions, none 0");
    entries_refused(
        |e| e[0].1 = entry("F32", json!([1u64 << 33, 1u64 << 33]), 0, 24),
        "tensor \"b.weight\" is too large",
    );
    entries_refused(|e| e[0].1 = entry("F32", json!([u64::MAX]), 0, 24), "tensor \"b.weight\" is too large");
    entries_refused(
        |e| e[0].1 = entry("F32", json!([-1]), 0, 24),
        "its header is not that of a safetensors file: invalid value",
    );
    entries_refused(
        |e| e[0].1 = entry("F32", json!([1e3]), 0, 24),
        "its header is not that of a safetensors file: invalid type",
    );
    entries_refused(|e| e[0].1 = json!({"dtype": "F32", "shape": [6]}), "missing field `data_offsets`");
    entries_refused(|e| e[0].1 = json!(null), "its header is not that of a safetensors file");
    entries_refused(|e| e[0].0 = String::new(), "tensor name \"\": expected 1 to 255 bytes");
    entries_refused(|e| e[0].0 = "a\u{1b}[2J".into(), "tensor name \"a\\u{1b}[2J\": expected 1 to 255 bytes");
    entries_refused(|e| e.swap(0, 1), "tensor \"c.scale\" lies at bytes (24, 28), expected (0, 4)");
    entries_refused(|e| e[1].0 = "b.weight".into(), "tensor \"b.weight\" comes after \"b.weight\"");
    entries_refused(
        |e| e[1].0 = "a".into(),
        "tensor \"a\" comes after \"b.weight\", expected F32 before F16 and names",
    );
    entries_refused(
        |e| _ = e.pop(),
        "has bytes that belong to no tensor: the tensors need 28 bytes, 34 follow the header",
    );
    entries_refused(|e| e[2].1 = entry("F16", json!([4]), 28, 36), "is cut off: the tensors need 36 bytes, 34 follow");
    entries_refused(|e| e.push(("__metadata__".into(), json!({}))), "duplicate field `__metadata__`");
}

#[test]
fn tensors_in_another_order_are_refused_even_if_all_is_there() {
    let mut forge = Forge::new();
    forge.tensors.swap(0, 1);
    Scratch::new().refused(&forge.file(), "tensor \"b.weight\" comes after \"c.scale\"");
    let mut forge = Forge::new();
    forge.tensors.rotate_right(1);
    Scratch::new().refused(&forge.file(), "tensor \"b.weight\" comes after \"a.half\"");
}

#[test]
fn changed_values_are_damage() {
    let mut forge = Forge::new();
    forge.tensors[0].3[0] ^= 1;
    Scratch::new().refused(&forge.file(), "is damaged: the tensors' sha256 is ");
    // Values that moved from one tensor to another.
    let mut forge = Forge::new();
    forge.tensors[0].3.rotate_left(4);
    Scratch::new().refused(&forge.file(), "is damaged: the tensors' sha256 is ");
    // A card that was edited and not signed again.
    let forge = Forge::new();
    let mut metadata = forge.metadata();
    metadata["diad"] = metadata["diad"].as_str().unwrap().replace("3.5", "9.5").into();
    Scratch::new().refused(&file(Some(metadata), &forge.entries(), &forge.data()), "is damaged: the card's sha256 is ");
    let mut metadata = forge.metadata();
    metadata.as_object_mut().unwrap().remove("diad.sha256");
    Scratch::new().refused(&file(Some(metadata), &forge.entries(), &forge.data()), "expected \"\" (metadata key");
}

#[test]
fn values_that_are_not_finite_are_refused_even_with_the_right_digest() {
    for (bits, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut forge = Forge::new();
        forge.tensors[0].3[8..12].copy_from_slice(&bits.to_le_bytes());
        forge.card["tensors_sha256"] = forge.digest().into();
        let reason = format!("value 2 of tensor \"b.weight\" is {shown}, expected a finite number");
        Scratch::new().refused(&forge.file(), &reason);
        let mut forge = Forge::new();
        forge.tensors[2].3[2..4].copy_from_slice(&f16::from_f32(bits).to_le_bytes());
        forge.card["tensors_sha256"] = forge.digest().into();
        let reason = format!("value 1 of tensor \"a.half\" is {shown}, expected a finite number");
        Scratch::new().refused(&forge.file(), &reason);
    }
}

// Sizes that lie.

#[test]
fn lengths_that_lie_are_refused() {
    let scratch = Scratch::new();
    let with_length = |length: u64| [&length.to_le_bytes(), &good()[8..]].concat();
    scratch.refused(&with_length(0), "its header is not that of a safetensors file");
    scratch.refused(&with_length(1), "its header is not that of a safetensors file");
    scratch.refused(&with_length(1 << 20), "is cut off: announces a header of 1048576 bytes, ");
    scratch.refused(&with_length((16 << 20) + 1), "announces a header of 16777217 bytes, expected at most 16777216");
    scratch.refused(&with_length(u64::MAX), "announces a header of 18446744073709551615 bytes");
    scratch.refused(&raw_file(&b"[".repeat(100_000), b""), "is no safetensors file");
    scratch.refused(&raw_file(&b"{\"a\":".repeat(100_000), b""), "its header is not that of a safetensors file");
    scratch.refused(&raw_file(b"{}", b""), "is no safetensors file");
    scratch.refused(&raw_file(b"{           }", b""), "is a safetensors file without a diad card");
}

/// Virtual memory of this process at its peak, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_taken_for_nothing_that_was_not_checked() {
    // Sparse files: long without taking room on the disk.
    let scratch = Scratch::new();
    let sparse = |bytes: &[u8], length: u64| {
        std::fs::write(scratch.path(), bytes).unwrap();
        std::fs::OpenOptions::new().write(true).open(scratch.path()).unwrap().set_len(length).unwrap();
        refusal(&scratch.path(), bundle::load(&scratch.path(), expected))
    };
    let before = peak_memory();
    let huge = 3 << 29;
    let forge = Forge::new();
    let one_huge_tensor = |name: &str| {
        let entry = json!({"dtype": "F32", "shape": [huge / 4], "data_offsets": [0, huge]});
        file(Some(forge.metadata()), &[(name.into(), entry)], b"")
    };
    // A tensor that is really as long as it says, and that nobody asked for.
    let bytes = one_huge_tensor("b.weight");
    let message = sparse(&bytes, bytes.len() as u64 + huge);
    assert!(message.contains("tensor \"b.weight\" is F32 [402653184], expected F32 [2, 3]"), "{message}");
    // One that is not.
    let message = sparse(&bytes, 1 << 20);
    assert!(message.contains("is cut off: the tensors need 1610612736 bytes"), "{message}");
    let message = sparse(&good(), 2 << 30);
    assert!(message.contains("has bytes that belong to no tensor"), "{message}");
    let message = sparse(&good(), (2 << 30) + 1);
    assert!(message.contains("has 2147483649 bytes, expected at most 2147483648"), "{message}");
    let message = sparse(b"{\"a\": 1}", 1 << 40);
    assert!(message.contains("has 1099511627776 bytes, expected at most"), "{message}");
    let grown = peak_memory() - before;
    assert!(grown < 512 << 20, "{grown} bytes of memory were taken");
}

#[cfg(target_os = "linux")]
#[test]
fn headers_of_the_largest_size_take_a_small_multiple_of_it() {
    let scratch = Scratch::new();
    let before = peak_memory();
    let fill = |item: &str| item.repeat((16 << 20) / item.len() - 2000);
    let tensor = "\"t\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},";
    for header in [
        format!("{{\"t\":{{\"dtype\":\"F32\",\"shape\":[{}1]}}}}", fill("1,")),
        format!("{{{}\"u\":0}}", fill(tensor)),
        format!("{{\"__metadata__\":{{\"diad\":\"{}\"}}}}", fill("[")),
        format!("{{\"__metadata__\":{{\"x\":\"y\",\"diad\":\"{{\\\"a\\\":[{}0]}}\"}}}}", fill("0,")),
    ] {
        refusal(&scratch.path(), scratch.try_bytes(&raw_file(header.as_bytes(), b"")));
    }
    let mut forge = Forge::new();
    forge.card["classes"][0]["calibration_scores"] = "SCORES".into();
    let card = forge.card.to_string().replace("\"SCORES\"", &format!("[{}0]", fill("0,")));
    let metadata = json!({"diad.sha256": hex(&Sha256::digest(card.as_bytes())), "diad": card});
    let bytes = file(Some(metadata), &forge.entries(), &forge.data());
    scratch.refused(&bytes, "classes[0].ng.n = 40: expected 8");
    let grown = peak_memory() - before;
    assert!(grown < 768 << 20, "{grown} bytes of memory were taken");
}
