//! The files that rows read, made when they are asked for and removed in the end.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::Random;
use mapwright_measure::sample::{self, OwnFile};
use mapwright_measure::signals;

/// The word that is searched for.
pub const WORD: &str = "mapwright's own word";
/// Bytes between two of them, about.
const WORD_EVERY: u64 = 256 << 10;

/// A folder that is removed when dropped, with what is in it.
pub struct OwnFolder(PathBuf);

impl OwnFolder {
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(format!(".mapwright-{name}-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| Failure::io("create", &path, error))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// An empty folder in it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir(&path).map_err(|error| Failure::io("create", &path, error))?;
        Ok(path)
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("mapwright-bench: {} could not be removed: {error}", self.0.display());
        }
    }
}

/// Where files are made.
pub struct Materials {
    dir: PathBuf,
    sample: Option<(OwnFile, u64)>,
    /// What a single row needs: gone when the row is done.
    rest: Vec<OwnFile>,
    folders: Vec<OwnFolder>,
}

impl Materials {
    /// Files will be made in that folder, which must be on a disk.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, sample: None, rest: Vec::new(), folders: Vec::new() }
    }

    /// The pseudo-random file of `bytes` bytes that most rows read.
    pub fn sample(&mut self, bytes: u64) -> Result<PathBuf> {
        if let Some((file, len)) = &self.sample
            && *len == bytes
        {
            return Ok(file.path.clone());
        }
        let file = sample::make_in(&self.dir, bytes)?;
        let path = file.path.clone();
        self.sample = Some((file, bytes));
        Ok(path)
    }

    /// Another one, for this row.
    pub fn another(&mut self, bytes: u64) -> Result<PathBuf> {
        let file = sample::make_in(&self.dir, bytes)?;
        self.rest.push(file);
        Ok(self.rest[self.rest.len() - 1].path.clone())
    }

    /// A file of lines of text of `bytes` bytes, for this row: one in [`WORD_EVERY`] bytes or so has [`WORD`] in it, which nothing else has.
    pub fn text(&mut self, bytes: u64) -> Result<PathBuf> {
        let path = self.folder("text")?.path().join("text");
        let failed = |error| Failure::io("write", &path, error);
        let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create_new(&path).map_err(failed)?);
        let (mut random, mut written, mut next) = (Random::new(bytes), 0u64, WORD_EVERY);
        let mut line = String::new();
        while written < bytes {
            signals::check()?;
            line.clear();
            let _ = write!(line, "{written:012} {:016x} {:016x} ", random.bits(), random.bits());
            line.push_str(if written >= next { WORD } else { "what others have to say" });
            if written >= next {
                next += WORD_EVERY;
            }
            line.push('\n');
            line.truncate((bytes - written).min(line.len() as u64) as usize);
            file.write_all(line.as_bytes()).map_err(failed)?;
            written += line.len() as u64;
        }
        file.flush().map_err(failed)?;
        file.get_ref().sync_all().map_err(failed)?;
        Ok(path)
    }

    /// A folder, for this row.
    pub fn folder(&mut self, name: &str) -> Result<&OwnFolder> {
        self.folders.push(OwnFolder::create(&self.dir, name)?);
        Ok(&self.folders[self.folders.len() - 1])
    }

    /// A file of that length without a byte on the disk, for this row.
    pub fn sparse(&mut self, bytes: u64) -> Result<PathBuf> {
        let path = self.folder("sparse")?.path().join("sparse");
        let file = File::create_new(&path).map_err(|error| Failure::io("create", &path, error))?;
        file.set_len(bytes).map_err(|error| Failure::io("make a sparse file", &path, error))?;
        Ok(path)
    }

    /// A folder of `count` files of `bytes` bytes each, cut from the sample, for this row.
    pub fn pieces(&mut self, name: &str, sample: &Path, count: u64, bytes: u64) -> Result<PathBuf> {
        let folder = self.folder(name)?.path().to_owned();
        let failed = |error| Failure::io("cut up", sample, error);
        let mut from = File::open(sample).map_err(failed)?;
        let mut piece = vec![0; bytes as usize];
        for number in 0..count {
            signals::check()?;
            from.read_exact(&mut piece).map_err(failed)?;
            let path = folder.join(format!("{number:05}"));
            let mut to = File::create_new(&path).map_err(|error| Failure::io("create", &path, error))?;
            to.write_all(&piece).map_err(|error| Failure::io("write", &path, error))?;
        }
        Ok(folder)
    }

    /// Removes what only one row needed.
    pub fn clear(&mut self) {
        self.rest.clear();
        self.folders.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_removed() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut materials = Materials::new(dir.path().to_owned());
        let sample = materials.another(1 << 20).unwrap();
        let pieces = materials.pieces("pieces", &sample, 3, 4096).unwrap();
        let sparse = materials.sparse(1 << 30).unwrap();
        assert_eq!(fs::read_dir(&pieces).unwrap().count(), 3);
        assert_eq!(fs::read(pieces.join("00001")).unwrap(), fs::read(&sample).unwrap()[4096..8192]);
        assert_eq!(fs::metadata(sparse).unwrap().len(), 1 << 30);
        materials.clear();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
