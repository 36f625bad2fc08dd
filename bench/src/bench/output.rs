//! The files of a result: tried before anything is measured, so that a wrong path costs no run, and in their place only
//! once they are whole.

use super::result::put_json;
use crate::screen::Screen;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A file to be. Dropping it leaves nothing behind, and what was there before untouched.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    file: File,
    /// None for what is no regular file, such as a pipe: that is written as it is.
    beside: Option<Beside>,
}

/// The file beside its place.
#[derive(Debug)]
struct Beside {
    temporary: PathBuf,
    place: PathBuf,
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Once it is in its place, there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl Output {
    /// Makes sure that a file can be written to `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::try_open(path).with_context(|| format!("cannot write to {}", path.display()))
    }

    fn try_open(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        // A link stays; what it leads to is replaced.
        let place = match fs::metadata(&path) {
            Ok(found) if found.is_file() => fs::canonicalize(&path)?,
            Ok(found) => {
                ensure!(!found.is_dir(), "this is a directory");
                let file = OpenOptions::new().write(true).open(&path)?;
                let beside = None;
                return Ok(Self { path, file, beside });
            }
            Err(_) => path.clone(),
        };
        let name = place.file_name().context("this names no file")?;
        let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let temporary = place.with_file_name(name);
        let mut made = OpenOptions::new();
        let file = match made.write(true).create_new(true).open(&temporary) {
            // A process that was killed leaves it, and its number may come again.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "{} is there already: it was given twice, or a former process left it; then remove it",
                temporary.display()
            ),
            opened => opened.with_context(|| format!("cannot make {}", temporary.display()))?,
        };
        let beside = Some(Beside { temporary, place });
        Ok(Self { path, file, beside })
    }

    /// Where it was asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has `fill` write the file, and puts it in its place.
    pub fn write(self, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
        self.try_write(fill)
            .with_context(|| format!("cannot write to {}", self.path.display()))
    }

    fn try_write(&self, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
        let mut out = BufWriter::new(&self.file);
        fill(&mut out)?;
        out.flush()?;
        if let Some(Beside { temporary, place }) = &self.beside {
            fs::rename(temporary, place)?;
        }
        Ok(())
    }
}

/// A result as JSON, if it is wanted.
pub struct Json(Option<Output>);

impl Json {
    /// Tries the path, if there is one.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        Ok(Self(path.map(Output::open).transpose()?))
    }

    /// Writes the result and tells where.
    pub fn write(self, screen: &Screen, result: &impl Serialize) -> Result<()> {
        let mut writer = Writer::new(screen);
        writer.write(self.0, |out| put_json(out, result));
        writer.end()
    }
}

/// Writes one file after the other, all that can be written, and tells which.
pub struct Writer<'a> {
    screen: &'a Screen,
    ending: Result<()>,
}

impl<'a> Writer<'a> {
    /// Nothing is written yet.
    pub fn new(screen: &'a Screen) -> Self {
        let ending = Ok(());
        Self { screen, ending }
    }

    /// Has `fill` write a file, if there is one.
    pub fn write(
        &mut self,
        file: Option<Output>,
        fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
    ) {
        let Some(file) = file else {
            return;
        };
        let path = file.path().to_owned();
        match file.write(fill) {
            Ok(()) => self.screen.line(&format!("written: {}", path.display())),
            Err(error) if self.ending.is_ok() => self.ending = Err(error),
            Err(error) => self.screen.line(&format!("error: {error:#}")),
        }
    }

    /// Fails with the first file that could not be written.
    pub fn end(self) -> Result<()> {
        self.ending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, "before").unwrap();
        let failed = Output::open(&path).unwrap().write(|out| {
            out.write_all(b"half")?;
            bail!("no more")
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("no more"));
        drop(Output::open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        let whole = Output::open(&path).unwrap();
        // It would be the same file twice.
        assert!(Output::open(&path).is_err());
        whole.write(|out| Ok(out.write_all(b"after")?)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn what_a_former_process_left_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir
            .path()
            .join(format!(".a.json.{}.part", std::process::id()));
        fs::write(&left, "half").unwrap();
        let error = Output::open(&dir.path().join("a.json")).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(left.to_str().unwrap()), "{error}");
        assert!(error.contains("former process"), "{error}");
        assert_eq!(fs::read_to_string(&left).unwrap(), "half");
    }

    #[test]
    fn a_link_stays_and_a_device_is_written_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let output = Output::open(&link).unwrap();
        output.write(|out| Ok(out.write_all(b"after")?)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "after");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let device = Output::open(Path::new("/dev/null")).unwrap();
        device.write(|out| Ok(out.write_all(b"gone")?)).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_wrong_path_is_known_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Output::open(dir.path()).is_err());
        let error = Output::open(&dir.path().join("missing/a.json")).unwrap_err();
        assert!(format!("{error:#}").contains("missing/a.json"), "{error:#}");
    }
}
