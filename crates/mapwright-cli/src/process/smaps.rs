//! /proc/PID/smaps, taken apart (Documentation/filesystems/proc.rst).
//!
//! Which fields there are depends on the kernel: they are taken as they come, in the order of the first mapping. The file
//! is gone through once, without regular expressions; making it costs the kernel far more.

/// One field that the kernel tells of every mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// As the kernel calls it.
    pub name: String,
    /// Whether it is a size; told in kB, kept in bytes.
    pub is_size: bool,
}

/// All mappings of a process.
#[derive(Debug, Default)]
pub struct Smaps {
    /// What is told of each.
    pub fields: Vec<Field>,
    /// By address.
    pub areas: Vec<Area>,
}

/// One mapping.
#[derive(Clone, Debug, Default)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `rwxp`: readable, writable, executable, private or shared.
    pub permissions: String,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// 0 for memory that is of no file.
    pub inode: u64,
    /// The name as the kernel gives it; empty for anonymous memory.
    pub name: Vec<u8>,
    /// One for each of [`Smaps::fields`]; sizes in bytes.
    pub values: Vec<u64>,
    /// The two-letter flags of `VmFlags`.
    pub flags: String,
}

/// What a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A file, shared: stores reach it.
    File,
    /// A file, private: stores make copies.
    PrivateFile,
    /// Private memory.
    Anonymous,
    /// Addresses without access: a guard, or reserved.
    Reserved,
    /// The heap of brk(2).
    Heap,
    /// The stack of the first thread.
    Stack,
    /// memfd_create(2).
    Memfd,
    /// Shared memory: anonymous, POSIX or System V.
    SharedMemory,
    /// hugetlbfs.
    Hugetlb,
    /// Memory of a device.
    Device,
    /// The kernel's own: vdso, vvar, vsyscall.
    Kernel,
    /// Frames of a pager of mapwright.
    PagerFrames,
    /// Private memory whose faults a userfaultfd serves, such as that of mapwright's frames that move.
    Userfaultfd,
}

impl Kind {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::PrivateFile => "private-file",
            Self::Anonymous => "anonymous",
            Self::Reserved => "reserved",
            Self::Heap => "heap",
            Self::Stack => "stack",
            Self::Memfd => "memfd",
            Self::SharedMemory => "shared-memory",
            Self::Hugetlb => "hugetlb",
            Self::Device => "device",
            Self::Kernel => "kernel",
            Self::PagerFrames => "pager-frames",
            Self::Userfaultfd => "userfaultfd",
        }
    }
}

impl Area {
    /// Whether stores are seen by others.
    pub fn is_shared(&self) -> bool {
        self.permissions.ends_with('s')
    }

    /// Whether `VmFlags` has a flag.
    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|known| known == flag)
    }

    /// What it is, from its name, its flags and its permissions.
    pub fn kind(&self) -> Kind {
        let name = self.name.as_slice();
        let is = |prefix: &str| name.starts_with(prefix.as_bytes());
        let has_uffd = ["um", "ui", "uw"].iter().any(|flag| self.has_flag(flag));
        match name {
            _ if self.has_flag("ht") => Kind::Hugetlb,
            b"[heap]" => Kind::Heap,
            b"[stack]" => Kind::Stack,
            _ if is("[vdso") || is("[vvar") || is("[vsyscall") => Kind::Kernel,
            _ if is("/memfd:mapwright ") || is("/memfd:mapwright-frames-") => Kind::PagerFrames,
            _ if is("/memfd:") => Kind::Memfd,
            _ if is("/dev/shm/") || is("/SYSV") || is("/dev/zero (deleted)") || is("[anon_shmem") => {
                Kind::SharedMemory
            }
            _ if self.has_flag("io") || self.has_flag("pf") => Kind::Device,
            _ if self.inode != 0 => {
                if self.is_shared() {
                    Kind::File
                } else {
                    Kind::PrivateFile
                }
            }
            _ if has_uffd => Kind::Userfaultfd,
            _ if self.permissions.starts_with("---") => Kind::Reserved,
            _ => Kind::Anonymous,
        }
    }
}

/// Takes the text apart.
pub fn parse(text: &[u8]) -> Result<Smaps, String> {
    let mut smaps = Smaps::default();
    let mut next = 0;
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let wrong = || format!("`{}`", String::from_utf8_lossy(line));
        if !line[0].is_ascii_uppercase() {
            smaps.areas.push(head(line).ok_or_else(wrong)?);
            next = 0;
            continue;
        }
        let area = smaps.areas.last_mut().ok_or_else(wrong)?;
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(wrong)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name == b"VmFlags" {
            area.flags = String::from_utf8_lossy(value).into_owned();
            continue;
        }
        let (number, is_size) = number(value).ok_or_else(wrong)?;
        let at = position(&mut smaps.fields, next, name, is_size);
        if area.values.len() <= at {
            area.values.resize(at + 1, 0);
        }
        area.values[at] = number;
        next = at + 1;
    }
    for area in &mut smaps.areas {
        area.values.resize(smaps.fields.len(), 0);
    }
    Ok(smaps)
}

/// Where a field stands: nearly always where it stood in the mapping before.
fn position(fields: &mut Vec<Field>, next: usize, name: &[u8], is_size: bool) -> usize {
    if fields.get(next).is_some_and(|field| field.name.as_bytes() == name) {
        return next;
    }
    fields.iter().position(|field| field.name.as_bytes() == name).unwrap_or_else(|| {
        fields.push(Field { name: String::from_utf8_lossy(name).into_owned(), is_size });
        fields.len() - 1
    })
}

/// `start-end perms offset major:minor inode name`, the name from column 73 on where there is one.
fn head(line: &[u8]) -> Option<Area> {
    let mut rest = line;
    let mut word = || {
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        std::str::from_utf8(word).ok()
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = word()?.split_once('-')?;
    let permissions = word()?.to_owned();
    let offset = hex(word()?)?;
    let (major, minor) = word()?.split_once(':')?;
    let inode = word()?.parse().ok()?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let name = unescape(rest.trim_ascii_start());
    Some(Area {
        start: hex(start)?,
        end: hex(end)?,
        permissions,
        offset,
        device,
        inode,
        name,
        ..Area::default()
    })
}

/// The kernel writes a line feed in a name as `\012`, and nothing else so.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        if let Some(behind) = rest.strip_prefix(b"\\012") {
            plain.push(b'\n');
            rest = behind;
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

/// A number, in bytes where `kB` follows, and whether it does.
fn number(value: &[u8]) -> Option<(u64, bool)> {
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number: u64 = std::str::from_utf8(&value[..digits]).ok()?.parse().ok()?;
    match value[digits..].trim_ascii() {
        b"kB" => Some((number.checked_mul(1024)?, true)),
        b"" => Some((number, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
55b41e6b2000-55b41e6e1000 r--p 00001000 fe:00 247003                     /usr/bin/a b\\012c (deleted)
Size:                188 kB
Rss:                  8 kB
THPeligible:           0
VmFlags: rd mr mw me \n\
7fff00000000-7fff00002000 rw-p 00000000 00:00 0 
Size:                  8 kB
Rss:                   4 kB
THPeligible:           1
ProtectionKey:         3
VmFlags: rd wr um \n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Size:                  4 kB
Rss:                   0 kB
THPeligible:           0
VmFlags: ex \n";

    #[test]
    fn every_line_is_understood() {
        let smaps = parse(TEXT.as_bytes()).unwrap();
        let names: Vec<_> = smaps.fields.iter().map(|field| (field.name.as_str(), field.is_size)).collect();
        assert_eq!(names, [("Size", true), ("Rss", true), ("THPeligible", false), ("ProtectionKey", false)]);
        let [file, memory, kernel] = &smaps.areas[..] else { panic!() };
        assert_eq!(
            (file.start, file.end, file.offset, file.device, file.inode),
            (0x55b4_1e6b_2000, 0x55b4_1e6e_1000, 4096, (0xfe, 0), 247_003)
        );
        assert_eq!(file.name, b"/usr/bin/a b\nc (deleted)");
        assert_eq!(file.values, [188 * 1024, 8192, 0, 0]);
        assert_eq!(
            (file.kind(), memory.kind(), kernel.kind()),
            (Kind::PrivateFile, Kind::Userfaultfd, Kind::Kernel)
        );
        assert_eq!(memory.values, [8192, 4096, 1, 3]);
        assert!(memory.has_flag("um") && !memory.has_flag("u"));
        assert_eq!(kernel.permissions, "--xp");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in
            ["Size: 4 kB\n", "nonsense\n", "1-2 rw-p 0 0:0 0\nSize: x kB\n", "1-2 rw-p 0 0:0 0\nSize: 4 MB\n"]
        {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(b"").unwrap().areas.is_empty());
    }
}
