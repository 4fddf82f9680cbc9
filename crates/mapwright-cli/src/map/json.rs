//! What `mapwright map --json` prints. Written straight from the mappings: a process can have tens of thousands.

use std::borrow::Cow;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::View;
use super::columns::{Column, Line, Unit};
use crate::process::smaps::{Area, Kind, Smaps};

/// All of it.
#[derive(Serialize)]
pub struct Output<'a> {
    /// In the order of the command line.
    pub processes: &'a [View],
}

#[derive(Serialize)]
struct Process<'a> {
    pid: u32,
    command: String,
    total: Sum<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Sum<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mappings: Option<Vec<Mapping<'a>>>,
}

#[derive(Serialize)]
struct Sum<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    count: u64,
    fields: Fields<'a>,
}

#[derive(Serialize)]
struct Mapping<'a> {
    start: u64,
    end: u64,
    permissions: &'a str,
    offset: u64,
    device: (u32, u32),
    inode: u64,
    kind: Kind,
    name: Cow<'a, str>,
    flags: Vec<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'a str,
    fields: Fields<'a>,
}

/// The kernel's fields by name, sizes in bytes.
struct Fields<'a> {
    smaps: &'a Smaps,
    area: &'a Area,
    only_sums: bool,
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, (field, value)) in self.smaps.fields.iter().zip(&self.area.values).enumerate() {
            if !self.only_sums || Column::Field(at).is_summed(self.smaps) {
                map.serialize_entry(&field.name, value)?;
            }
        }
        map.end()
    }
}

impl Serialize for View {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let by = self.columns.last().filter(|_| self.is_grouped);
        let process = Process {
            pid: self.process.pid,
            command: self.process.command(),
            total: self.sum(&self.total, None),
            groups: by.map(|by| self.lines.iter().map(|line| self.sum(line, Some(by))).collect()),
            mappings: by.is_none().then(|| self.lines.iter().map(|line| self.mapping(line)).collect()),
        };
        process.serialize(serializer)
    }
}

impl View {
    fn sum<'a>(&'a self, line: &'a Line, by: Option<&Column>) -> Sum<'a> {
        let value = by.map(|by| by.value(line, &self.smaps).show(by, Unit::Bytes));
        Sum {
            value,
            count: line.count,
            fields: Fields { smaps: &self.smaps, area: &line.area, only_sums: true },
        }
    }

    fn mapping<'a>(&'a self, line: &'a Line) -> Mapping<'a> {
        let area = &line.area;
        Mapping {
            start: area.start,
            end: area.end,
            permissions: &area.permissions,
            offset: area.offset,
            device: area.device,
            inode: area.inode,
            kind: area.kind(),
            name: String::from_utf8_lossy(&area.name),
            flags: area.flags.split_whitespace().collect(),
            note: &line.note,
            fields: Fields { smaps: &self.smaps, area, only_sums: false },
        }
    }
}
