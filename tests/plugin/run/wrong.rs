//! Files that are wrong: every mistake at once, and none passes.

use proptest::prelude::*;

use super::*;

#[test]
fn every_mistake_is_told_at_once_with_its_line_and_what_was_expected() {
    let shift = Shift::new(
        "nam = \"x\"\n[defaults]\nstal = \"5s\"\nfilter = { overlay = \"none\", treshold = 1, max-size-buffers = 0, device = \"${NOPE}\" }\n\
         [[line]]\nname = \"a b\"\nsource = { rtsp = \"http://x\", file = \"x\" }\nmodel = \"none.diad\"\n\
         [[line]]\nsource = { aravis = \"\", triggered = true, framerate = 25 }\nstall = 5\nattempts = -1\non-failure = \"explode\"\n\
         [mqtt]\nurl = \"http://x\"\npassword = \"p\"\nca-file = \"none.pem\"\nwhch = \"all\"\ntopic = \"a/#\"\n\
         [webhook]\nurl = \"ftp://x\"\nbatch = 0\n[modbus]\nlisten = \"502\"\nunits = { nobody = 1, zero = 0 }\n\
         [gpio.b]\nreject = -1\nverdicts = \"bad\"\n",
    );
    for command in ["run", "validate"] {
        let (code, said) = shift.finish(&[command, "line.toml"]);
        assert_eq!(code, 2, "{said}");
        for expected in [
            "line 2: nam: unknown key; did you mean name?",
            "line 4: defaults.stal: unknown key; did you mean stall?",
            "line 5: defaults.filter.overlay = \"none\": expected some of verdict, boxes, heatmap",
            "line 5: defaults.filter.treshold: unknown key; did you mean threshold?",
            "line 5: defaults.filter.max-size-buffers = 0: expected a number from 1 to 256",
            "line 5: defaults.filter.device = \"${NOPE}\": the environment has no variable NOPE",
            "line 7: line[0].name = \"a b\": expected letters, digits",
            "line 8: line[0].source: has rtsp, file, expected exactly one of aravis, rtsp, v4l2, file, launch",
            "line 9: line[0].model: none.diad: cannot read",
            "line 10: line[1].name: name is missing",
            "line 10: line[1].model: is missing",
            "line 11: line[1].source.aravis = \"\": expected a text that is not empty",
            "line 11: line[1].source.framerate = 25: expected none where triggered = true",
            "line 12: line[1].stall = 5: expected a length of time",
            "line 13: line[1].attempts = -1: expected a whole number",
            "line 14: line[1].on-failure = \"explode\": expected one of \"continue\", \"exit\"",
            "line 16: mqtt.url = \"http://x\": expected mqtt://HOST",
            "line 17: mqtt.password: has no user beside it",
            "line 18: mqtt.ca-file = \"none.pem\": cannot be read",
            "line 19: mqtt.whch: unknown key; did you mean which?",
            "line 20: mqtt.topic = \"a/#\": expected the beginning of topics",
            "line 22: webhook.url = \"ftp://x\": expected an address that begins with http://",
            "line 23: webhook.batch = 0: expected a whole number from 1 to 1000",
            "line 25: modbus.listen = \"502\": expected address and port",
            "line 26: modbus.units.nobody: is no line",
            "line 26: modbus.units.zero = 0: expected a unit from 1 to 247",
            "line 27: gpio.b: is no line",
            "line 28: gpio.b.reject = -1: expected a whole number",
            "line 27: gpio.b.delay: is missing, expected the time from the camera to the gate",
            "line 29: gpio.b.verdicts = \"bad\": expected some of ok, warn, ng, uninspected, error",
        ] {
            assert!(said.contains(expected), "{expected}\nis not in\n{said}");
        }
    }
    let (code, said) = shift.finish(&["run", "nowhere.toml"]);
    assert_eq!((code, said.contains("nowhere.toml: cannot be read")), (2, true), "{said}");
    std::fs::write(shift.path("line.toml"), "schema = 1\n[[line]\nname = 1\n").unwrap();
    let (code, said) = shift.finish(&["validate", "line.toml"]);
    assert!(code == 2 && said.contains("line 2: "), "{said}");
}

#[test]
fn a_right_file_is_called_right() {
    let shift = Shift::new(&format!("[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\n{LIVE}\n"));
    assert_eq!(shift.finish(&["validate", "line.toml"]), (0, "line.toml: 1 lines, no mistakes\n".into()));
    let (code, said) = shift.finish(&["validate", "line.toml", "--probe"]);
    assert!(code == 0 && said.contains("cap: video/x-raw") && said.contains("width=(int)64"), "{said}");
    shift.write("[[line]]\nname = \"cap\"\nmodel = \"MODEL\"\nsource = { v4l2 = \"/dev/nothing\" }\n");
    let (code, said) = shift.finish(&["validate", "line.toml", "--probe"]);
    assert!(code == 1 && said.contains("error: cap: ") && said.contains("/dev/nothing"), "{said}");
}

/// Every key that a file may have, with a right value.
const KEYS: [(&str, &str); 48] = [
    ("schema", "1"),
    ("name", "\"hall\""),
    ("state-dir", "\"state\""),
    ("http.listen", "\"127.0.0.1:0\""),
    ("mqtt.url", "\"mqtt://a\""),
    ("mqtt.user", "\"u\""),
    ("mqtt.password", "\"p\""),
    ("mqtt.topic", "\"plant/diad\""),
    ("mqtt.which", "\"changes\""),
    ("mqtt.max-size", "\"1MB\""),
    ("mqtt.max-age", "\"1d\""),
    ("webhook.url", "\"https://a/b\""),
    ("webhook.secret", "\"s\""),
    ("webhook.batch", "10"),
    ("webhook.timeout", "\"5s\""),
    ("webhook.which", "\"not-ok\""),
    ("modbus.listen", "\"127.0.0.1:1502\""),
    ("modbus.units", "{ cap = 1 }"),
    ("modbus.warn-passes", "true"),
    ("modbus.hold", "\"2s\""),
    ("gpio.cap.chip", "\"/dev/gpiochip9\""),
    ("gpio.cap.reject", "17"),
    ("gpio.cap.healthy", "18"),
    ("gpio.cap.delay", "\"350ms\""),
    ("gpio.cap.pulse", "\"40ms\""),
    ("gpio.cap.verdicts", "\"ng+error\""),
    ("gpio.cap.on-late", "\"pulse\""),
    ("line.name", "\"cap\""),
    ("line.model", "\"MODEL\""),
    ("line.filter.threshold", "2.0"),
    ("line.filter.class", "\"auto\""),
    ("line.filter.overlay", "\"verdict+boxes\""),
    ("line.clips.pre", "\"5s\""),
    ("line.record.every", "\"10min\""),
    ("line.output", "\"fakesink\""),
    ("line.results", "\"a.jsonl\""),
    ("line.stall", "\"5s\""),
    ("line.teardown", "\"5s\""),
    ("line.stop", "\"5s\""),
    ("line.attempts", "3"),
    ("line.on-failure", "\"exit\""),
    ("line.source.rtsp", "\"rtsp://a/b\""),
    ("line.source.latency", "\"100ms\""),
    ("line.source.transport", "\"udp\""),
    ("line.source.user", "\"u\""),
    ("line.source.password", "\"p\""),
    ("defaults.attempts", "1"),
    ("defaults.stall", "\"off\""),
];

/// A file of those keys, one of them with another value or another name.
fn file(wrong: Option<(usize, &str, Option<&str>)>) -> String {
    let of = |section: &str| {
        let own = KEYS.iter().enumerate().filter_map(|(i, (path, value))| {
            let (at, key) = path.rsplit_once('.').unwrap_or(("", path));
            let (key, value) = match wrong {
                Some((at, value, name)) if at == i => (name.unwrap_or(key), value),
                _ => (key, *value),
            };
            (at == section).then(|| format!("{key} = {value}\n"))
        });
        own.collect::<String>()
    };
    let sections = [
        ("http", "[http]"),
        ("mqtt", "[mqtt]"),
        ("webhook", "[webhook]"),
        ("modbus", "[modbus]"),
        ("gpio.cap", "[gpio.cap]"),
        ("defaults", "[defaults]"),
        ("line", "[[line]]"),
        ("line.source", "[line.source]"),
        ("line.filter", "[line.filter]"),
        ("line.clips", "[line.clips]"),
        ("line.record", "[line.record]"),
    ];
    of("") + &sections.map(|(section, head)| format!("{head}\n{}", of(section))).concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whichever key is wrong, by its value or by its name: the file is refused, and that key is named.
    #[test]
    fn no_wrong_key_passes(at in 0..KEYS.len(), value in prop::sample::select(vec!["[]", "{}", "1979-05-27", "[1, 2]", "nan"]), renamed: bool) {
        let shift = Shift::new("");
        let (path, right) = KEYS[at];
        let key = path.rsplit('.').next().unwrap();
        let name = format!("{key}x");
        let text = if renamed { file(Some((at, right, Some(&name)))) } else { file(Some((at, value, None))) };
        std::fs::write(shift.path("line.toml"), text.replace("MODEL", shop().model.to_str().unwrap())).unwrap();
        let (code, said) = shift.finish(&["validate", "line.toml"]);
        prop_assert_eq!(code, 2, "{}\n{}", text, said);
        prop_assert!(said.contains(if renamed { &name } else { key }), "{}\n{}", text, said);
    }
}

#[test]
fn the_file_of_all_keys_is_right() {
    let shift = Shift::new("");
    std::fs::write(shift.path("line.toml"), file(None).replace("MODEL", shop().model.to_str().unwrap())).unwrap();
    let (code, said) = shift.finish(&["validate", "line.toml"]);
    assert_eq!(code, 0, "{said}");
}

/// The page for operators has a row for every key, and every key it has is one.
#[test]
fn the_manual_has_every_key() {
    let pages = [include_str!("../../../src/guide/lines.md"), include_str!("../../../src/guide/outputs.md")];
    let page = pages.concat();
    let elsewhere = ["defaults.", "line.filter.", "line.clips."];
    for (path, _) in KEYS.iter().filter(|(path, _)| !elsewhere.iter().any(|start| path.starts_with(start))) {
        let shared = path.split_once('.').filter(|(section, _)| ["mqtt", "webhook"].contains(section));
        let shared = shared.map(|(_, key)| key).filter(|key| ["which", "max-size", "max-age"].contains(key));
        let key = path.strip_prefix("line.source.").or(shared).unwrap_or(path).replace("gpio.cap.", "gpio.LINE.");
        assert!(page.contains(&format!("`{key}`")) || page.contains(&format!("`{key} = ")), "{key} is not on the page");
    }
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `line.")?.split_once('`')).map(|(key, _)| key);
    for key in rows.filter(|key| !["source", "filter", "archive", "clips", "record"].contains(key)) {
        assert!(KEYS.iter().any(|(path, _)| *path == format!("line.{key}")), "line.{key} is no key");
    }
}

/// The files in the manual are right, but for what is not there: the model and a password.
#[test]
fn the_files_of_the_manual_are_right() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    for page in ["README.md", "src/guide/lines.md", "src/guide/outputs.md"] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let blocks: Vec<&str> = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
        assert_eq!(blocks.len(), 1, "{page}");
        let shift = Shift::new("");
        for name in ["label", "broker", "webhook"] {
            std::fs::write(shift.path(name), "secret").unwrap();
        }
        let block = blocks[0].replace("bottle.diad", shop().model.to_str().unwrap());
        std::fs::write(shift.path("line.toml"), block.replace("/run/credentials/", "")).unwrap();
        let (code, said) = shift.finish(&["validate", "line.toml"]);
        assert_eq!(code, 0, "{page}: {said}");
    }
}

/// And so is its line with pictures.
#[test]
fn pictures_of_what_is_not_ok() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../src/guide/lines.md")).unwrap();
    let block = page.rsplit("```text\n").next().unwrap().split("```").next().unwrap();
    let source = finite(10).replace("width=64,height=64", "format=I420,width=64,height=64");
    let shift = Shift::new(&format!("[[line]]\nname = \"a\"\nmodel = \"MODEL\"\n{source}\n{block}"));
    let (code, said) = shift.finish(&["run", "line.toml"]);
    assert!(code == 0 && said.contains("a: ended: 10 frames"), "{said}");
    assert!(std::fs::metadata(shift.path("all.mp4")).unwrap().len() > 0);
    let pictures = std::fs::read_dir(shift.folder.path()).unwrap().filter_map(Result::ok);
    let pictures = pictures.filter(|file| file.file_name().to_string_lossy().starts_with("not_ok_")).count();
    assert!(pictures > 0 && !said.contains(" ok"), "{pictures}: {said}");
}
