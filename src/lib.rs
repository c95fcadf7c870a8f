//! `diad`: industrial anomaly detection by feature-space diffusion, taught from good parts only.
//!
//! A frame goes this way: [`frame`] (crop, resize) → [`features`] (the taps of a frozen backbone of [`model`] on one grid,
//! z-score, PCA; or the pixels themselves) → [`diffusion`] with the denoisers of [`model::denoiser`] (reconstruction, by default
//! from a noise-free start) → [`residuals`] (distance of each cell from its reconstruction in the metric of good parts) →
//! [`maps`] (anomaly map, score) → [`detector`] (class, thresholds, verdict, regions). [`device`] says where: kernels frame by
//! frame on a CPU, tensors batch by batch on a GPU. [`train`] makes the model file that [`bundle`] reads and writes; the command
//! line in `cli` is the only part that talks.
//!
//! Invariants:
//! 1. Training, evaluation and the line use one preprocessing ([`frame::Preprocess`]) and one scoring path
//!    ([`detector::Network::inspect`]).
//! 2. A frame's detection does not depend on the rest of its batch: on the CPU every sample is computed by itself, in one
//!    fixed order, whatever the number of threads.
//! 3. What was not inspected is never [`detector::Verdict::Ok`].
//! 4. A model file is enough to run a model; wrong files are refused before memory is taken for them.
//! 5. The library prints nothing and seeds everything.
//!
//! Dependencies point one way, from `cli` down to [`kernels`]; `tests/tidy.rs` holds the table. [`guide`] is the manual beyond
//! `README.md`.

#![warn(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

pub mod guide;

pub mod error;
mod named;
pub mod text;

pub mod config;
pub mod device;
pub mod files;
pub mod frame;
pub mod handover;
mod precision;

pub mod kernels;
pub mod ops;

pub mod model;

pub mod diffusion;

pub mod calibrate;
pub mod features;
pub mod heatmap;
pub mod maps;
pub mod regions;
pub mod residuals;

pub mod archive;
pub mod bundle;
pub mod detector;
pub mod spool;
pub mod versions;
pub mod worker;

#[cfg(feature = "train")]
pub mod baselines;
#[cfg(feature = "train")]
pub mod data;
#[cfg(feature = "train")]
pub mod metrics;
#[cfg(feature = "train")]
pub mod report;
#[cfg(feature = "train")]
pub mod train;

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod synthetic;
