//! The manual is true: `README.md` and the pages of `src/guide` say what the program and the code say.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

mod common;

use common::{diad, names};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// File names of the pages of `src/guide`.
fn pages() -> Vec<String> {
    let pages: Vec<String> =
        names(&root().join("src/guide")).into_iter().filter(|name| name.ends_with(".md")).collect();
    assert!(pages.len() >= 5, "{pages:?}");
    pages
}

/// README, all pages and the contributor's guide, each with its name.
fn texts() -> Vec<(String, String)> {
    let pages = pages().into_iter().map(|page| format!("src/guide/{page}"));
    let names = pages.chain(["README.md", ".github/CONTRIBUTING.md"].map(str::to_owned));
    names.filter(|name| root().join(name).exists()).map(|name| (name.clone(), read(&name))).collect()
}

/// Lines of the shell commands in a text.
fn shell(text: &str) -> Vec<&str> {
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).collect()
}

/// The lines of a text that are neither in a code block nor a row of a table.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        code ^= line.starts_with("```");
        !code && !line.starts_with('|')
    })
}

/// First cells of the rows of all tables in a text whose first cell is code: what is between the backquotes.
fn rows(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

/// All source text below a folder, with messages that are broken over lines put together again.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            all.push_str(&sources(&path));
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(path).unwrap();
            let mut pieces = text.split("\\\n");
            all.push_str(pieces.next().unwrap_or(""));
            pieces.for_each(|piece| all.push_str(piece.trim_start()));
        }
    }
    all
}

#[test]
fn the_readme_is_short() {
    let readme = read("README.md");
    let lines = readme.lines().count();
    assert!(lines <= 300, "{lines} lines: manuals belong into --help and onto the pages of src/guide");
    for (name, text) in texts() {
        let wide: Vec<&str> = prose(&text).filter(|line| line.chars().count() > 140).collect();
        assert!(wide.is_empty(), "{name}: wider than 140 columns: {wide:#?}");
    }
}

#[test]
fn every_page_is_found_from_the_readme_and_in_the_documentation() {
    let (readme, module) = (read("README.md"), read("src/guide/mod.rs"));
    for page in pages() {
        assert!(readme.contains(&format!("](src/guide/{page})")), "README.md does not lead to src/guide/{page}");
        let lines = format!("#[doc = include_str!(\"{page}\")]\npub mod {} {{}}", page.trim_end_matches(".md"));
        assert!(module.contains(&lines), "src/guide/mod.rs does not show {page}");
    }
}

#[test]
fn every_file_that_is_linked_or_named_is_there() {
    for (name, text) in texts() {
        let folder = root().join(&name).parent().unwrap().to_owned();
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for link in links.filter(|link| !link.contains("://") && !link.contains("::")) {
            assert!(folder.join(link).exists(), "{name} leads to {link}, which is not there");
        }
        let code = text.split('`').skip(1).step_by(2);
        let tops = ["src/", "plugin/", "tests/", "configs/", "examples/", ".ci/", ".github/"];
        for path in code.filter(|code| tops.iter().any(|top| code.starts_with(top))) {
            let plain = !path.contains(['*', ' ', '{', '<']) && !path.chars().any(char::is_uppercase);
            assert!(!plain || root().join(path).exists(), "{name} names {path}, which is not there");
        }
    }
}

#[test]
fn every_command_and_configuration_has_a_row() {
    let readme = read("README.md");
    let help = diad("--help", &[]).ok().stdout;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 10, "{commands:?}");
    for name in commands.into_iter().filter(|name| *name != "help") {
        let row = ["`", " "].iter().any(|end| readme.contains(&format!("| `diad {name}{end}")));
        assert!(row, "README.md has no row for diad {name}");
    }
    let choices = read("src/guide/choices.md");
    for name in names(&root().join("configs")) {
        assert!(choices.contains(&format!("| `configs/{name}` |")), "src/guide/choices.md has no row for {name}");
    }
}

#[test]
fn every_flag_in_a_command_line_is_one_that_the_command_knows() {
    let mut lines = 0;
    for (name, text) in texts() {
        for line in shell(&text) {
            let mut words = line.split_whitespace();
            if !words.next().is_some_and(|program| program == "diad" || program.ends_with("/diad")) {
                continue;
            }
            let command = words.next().unwrap();
            let help = diad(&format!("{command} --help"), &[]).ok().stdout;
            for flag in words.filter(|word| word.starts_with("--")) {
                assert!(help.contains(flag), "{name}: {flag} in {line:?}");
            }
            lines += 1;
        }
    }
    assert!(lines >= 8, "command lines are found: {lines}");
}

#[test]
fn every_message_that_is_explained_is_one_that_the_program_has() {
    let sources = sources(&root().join("src")) + &sources(&root().join("plugin/src"));
    let page = read("src/guide/messages.md");
    let rows = rows(&page);
    assert!(rows.len() >= 10, "{rows:?}");
    for part in rows.iter().flat_map(|message| message.split("...")).map(str::trim).filter(|part| !part.is_empty()) {
        assert!(sources.contains(part), "no message of the program holds {part:?}");
    }
}

/// The table of what choices cost has the rows of the program's own grid and of the shipped configurations, no other, and the
/// grid's default row is called so.
#[test]
fn the_table_of_choices_is_that_of_the_program() {
    let page = read("src/guide/choices.md");
    let measured = page.split("# What they cost and gain").nth(1).unwrap();
    let shown: BTreeSet<&str> = rows(measured).into_iter().collect();
    let list = diad("ablate --list", &[]).ok().stdout;
    let grid = list.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).filter(|row| *row != "base");
    let configs: Vec<String> =
        names(&root().join("configs")).into_iter().filter(|name| name.starts_with("seed-")).collect();
    let files: Vec<String> = configs.iter().map(|name| format!("configs/{name}")).collect();
    let files = files.iter().map(String::as_str).filter(|file| *file != "configs/seed-pixel.toml");
    assert_eq!(shown, grid.chain(files).collect());
    assert!(measured.contains("\n| default |"));
}

#[test]
fn the_accuracy_in_the_readme_is_that_of_its_page() {
    let readme = read("README.md");
    let short = readme.split("## Accuracy").nth(1).unwrap().split("\n## ").next().unwrap();
    let table: String = short.lines().filter(|line| line.starts_with('|')).flat_map(|line| [line, "\n"]).collect();
    let page = read("src/guide/measured.md");
    assert!(table.lines().count() >= 4 && page.contains(&table), "src/guide/measured.md has not this table:\n{table}");
    for command in shell(short) {
        assert!(shell(&page).contains(&command), "src/guide/measured.md has not {command:?}");
    }
}

/// Every field of a result is in the README's table of the JSON, and every field in the table is one of a result.
#[test]
fn the_fields_of_the_json_are_those_of_the_results() {
    let (readme, code) = (read("README.md"), read("plugin/src/result.rs"));
    let table = readme.split("(`diadmeta2json`, schema ").nth(1).unwrap().split("\n## ").next().unwrap();
    let schema = code.split("pub const SCHEMA: u32 = ").nth(1).unwrap().split(';').next().unwrap();
    assert!(table.starts_with(&format!("{schema})")), "README.md does not say schema {schema}");
    let field = |line: &str| line.trim_start().strip_prefix("pub ")?.split_once(':').map(|(name, _)| name.to_owned());
    let mut own: BTreeSet<String> = code.lines().filter_map(field).filter(|name| !name.contains(' ')).collect();
    assert!(own.remove("finding"), "its fields stand beside the others");
    own.extend(["x", "y", "area", "peak"].map(str::to_owned)); // of a region
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    let named: BTreeSet<String> = rows.iter().flat_map(|row| quoted(row)).collect();
    let missing: Vec<_> = own.difference(&named).collect();
    assert!(missing.is_empty(), "README.md does not name {missing:?}");
    let fields: BTreeSet<String> = rows.iter().flat_map(|row| quoted(row.split('|').nth(1).unwrap())).collect();
    let unknown: Vec<_> = fields.difference(&own).collect();
    assert!(unknown.is_empty(), "README.md names {unknown:?}, which no result has");
}

/// Lines of code of both packages, without comments.
fn code() -> String {
    let all = sources(&root().join("src")) + &sources(&root().join("plugin/src"));
    all.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect()
}

/// Whether `word` stands in `text` with nothing of a name on either side.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

#[test]
fn every_word_of_the_glossary_is_one_of_the_code() {
    let (page, code) = (read("src/guide/glossary.md"), code());
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() > 40, "{} words", rows.len());
    let sorted = rows.is_sorted_by_key(|row| row[0].to_lowercase());
    assert!(sorted, "the glossary is in the order of the alphabet");
    for row in rows {
        let [word, means, place] = row[..] else { panic!("three columns: {row:?}") };
        assert!(means.ends_with('.'), "{word}: one sentence");
        let place = place.strip_prefix('`').and_then(|place| place.strip_suffix('`')).unwrap();
        assert!(has_word(&code, place) || read("tests/tidy.rs").contains(place), "{word}: no {place} in the code");
    }
}

/// The modules of the architecture page are the rooms of `tests/tidy.rs`, from the bottom up.
#[test]
fn the_modules_of_the_architecture_are_those_of_the_code() {
    let (page, tidy) = (read("src/guide/architecture.md"), read("tests/tidy.rs"));
    let modules = page.split("# Modules").nth(1).unwrap().split("\n# ").next().unwrap();
    let shown = rows(modules);
    let table = tidy.split("const ROOMS").nth(1).unwrap().split("= &[").nth(1).unwrap().split("];").next().unwrap();
    // A room and those that it may use: the strings up to the end of its tuple.
    for tuple in table.split_inclusive(")").filter(|tuple| tuple.contains('(')) {
        let names: Vec<&str> = tuple[tuple.find('(').unwrap()..].split('"').skip(1).step_by(2).collect();
        let place = |name: &str| shown.iter().position(|other| *other == name);
        let own = place(names[0]).unwrap_or_else(|| panic!("no row for {}", names[0]));
        for used in &names[1..] {
            assert!(place(used).is_some_and(|at| at < own), "{} uses {used}: it has to stand above", names[0]);
        }
    }
    let files = names(&root().join("src")).into_iter().map(|name| name.trim_end_matches(".rs").to_owned());
    let files: BTreeSet<String> = files.filter(|name| !["lib", "main"].contains(&name.as_str())).collect();
    assert_eq!(shown.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>(), files);
}

/// A test that stands for an invariant is one that there is.
#[test]
fn every_test_that_the_architecture_names_is_there() {
    let tests = ["src", "plugin/src", "tests"].map(|folder| sources(&root().join(folder))).concat();
    let page = read("src/guide/architecture.md");
    let invariants = page.split("# What always holds").nth(1).unwrap().split("\n# ").next().unwrap();
    let mut found = 0;
    for row in invariants.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
        let name = row.trim_end_matches(['|', ' ']).rsplit('`').nth(1).unwrap();
        assert!(tests.contains(&format!("fn {name}(")), "no test {name}");
        found += 1;
    }
    assert!(found >= 12, "{found} invariants");
}
