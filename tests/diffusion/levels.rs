//! Noise levels by alpha-bar and log-SNR.

use super::*;

#[test]
fn log_snr_levels_are_equally_spaced_and_end_clean() {
    let levels = levels_in_log_snr(level(0.4), 4.0, 3).unwrap();
    let expected = [0.4, 0.74326787, 0.92632159, 1.0];
    assert_eq!(levels.len(), 4);
    for (level, alpha_bar) in levels.iter().zip(expected) {
        assert_close(level.alpha_bar(), alpha_bar, 1e-7);
    }
    assert_eq!(levels[3], NoiseLevel::CLEAN);
    assert_eq!(levels_in_log_snr(level(0.4), 4.0, 1).unwrap(), [level(0.4), NoiseLevel::CLEAN]);
}

#[test]
fn impossible_levels_are_refused() {
    for alpha_bar in [-0.1, 1.1, f64::NAN] {
        assert_refused(NoiseLevel::from_alpha_bar(alpha_bar), "alpha_bar is");
    }
    assert_refused(NoiseLevel::from_log_snr(f64::NAN), "log-SNR is not a number");
    assert_refused(levels_in_log_snr(level(0.4), 4.0, 0), "sampler steps is 0");
    assert_refused(levels_in_log_snr(level(0.4), -4.0, 3), "the second larger");
    assert_refused(levels_in_log_snr(level(0.0), 4.0, 3), "finite");
}

proptest! {
    #[test]
    fn log_snr_round_trips(log_snr in -30.0..30.0) {
        let level = NoiseLevel::from_log_snr(log_snr).unwrap();
        prop_assert!((level.log_snr() - log_snr).abs() < 1e-9);
        prop_assert!((level.snr() / log_snr.exp() - 1.0).abs() < 1e-9);
        prop_assert!((level.alpha_bar() + level.variance() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn noisier_is_an_order(a in -20.0..20.0, b in -20.0..20.0) {
        let (low, high) = (NoiseLevel::from_log_snr(a).unwrap(), NoiseLevel::from_log_snr(b).unwrap());
        prop_assert_eq!(low.is_noisier_than(high), low.log_snr() < high.log_snr());
        prop_assert!(!(low.is_noisier_than(high) && high.is_noisier_than(low)));
    }
}
