//! `diad backbone import`

use super::Context;
use super::args::ImportArgs;
use super::images::check_exists;
use super::messages;
use crate::error::Result;
use crate::files::check_writable;
use crate::model::import::Trunk;

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
