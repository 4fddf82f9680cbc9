//! Which file a program is, and whether something can be preloaded into it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Scripts whose interpreter is a script, as far as the kernel follows them.
const SCRIPTS: usize = 5;
/// Bytes of the first line of a script that the kernel looks at.
const LINE: usize = 256;
const PT_INTERP: u64 = 3;
const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
/// Program headers that are looked at.
const HEADERS: u64 = 512;
/// Bytes of a program header.
const HEADER: usize = 56;

/// Finds a program as execvp(3) does.
pub fn find(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file())
            && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(is_program)
}

/// Why nothing can be preloaded into a program, if it is so. What can't be told is left to the kernel, which will say why it can't be run.
pub fn obstacle(program: &Path) -> Option<String> {
    let mut program = program.to_owned();
    for _ in 0..SCRIPTS {
        let file = File::open(&program).ok()?;
        let mode = file.metadata().ok()?.mode();
        let mut start = [0; LINE];
        let len = (&file).read(&mut start).ok()?;
        let start = &start[..len];
        if let Some(interpreter) = interpreter(start) {
            program = interpreter;
            continue;
        }
        let name = program.display();
        if mode & SET_USER_ID != 0 || mode & SET_GROUP_ID != 0 && mode & 0o10 != 0 {
            return Some(format!(
                "{name} is set-user-id or set-group-id, and the loader preloads nothing into it"
            ));
        }
        return match loader(&file, start) {
            Loader::NoProgram => None,
            Loader::OfAnotherKind => {
                Some(format!("{name} is a program for another machine, or of 32 bits, and the shim is not"))
            }
            Loader::None => Some(format!("{name} is a static program, into which nothing can be preloaded")),
            Loader::At(loader) if Some(&loader) == own_loader().as_ref() => None,
            Loader::At(loader) => {
                let loader = loader.display();
                Some(format!("{name} has another loader than mapwright, {loader}, and so another C library"))
            }
        };
    }
    None
}

/// The interpreter of a script.
fn interpreter(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| b" \t".contains(byte)).filter(|word| !word.is_empty());
    Some(PathBuf::from(OsStr::from_bytes(words.next()?)))
}

/// What starts a program.
#[derive(Debug, PartialEq)]
enum Loader {
    At(PathBuf),
    /// It is static.
    None,
    /// An ELF file, not of 64 bits or not of this machine.
    OfAnotherKind,
    /// No ELF file, or one that is cut off.
    NoProgram,
}

/// The loader of this program.
fn own_loader() -> Option<PathBuf> {
    let file = File::open("/proc/self/exe").ok()?;
    let mut start = [0; LINE];
    file.read_exact_at(&mut start, 0).ok()?;
    match loader(&file, &start) {
        Loader::At(loader) => Some(loader),
        _ => None,
    }
}

/// The loader of a program that begins so (elf(5)).
fn loader(file: &File, start: &[u8]) -> Loader {
    const ELF: &[u8] = b"\x7fELF";
    const OWN: &[u8] = b"\x7fELF\x02\x01"; // 64 bits, little-endian
    const MACHINE: u64 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    if !start.starts_with(ELF) {
        return Loader::NoProgram;
    }
    if !start.starts_with(OWN) || number(start, 18, 2).is_some_and(|machine| machine != MACHINE) {
        return Loader::OfAnotherKind;
    }
    let find = || -> Option<Loader> {
        let (at, size) = (number(start, 32, 8)?, number(start, 54, 2)?);
        for index in 0..number(start, 56, 2)?.min(HEADERS) {
            let mut header = [0; HEADER];
            file.read_exact_at(&mut header, at.checked_add(index * size)?).ok()?;
            if number(&header, 0, 4)? == PT_INTERP {
                let len = usize::try_from(number(&header, 32, 8)?).ok()?.min(LINE);
                let mut name = vec![0; len];
                file.read_exact_at(&mut name, number(&header, 8, 8)?).ok()?;
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(len);
                return Some(Loader::At(PathBuf::from(OsStr::from_bytes(&name[..end]))));
            }
        }
        Some(Loader::None)
    };
    find().unwrap_or(Loader::NoProgram)
}

/// A little-endian number of `len` bytes.
fn number(from: &[u8], at: usize, len: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    bytes[..len].copy_from_slice(from.get(at..at + len)?);
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_told_apart() {
        let shell = find(OsStr::new("sh")).unwrap();
        assert!(shell.is_absolute() && find(OsStr::new("no-such-program-here")).is_none());
        assert_eq!(obstacle(&shell), None, "sh is dynamic everywhere but in rescue systems");
        assert!(own_loader().is_some());
        assert_eq!(find(OsStr::new("./here")), Some(PathBuf::from("./here")));
    }

    #[test]
    fn a_script_is_as_its_interpreter() {
        assert_eq!(interpreter(b"#! /bin/sh -e\nrest"), Some(PathBuf::from("/bin/sh")));
        assert_eq!(interpreter(b"#!\n"), None);
        assert_eq!(interpreter(b"\x7fELF"), None);
    }

    #[test]
    fn what_is_no_program_is_the_kernels_to_refuse() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(obstacle(&path), None);
        // A header that names no program headers.
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
        std::fs::write(&path, &elf).unwrap();
        assert!(obstacle(&path).unwrap().contains("static"));
        elf[18] = 3;
        std::fs::write(&path, &elf).unwrap();
        assert!(obstacle(&path).unwrap().contains("another machine"));
    }
}
