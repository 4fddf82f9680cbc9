//! What can be shown of a mapping: the kernel's own fields under its names, and what follows from them.

use std::cmp::Ordering;

use mapwright_measure::size;

use crate::process::smaps::{Area, Smaps};
use crate::text;

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// First and last address.
    Address,
    /// `rwxp`
    Perm,
    /// Where in the file.
    Offset,
    /// Major and minor number.
    Device,
    /// The file's number.
    Inode,
    /// What it is.
    Kind,
    /// The file or name.
    Mapping,
    /// `VmFlags`
    Flags,
    /// What this process knows of its own mappings.
    Note,
    /// How many mappings.
    Count,
    /// What goes away with the process: Private_Clean, Private_Dirty and Private_Hugetlb.
    Uss,
    /// Shared_Dirty and Private_Dirty.
    Dirty,
    /// One that the kernel tells, by its place in [`Smaps::fields`].
    Field(usize),
}

/// Columns that are not fields, by name.
const NAMED: [(&str, Column); 12] = [
    ("Address", Column::Address),
    ("Perm", Column::Perm),
    ("Offset", Column::Offset),
    ("Device", Column::Device),
    ("Inode", Column::Inode),
    ("Kind", Column::Kind),
    ("Mapping", Column::Mapping),
    ("VmFlags", Column::Flags),
    ("Note", Column::Note),
    ("Count", Column::Count),
    ("Uss", Column::Uss),
    ("Dirty", Column::Dirty),
];
/// What `pmap -X` leaves out of the kernel's fields.
const NOT_EXTENDED: [&str; 7] = [
    "KernelPageSize",
    "MMUPageSize",
    "Shared_Clean",
    "Shared_Dirty",
    "Private_Clean",
    "Private_Dirty",
    "AnonHugePages",
];
/// Sizes whose sum says nothing.
const NOT_SUMMED: [&str; 2] = ["KernelPageSize", "MMUPageSize"];

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Bytes.
    Size(u64),
    /// A number that is not bytes.
    Number(u64),
    /// Anything else.
    Text(String),
}

/// A mapping, or the sum of several.
#[derive(Clone, Debug)]
pub struct Line {
    /// The mapping; of a sum the first.
    pub area: Area,
    /// How many mappings were summed.
    pub count: u64,
    /// What this process knows of it.
    pub note: String,
}

/// Which columns a person asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The most telling.
    Short,
    /// Those of `pmap -X`.
    Extended,
    /// Everything.
    All,
}

impl Column {
    /// Finds a column by name: letter case, `-` and `_` make no difference.
    pub fn find(name: &str, smaps: &Smaps) -> Result<Self, String> {
        let plain = |name: &str| name.replace(['-', '_'], "").to_lowercase();
        let wanted = plain(name);
        let named = NAMED.iter().find(|(known, _)| plain(known) == wanted).map(|(_, column)| column.clone());
        let field = || smaps.fields.iter().position(|field| plain(&field.name) == wanted).map(Self::Field);
        named.or_else(field).ok_or_else(|| {
            let fields = smaps.fields.iter().map(|field| field.name.as_str());
            let known: Vec<&str> = NAMED.iter().map(|(name, _)| *name).chain(fields).collect();
            format!("there is no column `{name}`; this kernel has {}", known.join(", "))
        })
    }

    /// The columns of a preset.
    pub fn preset(preset: Preset, smaps: &Smaps) -> Vec<Self> {
        let fields = |is_in: &dyn Fn(&str) -> bool| {
            let fields = smaps.fields.iter().enumerate();
            fields.filter(|(_, field)| is_in(&field.name)).map(|(at, _)| Self::Field(at)).collect::<Vec<_>>()
        };
        let short = |name: &str| Self::find(name, smaps).ok();
        let head = [Self::Address, Self::Perm, Self::Offset, Self::Device, Self::Inode];
        match preset {
            Preset::Short => {
                ["Address", "Perm", "Size", "Rss", "Pss", "Uss", "Dirty", "Swap", "Kind", "Mapping"]
                    .into_iter()
                    .filter_map(short)
                    .collect()
            }
            Preset::Extended => {
                let fields = fields(&|name| !NOT_EXTENDED.contains(&name));
                head.into_iter().chain(fields).chain([Self::Mapping]).collect()
            }
            Preset::All => {
                let tail = [Self::Uss, Self::Dirty, Self::Flags, Self::Kind, Self::Mapping];
                head.into_iter().chain(fields(&|_| true)).chain(tail).collect()
            }
        }
    }

    /// What stands above it.
    pub fn name(&self, smaps: &Smaps) -> String {
        match self {
            Self::Field(at) => smaps.fields[*at].name.clone(),
            other => {
                let named = NAMED.iter().find(|(_, column)| column == other);
                named.map_or(String::new(), |(name, _)| (*name).to_owned())
            }
        }
    }

    /// Whether it is a number.
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Offset | Self::Inode | Self::Count | Self::Uss | Self::Dirty | Self::Field(_))
    }

    /// Whether adding it up says something.
    pub fn is_summed(&self, smaps: &Smaps) -> bool {
        match self {
            Self::Field(at) => {
                let field = &smaps.fields[*at];
                field.is_size && !NOT_SUMMED.contains(&field.name.as_str())
            }
            Self::Count | Self::Uss | Self::Dirty => true,
            _ => false,
        }
    }

    /// The cell of a line.
    pub fn value(&self, line: &Line, smaps: &Smaps) -> Value {
        let area = &line.area;
        let sum = |names: &[&str]| {
            let fields = smaps.fields.iter().zip(&area.values);
            Value::Size(
                fields
                    .filter(|(field, _)| names.contains(&field.name.as_str()))
                    .map(|(_, value)| value)
                    .sum(),
            )
        };
        match self {
            Self::Address => Value::Text(format!("{:012x}-{:012x}", area.start, area.end)),
            Self::Perm => Value::Text(area.permissions.clone()),
            Self::Offset => Value::Number(area.offset),
            Self::Device => Value::Text(format!("{:02x}:{:02x}", area.device.0, area.device.1)),
            Self::Inode => Value::Number(area.inode),
            Self::Kind => Value::Text(area.kind().name().to_owned()),
            Self::Mapping => Value::Text(name(area)),
            Self::Flags => Value::Text(area.flags.clone()),
            Self::Note => Value::Text(line.note.clone()),
            Self::Count => Value::Number(line.count),
            Self::Uss => sum(&["Private_Clean", "Private_Dirty", "Private_Hugetlb"]),
            Self::Dirty => sum(&["Shared_Dirty", "Private_Dirty"]),
            Self::Field(at) if smaps.fields[*at].is_size => Value::Size(area.values[*at]),
            Self::Field(at) => Value::Number(area.values[*at]),
        }
    }
}

/// The name of a mapping, safe on a terminal.
pub fn name(area: &Area) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    text::show_path(std::path::Path::new(std::ffi::OsStr::from_bytes(&area.name)))
}

impl Value {
    /// For tables: sizes in KiB, or in bytes, or as people read them.
    pub fn show(&self, column: &Column, unit: Unit) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(offset) if *column == Column::Offset => format!("{offset:08x}"),
            Self::Number(number) => number.to_string(),
            Self::Size(bytes) => match unit {
                Unit::Kib => (bytes / 1024).to_string(),
                Unit::Bytes => bytes.to_string(),
                Unit::Human => size::show(*bytes),
            },
        }
    }

    /// Numbers before text.
    pub fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Size(a) | Self::Number(a), Self::Size(b) | Self::Number(b)) => a.cmp(b),
            (Self::Text(_), _) => Ordering::Greater,
            (_, Self::Text(_)) => Ordering::Less,
        }
    }
}

/// In which unit sizes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// As the kernel and pmap do.
    Kib,
    /// Exactly.
    Bytes,
    /// With units.
    Human,
}
