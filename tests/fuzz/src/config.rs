//! Configuration: a TOML text, then assignments as on a command line, one per line, after a line `---`.

use diad::config::Config;
use diad::error::Error;

use super::{MIB, told, within};

const MEMORY: usize = 64 * MIB;

/// The separator between text and assignments.
const THEN: &str = "\n---\n";

pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (toml, assignments) = text.split_once(THEN).unwrap_or((text, ""));
    within(MEMORY, || {
        let mut config = match Config::from_toml(toml, "fuzz.toml") {
            Ok(config) => kept(config),
            Err(error) => {
                mistakes(&error, "fuzz.toml");
                Config::default()
            }
        };
        let before = config.clone();
        let lines: Vec<&str> = assignments.lines().collect();
        match config.assign(&lines) {
            Ok(()) if lines.is_empty() => {}
            Ok(()) => drop(kept(config)),
            Err(error) => {
                mistakes(&error, "--set");
                assert_eq!(config, before, "a refused assignment changes nothing");
            }
        }
        for line in lines.iter().take(3) {
            let mut config = before.clone();
            if let Err(error) = config.assign(&[line]) {
                mistakes(&error, "--set");
                assert_eq!(config, before, "a refused assignment changes nothing");
            }
        }
    });
}

/// What is taken keeps the rules, all over again, and comes back from text.
fn kept(config: Config) -> Config {
    let text = toml::to_string(&config).expect("a configuration is TOML");
    let again = Config::from_toml(&text, "fuzz").expect("what is written is read");
    assert_eq!(again, config);
    let json = serde_json::to_string(&config).expect("a configuration is JSON");
    assert_eq!(serde_json::from_str::<Config>(&json).expect("what is written is read"), config);
    config
}

fn mistakes(error: &Error, origin: &str) {
    told(error, origin);
    let Error::Config { mistakes, .. } = error else { panic!("expected mistakes of a configuration, got {error:?}") };
    assert!(!mistakes.is_empty() && mistakes.len() <= 51, "{error}");
    for mistake in mistakes {
        assert!(!mistake.is_empty() && mistake.len() < 1500 && !mistake.contains('\n'), "{mistake:?}");
    }
}
