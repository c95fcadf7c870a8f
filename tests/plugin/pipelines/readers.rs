//! The examples that read results in other languages do what they say.

use super::*;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn results_are_read_in_c() {
    init();
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let flags = run({
        let mut command = Command::new("pkg-config");
        command.args(["--cflags", "--libs", "gstreamer-1.0"]);
        command
    });
    let mut compiler = Command::new("cc");
    compiler.args(["-Wall", "-Wextra", "-Werror", "-o", "reader", "read_results.c"]).args(flags.split_whitespace());
    std::fs::copy(repository().join("examples/read_results.c"), folder.path().join("read_results.c")).unwrap();
    compiler.current_dir(folder.path());
    run(compiler);

    let part = shop.parts.join("blister/test/missing");
    let image = std::fs::read_dir(part).unwrap().next().unwrap().unwrap().path();
    let mut reader = Command::new(folder.path().join("reader"));
    prepare(&mut reader, folder.path());
    let source = format!("filesrc location={} ! pngdec ! imagefreeze num-buffers=3 ! videoconvert", image.display());
    let model = shop.model.display();
    let said = {
        reader.arg(format!(
            "{source} ! diadfilter name=inspect model={model} inference-interval=2 threshold=0 ! fakesink"
        ));
        run(reader)
    };
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(
        lines[0].starts_with("frame 0: ng, score ") && lines[0].ends_with(" of 0.000")
            || lines[0].contains("; defect at "),
        "{said}"
    );
    assert_eq!(lines[1], "frame 1: uninspected, not inspected: interval");
    assert_eq!(lines[2].replace("frame 2", "frame 0"), lines[0]);
}

#[test]
fn results_are_read_in_python() {
    init();
    let shop = shop();
    let folder = tempfile::tempdir().unwrap();
    let mut parts = 0;
    for entry in std::fs::read_dir(shop.parts.join("blister/test/good")).unwrap() {
        std::fs::copy(entry.unwrap().path(), folder.path().join(format!("part_{parts:03}.png"))).unwrap();
        parts += 1;
    }
    let mut python = Command::new("/usr/bin/python3"); // the one that apt's python3-gi belongs to
    prepare(&mut python, folder.path());
    python.arg(repository().join("examples/read_results.py").canonicalize().unwrap());
    python.arg(&shop.model).arg("part_%03d.png");
    let said = run(python);
    assert_eq!(said.lines().filter(|line| line.ends_with("regions")).count(), parts, "{said}");
}
