//! `diad`: industrial anomaly detection by feature-space diffusion.

#![warn(missing_docs)]

pub mod error;

pub mod config;
pub mod files;
pub mod frame;

pub mod data;

pub mod kernels;
pub mod ops;

pub mod model;

pub mod diffusion;

pub mod calibrate;
pub mod features;
pub mod metrics;
pub mod regions;
pub mod score;

pub mod bundle;
pub mod detector;
pub mod train;

pub mod baselines;
pub mod report;

#[cfg(feature = "cli")]
pub mod cli;
