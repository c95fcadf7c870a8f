//! q(x_t | x0), conversions, error identities and loss weights.

use super::*;

const ALL: [Prediction; 3] = [Prediction::X0, Prediction::Epsilon, Prediction::V];

/// What a network that predicts this should answer.
fn target(prediction: Prediction, x0: &Tensor, noise: &Tensor, levels: &[NoiseLevel]) -> Tensor {
    match prediction {
        Prediction::X0 => x0.clone(),
        Prediction::Epsilon => noise.clone(),
        // v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x0
        Prediction::V => add_noise(noise, &x0.neg().unwrap(), levels).unwrap(),
    }
}

#[test]
fn noise_is_added_per_sample_as_for_each_sample_alone() {
    let (x0, noise) = (normal(1, 5), normal(2, 5));
    let levels = [level(0.4), level(0.9)];
    let both = add_noise(&x0, &noise, &levels).unwrap();
    for (sample, level) in levels.into_iter().enumerate() {
        let (x0, noise) = (x0.narrow(0, sample, 1).unwrap(), noise.narrow(0, sample, 1).unwrap());
        let alone = add_noise(&x0, &noise, &[level]).unwrap();
        assert_eq!(values(&both.narrow(0, sample, 1).unwrap()), values(&alone));
        let by_hand: Vec<f64> = values(&x0)
            .iter()
            .zip(values(&noise))
            .map(|(x, e)| level.alpha_bar().sqrt() * x + (1.0 - level.alpha_bar()).sqrt() * e)
            .collect();
        assert_eq!(values(&alone), by_hand);
    }
}

#[test]
fn undetermined_conversions_and_wrong_shapes_are_refused() {
    let x = normal(1, 4);
    let convert = |from: Prediction, to, at| from.convert(&x, to, &x, &[at]);
    assert_refused(convert(Prediction::X0, Prediction::Epsilon, NoiseLevel::CLEAN), "X0 does not determine");
    assert_refused(convert(Prediction::X0, Prediction::V, NoiseLevel::CLEAN), "X0 does not determine");
    assert_refused(convert(Prediction::Epsilon, Prediction::X0, level(0.0)), "Epsilon does not determine");
    assert!(convert(Prediction::V, Prediction::X0, level(0.0)).is_ok());
    assert!(convert(Prediction::V, Prediction::Epsilon, NoiseLevel::CLEAN).is_ok());
    assert!(add_noise(&x, &normal(1, 5), &[level(0.4)]).is_err());
    assert_refused(add_noise(&x, &x, &[level(0.4); 3]), "3 noise levels for 2 samples");
    assert_refused(add_noise(&x, &x, &[]), "0 noise levels for 2 samples");
}

proptest! {
    // Property 2 of the method's list.
    #[test]
    fn conversions_round_trip(seed in 0..1000u64, a in -6.0..6.0, b in -6.0..6.0) {
        let levels = [NoiseLevel::from_log_snr(a).unwrap(), NoiseLevel::from_log_snr(b).unwrap()];
        let (x0, noise) = (normal(seed, 7), normal(seed + 1000, 7));
        let x_t = add_noise(&x0, &noise, &levels).unwrap();
        for from in ALL {
            let output = target(from, &x0, &noise, &levels);
            for to in ALL {
                let there = from.convert(&output, to, &x_t, &levels).unwrap();
                let expected = target(to, &x0, &noise, &levels);
                prop_assert!(largest_difference(&there, &expected) < 1e-9, "{from:?} to {to:?}");
                let back = to.convert(&there, from, &x_t, &levels).unwrap();
                prop_assert!(largest_difference(&back, &output) < 1e-9, "{from:?} to {to:?} and back");
            }
        }
    }

    #[test]
    fn conversions_round_trip_in_single_precision(seed in 0..1000u64, log_snr in -3.0..4.0) {
        let level = [NoiseLevel::from_log_snr(log_snr).unwrap()];
        let single = |x: Tensor| x.to_dtype(DType::F32).unwrap();
        let (x0, noise) = (single(normal(seed, 7)), single(normal(seed + 1000, 7)));
        let x_t = add_noise(&x0, &noise, &level).unwrap();
        for via in ALL {
            let there = Prediction::X0.convert(&x0, via, &x_t, &level).unwrap();
            let back = via.convert(&there, Prediction::X0, &x_t, &level).unwrap();
            prop_assert!(largest_difference(&back, &x0) < 1e-5, "{via:?}");
        }
    }

    // Properties 4 and 5: one error, said three ways.
    #[test]
    fn errors_and_min_snr_losses_are_one_quantity(
        seed in 0..1000u64, log_snr in -6.0..6.0, gamma in 0.5..20.0, floor in 0.0..0.5,
    ) {
        let at = NoiseLevel::from_log_snr(log_snr).unwrap();
        let (x0, noise, guess) = (normal(seed, 7), normal(seed + 1000, 7), normal(seed + 2000, 7));
        let x_t = add_noise(&x0, &noise, &[at]).unwrap();
        let x0_error = mean_square(&(&x0 - &guess).unwrap());
        for prediction in ALL {
            let output = Prediction::X0.convert(&guess, prediction, &x_t, &[at]).unwrap();
            let target = target(prediction, &x0, &noise, &[at]);
            let error = mean_square(&(target - output).unwrap());
            let factor = match prediction {
                Prediction::X0 => 1.0,
                Prediction::Epsilon => at.snr(),
                Prediction::V => at.snr() + 1.0,
            };
            prop_assert!((error / (factor * x0_error) - 1.0).abs() < 1e-9, "{prediction:?}");
            let loss = min_snr_weight(prediction, at, gamma, floor).unwrap() * error;
            let expected = at.snr().min(gamma).max(floor) * x0_error;
            prop_assert!((loss / expected - 1.0).abs() < 1e-9, "{prediction:?}");
        }
    }
}

// Property 6: for normally distributed data the best guess of x0 is sqrt(alpha_bar) x_t.
#[test]
fn optimal_denoiser_of_normal_data_misses_epsilon_by_alpha_bar() {
    let (x0, noise) = (normal(3, 50_000), normal(4, 50_000));
    for alpha_bar in [0.05, 0.4, 0.9] {
        let at = level(alpha_bar);
        let x_t = add_noise(&x0, &noise, &[at]).unwrap();
        let best = (&x_t * at.signal()).unwrap();
        let epsilon = Prediction::X0.convert(&best, Prediction::Epsilon, &x_t, &[at]).unwrap();
        assert_close(mean_square(&(&noise - epsilon).unwrap()), alpha_bar, 0.015);
    }
}

#[test]
fn min_snr_weights_have_their_limits_and_refuse_nonsense() {
    let weight = |prediction, level| min_snr_weight(prediction, level, 5.0, 0.0).unwrap();
    // SNR 9 and SNR 0.25.
    assert_close(weight(Prediction::X0, level(0.9)), 5.0, 1e-12);
    assert_close(weight(Prediction::Epsilon, level(0.9)), 5.0 / 9.0, 1e-12);
    assert_close(weight(Prediction::V, level(0.9)), 0.5, 1e-12);
    assert_close(weight(Prediction::X0, level(0.2)), 0.25, 1e-12);
    assert_close(weight(Prediction::Epsilon, level(0.2)), 1.0, 1e-12);
    assert_close(weight(Prediction::V, level(0.2)), 0.2, 1e-12);
    assert_close(min_snr_weight(Prediction::X0, level(0.2), 5.0, 0.3).unwrap(), 0.3, 1e-12);
    assert_eq!(ALL.map(|p| weight(p, NoiseLevel::CLEAN)), [5.0, 0.0, 0.0]);
    assert_eq!(ALL.map(|p| weight(p, level(0.0))), [0.0, 1.0, 0.0]);
    assert_refused(min_snr_weight(Prediction::Epsilon, level(0.0), 5.0, 0.3), "SNR 0");
    for gamma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_refused(min_snr_weight(Prediction::X0, level(0.4), gamma, 0.0), "gamma is");
    }
    for floor in [-0.1, 5.1, f64::NAN] {
        assert_refused(min_snr_weight(Prediction::X0, level(0.4), 5.0, floor), "floor is");
    }
}
