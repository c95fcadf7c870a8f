//! `diad models`: versions of a model in a folder, and which of them is in use.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::table::{Align, Table};
use super::{Context, messages};
use crate::bundle;
use crate::error::{Error, Result, excerpt};
use crate::versions::{Added, By, Store, Used, Version};

const AFTER: &str = "\
EXAMPLES
  diad models add models/bottle bottle.diad --note 'new lamp'
  diad models use models/bottle 2
  diad models rollback models/bottle

A folder of versions stands for the one in use wherever a model file is expected: on the command line, and as `model` in line.toml,
where a line that runs takes the new one without a frame lost. journal.jsonl in it says who changed what, when and why.";

/// Versions of a model in a folder, and which of them is in use.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER)]
pub(super) enum ModelsCommand {
    /// Show the versions: number, digest, when it came, size, products, what it was taught with
    List {
        #[command(flatten)]
        at: Folder,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a model file as the next version; it is not in use by that
    Add {
        #[command(flatten)]
        at: Folder,
        /// The model file
        #[arg(value_name = "M.diad", value_parser = super::args::model_file())]
        model: PathBuf,
        #[command(flatten)]
        by: ByArgs,
    },
    /// Put a version in use; lines that run with this folder take it within seconds
    Use {
        #[command(flatten)]
        at: Folder,
        /// The number of the version
        #[arg(value_name = "N")]
        number: u32,
        #[command(flatten)]
        by: ByArgs,
    },
    /// Put the version in use again that was so before; once more goes back further
    Rollback {
        #[command(flatten)]
        at: Folder,
        #[command(flatten)]
        by: ByArgs,
    },
    /// Check every file against its digest, the journal line by line, and which version is in use
    Verify {
        #[command(flatten)]
        at: Folder,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove old versions, never the one in use nor the one that a rollback goes to
    Prune {
        #[command(flatten)]
        at: Folder,
        /// How many of the newest stay
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
        #[command(flatten)]
        by: ByArgs,
    },
}

/// Which folder.
#[derive(Debug, Args)]
pub(super) struct Folder {
    /// The folder of versions; `add` makes it
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Who changes something, and why.
#[derive(Debug, Args)]
pub(super) struct ByArgs {
    /// What is to be remembered about it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,

    /// Who does it; without it the user who is logged in (SUDO_USER, USER)
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

impl ByArgs {
    pub(super) fn by(&self) -> By {
        let variable = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
        let who = self.who.clone().or_else(|| variable("SUDO_USER")).or_else(|| variable("USER"));
        By { who: who.unwrap_or_else(|| "unknown".to_owned()), note: self.note.clone() }
    }
}

pub(super) fn run(context: &Context, command: &ModelsCommand) -> Result<()> {
    let console = &context.console;
    match command {
        ModelsCommand::List { at: Folder { folder }, json } => list(context, folder, *json),
        ModelsCommand::Add { at: Folder { folder }, model, by } => {
            let by = by.by();
            // A folder is not made for a file that is no model.
            bundle::read_card(model)?;
            let (added, number) = match warned(context, Store::create(folder, &by)?).add(model, &by)? {
                Added::As(number) => ("added as", number),
                Added::Already(number) => ("is there already: nothing is added;", number),
            };
            console.print(format_args!("{}: {added} version {number}", model.display()))
        }
        ModelsCommand::Use { at: Folder { folder }, number, by } => {
            let by = by.by();
            let text = match warned(context, Store::change(folder, &by)?).use_version(*number, &by)? {
                Used::InPlaceOf(before) => in_use(*number, before),
                Used::Already => format!("version {number} is in use already"),
            };
            console.print(format_args!("{}: {text}", folder.display()))
        }
        ModelsCommand::Rollback { at: Folder { folder }, by } => {
            let by = by.by();
            let (number, before) = warned(context, Store::change(folder, &by)?).rollback(&by)?;
            console.print(format_args!("{}: {}", folder.display(), in_use(number, before)))
        }
        ModelsCommand::Verify { at: Folder { folder }, json } => verify(context, folder, *json),
        ModelsCommand::Prune { at: Folder { folder }, keep, by } => {
            let by = by.by();
            let gone = warned(context, Store::change(folder, &by)?).prune(*keep as usize, &by)?;
            let gone: Vec<String> = gone.iter().map(u32::to_string).collect();
            let text =
                if gone.is_empty() { "nothing to remove".into() } else { format!("removed {}", gone.join(", ")) };
            console.print(format_args!("{}: {text}", folder.display()))
        }
    }
}

fn in_use(number: u32, before: Option<u32>) -> String {
    let before = before.map_or_else(String::new, |before| format!(", in place of {before}"));
    format!("version {number} is in use{before}")
}

/// Warns of a journal that was tampered with; a line that needs its old model back does not wait for that.
fn warned(context: &Context, store: Store) -> Store {
    for fault in store.journal().faults() {
        context.console.warn(format_args!("journal.jsonl: {fault}"));
    }
    store
}

/// A version, for programs.
#[derive(Serialize)]
struct Row<'a> {
    number: u32,
    digest: &'a str,
    file: String,
    added: &'a str,
    who: &'a str,
    note: &'a str,
    in_use: bool,
    before: bool,
    /// Null where the file cannot be read.
    model: Option<About>,
}

/// What a model file says of itself.
#[derive(Clone, Serialize)]
struct About {
    bytes: u64,
    tool: String,
    classes: Vec<String>,
    images: usize,
    steps: usize,
}

impl About {
    fn of(file: &Path) -> Result<Self> {
        let contents = bundle::inspect(file)?;
        let training = &contents.card.training;
        Ok(Self {
            bytes: contents.bytes,
            classes: contents.card.classes.iter().map(|class| class.name.clone()).collect(),
            images: training.images,
            steps: training.steps,
            tool: contents.card.tool,
        })
    }
}

fn list(context: &Context, folder: &Path, as_json: bool) -> Result<()> {
    let store = Store::open(folder)?;
    let versions: Vec<(Version, Result<About>)> = store
        .versions()
        .into_iter()
        .map(|version| {
            let about = About::of(&version.file);
            (version, about)
        })
        .collect();
    if as_json {
        let rows = versions.into_iter().map(|(version, about)| (version, about.ok())).collect::<Vec<_>>();
        let rows = rows.iter().map(|(version, about)| Row {
            number: version.number,
            digest: &version.digest,
            file: version.file.display().to_string(),
            added: &version.added.utc,
            who: &version.added.who,
            note: &version.added.note,
            in_use: version.in_use,
            before: version.is_before,
            model: about.clone(),
        });
        return json(context, &rows.collect::<Vec<_>>());
    }
    let columns = ["", "number", "digest", "added", "by", "MiB", "classes", "taught with", "note"];
    let right = ["number", "MiB"];
    let columns = columns.map(|name| (name, if right.contains(&name) { Align::Right } else { Align::Left }));
    let mut table = Table::new(&columns);
    for (version, about) in &versions {
        let mark = match (version.in_use, version.is_before) {
            (true, _) => "in use",
            (_, true) => "before",
            _ => "",
        };
        let [size, classes, training] = match about {
            Ok(about) => [
                format!("{:.1}", about.bytes as f64 / f64::from(1 << 20)),
                excerpt(&about.classes.join(", "), 40),
                format!("{}, {} steps", messages::count(about.images, "image"), about.steps),
            ],
            Err(_) => ["-".to_owned(), "cannot be read: see diad models verify".to_owned(), String::new()],
        };
        let (digest, added) = (&version.digest, &version.added);
        table.row(vec![
            mark.to_owned(),
            version.number.to_string(),
            excerpt(digest.get(..12).unwrap_or(digest), 12),
            excerpt(&added.utc, 16).trim_end_matches("...").replace('T', " "),
            excerpt(&added.who, 20),
            size,
            classes,
            training,
            excerpt(&added.note, 60),
        ]);
    }
    context.console.print(table)
}

fn verify(context: &Context, folder: &Path, as_json: bool) -> Result<()> {
    let store = Store::open(folder)?;
    let (found, versions) = (store.verify()?, store.versions().len());
    if as_json {
        json(context, &found)?;
    } else {
        found.notes.iter().for_each(|note| context.console.note(note));
        for fault in &found.faults {
            context.console.print(excerpt(fault, 2000))?;
        }
    }
    let wrong = found.faults.len();
    if wrong > 0 {
        return Err(Error::model(folder, format!("{} found by diad models verify", messages::count(wrong, "fault"))));
    }
    let lines = store.journal().entries().len();
    let (versions, lines) = (messages::count(versions, "version"), messages::count(lines, "line"));
    if as_json {
        Ok(())
    } else {
        context.console.print(format_args!("{}: {versions}, {lines} in the journal, no faults", folder.display()))
    }
}

fn json(context: &Context, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Internal(format!("models: {error}")))?;
    context.console.print(text)
}
