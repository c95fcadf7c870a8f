//! The numbers that networks compute in, and what thresholds belong to.

use std::path::Path;

use crate::error::Error;
use crate::named::named;

named! {
    /// The numbers that a network computes in. Features are normalised and residuals measured in single precision always.
    #[derive(Default, Hash)]
    pub enum Precision: "precision" {
        /// The fastest that the device computes in and the model has thresholds for: bfloat16 on a CPU that multiplies it, else
        /// single precision.
        #[default]
        Auto = "auto",
        /// Single precision.
        F32 = "f32",
        /// Half precision (IEEE 754 binary16), sums in single precision. On a GPU only.
        F16 = "f16",
        /// bfloat16, sums in single precision. On a GPU everything between two layers is of it as well; on a CPU it is what is
        /// multiplied, and the rest stays in single precision.
        Bf16 = "bf16",
    }
}

named! {
    /// How networks compute: what the scores of a model depend on. Thresholds belong to the arithmetic that they were measured in.
    #[derive(Hash)]
    pub enum Arithmetic: "arithmetic" {
        /// Single precision, on any device.
        F32 = "f32",
        /// bfloat16 on a CPU.
        CpuBf16 = "cpu-bf16",
        /// Half precision on a GPU.
        GpuF16 = "gpu-f16",
        /// bfloat16 on a GPU.
        GpuBf16 = "gpu-bf16",
    }
}

impl Arithmetic {
    /// What to say where a model has no thresholds in it.
    pub(crate) fn unmeasured(self, model: &Path) -> Error {
        let precision = self.precision();
        let on = match self {
            Self::F32 => "",
            Self::CpuBf16 => " on a CPU",
            Self::GpuF16 | Self::GpuBf16 => " on a GPU",
        };
        Error::Usage(format!(
            "precision = {precision}: {} has no thresholds that were measured in {precision}{on}; expected auto, or thresholds from \
             good parts by diad calibrate --precision {precision}",
            model.display()
        ))
    }

    /// Its precision.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::GpuF16 => Precision::F16,
            Self::CpuBf16 | Self::GpuBf16 => Precision::Bf16,
        }
    }
}
