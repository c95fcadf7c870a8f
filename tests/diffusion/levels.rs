//! Noise levels by alpha-bar, log-SNR and cosine time.

use super::*;

#[test]
fn cosine_process_has_the_golden_log_snrs() {
    let process = CosineProcess::default();
    let golden = [
        (0.01, 7.367127040908115),
        (0.25, 1.7113566202316002),
        (0.5, -0.02462688281151437),
        (0.56, -0.4013449433093549),
        (0.9, -3.7015002174994676),
    ];
    for (time, log_snr) in golden {
        assert_close(process.log_snr(time).unwrap(), log_snr, 1e-10);
        assert_close(process.time_at_log_snr(log_snr).unwrap(), time, 1e-10);
    }
    assert_eq!(process.level(0.0).unwrap(), NoiseLevel::CLEAN);
    assert_eq!(process.log_snr(1.0).unwrap(), f64::NEG_INFINITY);
    assert_eq!(process.time_at_log_snr(f64::INFINITY).unwrap(), 0.0);
    assert_eq!(process.time_at_log_snr(f64::NEG_INFINITY).unwrap(), 1.0);
}

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
fn cosine_levels_are_equally_spaced_in_time_and_end_clean() {
    let process = CosineProcess::default();
    let levels = process.levels(level(0.4), 4).unwrap();
    let times: Vec<f64> = levels.iter().map(|&level| process.time(level)).collect();
    for (k, time) in times.iter().enumerate() {
        assert!((time - times[0] * (4 - k) as f64 / 4.0).abs() < 1e-12);
    }
    assert_eq!(levels[4], NoiseLevel::CLEAN);
}

#[test]
fn impossible_levels_are_refused() {
    for alpha_bar in [-0.1, 1.1, f64::NAN] {
        assert_refused(NoiseLevel::from_alpha_bar(alpha_bar), "alpha_bar is");
    }
    assert_refused(NoiseLevel::from_log_snr(f64::NAN), "log-SNR is not a number");
    assert_refused(CosineProcess::default().level(1.01), "time is 1.01");
    assert_refused(CosineProcess::new(-0.1), "offset is -0.1");
    assert_refused(levels_in_log_snr(level(0.4), 4.0, 0), "sampler steps is 0");
    assert_refused(levels_in_log_snr(level(0.4), -4.0, 3), "the second larger");
    assert_refused(levels_in_log_snr(level(0.0), 4.0, 3), "finite");
    assert_refused(CosineProcess::default().levels(level(0.4), 0), "sampler steps is 0");
    assert_refused(CosineProcess::default().levels(NoiseLevel::CLEAN, 2), "without noise");
}

proptest! {
    #[test]
    fn log_snr_and_time_round_trip(log_snr in -30.0..30.0) {
        let level = NoiseLevel::from_log_snr(log_snr).unwrap();
        prop_assert!((level.log_snr() - log_snr).abs() < 1e-9);
        prop_assert!((level.snr() / log_snr.exp() - 1.0).abs() < 1e-9);
        prop_assert!((level.alpha_bar() + level.variance() - 1.0).abs() < 1e-15);
        let process = CosineProcess::default();
        let time = process.time(level);
        // Above log-SNR 10 a time next to 0 has lost digits of its own.
        let back = process.log_snr(time).unwrap();
        prop_assert!((back - log_snr).abs() < 1e-9 || (log_snr > 10.0 && (back - log_snr).abs() < 0.1), "{back}");
    }

    #[test]
    fn noisier_is_an_order(a in -20.0..20.0, b in -20.0..20.0) {
        let (low, high) = (NoiseLevel::from_log_snr(a).unwrap(), NoiseLevel::from_log_snr(b).unwrap());
        prop_assert_eq!(low.is_noisier_than(high), low.log_snr() < high.log_snr());
        prop_assert!(!(low.is_noisier_than(high) && high.is_noisier_than(low)));
    }
}
