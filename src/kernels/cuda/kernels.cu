// The kernels of src/ops on CUDA, compiled at run time for the device at hand.
//
// A kernel is a loop over independent elements, or over rows that the lanes of a warp share. The same text compiles as C
// (tests/cuda_kernels.rs), where the loop is a plain loop and a row has one lane: what is proven there is the arithmetic and
// every index. Tensors are contiguous, channels last; sums are in single precision in one fixed order, so that a result does
// not depend on the rest of the batch. Arguments: tensors in, tensor out, number of elements or rows, integers, floats.

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define FUNCTION static __device__ __forceinline__
#define ELEMENTS(i, n)                                                                                                 \
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (long long)gridDim.x * blockDim.x)
#define ROWS(row, n)                                                                                                   \
    for (long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32; row < (n);                           \
         row += (long long)gridDim.x * blockDim.x / 32)
#define LANES 32
#define LANE ((int)(threadIdx.x % 32))
FUNCTION float over_lanes(float v) {
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
#else
#include <math.h>
#include <string.h>
#define KERNEL void
#define FUNCTION static inline
#define ELEMENTS(i, n) for (long long i = 0; i < (n); i++)
#define ROWS(row, n) for (long long row = 0; row < (n); row++)
#define LANES 1
#define LANE 0
FUNCTION float over_lanes(float v) { return v; }
#endif

// What tensors hold; everything is computed as float. No header of CUDA is needed, so none has to be there at run time.
#if defined(F16)
typedef unsigned short number;
#ifdef __CUDACC__
FUNCTION float load(number h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
FUNCTION number round_to(float f) {
    number h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
#else
FUNCTION float load(number h) {
    _Float16 f;
    memcpy(&f, &h, 2);
    return (float)f;
}
FUNCTION number round_to(float f) {
    _Float16 h = (_Float16)f;
    number n;
    memcpy(&n, &h, 2);
    return n;
}
#endif
#elif defined(BF16)
typedef unsigned short number;
FUNCTION unsigned bits_of(float f) {
#ifdef __CUDACC__
    return __float_as_uint(f);
#else
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
#endif
}
FUNCTION float load(number b) {
    unsigned u = (unsigned)b << 16;
#ifdef __CUDACC__
    return __uint_as_float(u);
#else
    float f;
    memcpy(&f, &u, 4);
    return f;
#endif
}
FUNCTION number round_to(float f) { // to nearest, ties to even; not a number stays one
    unsigned u = bits_of(f);
    if (f != f) return (number)(u >> 16 | 0x40);
    return (number)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
#else
typedef float number;
FUNCTION float load(number f) { return f; }
FUNCTION number round_to(float f) { return f; }
#endif

// Not a number stays one: a network that is broken must not look like one that finds nothing.
FUNCTION float within(float v, float lowest, float highest) { return v < lowest ? lowest : v > highest ? highest : v; }

// The shape of a depthwise convolution of x [B, H, W, C] with w [K, K, C] to y [B, OH, OW, C].
#define DEPTHWISE int height, int width, int channels, int kernel, int stride, int top, int left, int out_h, int out_w

// y = least(most(depthwise(x, w) + bias)); without a bias, w is given in its place and `biased` is 0.
KERNEL depthwise(const number *x, const number *w, const number *bias, number *y, long long n, DEPTHWISE, int biased,
                 float lowest, float highest) {
    ELEMENTS(i, n) {
        int c = (int)(i % channels);
        int ox = (int)(i / channels % out_w);
        int oy = (int)(i / channels / out_w % out_h);
        const number *image = x + i / channels / out_w / out_h * height * width * channels + c;
        float sum = biased ? load(bias[c]) : 0.0f;
        for (int ky = 0; ky < kernel; ky++) {
            int iy = oy * stride + ky - top;
            if (iy < 0 || iy >= height) continue;
            for (int kx = 0; kx < kernel; kx++) {
                int ix = ox * stride + kx - left;
                if (ix < 0 || ix >= width) continue;
                sum += load(image[((long long)iy * width + ix) * channels]) * load(w[(ky * kernel + kx) * channels + c]);
            }
        }
        y[i] = round_to(within(sum, lowest, highest));
    }
}

// gx = d(sum of g * depthwise(x, w)) / dx: n elements of x.
KERNEL depthwise_grad_x(const number *g, const number *w, number *gx, long long n, DEPTHWISE) {
    ELEMENTS(i, n) {
        int c = (int)(i % channels);
        int ix = (int)(i / channels % width);
        int iy = (int)(i / channels / width % height);
        const number *image = g + i / channels / width / height * out_h * out_w * channels + c;
        float sum = 0.0f;
        for (int ky = 0; ky < kernel; ky++) {
            int oy = iy + top - ky;
            if (oy < 0 || oy % stride || oy / stride >= out_h) continue;
            for (int kx = 0; kx < kernel; kx++) {
                int ox = ix + left - kx;
                if (ox < 0 || ox % stride || ox / stride >= out_w) continue;
                sum += load(image[((long long)(oy / stride) * out_w + ox / stride) * channels]) *
                       load(w[(ky * kernel + kx) * channels + c]);
            }
        }
        gx[i] = round_to(sum);
    }
}

// gw = d(sum of g * depthwise(x, w)) / dw for each sample by itself: n = B K K C elements, to be summed over the samples.
KERNEL depthwise_grad_w(const number *g, const number *x, number *gw, long long n, DEPTHWISE) {
    ELEMENTS(i, n) {
        int c = (int)(i % channels);
        int kx = (int)(i / channels % kernel);
        int ky = (int)(i / channels / kernel % kernel);
        long long b = i / channels / kernel / kernel;
        float sum = 0.0f;
        for (int oy = 0; oy < out_h; oy++) {
            int iy = oy * stride + ky - top;
            if (iy < 0 || iy >= height) continue;
            for (int ox = 0; ox < out_w; ox++) {
                int ix = ox * stride + kx - left;
                if (ix < 0 || ix >= width) continue;
                sum += load(g[((b * out_h + oy) * out_w + ox) * channels + c]) *
                       load(x[((b * height + iy) * width + ix) * channels + c]);
            }
        }
        gw[i] = round_to(sum);
    }
}

// y = norm(x) * (1 + scale) + shift over the `c` channels of each of n rows; m [B, 2 C] holds shift and scale, `tokens` rows
// are a sample. The lanes of a warp share a row.
KERNEL modulated_norm(const number *x, const number *m, number *y, long long n, int tokens, int c) {
    ROWS(row, n) {
        const number *in = x + row * c;
        const number *shift = m + row / tokens * 2 * c;
        const number *scale = shift + c;
        float sum = 0.0f, squares = 0.0f;
        for (int k = LANE; k < c; k += LANES) sum += load(in[k]);
        float mean = over_lanes(sum) / c;
        for (int k = LANE; k < c; k += LANES) squares += (load(in[k]) - mean) * (load(in[k]) - mean);
        float factor = 1.0f / sqrtf(over_lanes(squares) / c + 1e-5f);
        for (int k = LANE; k < c; k += LANES) {
            y[row * c + k] = round_to((load(in[k]) - mean) * factor * (1.0f + load(scale[k])) + load(shift[k]));
        }
    }
}

// y = clamp(x + bias) over n elements of c channels.
KERNEL bias_clamp(const number *x, const number *bias, number *y, long long n, int c, float lowest, float highest) {
    ELEMENTS(i, n) y[i] = round_to(within(load(x[i]) + load(bias[i % c]), lowest, highest));
}

// y = gelu(x + bias), the approximation by tanh (Hendrycks & Gimpel 2016).
KERNEL bias_gelu(const number *x, const number *bias, number *y, long long n, int c) {
    ELEMENTS(i, n) {
        float v = load(x[i]) + load(bias[i % c]);
        y[i] = round_to(0.5f * v * (1.0f + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v))));
    }
}

// y = x + gate * (u + bias): x and u [B, T, C], bias [C], gate the last third of m [B, 3 C].
KERNEL gated_add(const number *x, const number *u, const number *bias, const number *m, number *y, long long n,
                 int tokens, int c) {
    ELEMENTS(i, n) {
        int k = (int)(i % c);
        long long sample = i / c / tokens;
        y[i] = round_to(load(x[i]) + load(m[sample * 3 * c + 2 * c + k]) * (load(u[i]) + load(bias[k])));
    }
}

// y = x, some elements 0, the others * keep; `size` elements are a sample. The same numbers decide as on the CPU.
KERNEL dropout(const number *x, number *y, long long n, int size, int seed, int limit, float keep) {
    ELEMENTS(i, n) {
        unsigned v = (unsigned)(i % size) + (unsigned)seed + (unsigned)(i / size) * 0x9e3779b9u;
        v = (v ^ (v >> 16)) * 0x7feb352du; // Wellons' "lowbias32" over a counter
        v = (v ^ (v >> 15)) * 0x846ca68bu;
        v ^= v >> 16;
        y[i] = round_to(v < (unsigned)limit ? 0.0f : load(x[i]) * keep);
    }
}
