//! Which noise levels there are: all between two, or the steps of a schedule.

use super::{NoiseLevel, Schedule, impossible, levels_in_log_snr};
use crate::error::Result;

/// The noise levels that training draws from and a sampler visits.
#[derive(Clone, Debug, PartialEq)]
pub enum Process {
    /// Every level between two log-SNRs.
    Continuous {
        /// Noisiest.
        log_snr_min: f64,
        /// Cleanest.
        log_snr_max: f64,
    },
    /// The steps of a schedule.
    Discrete(Schedule),
}

impl Process {
    /// The level with the least signal.
    ///
    /// # Errors
    ///
    /// A log-SNR that is not a number.
    pub fn noisiest(&self) -> Result<NoiseLevel> {
        match self {
            Self::Continuous { log_snr_min, .. } => NoiseLevel::from_log_snr(*log_snr_min),
            Self::Discrete(schedule) => schedule.level(schedule.steps() - 1),
        }
    }

    /// The level with this `alpha_bar`, or the step nearest to it.
    ///
    /// # Errors
    ///
    /// `alpha_bar` outside 0..=1.
    pub fn near(&self, alpha_bar: f64) -> Result<NoiseLevel> {
        let level = NoiseLevel::from_alpha_bar(alpha_bar)?;
        match self {
            Self::Continuous { .. } => Ok(level),
            Self::Discrete(schedule) => schedule.level(schedule.nearest_step(level)),
        }
    }

    /// About `steps` levels from `start` (of [`Process::near`] or [`Process::noisiest`]) up, then
    /// [`NoiseLevel::CLEAN`]: equally spaced in log-SNR, or in the schedule's steps.
    ///
    /// # Errors
    ///
    /// No steps; a start that is not noisier than the cleanest level.
    pub fn levels(&self, start: NoiseLevel, steps: usize) -> Result<Vec<NoiseLevel>> {
        match self {
            Self::Continuous { log_snr_max, .. } => levels_in_log_snr(start, *log_snr_max, steps),
            Self::Discrete(schedule) => schedule.levels(schedule.nearest_step(start), steps),
        }
    }

    /// The schedule, where there is one.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn schedule(&self) -> Result<&Schedule> {
        match self {
            Self::Continuous { .. } => Err(impossible("a process without steps; expected a schedule")),
            Self::Discrete(schedule) => Ok(schedule),
        }
    }
}
