//! Files that are there completely or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `path` through a temporary file in the same folder: written, flushed to the disk, renamed over `path`, the
/// folder flushed. Whatever fails, `path` is as it was before and the temporary file is gone.
///
/// The file gets the mode any new file would get under the process's umask, not the private one of temporary files.
///
/// # Errors
/// [`Error::Io`] naming `path`; [`Error::Usage`] if `path` names a folder or a device, which a rename would replace.
/// What `write` returns is passed on.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    const ACTION: &str = "cannot write";
    if std::fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        return Err(Error::Usage(format!("{}: is a folder or a device, expected the name of a file", path.display())));
    }
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".diad-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(&folder).map_err(|error| Error::io(path, ACTION, error))?;
    // From here on, dropping `temporary` removes the file.
    let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut buffered)
        .and_then(|()| buffered.flush())
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(|error| Error::io(path, ACTION, error))?;
    drop(buffered);
    temporary.persist(path).map_err(|error| Error::io(path, ACTION, error.error))?;
    sync_folder(&folder).map_err(|error| Error::io(path, ACTION, error))
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes the rename itself survive a power cut, on systems where a folder can be flushed.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some network file systems know no such thing, and a folder may be writable without being readable.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for content in ["first", "second"] {
            write_atomically(&path, |out| out.write_all(content.as_bytes())).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "old").unwrap();
        let error = write_atomically(&path, |out| {
            out.write_all(&[7; 3 << 20])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert_eq!(error.exit_code(), 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn folders_and_devices_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        let error = write_atomically(&inside, |_| unreachable!()).unwrap_err();
        assert!(error.to_string().contains("is a folder or a device"), "{error}");
        #[cfg(unix)]
        {
            let link = folder.path().join("link");
            std::os::unix::fs::symlink("/dev/full", &link).unwrap();
            let error = write_atomically(&link, |_| unreachable!()).unwrap_err();
            assert!(error.to_string().contains("is a folder or a device"), "{error}");
        }
    }

    #[test]
    fn missing_folder_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("a");
        let error = write_atomically(&path, |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{}: cannot write: ", path.display())), "{error}");
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_bare_name_is_in_the_current_folder() {
        assert_eq!(folder_of(Path::new("m.diad")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/m.diad")), Path::new("a"));
        assert_eq!(folder_of(Path::new("/m.diad")), Path::new("/"));
    }

    #[cfg(unix)]
    #[test]
    fn mode_is_that_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write_atomically(&ours, |_| Ok(())).unwrap();
        std::fs::write(&plain, "").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
