//! Reading files of a bounded size, and writing files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Opens a regular file; `expected` says in the error what should have been there ("a model file").
///
/// # Errors
/// [`Error::Io`] that names `path`, also for a folder, a pipe or a device: those are not opened, for a pipe would wait for
/// somebody to write to it and a device may never end.
pub fn open_regular(path: &Path, expected: &str) -> Result<File> {
    let open = || {
        let about = fs::metadata(path)?;
        if !about.is_file() {
            let kind = if about.is_dir() { "a folder" } else { "not a regular file" };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, expected {expected}")));
        }
        File::open(path)
    };
    open().map_err(|error| Error::io(path, "cannot read", error))
}

/// The whole of a regular file (see [`open_regular`]) of at most `limit` bytes.
///
/// # Errors
/// [`Error::Io`] that names `path`.
pub fn read_regular(path: &Path, limit: u64, expected: &str) -> Result<Vec<u8>> {
    let file = open_regular(path, expected)?;
    let read = || {
        let length = file.metadata()?.len();
        let mut bytes = Vec::with_capacity(length.min(limit) as usize);
        // The file may grow while it is read.
        if length <= limit && (&file).take(limit + 1).read_to_end(&mut bytes)? as u64 <= limit {
            return Ok(bytes);
        }
        Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {limit} bytes, the most for {expected}"),
        ))
    };
    read().map_err(|error| Error::io(path, "cannot read", error))
}

/// Writes `bytes` to `path`: into a temporary file of the same folder, synced, then renamed over `path`. A reader sees the
/// old file or the new one; after a crash or on a full disk the old one is still there and nothing half-written stays.
///
/// A symbolic link is followed, and what is not a regular file (`/dev/stdout`, a pipe) is written to directly.
///
/// # Errors
/// [`Error::Io`] that names `path`.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |out| out.write_all(bytes))
}

/// [`write_atomic`] for content that is made piece by piece by `write`, whose error leaves the old file as it was.
///
/// # Errors
/// [`Error::Io`] that names `path`.
pub fn write_atomic_with(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    replace(path, write).map_err(|source| Error::io(path, "cannot write", source))
}

/// Whether [`write_atomic`] could put a file at `path`: to be asked before hours of work that end in it. Leaves nothing.
///
/// # Errors
/// [`Error::Usage`] that names `path`.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let refused = |source: io::Error| Error::Usage(format!("{}: cannot write: {source}", path.display()));
    match target(path).map_err(refused)? {
        Target::Stream => File::options().write(true).open(path).map(drop),
        Target::File(file) => temporary(&file).map(drop),
    }
    .map_err(refused)
}

/// What a path leads to.
enum Target {
    /// A regular file, or one that is to be; links resolved.
    File(PathBuf),
    /// Something that cannot be replaced, only written to.
    Stream,
}

fn target(path: &Path) -> io::Result<Target> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        Ok(found) if found.is_file() => Ok(Target::File(fs::canonicalize(path)?)),
        Ok(_) => Ok(Target::Stream),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.file_name().is_some() => {
            Ok(Target::File(path.to_path_buf()))
        }
        Err(error) => Err(error),
    }
}

/// The folder that a file is in.
pub(crate) fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary(file: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".diad-").suffix(".tmp");
    // A temporary file is private by default; this one becomes the output, for whoever the umask lets read it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder(file))
}

fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    match target(path)? {
        Target::Stream => {
            let mut stream = BufWriter::new(File::options().write(true).open(path)?);
            write(&mut stream)?;
            stream.flush()
        }
        Target::File(file) => {
            let temporary = temporary(&file)?; // removed when dropped before it is renamed
            let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file());
            write(&mut buffered)?;
            buffered.flush()?;
            drop(buffered);
            temporary.as_file().sync_all()?;
            temporary.persist(&file).map_err(|error| error.error)?;
            sync(folder(&file))
        }
    }
}

/// The rename itself is on disk once the folder is.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some network file systems know no such thing, and a folder may be writable without being readable.
        Err(error) if matches!(error.kind(), InvalidInput | Unsupported | PermissionDenied) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_regular(&path, 5, "a test").unwrap(), b"12345");
        let refused = |path: &Path, words: &str| {
            let error = read_regular(path, 4, "a test").unwrap_err();
            assert_eq!(
                (error.to_string(), error.exit_code()),
                (format!("{}: cannot read: {words}", path.display()), 1)
            );
        };
        refused(&path, "it is larger than 4 bytes, the most for a test");
        refused(folder.path(), "it is a folder, expected a test");
        #[cfg(unix)]
        {
            refused(Path::new("/dev/zero"), "it is not a regular file, expected a test");
            let pipe = folder.path().join("pipe");
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            refused(&pipe, "it is not a regular file, expected a test");
        }
        assert!(matches!(read_regular(&folder.path().join("b"), 4, "a test"), Err(Error::Io { .. })));
    }

    #[test]
    fn a_file_is_made_and_replaced_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        check_writable(&path).unwrap();
        assert!(names(folder.path()).is_empty(), "a check leaves nothing");
        write_atomic(&path, b"first, longer").unwrap();
        write_atomic(&path, b"second").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["report.json"]);
    }

    #[test]
    fn failed_content_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let error = write_atomic_with(&path, |out| {
            out.write_all(&[7; 3 << 20])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert_eq!(error.exit_code(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_place_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("report.json");
        for error in [write_atomic(&path, b"x").unwrap_err(), check_writable(&path).unwrap_err()] {
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        assert!(matches!(write_atomic(&path, b"x"), Err(Error::Io { .. })));
        assert!(matches!(check_writable(&path), Err(Error::Usage(_))));
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), &folder.path().join("."), Path::new("/"), Path::new("")] {
            assert!(write_atomic(path, b"x").is_err(), "{path:?}");
            assert!(check_writable(path).is_err(), "{path:?}");
        }
        assert!(names(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_and_a_device_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_atomic(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");

        check_writable("/dev/null").unwrap();
        write_atomic("/dev/null", b"gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let full = write_atomic("/dev/full", b"x").unwrap_err();
        assert!(full.to_string().starts_with("/dev/full: cannot write: "), "{full}");
        assert_eq!(full.exit_code(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_the_umask_lets_them() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        fs::write(folder.path().join("plain"), "x").unwrap();
        write_atomic(folder.path().join("ours"), b"x").unwrap();
        assert_eq!(mode("ours"), mode("plain"));
    }
}
