//! The manual beyond `README.md`: pages for operators, then those for people who work on the code.
//!
//! Tests keep the pages true where they can (`tests/manual.rs`); every figure stands with the command that made it.

#[doc = include_str!("choices.md")]
pub mod choices {}

#[doc = include_str!("measured.md")]
pub mod measured {}

#[doc = include_str!("promise.md")]
pub mod promise {}
#[doc = include_str!("report.md")]
pub mod report {}

#[doc = include_str!("gpu.md")]
pub mod gpu {}

#[doc = include_str!("lines.md")]
pub mod lines {}

#[doc = include_str!("outputs.md")]
pub mod outputs {}

#[doc = include_str!("messages.md")]
pub mod messages {}

#[doc = include_str!("model_file.md")]
pub mod model_file {}

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("glossary.md")]
pub mod glossary {}
