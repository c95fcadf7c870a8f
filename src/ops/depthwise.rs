//! Depthwise convolution: candle's grouped convolution loops over the groups and is a hundred times slower.

#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, Layout};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{call, int};
use super::{Kernel, Op, has_kernel, sum_in_order};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{Numbers, Work, launch};
use crate::kernels::depthwise as dw;

/// Depthwise convolution, channels last: `x` `[B, H, W, C]`, `weight` `[k, k, C]` with k = 3, 5 or 7, stride 1 or 2, zero
/// padding `[top, bottom, left, right]`. Output `[B, H', W', C]` with `H' = (H + top + bottom - k) / stride + 1`.
///
/// # Errors
/// When shapes do not fit.
pub fn depthwise(x: &Tensor, weight: &Tensor, stride: usize, padding: [usize; 4]) -> Result<Tensor> {
    let op = Depthwise::new(x, weight, stride, padding)?;
    if !has_kernel(x) {
        return depthwise_composite(x, weight, stride, padding);
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, Op(op))
}

/// `clamp(depthwise(x, weight) + bias)` for inference: `bias` `[C]`.
///
/// # Errors
/// When shapes do not fit.
pub fn depthwise_biased(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    stride: usize,
    padding: [usize; 4],
    limits: Option<[f32; 2]>,
) -> Result<Tensor> {
    let op = Depthwise::new(x, weight, stride, padding)?;
    if bias.dims() != [op.channels] {
        candle_core::bail!("depthwise: bias {:?} for {} channels", bias.dims(), op.channels);
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let shape = (x.dim(0)?, op.out_height, op.out_width, op.channels);
        let (mut integers, floats) = (op.integers()?, limits.unwrap_or(Depthwise::NO_LIMITS));
        integers.push(1);
        let (work, numbers) = (op.work(shape.0), Numbers { integers: &integers, floats: &floats });
        return call("depthwise", &[x, weight, bias], shape, work, numbers);
    }
    let y = depthwise(x, weight, stride, padding)?.broadcast_add(bias)?;
    limits.map_or(Ok(y.clone()), |[lowest, highest]| y.clamp(lowest, highest))
}

/// The same in plain candle ops: one shifted, weighted copy of the input per tap.
///
/// # Errors
/// When shapes do not fit.
pub fn depthwise_composite(x: &Tensor, weight: &Tensor, stride: usize, padding: [usize; 4]) -> Result<Tensor> {
    let op = Depthwise::new(x, weight, stride, padding)?;
    let [top, bottom, left, right] = padding;
    let padded = x.pad_with_zeros(1, top, bottom)?.pad_with_zeros(2, left, right)?;
    let mut sum: Option<Tensor> = None;
    for ky in 0..op.kernel {
        for kx in 0..op.kernel {
            let rows = strided(&padded, 1, ky, op.out_height, stride)?;
            let tap = strided(&rows, 2, kx, op.out_width, stride)?.broadcast_mul(&weight.get(ky)?.get(kx)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + tap)?,
                None => tap,
            });
        }
    }
    sum.ok_or_else(|| candle_core::Error::Msg("depthwise: empty kernel".into()))
}

/// Every `stride`-th of the elements from `start` along `dim`, `count` of them.
fn strided(x: &Tensor, dim: usize, start: usize, count: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return x.narrow(dim, start, count);
    }
    let indices = (0..count).map(|i| (start + i * stride) as u32).collect::<Vec<_>>();
    x.index_select(&Tensor::new(indices, x.device())?, dim)
}

struct Depthwise {
    height: usize,
    width: usize,
    channels: usize,
    kernel: usize,
    stride: usize,
    padding: [usize; 4],
    out_height: usize,
    out_width: usize,
}

impl Depthwise {
    fn new(x: &Tensor, weight: &Tensor, stride: usize, padding: [usize; 4]) -> Result<Self> {
        let (_, height, width, channels) = x.dims4()?;
        let (kernel, columns, weight_channels) = weight.dims3()?;
        let [top, bottom, left, right] = padding;
        if kernel != columns
            || ![3, 5, 7].contains(&kernel)
            || ![1, 2].contains(&stride)
            || weight_channels != channels
            || padding.iter().any(|&p| p >= kernel)
            || height + top + bottom < kernel
            || width + left + right < kernel
        {
            candle_core::bail!(
                "depthwise: x {:?}, weight {:?}, stride {stride}, padding {padding:?}; expected x [B, H, W, C], weight \
                 [k, k, C] with k 3, 5 or 7, stride 1 or 2, padding below k",
                x.dims(),
                weight.dims()
            );
        }
        let out_height = (height + top + bottom - kernel) / stride + 1;
        let out_width = (width + left + right - kernel) / stride + 1;
        Ok(Self { height, width, channels, kernel, stride, padding, out_height, out_width })
    }

    /// The shape as the CUDA kernels take it.
    #[cfg(feature = "cuda")]
    fn integers(&self) -> Result<Vec<i32>> {
        let [top, _, left, _] = self.padding;
        let own = [self.height, self.width, self.channels, self.kernel, self.stride, top, left];
        own.into_iter().chain([self.out_height, self.out_width]).map(int).collect()
    }

    /// One thread for each element of the output.
    #[cfg(feature = "cuda")]
    fn work(&self, batch: usize) -> Work {
        Work::Elements(batch * self.out_height * self.out_width * self.channels)
    }

    /// Limits behind the sum; none, where there are none.
    #[cfg(feature = "cuda")]
    const NO_LIMITS: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];

    fn shape(&self) -> dw::Shape {
        dw::Shape {
            padded_width: self.width + self.padding[2] + self.padding[3],
            channels: self.channels,
            kernel: self.kernel,
            stride: self.stride,
            out_width: self.out_width,
        }
    }

    /// Gradient of one sample: input `[H, W, C]` and, added to `sums`, weights.
    fn backward_sample(&self, x: &[f32], flipped: &[f32], grad: &[f32], grad_x: &mut [f32], sums: &mut [f32]) {
        let (c, k) = (self.channels, self.kernel);
        let [top, _, left, _] = self.padding;
        let mut padded = Vec::new();
        dw::pad(x, self.width, c, self.padding, &mut padded);
        let mut unused_bias = vec![0.0; c];
        dw::backward_weights(&padded, grad, sums, &mut unused_bias, self.shape());
        // The transposed convolution: the gradient, spread to the stride, under the reversed kernel.
        let (rows, columns) = (self.height + k - 1, self.width + k - 1);
        let mut spread = vec![0.0; rows * columns * c];
        for y in 0..self.out_height {
            for column in 0..self.out_width {
                let (ty, tx) = (y * self.stride + k - 1 - top, column * self.stride + k - 1 - left);
                if ty < rows && tx < columns {
                    spread[(ty * columns + tx) * c..][..c]
                        .copy_from_slice(&grad[(y * self.out_width + column) * c..][..c]);
                }
            }
        }
        let shape = dw::Shape { padded_width: columns, channels: c, kernel: k, stride: 1, out_width: self.width };
        unused_bias.fill(0.0);
        dw::forward(&spread, flipped, &unused_bias, grad_x, shape, false);
    }
}

impl Kernel<2> for Depthwise {
    const NAME: &'static str = "depthwise";

    fn forward(&self, [x, weight]: [&[f32]; 2], shapes: [&Shape; 2]) -> Result<(Vec<f32>, Shape)> {
        let sample = self.height * self.width * self.channels;
        let out_sample = self.out_height * self.out_width * self.channels;
        let batch = shapes[0].dims4()?.0;
        let bias = vec![0.0; self.channels];
        let mut out = vec![0.0; batch * out_sample];
        out.par_chunks_exact_mut(out_sample).zip(x.par_chunks_exact(sample)).for_each(|(out, x)| {
            let mut padded = Vec::new();
            dw::pad(x, self.width, self.channels, self.padding, &mut padded);
            dw::forward(&padded, weight, &bias, out, self.shape(), false);
        });
        Ok((out, (batch, self.out_height, self.out_width, self.channels).into()))
    }

    fn backward(&self, [x, weight]: [&[f32]; 2], _: [&Shape; 2], grad: &[f32]) -> Result<[Vec<f32>; 2]> {
        let sample = self.height * self.width * self.channels;
        let out_sample = self.out_height * self.out_width * self.channels;
        let flipped = dw::flipped(weight, self.channels);
        let mut grad_x = vec![0.0; x.len()];
        let parts = grad_x
            .par_chunks_exact_mut(sample)
            .zip(x.par_chunks_exact(sample))
            .zip(grad.par_chunks_exact(out_sample))
            .map(|((gx, x), g)| {
                let mut sums = vec![0.0; weight.len()];
                self.backward_sample(x, &flipped, g, gx, &mut sums);
                sums
            })
            .collect();
        Ok([grad_x, sum_in_order(parts)])
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, [x, weight]: [(&CudaStorage, &Layout); 2]) -> Result<(CudaStorage, Shape)> {
        let batch = x.1.shape().dims4()?.0;
        let shape = Shape::from((batch, self.out_height, self.out_width, self.channels));
        let mut integers = self.integers()?;
        integers.push(0); // no bias: the weights stand in its place
        let numbers = Numbers { integers: &integers, floats: &Self::NO_LIMITS };
        Ok((launch(Self::NAME, &[x, weight, weight], shape.elem_count(), self.work(batch), numbers)?, shape))
    }

    #[cfg(feature = "cuda")]
    fn backward_elsewhere(&self, [x, weight]: [&Tensor; 2], grad: &Tensor) -> Result<[Tensor; 2]> {
        let integers = self.integers()?;
        let numbers = Numbers { integers: &integers, floats: &[] };
        let work = Work::Elements(x.elem_count());
        let to_x = call("depthwise_grad_x", &[grad, weight], x.shape(), work, numbers)?;
        // Each sample by itself, so that there are threads enough; then their sum.
        let each = (x.dim(0)?, self.kernel, self.kernel, self.channels);
        let work = Work::Elements(each.0 * weight.elem_count());
        let to_weight = call("depthwise_grad_w", &[grad, x], each, work, numbers)?.sum(0)?;
        Ok([to_x, to_weight])
    }
}
