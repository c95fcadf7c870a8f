//! Discrete schedules: golden alpha-bars, posterior, subsets of steps, refusals.

use super::*;

#[test]
fn linear_has_the_golden_alpha_bars() {
    let expected = [
        0.9999,
        9.997800920721e-1,
        5.240853738254e-1,
        7.858724288178e-2,
        3.350550438937e-3,
        4.118193638138e-5,
        4.035829765376e-5,
    ];
    assert_alpha_bars(&linear(1000), expected);
}

#[test]
fn cosine_has_the_golden_alpha_bars() {
    let expected = [
        9.999587157752e-1,
        9.999125759274e-1,
        8.470121613269e-1,
        4.938435904406e-1,
        1.442721023857e-1,
        2.428766907035e-6,
        2.428766907035e-9,
    ];
    assert_alpha_bars(&Schedule::cosine(1000).unwrap(), expected);
}

#[test]
fn linear_reaches_the_noise_with_any_number_of_steps() {
    for (steps, middle, last) in
        [(10, 1.4377689695473257e-5, 1.437768969547331e-17), (100, 6.666562681829521e-2, 2.039008975564078e-5)]
    {
        let schedule = linear(steps);
        assert_eq!(schedule.steps(), steps);
        assert_close(alpha_bar(&schedule, steps / 2), middle, 1e-9);
        assert_close(alpha_bar(&schedule, steps - 1), last, 1e-9);
    }
    for steps in 1..30 {
        for schedule in [linear(steps), Schedule::cosine(steps).unwrap()] {
            assert!(alpha_bar(&schedule, steps - 1) < 0.02, "{steps} steps");
        }
    }
}

#[test]
fn posterior_has_the_golden_coefficients() {
    let schedule = linear(1000);
    let posterior = schedule.posterior(500).unwrap();
    assert_close(posterior.x0, 0.003058057075629619, 1e-10);
    assert_close(posterior.x_t, 0.9941043507567258, 1e-10);
    assert_close(posterior.variance, 0.010051335778909593, 1e-10);
}

#[test]
fn posterior_of_the_first_step_is_the_clean_tensor_without_variance() {
    let posterior = linear(1000).posterior(0).unwrap();
    assert_close(posterior.x0, 1.0, 1e-9);
    assert_eq!((posterior.x_t, posterior.variance), (0.0, 0.0));
}

#[test]
fn subsets_visit_the_start_and_keep_their_spacing() {
    let schedule = linear(1000);
    let subset = |start, count| schedule.subset(start, count).unwrap();
    assert_eq!(subset(999, 10), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]);
    assert_eq!(subset(999, 7), [999, 856, 713, 570, 428, 285, 142]);
    assert_eq!(subset(297, 3), [297, 198, 98]);
    assert_eq!(subset(560, 1), [560]);
    assert_eq!(subset(4, usize::MAX), [4, 3, 2, 1, 0]);
    assert_eq!(subset(0, 10), [0]);
    let levels = schedule.levels(297, 3).unwrap();
    assert_eq!(levels.len(), 4);
    assert_eq!(levels[0], schedule.level(297).unwrap());
    assert_eq!(levels[3], NoiseLevel::CLEAN);
}

#[test]
fn nearest_step_has_the_nearest_alpha_bar() {
    let alpha_bars = [0.9, 0.7, 0.5, 0.4, 0.2];
    let steps = |schedule: &Schedule| alpha_bars.map(|alpha_bar| schedule.nearest_step(level(alpha_bar)));
    assert_eq!(steps(&linear(1000)), [97, 184, 258, 298, 396]);
    let cosine = Schedule::cosine(1000).unwrap();
    assert_eq!(cosine.nearest_step(NoiseLevel::CLEAN), 0);
    assert_eq!(cosine.nearest_step(level(0.0)), 999);
    for step in [0, 1, 500, 998, 999] {
        assert_eq!(cosine.nearest_step(cosine.level(step).unwrap()), step);
    }
}

#[test]
fn impossible_schedules_are_refused() {
    for steps in [0, usize::MAX] {
        for schedule in [Schedule::linear(1e-4, 0.02, steps), Schedule::cosine(steps)] {
            assert_refused(schedule, &format!("diffusion steps is {steps}"));
        }
    }
    assert_refused(Schedule::linear(0.0, 0.1, 2), "beta of step 0 is 0, which");
    assert_refused(Schedule::linear(1e-4, -1e-4, 2), "beta of step 1 is -0.05, which");
    let schedule = linear(10);
    assert_refused(schedule.level(10), "diffusion step is 10; expected 0 to 9");
    assert_refused(schedule.posterior(10), "diffusion step is 10");
    assert_refused(schedule.subset(10, 3), "diffusion step is 10");
    assert_refused(schedule.subset(9, 0), "sampler steps is 0");
}

/// The ends are those given for 1000 steps, and as much signal is left whatever the number of steps.
#[test]
fn linear_ends_are_scaled_with_the_steps() {
    let ours = Schedule::linear(2e-4, 0.01, 500).unwrap();
    assert_close(1.0 - alpha_bar(&ours, 0), 4e-4, 1e-12);
    assert_close(1.0 - alpha_bar(&ours, 499) / alpha_bar(&ours, 498), 0.02, 1e-12);
    let left = |steps| alpha_bar(&Schedule::linear(2e-4, 0.01, steps).unwrap(), steps - 1).ln();
    assert!((left(1000) / left(250) - 1.0).abs() < 0.02, "{} {}", left(1000), left(250));
}
