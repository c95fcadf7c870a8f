//! Random damage, and saving that fails.

use super::damage::{Damage, tokens};
use super::*;

// Every kind of damage.

#[test]
fn every_truncation_is_refused() {
    let (scratch, good) = (Scratch::new(), good());
    for length in 0..good.len() {
        refusal(&scratch.path(), scratch.try_bytes(&good[..length]));
    }
    refusal(&scratch.path(), scratch.try_bytes(&[&good[..], b"\0"].concat()));
}

#[test]
fn every_changed_byte_is_refused() {
    let (scratch, good) = (Scratch::new(), good());
    for at in 0..good.len() {
        for change in [1 << (at % 8), 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            refusal(&scratch.path(), scratch.try_bytes(&bytes));
        }
    }
}

/// Scores a class could have, ascending.
fn scores() -> impl Strategy<Value = Vec<f32>> {
    let finite = any::<f32>().prop_filter("finite", |score| score.is_finite());
    prop::collection::vec(finite, 1..60).prop_map(|scores| scores.into_iter().collect::<Sorted>().0)
}

proptest! {
    #[test]
    fn any_content_comes_back(
        names in prop::collection::btree_set("[^\\p{C}]{0,20}[a-zé\"\\\\]", 1..5),
        all_scores in prop::collection::vec(scores(), 5),
        ranks in prop::collection::vec(any::<prop::sample::Index>(), 5),
        values in prop::collection::vec(any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite()), 1..70),
        seed in any::<u64>(),
    ) {
        let classes = names.iter().zip(all_scores).zip(ranks).map(|((name, calibration_scores), rank)| {
            let n = calibration_scores.len();
            let rank = rank.index(n) + 1;
            let rate = (n + 1 - rank) as f64 / (n + 1) as f64;
            let ng = GoodScores::new(&calibration_scores, &[]).at_rank(rank, rate);
            ClassCard { name: name.clone(), calibration_scores, ng, warn: ng, pixel_threshold: ng.value, ..class("a", vec![1.0], 0.5) }
        });
        let mut wanted = Card { classes: classes.collect(), ..card() };
        wanted.training.seed = seed;
        let n = values.len();
        let half: Vec<f16> = values.iter().map(|x| f16::from_f32(x.clamp(-6e4, 6e4))).collect();
        let tensors = BTreeMap::from([
            ("x \"quoted\" ü".to_owned(), Tensor::from_vec(half.clone(), (1, n), &Device::Cpu).unwrap()),
            ("y".to_owned(), Tensor::from_vec(values.clone(), n, &Device::Cpu).unwrap()),
        ]);
        let scratch = Scratch::new();
        bundle::save(&scratch.path(), &wanted, &tensors).unwrap();
        let loaded = bundle::load(&scratch.path(), |_| {
            Ok(vec![spec("y", Dtype::F32, &[n]), spec("x \"quoted\" ü", Dtype::F16, &[1, n])])
        }).unwrap();
        let back = loaded.tensors["y"].to_vec1::<f32>().unwrap();
        prop_assert_eq!(back.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), values.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        prop_assert_eq!(&loaded.tensors["x \"quoted\" ü"].to_vec2::<f16>().unwrap()[0], &half);
        wanted.tensors_sha256 = loaded.card.tensors_sha256.clone();
        prop_assert_eq!(loaded.card, wanted);
    }

    #[test]
    fn any_damage_is_refused_or_changes_nothing(
        damage in prop::collection::vec(Damage::any(tokens(include_str!("../fuzz/dictionaries/model.dict"))), 1..4),
    ) {
        let good = good();
        let mut bytes = good.clone();
        damage.iter().for_each(|damage| damage.apply(&mut bytes));
        let scratch = Scratch::new();
        match scratch.try_bytes(&bytes) {
            Err(error) => _ = refusal(&scratch.path(), Err::<(), _>(error)),
            Ok(model) => {
                // Cuts and swaps may cancel, and JSON has more than one way to write the same.
                let sound = scratch.try_bytes(&good).unwrap();
                prop_assert_eq!(model.card, sound.card);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), header in "\\{[\\PC\\x00]{0,200}") {
        let scratch = Scratch::new();
        refusal(&scratch.path(), scratch.try_bytes(&bytes));
        refusal(&scratch.path(), scratch.try_bytes(&raw_file(header.as_bytes(), &bytes)));
    }

    /// Damage below the digests: the card is changed somewhere and signed again.
    #[test]
    fn any_signed_card_is_taken_only_if_it_has_no_mistakes(
        at in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!(0)), Just(json!(1)), Just(json!(1e300)), Just(json!(u64::MAX)),
            Just(json!("")), Just(json!("efficientnet-lite9")), Just(json!([])), Just(json!({})), Just(json!(true)),
            any::<f64>().prop_map(|x| json!(x)), any::<i32>().prop_map(|x| json!(x)),
        ],
    ) {
        let mut forge = Forge::new();
        let mut places = Vec::new();
        pointers(&forge.card, String::new(), &mut places);
        *forge.card.pointer_mut(at.get::<String>(&places)).unwrap() = value;
        let scratch = Scratch::new();
        match scratch.try_bytes(&forge.file()) {
            Ok(model) => prop_assert_eq!(model.card.mistakes(), Vec::<String>::new()),
            Err(error) => _ = refusal(&scratch.path(), Err::<(), _>(error)),
        }
    }
}

/// JSON pointers of everything in `value`.
fn pointers(value: &Value, here: String, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| pointers(value, format!("{here}/{key}"), all)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| pointers(value, format!("{here}/{i}"), all))
        }
        _ => {}
    }
    if !here.is_empty() {
        all.push(here);
    }
}

// What cannot be written.

#[test]
fn what_would_be_refused_is_not_written_and_nothing_is_left() {
    let scratch = Scratch::new();
    let refused = |card: &Card, tensors: &BTreeMap<String, Tensor>, reason: &str| {
        let message = refusal(&scratch.path(), bundle::save(&scratch.path(), card, tensors));
        assert!(message.contains("cannot be written: ") && message.contains(reason), "{message}");
        assert!(scratch.names().is_empty());
    };
    let mut wrong = card();
    wrong.classes[0].ng.value = f32::NAN;
    refused(&wrong, &tensors(), "card: classes[0].ng.value = NaN: expected 3.1");
    let with = |name: &str, tensor: Tensor| {
        let mut tensors = tensors();
        tensors.insert(name.into(), tensor);
        tensors
    };
    let cpu = &Device::Cpu;
    refused(
        &card(),
        &with("n", Tensor::new(&[1f32, f32::NAN], cpu).unwrap()),
        "value 1 of tensor \"n\" is not a finite",
    );
    refused(
        &card(),
        &with("n", Tensor::new(&[f16::INFINITY], cpu).unwrap()),
        "value 0 of tensor \"n\" is not a finite",
    );
    refused(&card(), &with("n", Tensor::new(&[1i64], cpu).unwrap()), "tensor \"n\" is I64, expected F32 or F16");
    refused(&card(), &with("n", Tensor::zeros((2, 0), DType::F32, cpu).unwrap()), "tensor \"n\" has shape [2, 0]");
    refused(&card(), &with("__metadata__", Tensor::new(1f32, cpu).unwrap()), "tensor name \"__metadata__\"");
    let mut wrong = card();
    wrong.tool = "x".repeat(17 << 20);
    refused(&wrong, &tensors(), "card: tool = ");
}

#[test]
fn failed_save_keeps_the_old_file() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), "old").unwrap();
    let mut wrong = card();
    wrong.classes.clear();
    assert!(bundle::save(&scratch.path(), &wrong, &tensors()).is_err());
    assert_eq!((std::fs::read(scratch.path()).unwrap(), scratch.names()), (b"old".to_vec(), vec!["m.diad".into()]));
    bundle::save(&scratch.path(), &card(), &tensors()).unwrap();
    assert_eq!((std::fs::read(scratch.path()).unwrap(), scratch.names()), (good(), vec!["m.diad".into()]));

    let missing = scratch.folder.path().join("missing").join("m.diad");
    assert!(refusal(&missing, bundle::save(&missing, &card(), &tensors())).contains("cannot write: "));
    let error = bundle::save(scratch.folder.path(), &card(), &tensors()).unwrap_err();
    assert!(error.to_string().contains("cannot write: is a directory"), "{error}");
    assert_eq!(scratch.names(), ["m.diad"]);
}
