//! `diad label`: what somebody says of a part afterwards.

use std::path::PathBuf;

use clap::Args;

use super::Context;
use super::models::ByArgs;
use crate::archive::{Label, label};
use crate::error::Result;

/// Say of a part in an archive whether it was good.
///
/// Writes FILE's name with the end .label.json beside it: the label, when, who and why, and what was said before. The files that
/// the line wrote stay as they are.
#[derive(Debug, Args)]
pub(super) struct LabelArgs {
    /// A file of the part in an archive: a picture, or its JSON
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// What the part is: good or bad
    #[arg(value_name = "good|bad")]
    label: Label,

    #[command(flatten)]
    by: ByArgs,
}

pub(super) fn run(context: &Context, args: &LabelArgs) -> Result<()> {
    let by = args.by.by();
    let before = label(&args.file, args.label, &by.who, &by.note)?;
    let before = before.map_or_else(String::new, |said| format!("; before that {}, by {}", said.label, said.who));
    context.console.print(format_args!("{}: {}{before}", args.file.display(), args.label))
}
