//! DDIM and DDPM steps, plans and whole reconstructions.

use super::*;

fn tanh(x: &Tensor, _log_snr: f64) -> Result<Tensor> {
    Ok(x.tanh()?)
}

fn cosines(factor: f64) -> Tensor {
    Tensor::from_iter((0..6).map(|i| (factor * f64::from(i)).cos()), &Device::Cpu).unwrap()
}

#[test]
fn ddim_sigma_is_the_golden_one() {
    let schedule = linear(1000);
    let (from, to) = (schedule.level(500).unwrap(), schedule.level(400).unwrap());
    assert_close(ddim(1.0).sigma(from, to), 0.7231963492714133, 1e-10);
    assert_close(ddim(0.5).sigma(from, to), 0.7231963492714133 / 2.0, 1e-10);
    assert_eq!(ddim(0.0).sigma(from, to), 0.0);
    assert_eq!(ddim(1.0).sigma(from, NoiseLevel::CLEAN), 0.0);
}

// Property 3, and with it that DDIM with eta 1 is DDPM: same mean, same variance.
#[test]
fn ddim_with_eta_one_on_neighbouring_steps_is_ddpm() {
    let (x_t, x0, noise) = (normal(1, 4), normal(2, 4), normal(3, 4));
    for schedule in [linear(1000), Schedule::cosine(50).unwrap()] {
        for step in 0..schedule.steps() {
            let posterior = schedule.posterior(step).unwrap();
            let before = step.checked_sub(1).map_or(NoiseLevel::CLEAN, |before| schedule.level(before).unwrap());
            let pair = (schedule.level(step).unwrap(), before);
            let sigma = ddim(1.0).sigma(pair.0, pair.1);
            assert!((sigma * sigma - posterior.variance).abs() <= 1e-9 * posterior.variance, "step {step}");
            let ours = ddim(1.0).step(&x_t, &x0, pair, Some(&noise)).unwrap();
            let ancestral = ancestral_step(&x_t, &x0, posterior, Some(&noise)).unwrap();
            assert!(largest_difference(&ours, &ancestral) < 1e-9, "step {step}");
        }
    }
}

#[test]
fn reconstruction_follows_the_golden_trajectory() {
    let x0 = Tensor::from_iter((0..6).map(|i| f64::from(i).sin()), &Device::Cpu).unwrap();
    let noises = [cosines(1.0), cosines(2.0)];
    let levels = levels_in_log_snr(level(0.4), 4.0, 3).unwrap();
    let golden = [
        0.33263064209428184,
        0.5332706533791424,
        0.39349954453911057,
        -0.012827728834555088,
        -0.5641301576731768,
        -0.5694681315110389,
    ];
    let plan = Plan::new(levels.clone(), Prediction::X0, ddim(0.5)).unwrap();
    let result = reconstruct(&x0, &plan, Start::Scaled, &noises, tanh).unwrap();
    for (actual, golden) in values(&result).into_iter().zip(golden) {
        assert_close(actual, golden, 1e-9);
    }
    // The same network in other words walks the same way.
    for prediction in [Prediction::Epsilon, Prediction::V] {
        let plan = Plan::new(levels.clone(), prediction, ddim(0.5)).unwrap();
        let network = |x: &Tensor, log_snr: f64| {
            let at = NoiseLevel::from_log_snr(log_snr)?;
            Prediction::X0.convert(&x.tanh()?, prediction, x, &[at])
        };
        let same = reconstruct(&x0, &plan, Start::Scaled, &noises, network).unwrap();
        assert!(largest_difference(&same, &result) < 1e-9, "{prediction:?}");
    }
}

/// Golden numbers from PyTorch 2.15 and diffusers 0.42, whose schedules are in single precision:
///
/// ```python
/// import torch
/// import diffusers.schedulers.scheduling_ddpm as ddpm
/// from diffusers import DDIMScheduler, DDPMScheduler
/// torch.set_default_dtype(torch.float64)
/// n = torch.arange(6.0)
/// def noise(i): return torch.cos((n + 1) * (i + 1))[None]  # of step i
/// def linear(T): return dict(num_train_timesteps=T, beta_start=0.1 / T, beta_end=20 / T, clip_sample=False)
/// def walk(s, step):
///     x = torch.sin(n)[None]
///     for i, t in enumerate(s.timesteps): x = step(i, torch.tanh(x), t, x).prev_sample
///     print([round(v, 7) for v in x[0].tolist()])
/// for kind in ["epsilon", "sample", "v_prediction"]:
///     s = DDPMScheduler(prediction_type=kind, variance_type="fixed_small", **linear(50))
///     s.set_timesteps(50)
///     def step(i, *args):
///         ddpm.randn_tensor = lambda *_, **__: noise(i)
///         return s.step(*args)
///     walk(s, step)
/// for kind, schedule, eta in [("epsilon", "linear", 0), ("sample", "linear", 0.5), ("v_prediction", "squaredcos_cap_v2", 1)]:
///     s = DDIMScheduler(prediction_type=kind, beta_schedule=schedule, timestep_spacing="trailing", **linear(1000))
///     s.set_timesteps(10)
///     walk(s, lambda i, *args: s.step(*args, eta=eta, variance_noise=noise(i) if eta else None))
/// ```
#[test]
fn samplers_equal_those_of_diffusers() {
    let start = Tensor::from_iter((0..6).map(|i| f64::from(i).sin()), &Device::Cpu).unwrap();
    let noise = |i: u32| Tensor::from_iter((1..7).map(|n| f64::from(n * (i + 1)).cos()), &Device::Cpu).unwrap();
    let noises: Vec<Tensor> = (0..49).map(noise).collect();
    let check = |what: &str, got: &Tensor, golden: [f64; 6]| {
        for (got, golden) in values(got).into_iter().zip(golden) {
            assert!((got - golden).abs() < 2e-5 * (1.0 + golden.abs()), "{what}: {got} not {golden}");
        }
    };
    let steps = linear(50);
    for (prediction, golden) in [
        (Prediction::Epsilon, [-0.0615395, -0.0111479, -0.0043429, -0.0085293, -0.0116863, -10.4355569]),
        (Prediction::X0, [-0.0611776, -0.0059052, 0.001194, -0.0108079, -0.0226067, 0.301396]),
        (Prediction::V, [-0.0603037, -0.0121382, -0.0052573, -0.0082523, -0.006482, 0.4171001]),
    ] {
        let got = ancestral(&start, (&steps, 49), prediction, Start::Pure(&start), &noises, tanh).unwrap();
        check(&format!("ancestral, {prediction:?}"), &got, golden);
    }
    let (linear, cosine) = (linear(1000), Schedule::cosine(1000).unwrap());
    for (prediction, schedule, eta, golden) in [
        (Prediction::Epsilon, &linear, 0.0, [0.0, 14.0141407, 19.393243, 0.0647542, -8.4664774, -23.7964925]),
        (Prediction::X0, &linear, 0.5, [-0.1790514, 0.4555488, 0.4962326, -0.0738135, -0.6676822, 0.1677699]),
        (Prediction::V, &cosine, 1.0, [0.020732, -0.0107123, -0.0111662, 0.0250191, -0.0786644, -0.164857]),
    ] {
        let plan = Plan::new(schedule.levels(999, 10).unwrap(), prediction, ddim(eta)).unwrap();
        let got = reconstruct(&start, &plan, Start::Pure(&start), &noises[..plan.noises()], tanh).unwrap();
        check(&format!("DDIM, {prediction:?}"), &got, golden);
    }
}

#[test]
fn network_is_asked_at_every_level_but_the_last() {
    let levels = levels_in_log_snr(level(0.4), 4.0, 3).unwrap();
    let plan = Plan::new(levels.clone(), Prediction::X0, ddim(0.0)).unwrap();
    let mut asked = Vec::new();
    let network = |x: &Tensor, log_snr| {
        asked.push(log_snr);
        tanh(x, log_snr)
    };
    reconstruct(&cosines(1.0), &plan, Start::Scaled, &[], network).unwrap();
    assert_eq!(asked, levels[..3].iter().map(|level| level.log_snr()).collect::<Vec<_>>());
    assert_eq!(plan.evaluations(), 3);
}

#[test]
fn one_step_is_the_networks_own_answer() {
    let x0 = cosines(1.0);
    let plan = Plan::new(vec![level(0.4), NoiseLevel::CLEAN], Prediction::X0, ddim(0.0)).unwrap();
    let result = reconstruct(&x0, &plan, Start::Scaled, &[], tanh).unwrap();
    let expected: Vec<f64> = values(&x0).iter().map(|x| (x * 0.4f64.sqrt()).tanh()).collect();
    assert_eq!(values(&result), expected);
    let pure = reconstruct(&x0, &plan, Start::Pure(&cosines(3.0)), &[], tanh).unwrap();
    assert_eq!(values(&pure), values(&cosines(3.0).tanh().unwrap()));
}

#[test]
fn dropping_the_residual_projects_again_and_again() {
    let x0 = cosines(1.0);
    let levels = vec![level(0.4), level(0.8), NoiseLevel::CLEAN];
    let drop = Ddim::new(0.0, EpsMode::Drop).unwrap();
    let plan = Plan::new(levels, Prediction::X0, drop).unwrap();
    let result = reconstruct(&x0, &plan, Start::Scaled, &[], tanh).unwrap();
    let expected: Vec<f64> = values(&x0).iter().map(|x| ((x * 0.4f64.sqrt()).tanh() * 0.8f64.sqrt()).tanh()).collect();
    assert_eq!(values(&result), expected);
}

#[test]
fn equal_arguments_give_equal_bits() {
    let x0 = normal(6, 4).to_dtype(DType::F32).unwrap();
    let levels = levels_in_log_snr(level(0.4), 4.0, 5).unwrap();
    let plan = Plan::new(levels, Prediction::X0, ddim(0.0)).unwrap();
    let run = |x: &Tensor| reconstruct(x, &plan, Start::Scaled, &[], tanh).unwrap();
    let both = run(&x0);
    assert_eq!(values(&both), values(&run(&x0)));
    // And a sample does not depend on its neighbour.
    let alone = run(&x0.narrow(0, 1, 1).unwrap());
    assert_eq!(values(&both.narrow(0, 1, 1).unwrap()), values(&alone));
}

#[test]
fn impossible_steps_and_plans_are_refused() {
    for eta in [-0.1, 1.1, f64::NAN] {
        assert_refused(Ddim::new(eta, EpsMode::Ddim), "eta is");
    }
    assert_refused(Ddim::new(0.5, EpsMode::Drop), "eps mode drop");
    let x = normal(1, 4);
    let (noisy, mild) = (level(0.1), level(0.8));
    assert_refused(ddim(0.0).step(&x, &x, (mild, noisy), None), "a cleaner level");
    assert_refused(ddim(0.5).step(&x, &x, (noisy, mild), None), "no noise");
    assert_refused(ddim(0.0).step(&x, &normal(1, 5), (noisy, mild), None), "one shape");
    assert_refused(ddim(0.0).step(&x, &x, (NoiseLevel::CLEAN, mild), None), "a cleaner level");
    let posterior = linear(10).posterior(5).unwrap();
    assert_refused(ancestral_step(&x, &x, posterior, None), "no noise");
    assert!(ancestral_step(&x, &normal(1, 5), posterior, Some(&x)).is_err());

    let plan = |levels: &[NoiseLevel], prediction, eta| Plan::new(levels.to_vec(), prediction, ddim(eta));
    let clean = NoiseLevel::CLEAN;
    assert_refused(plan(&[], Prediction::X0, 0.0), "0 noise levels");
    assert_refused(plan(&[noisy], Prediction::X0, 0.0), "1 noise levels");
    for levels in [&[noisy, noisy][..], &[noisy, mild, noisy], &[mild, noisy, clean], &[clean, noisy]] {
        assert_refused(plan(levels, Prediction::X0, 0.0), "expected it to rise");
    }
    assert_refused(plan(&[level(0.0), clean], Prediction::Epsilon, 0.0), "says nothing about x0");
    assert!(plan(&[level(0.0), clean], Prediction::V, 0.0).is_ok());

    let random = plan(&[noisy, mild, clean], Prediction::X0, 1.0).unwrap();
    assert_eq!(random.noises(), 1);
    assert_refused(reconstruct(&x, &random, Start::Scaled, &[], tanh), "0 noises for the sampler; expected 1");
    let single = plan(&[noisy, clean], Prediction::X0, 1.0).unwrap();
    assert_refused(reconstruct(&x, &single, Start::Pure(&normal(1, 5)), &[], tanh), "one shape");
    assert!(reconstruct(&x, &single, Start::Noised(&normal(1, 5)), &[], tanh).is_err());
    assert_refused(reconstruct(&x, &single, Start::Scaled, &[], |_, _| Ok(normal(1, 5))), "one shape");
}

proptest! {
    // Property 1: a network that knows the answer gets back to it from anywhere, in any number of steps.
    #[test]
    fn oracle_returns_to_x0_for_every_subset_of_steps(
        seed in 0..1000u64,
        mut steps in prop::collection::btree_set(0..1000usize, 1..12),
        start in 0..3usize,
    ) {
        let schedule = Schedule::cosine(1000).unwrap();
        let (x0, noise) = (normal(seed, 3), normal(seed + 1000, 3));
        steps.insert(999 - (seed as usize % 400));
        let mut levels: Vec<NoiseLevel> = steps.iter().rev().map(|&t| schedule.level(t).unwrap()).collect();
        levels.push(NoiseLevel::CLEAN);
        let oracle = |x: &Tensor, log_snr: f64| {
            let at = NoiseLevel::from_log_snr(log_snr)?;
            Prediction::X0.convert(&x0, Prediction::Epsilon, x, &[at])
        };
        let plan = Plan::new(levels, Prediction::Epsilon, ddim(0.0)).unwrap();
        let start = [Start::Scaled, Start::Noised(&noise), Start::Pure(&noise)][start];
        let result = reconstruct(&x0, &plan, start, &[], oracle).unwrap();
        prop_assert!(largest_difference(&result, &x0) < 1e-6);
    }

    #[test]
    fn ddim_keeps_the_variance_of_the_process(a in -8.0..8.0f64, b in -8.0..8.0f64, eta in 0.0..=1.0) {
        // signal^2 + carried^2 + sigma^2 adds up to the new level: with x0 = 0 and x_t = noise of level a,
        // the step's factor of x_t squared times the old variance is what sigma leaves of the new one.
        let (from, to) = (NoiseLevel::from_log_snr(a.min(b)).unwrap(), NoiseLevel::from_log_snr(a.max(b)).unwrap());
        let sigma = ddim(eta).sigma(from, to);
        prop_assert!(sigma * sigma <= to.variance() * (1.0 + 1e-12));
        let one = Tensor::new(&[1f64], &Device::Cpu).unwrap();
        let zero = one.zeros_like().unwrap();
        let factor = values(&ddim(eta).step(&one, &zero, (from, to), Some(&zero)).unwrap())[0];
        prop_assert!((factor * factor * from.variance() + sigma * sigma - to.variance()).abs() < 1e-12);
    }
}

/// A network that knows the answer brings it back from every start, by every sampler, in any number of steps.
#[test]
fn an_oracle_gives_x0_back() {
    let (x0, noise) = (normal(1, 6), normal(2, 6));
    let noises: Vec<Tensor> = (0..1000).map(|i| normal(10 + i, 6)).collect();
    let schedules = [linear(1000), Schedule::cosine(1000).unwrap(), linear(20)];
    let continuous = Process::Continuous { log_snr_min: -3.0, log_snr_max: 4.0 };
    let processes: Vec<Process> = schedules.into_iter().map(Process::Discrete).chain([continuous]).collect();
    for process in &processes {
        for (start, level) in [
            (Start::Scaled, process.near(0.4).unwrap()),
            (Start::Noised(&noise), process.near(0.4).unwrap()),
            (Start::Noised(&noise), process.near(0.9).unwrap()),
            (Start::Pure(&noise), process.noisiest().unwrap()),
        ] {
            for prediction in [Prediction::X0, Prediction::Epsilon, Prediction::V] {
                let oracle = |x: &Tensor, log_snr: f64| {
                    Prediction::X0.convert(&x0, prediction, x, &[NoiseLevel::from_log_snr(log_snr)?])
                };
                for steps in [1, 2, 3, 10, 50] {
                    let levels = process.levels(level, steps).unwrap();
                    for sampler in [ddim(0.0), ddim(0.5), ddim(1.0), Ddim::new(0.0, EpsMode::Drop).unwrap()] {
                        let plan = Plan::new(levels.clone(), prediction, sampler).unwrap();
                        let got = reconstruct(&x0, &plan, start, &noises[..plan.noises()], oracle).unwrap();
                        assert!(largest_difference(&got, &x0) < 1e-6, "{process:?} {start:?} {prediction:?} {steps}");
                    }
                }
                if let Process::Discrete(schedule) = process {
                    let first = schedule.nearest_step(level);
                    let got = ancestral(&x0, (schedule, first), prediction, start, &noises[..first], oracle).unwrap();
                    assert!(largest_difference(&got, &x0) < 1e-6, "{start:?} {prediction:?} ancestral");
                }
            }
        }
    }
}

/// Ancestral sampling is DDIM with eta 1 at every step, noise for noise.
#[test]
fn ancestral_sampling_is_ddim_with_eta_one_at_every_step() {
    let schedule = Schedule::cosine(40).unwrap();
    let (x0, start) = (cosines(1.0), cosines(3.0));
    let noises: Vec<Tensor> = (0..39).map(|i| cosines(f64::from(i) + 0.5)).collect();
    let plan = Plan::new(schedule.levels(39, 40).unwrap(), Prediction::V, ddim(1.0)).unwrap();
    let expected = reconstruct(&x0, &plan, Start::Pure(&start), &noises, tanh).unwrap();
    let got = ancestral(&x0, (&schedule, 39), Prediction::V, Start::Pure(&start), &noises, tanh).unwrap();
    assert!(largest_difference(&got, &expected) < 1e-9);
    assert!(ancestral(&x0, (&schedule, 39), Prediction::V, Start::Scaled, &noises[1..], tanh).is_err());
    assert!(ancestral(&x0, (&schedule, 40), Prediction::V, Start::Scaled, &noises, tanh).is_err());
}

#[test]
fn a_process_keeps_to_its_levels() {
    let steps = Process::Discrete(linear(1000));
    assert_eq!(steps.near(0.0785).unwrap().alpha_bar(), alpha_bar(&linear(1000), 499));
    assert_eq!(steps.levels(steps.noisiest().unwrap(), 10).unwrap().len(), 11);
    let any = Process::Continuous { log_snr_min: -3.0, log_snr_max: 4.0 };
    assert_eq!(any.near(0.4).unwrap().alpha_bar(), 0.4);
    assert_close(any.noisiest().unwrap().log_snr(), -3.0, 1e-12);
    assert!(any.schedule().is_err() && steps.schedule().is_ok());
}
