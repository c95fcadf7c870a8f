//! What the kernels ask of the processor's vectors.

use pulp::{Arch, Simd, WithSimd};

/// Floats of a vector of the processor at hand.
pub(super) fn lanes() -> usize {
    struct Lanes;

    impl WithSimd for Lanes {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }

    Arch::new().dispatch(Lanes)
}

/// A function whose loops the compiler vectorises for the processor at hand. (The body of a closure given to `dispatch` would be
/// compiled for the plainest processor wherever it is too long to be inlined.)
macro_rules! vectorised {
    (@) => { () };
    (@ $Out:ty) => { $Out };
    ($($(#[$about:meta])* $vis:vis fn $name:ident<$a:lifetime>($($arg:ident: $Arg:ty),+ $(,)?) $(-> $Out:ty)? $body:block)+) => {
        $($(#[$about])*
        $vis fn $name<$a>($($arg: $Arg),+) $(-> $Out)? {
            struct Body<$a> {
                $($arg: $Arg,)+
            }

            impl<$a> pulp::WithSimd for Body<$a> {
                type Output = $crate::kernels::simd::vectorised!(@ $($Out)?);

                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
                    let Self { $($arg),+ } = self;
                    $body
                }
            }

            pulp::Arch::new().dispatch(Body { $($arg),+ })
        })+
    };
}
pub(crate) use vectorised;

/// `v` within 0..=6. What is not a number stays one: of two of which one is none, vectors give the second, single numbers the other.
#[inline(always)]
pub(super) fn relu6<S: Simd>(simd: S, v: S::f32s) -> S::f32s {
    let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
    if S::F32_LANES == 1 {
        let v = simd.select_f32s(simd.less_than_f32s(v, zero), zero, v);
        return simd.select_f32s(simd.less_than_f32s(six, v), six, v);
    }
    simd.min_f32s(six, simd.max_f32s(zero, v))
}
