//! The denoiser as a network: gradients reach every parameter, samples do not mix, conditions matter.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use diad::config::DenoiserConfig;
use diad::model::denoiser::{Denoiser, DenoiserShape, pooled};

fn shape() -> DenoiserShape {
    let config = DenoiserConfig {
        width: 32,
        blocks: 3,
        attention_every: 3,
        heads: 4,
        kernel: 3,
        mlp_ratio: 2,
        ..DenoiserConfig::default()
    };
    DenoiserShape { config, grid: 4.into(), view: 4.into(), dim: 10, classes: 2, heads: 1, suffix: String::new() }
}

/// One resolution; a guided U-Net; an output layer per class.
fn shapes() -> [DenoiserShape; 3] {
    let (flat, mut unet, mut heads) = (shape(), shape(), shape());
    (unet.config.levels, unet.config.width, unet.config.guide, unet.config.attention_every) = (2, 16, 2, 1);
    (heads.classes, heads.heads) = (0, 2);
    [flat, unet, heads]
}

fn guide(shape: &DenoiserShape, batch: usize) -> Option<Tensor> {
    let cells = shape.config.guide * shape.config.guide;
    let values = (0..batch * cells * 10).map(|i| (i as f32 * 0.7).cos()).collect();
    (cells > 0).then(|| Tensor::from_vec(values, (batch, cells, 10), &Device::Cpu).unwrap())
}

/// Parameters away from their start, where the zero-initialised gates would hide what is behind them.
fn vars(shape: &DenoiserShape) -> BTreeMap<String, Var> {
    let var = |index: usize, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| ((i * 7 + index * 13) as f32 * 0.61).sin() * 0.3).collect::<Vec<_>>();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    };
    shape.parameters().iter().enumerate().map(|(i, p)| (p.name.clone(), var(i, &p.shape))).collect()
}

fn denoiser(shape: &DenoiserShape, vars: &BTreeMap<String, Var>) -> Denoiser {
    Denoiser::new(shape.clone(), |name| vars.get(name).map(|v| v.as_tensor().clone())).unwrap()
}

fn tokens(batch: usize, channels: usize, seed: f32) -> Tensor {
    let values = (0..batch * 16 * channels).map(|i| (i as f32 * 1.3 + seed).sin()).collect::<Vec<_>>();
    Tensor::from_vec(values, (batch, 16, channels), &Device::Cpu).unwrap()
}

#[test]
fn every_parameter_receives_a_gradient() {
    for shape in shapes() {
        let vars = vars(&shape);
        let net = denoiser(&shape, &vars);
        let classes = if shape.heads > 1 { [0, 1, 0] } else { [0, 1, 2] };
        let condition = net.condition(&[-0.4, 1.0, 2.0], &classes).unwrap();
        let out = net.forward_train(&tokens(3, 11, 0.0), &condition, guide(&shape, 3).as_ref(), None, 5).unwrap();
        let grads = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for (name, var) in &vars {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let least = grad.abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let zeros = least.iter().filter(|&&g| g == 0.0).count();
            assert!(zeros * 10 < least.len(), "{name}: {zeros} of {} gradients are zero", least.len());
        }
    }
}

/// The gradient of a parameter is the slope that is measured by changing it.
#[test]
fn gradients_are_slopes() {
    for shape in shapes() {
        let vars = vars(&shape);
        let loss = |vars: &BTreeMap<String, Var>| {
            let net = denoiser(&shape, vars);
            let condition = net.condition(&[-0.4, 1.0], &[0, 1]).unwrap();
            let out = net.forward_train(&tokens(2, 11, 0.0), &condition, guide(&shape, 2).as_ref(), None, 5).unwrap();
            let weight = tokens(2, 10, 3.0);
            (out * weight).unwrap().sum_all().unwrap()
        };
        let grads = loss(&vars).backward().unwrap();
        for (name, var) in vars.iter().filter(|(name, _)| !name.contains("modulation") && !name.contains("noise")) {
            let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let direction: Vec<f32> = (0..values.len()).map(|i| (i as f32 * 2.3 + 1.0).sin()).collect();
            let set = |step: f32| {
                let moved = values.iter().zip(&direction).map(|(v, d)| v + step * d).collect::<Vec<_>>();
                var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
                f64::from(loss(&vars).to_scalar::<f32>().unwrap())
            };
            let size = (direction.len() as f32).sqrt();
            let step = 0.02 / size;
            let slope = (set(step) - set(-step)) / f64::from(2.0 * step);
            set(0.0);
            let grad = grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let expected: f64 = grad.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            let norm = grad.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt() * f64::from(size);
            assert!((slope - expected).abs() < 0.01 * norm, "{name}: {slope} not {expected} ({norm})");
        }
    }
}

/// With two output layers, a class gets what its own makes of it, whatever else is in the batch.
#[test]
fn heads_answer_for_their_class() {
    let [.., shape] = shapes();
    let net = denoiser(&shape, &vars(&shape));
    let x = tokens(3, 10, 2.0);
    let mixed = net.predict(&x, &net.condition(&[0.0; 3], &[1, 0, 1]).unwrap(), None).unwrap();
    for (i, class) in [1, 0, 1].into_iter().enumerate() {
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let alone = |class| {
            let condition = net.condition(&[0.0], &[class]).unwrap();
            values(net.predict(&x.narrow(0, i, 1).unwrap(), &condition, None).unwrap())
        };
        assert_eq!(values(mixed.get(i).unwrap()), alone(class));
        assert_ne!(alone(class), alone(1 - class));
    }
    assert!(net.condition(&[0.0], &[2]).is_err(), "there are two classes and no null class");
}

#[test]
fn a_guided_network_sees_the_means_of_the_input() {
    let values: Vec<f32> = (0..16 * 2).map(|i| i as f32).collect();
    // Cells of the upper left quarter: 0, 1, 4 and 5; two channels each.
    let quarter = [0.0, 1.0, 4.0, 5.0].map(|cell| 2.0 * cell).iter().sum::<f32>() / 4.0;
    let values = Tensor::from_vec(values, (1, 16, 2), &Device::Cpu).unwrap();
    let parts = pooled(&values, 4, 2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(parts[..2], [quarter, quarter + 1.0]);
    let [_, shape, _] = shapes();
    let net = denoiser(&shape, &vars(&shape));
    let condition = net.condition(&[0.0], &[0]).unwrap();
    let x = tokens(1, 10, 1.0);
    let predict = |guide: &Tensor| {
        net.predict(&x, &condition, Some(guide)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let told = guide(&shape, 1).unwrap();
    assert_ne!(predict(&told), predict(&(&told * 2.0).unwrap()));
    assert!(net.predict(&x, &condition, None).is_err());
}

#[test]
fn a_fresh_network_predicts_the_mean() {
    for shape in shapes() {
        let start: BTreeMap<String, Tensor> = shape
            .parameters()
            .into_iter()
            .map(|p| (p.name.clone(), Tensor::from_vec(p.start(1), p.shape.as_slice(), &Device::Cpu).unwrap()))
            .collect();
        let guide = guide(&shape, 1);
        let net = Denoiser::new(shape, |name| start.get(name).cloned()).unwrap();
        let condition = net.condition(&[0.0], &[1]).unwrap();
        let out = net.predict(&tokens(1, 10, 0.0), &condition, guide.as_ref()).unwrap();
        let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(out.iter().all(|&v| v == 0.0), "features have mean 0");
    }
}

#[test]
fn start_values_depend_on_the_seed_and_on_nothing_else() {
    let starts = |seed| shape().parameters().iter().map(|p| p.start(seed)).collect::<Vec<_>>();
    assert_eq!(starts(1), starts(1));
    assert_ne!(starts(1), starts(2));
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    for shape in shapes() {
        let net = denoiser(&shape, &vars(&shape));
        let one = net.condition(&[-0.4], &[0]).unwrap();
        let (x, guide) = (tokens(5, 10, 2.0), guide(&shape, 5));
        let all = net.predict(&x, &one.repeat(5).unwrap(), guide.as_ref()).unwrap();
        for i in 0..5 {
            let own = guide.as_ref().map(|guide| guide.narrow(0, i, 1).unwrap());
            let alone = net.predict(&x.narrow(0, i, 1).unwrap(), &one, own.as_ref()).unwrap().flatten_all().unwrap();
            let together = all.get(i).unwrap().flatten_all().unwrap();
            assert_eq!(alone.to_vec1::<f32>().unwrap(), together.to_vec1::<f32>().unwrap());
        }
    }
}

#[test]
fn noise_level_class_and_mask_change_the_prediction() {
    let shape = shape();
    let net = denoiser(&shape, &vars(&shape));
    let predict = |level: f32, class: u32| {
        let condition = net.condition(&[level], &[class]).unwrap();
        net.predict(&tokens(1, 10, 1.0), &condition, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_ne!(predict(0.0, 0), predict(0.5, 0));
    assert_ne!(predict(0.0, 0), predict(0.0, 2));
    assert!(net.condition(&[0.0], &[3]).is_err(), "there are two classes and the null class");
    let train = |mask: f32| {
        let x = Tensor::cat(&[tokens(1, 10, 1.0), Tensor::full(mask, (1, 16, 1), &Device::Cpu).unwrap()], 2).unwrap();
        let condition = net.condition(&[0.0], &[0]).unwrap();
        net.forward_train(&x, &condition, None, None, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_ne!(train(0.0), train(1.0));
}

/// Golden numbers from PyTorch 2.15:
///
/// ```python
/// import math, torch, torch.nn.functional as F
/// G, D, W, HEADS, COUNT = 4, 10, 16, 4, iter(range(999))
/// def p(*shape):  # the next parameter, in the order of DenoiserShape::parameters
///     i = torch.arange(math.prod(shape)) * 7 + next(COUNT) * 13
///     return ((i.float() * 0.61).sin() * 0.3).double().reshape(shape)
/// def norm(x, m): return F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + m[1]) + m[0]
/// def modulation(w, n): return F.linear(c, p(w, n * w2[0]).T, p(n * w2[0])).reshape(n, w2[0])
/// w2 = [W]
/// def block(x, side):
///     w = w2[0] = x.shape[-1]
///     m = modulation(W, 3)
///     flat = p(9 * w + w + w * 2 * w + 2 * w + 2 * w * w + w)
///     k, kb, u, ub, d, db = flat.split([9 * w, w, 2 * w * w, 2 * w, 2 * w * w, w])
///     h = norm(x, m).T.reshape(1, w, side, side)
///     h = F.conv2d(h, k.reshape(3, 3, w).permute(2, 0, 1)[:, None], kb, padding=1, groups=w).reshape(w, -1).T
///     return x + m[2] * (F.gelu(h @ u.reshape(w, 2 * w) + ub, approximate="tanh") @ d.reshape(2 * w, w) + db)
/// def attention(x):
///     w = w2[0] = x.shape[-1]
///     m = modulation(W, 3)
///     a, b, o, ob = p(4 * w * w + 4 * w).split([3 * w * w, 3 * w, w * w, w])
///     q, k, v = (norm(x, m) @ a.reshape(w, 3 * w) + b).reshape(-1, 3, HEADS, w // HEADS).permute(1, 2, 0, 3)
///     y = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(-1, w)
///     return x + m[2] * (y @ o.reshape(w, w) + ob)
/// x = (torch.arange(G * G * D).float() * 1.3).sin().double().reshape(G * G, D)
/// guide = (torch.arange(4 * D).float() * 0.7).cos().double().reshape(4, D)
/// weight, position, gw, gb = p(D + 1, W), p(G * G, W), p(D, W), p(W)
/// h = x @ weight[:D] + position
/// h = h + (guide @ gw + gb).reshape(2, 1, 2, 1, W).expand(2, 2, 2, 2, W).reshape(G * G, W)
/// angle = -0.4 * 0.05 * torch.exp(torch.arange(32) * math.log(10 / 0.05) / 31).double()
/// e = torch.cat([angle.sin(), angle.cos()])
/// e = F.silu(e @ p(64, W) + p(W)) @ p(W, W) + p(W)
/// c = F.silu(e + p(3, W)[1])
/// kept = []
/// for side, w in [(4, 16)]:
///     for _ in range(3): h = block(h, side)
///     kept.append(h)
///     s = side // 2
///     h = h.reshape(s, 2, s, 2, w).permute(0, 2, 1, 3, 4).reshape(s * s, 4 * w) @ p(4 * w, 2 * w) + p(2 * w)
/// for _ in range(3): h = attention(block(h, 2))
/// for side, w in [(4, 16)]:
///     s = side // 2
///     h = h @ p(2 * w, 4 * w) + p(4 * w)
///     h = h.reshape(s, s, 2, 2, w).permute(0, 2, 1, 3, 4).reshape(side * side, w)
///     h = h + kept.pop() @ p(w, w) + p(w)
///     for _ in range(3): h = block(h, side)
/// w2[0] = W
/// out = norm(h, modulation(W, 2)) @ p(W, D) + p(D)
/// print([round(v, 5) for v in out.flatten()[::23].tolist()], next(COUNT))
/// ```
#[test]
fn unet_equals_pytorch() {
    let [_, shape, _] = shapes();
    let vars = vars(&shape);
    assert_eq!(vars.len(), 55);
    let net = denoiser(&shape, &vars);
    let condition = net.condition(&[-0.4], &[1]).unwrap();
    let out = net.predict(&tokens(1, 10, 0.0), &condition, guide(&shape, 1).as_ref()).unwrap();
    let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = [0.31975, 0.25408, -0.09324, -0.11346, -0.17327, -0.10207, 0.03226];
    for (got, expected) in out.iter().step_by(23).zip(expected) {
        assert!((got - expected).abs() < 2e-4, "{got} not {expected}");
    }
}
