//! A simulated disk with one directory, and the states that a power failure may leave it in.
//!
//! What it assumes is docs/fault-model.md, and nothing more. Every file has its *durable* bytes, what reads see (*volatile*),
//! and a log of what was done since its last sync, sector by sector. A power failure keeps, for each sector, what it was
//! after some prefix of its writes; changes of length become durable in order; changes of names in any order.
//!
//! | to a sector | by |
//! | --- | --- |
//! | durable | a sync that succeeds |
//! | old, new, or anything it was in between | a power failure |
//! | destroyed | a power failure while it was being written, where [`Draw::destroys`] |
//! | what the block held before | a power failure, beyond the length that the file had durably and ever since, where [`Draw::garbage`] |
//! | what reads see, and durable what was | the end of the program ([`Disk::kill`]) |
//! | never durable, though called clean | a sync that fails; reads see what was written, or what is durable |
//!
//! Locks: `Disk::inner`. An observer is called under it, and sees images only.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mapwright::stores::{Store, Version};

use crate::rng::Rng;

mod place;

pub use place::DiskPlace;

const SECTOR: u64 = 512;
const EIO: i32 = 5;

/// What happened to a file since its last sync.
#[derive(Clone, Debug)]
enum Done {
    /// Bytes of one sector.
    Write { at: u64, bytes: Vec<u8> },
    /// The length, by a call or by a write past the end.
    Length(u64),
}

#[derive(Clone, Debug, Default)]
struct Node {
    durable: Vec<u8>,
    volatile: Vec<u8>,
    log: Vec<Done>,
}

#[derive(Clone, Debug)]
enum Named {
    Create { name: String, inode: u64 },
    Rename { from: String, to: String, inode: u64 },
    Remove { name: String },
}

impl Named {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create { name, inode } => drop(names.insert(name.clone(), *inode)),
            Self::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Remove { name } => drop(names.remove(name)),
        }
    }
}

/// What a power failure does with what was not synced.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// How many of 1000 sectors, names and lengths keep all that was done to them. The others keep a part or nothing.
    pub kept_per_1000: u32,
    /// Whether a sector that was being written may be destroyed.
    pub destroys: bool,
    /// Whether what was written beyond the durable length may be garbage.
    pub garbage: bool,
}

/// Everything on the disk, and what was done to it since.
#[derive(Clone, Debug, Default)]
pub struct Image {
    files: BTreeMap<u64, Node>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    named: Vec<Named>,
    last_inode: u64,
    salts: u64,
    /// Names are given by link and unlink.
    links: bool,
}

/// Called after each operation that changes something.
type Observer = Box<dyn FnMut(&Image) + Send>;

#[derive(Default)]
struct Inner {
    image: Image,
    /// Operations until the power fails.
    left: Option<u64>,
    /// How many of 1000 writes, syncs and changes of names fail.
    errors_per_1000: u32,
    rng: Option<Rng>,
    /// The operation that fails, by its number.
    error_at: Option<u64>,
    observer: Option<Observer>,
    operations: u64,
    /// Reads and writes do a part of what they are asked for, or are interrupted, drawn by this.
    shorts: Option<Rng>,
    /// Bytes by which files may grow yet; `None`: any.
    room: Option<u64>,
}

/// A disk. Clones are handles of the same.
#[derive(Clone, Default)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
}

impl Disk {
    /// A disk with one file of these bytes, which are not synced, under a durable name.
    pub fn with_file(name: &str, bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        {
            let image = &mut disk.lock().image;
            image.last_inode = 1;
            image.names.insert(name.to_owned(), 1);
            image.durable_names.insert(name.to_owned(), 1);
            let node = image.files.entry(1).or_default();
            node.set_len(bytes.len() as u64);
            node.log.clear();
            node.durable = vec![0; bytes.len()];
            node.write(0, &bytes);
        }
        disk
    }

    /// Adds a file, durable with its name; one that has the name loses it.
    pub fn put_file(&self, name: &str, bytes: Vec<u8>) {
        let image = &mut self.lock().image;
        image.last_inode += 1;
        let inode = image.last_inode;
        image.files.insert(inode, Node { durable: bytes.clone(), volatile: bytes, log: Vec::new() });
        image.names.insert(name.to_owned(), inode);
        image.durable_names.insert(name.to_owned(), inode);
    }

    fn of(image: Image) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { image, ..Inner::default() })) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the power fail after so many more operations that change something; `None`: not.
    pub fn fail_after(&self, operations: Option<u64>) {
        self.lock().left = operations;
    }

    /// Whether the power has failed.
    pub fn is_dead(&self) -> bool {
        self.lock().left == Some(0)
    }

    /// Lets so many of 1000 calls that change something fail, drawn by `rng`.
    pub fn set_errors(&self, per_1000: u32, rng: Rng) {
        let inner = &mut *self.lock();
        (inner.errors_per_1000, inner.rng) = (per_1000, Some(rng));
    }

    /// Lets one operation that changes something fail, after `after` more of them.
    pub fn fail_once(&self, after: u64) {
        let inner = &mut *self.lock();
        inner.error_at = Some(inner.operations + after + 1);
        inner.rng.get_or_insert_with(|| Rng::new(after));
    }

    /// Lets reads and writes be short or interrupted, as `rng` draws; such reads fail too, where errors are set. `None`: not.
    pub fn set_shorts(&self, rng: Option<Rng>) {
        self.lock().shorts = rng;
    }

    /// Lets names be given by link and unlink, as where there is no rename that does not replace.
    pub fn set_links(&self, links: bool) {
        self.lock().image.links = links;
    }

    /// Lets the disk be full when files have grown by so many bytes; `None`: never.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.lock().room = bytes;
    }

    /// Flips a bit of a file, while it is open; whether there was one.
    pub fn flip_bit(&self, name: &str, rng: &mut Rng) -> bool {
        let inner = &mut *self.lock();
        let Some(node) = inner.image.names.get(name).and_then(|inode| inner.image.files.get_mut(inode))
        else {
            return false;
        };
        if node.volatile.is_empty() {
            return false;
        }
        let (at, bit) = (rng.index(node.volatile.len()), 1 << rng.below(8));
        node.volatile[at] ^= bit;
        if let Some(byte) = node.durable.get_mut(at) {
            *byte ^= bit;
        }
        true
    }

    /// How much of a read or write is done, or why nothing is.
    fn shortened(&self, len: usize) -> io::Result<usize> {
        let inner = &mut *self.lock();
        let Some(rng) = inner.shorts.as_mut().filter(|_| len > 0) else { return Ok(len) };
        match rng.below(12) {
            0 => Err(io::ErrorKind::Interrupted.into()),
            1 | 2 => Ok(1 + rng.index(len)),
            _ => Ok(len),
        }
    }

    /// Calls `observer` after every operation that changes something.
    pub fn observe(&self, observer: impl FnMut(&Image) + Send + 'static) {
        self.lock().observer = Some(Box::new(observer));
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// What a power failure now may leave.
    pub fn crash(&self, rng: &mut Rng, draw: Draw) -> Disk {
        self.lock().image.crash(rng, draw)
    }

    /// Calls the observer though nothing has changed: what is promised may have.
    pub fn show(&self) {
        let inner = &mut *self.lock();
        if let Some(mut observer) = inner.observer.take() {
            observer(&inner.image);
            inner.observer = Some(observer);
        }
    }

    /// Shows everything that is on it.
    pub fn with_image<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        look(&self.lock().image)
    }

    /// What a killed program leaves now: see [`Image::kill`].
    pub fn kill(&self) -> Disk {
        self.lock().image.kill()
    }

    /// The file of that name, as a store.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn file(&self, name: &str) -> io::Result<DiskFile> {
        let inode = self.lock().image.names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(DiskFile { disk: self.clone(), inode, name: name.to_owned() })
    }

    /// What reads of a file see.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn contents(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        let inner = self.lock();
        Ok(inner.image.files.get(&file.inode).map(|node| node.volatile.clone()).unwrap_or_default())
    }

    /// Runs one operation that changes something; `on_error` is what it leaves when it fails.
    fn operate<T>(
        &self,
        work: impl FnOnce(&mut Image) -> io::Result<T>,
        on_error: impl FnOnce(&mut Image, &mut Rng),
    ) -> io::Result<T> {
        self.attempt(work, on_error, |_| true)
    }

    /// As [`operate`](Self::operate); the observer sees what `is_news` says of.
    fn attempt<T>(
        &self,
        work: impl FnOnce(&mut Image) -> io::Result<T>,
        on_error: impl FnOnce(&mut Image, &mut Rng),
        is_news: impl FnOnce(&io::Result<T>) -> bool,
    ) -> io::Result<T> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.left == Some(0) {
            return Err(io::Error::other("the power has failed"));
        }
        inner.operations += 1;
        inner.left = inner.left.map(|left| left - 1);
        let per_1000 = inner.errors_per_1000;
        let drawn = inner.rng.as_mut().is_some_and(|rng| rng.per_1000(per_1000));
        let fails = drawn || inner.error_at == Some(inner.operations);
        let result = match inner.rng.as_mut().filter(|_| fails) {
            Some(rng) => {
                on_error(&mut inner.image, rng);
                Err(io::Error::from_raw_os_error(EIO))
            }
            None => work(&mut inner.image),
        };
        if is_news(&result)
            && let Some(mut observer) = inner.observer.take()
        {
            observer(&inner.image);
            inner.observer = Some(observer);
        }
        result
    }
}

impl Node {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        if end > self.volatile.len() as u64 {
            self.set_len(end);
        }
        self.volatile[offset as usize..end as usize].copy_from_slice(bytes);
        let mut at = offset;
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(end);
            let bytes = bytes[(at - offset) as usize..(next - offset) as usize].to_vec();
            self.log.push(Done::Write { at, bytes });
            at = next;
        }
    }

    fn set_len(&mut self, len: u64) {
        self.volatile.resize(len as usize, 0);
        self.log.push(Done::Length(len));
    }

    /// Makes durable what is in the log: not what a failed sync has dropped from it, though reads may see that.
    fn sync(&mut self) {
        for done in std::mem::take(&mut self.log) {
            match done {
                Done::Length(len) => self.durable.resize(len as usize, 0),
                Done::Write { at, bytes } => put(&mut self.durable, at as usize, &bytes),
            }
        }
    }

    /// A sync that failed: sectors stay dirty, or are called clean and will never reach the disk.
    fn fail_sync(&mut self, rng: &mut Rng) {
        let mut fates: HashMap<u64, u64> = HashMap::new();
        for done in &self.log {
            if let Done::Write { at, .. } = done {
                fates.entry(at / SECTOR).or_insert_with(|| rng.below(4));
            }
        }
        // What is on the disk, but for what was cut off since: that does not come back.
        let mut on_disk = self.durable.clone();
        for done in &self.log {
            if let Done::Length(len) = done {
                let from = (*len as usize).min(on_disk.len());
                on_disk[from..].fill(0);
            }
        }
        for (sector, fate) in &fates {
            if *fate == 1 {
                let from = (sector * SECTOR) as usize;
                for at in from..(from + SECTOR as usize).min(self.volatile.len()) {
                    self.volatile[at] = on_disk.get(at).copied().unwrap_or(0);
                }
            }
        }
        self.log.retain(|done| match done {
            Done::Write { at, .. } => fates.get(&(at / SECTOR)).is_none_or(|fate| *fate > 1),
            Done::Length(_) => true,
        });
    }

    /// The bytes that a power failure may leave.
    fn crash(&self, rng: &mut Rng, draw: Draw) -> Vec<u8> {
        if self.log.is_empty() {
            return self.durable.clone();
        }
        let lengths = self.log.iter().filter(|done| matches!(done, Done::Length(_))).count();
        let lengths_kept = if rng.per_1000(draw.kept_per_1000) { lengths } else { rng.index(lengths + 1) };
        let mut kept_until: HashMap<u64, usize> = HashMap::new();
        let mut bytes = self.durable.clone();
        let (mut len, mut length) = (bytes.len(), 0);
        // Below this the file has had its blocks all the time.
        let mut shortest = len;
        for (index, done) in self.log.iter().enumerate() {
            match done {
                Done::Length(new) => {
                    length += 1;
                    if length <= lengths_kept {
                        len = *new as usize;
                        shortest = shortest.min(len);
                        let from = len.min(bytes.len());
                        bytes[from..].fill(0);
                    }
                }
                Done::Write { at, bytes: data } => {
                    let until = *kept_until.entry(at / SECTOR).or_insert_with(|| {
                        if rng.per_1000(draw.kept_per_1000) {
                            usize::MAX
                        } else if rng.per_1000(700) {
                            0
                        } else {
                            rng.index(self.log.len() + 1)
                        }
                    });
                    if index < until {
                        put(&mut bytes, *at as usize, data);
                    }
                }
            }
        }
        if draw.destroys || draw.garbage {
            let mut touched: Vec<u64> = kept_until.keys().copied().collect();
            touched.sort_unstable();
            for sector in touched {
                let at = (sector * SECTOR) as usize;
                let is_lost = kept_until[&sector] == 0 && at >= shortest;
                let per_1000 = match (is_lost && draw.garbage, draw.destroys) {
                    (true, _) => 300,
                    (false, true) => 30,
                    (false, false) => 0,
                };
                if rng.per_1000(per_1000) {
                    let garbage: Vec<u8> = (0..SECTOR).map(|_| rng.next_u64() as u8).collect();
                    put(&mut bytes, at, &garbage);
                }
            }
        }
        bytes.resize(len, 0);
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

impl Image {
    /// A disk as a power failure now may leave it.
    pub fn crash(&self, rng: &mut Rng, draw: Draw) -> Disk {
        let mut names = self.durable_names.clone();
        for named in &self.named {
            if !rng.per_1000(draw.kept_per_1000) && rng.per_1000(500) {
                continue;
            }
            named.apply(&mut names);
        }
        let files = names.values().filter_map(|inode| {
            let bytes = self.files.get(inode)?.crash(rng, draw);
            Some((*inode, Node { durable: bytes.clone(), volatile: bytes, log: Vec::new() }))
        });
        Disk::of(Self {
            files: files.collect(),
            durable_names: names.clone(),
            names,
            named: Vec::new(),
            last_inode: self.last_inode,
            salts: self.salts,
            links: self.links,
        })
    }

    /// The disk as a killed program leaves it: what reads see is what it was, and nothing has become durable.
    pub fn kill(&self) -> Disk {
        Disk::of(self.clone())
    }

    /// The disk as it is, as a killed program leaves it, with one bit of a file flipped; `None` if there is no such file or no
    /// byte in it.
    pub fn with_flipped_bit(&self, name: &str, rng: &mut Rng) -> Option<Disk> {
        let mut image = self.clone();
        let node = image.files.get_mut(image.names.get(name)?)?;
        if node.volatile.is_empty() {
            return None;
        }
        let at = rng.index(node.volatile.len());
        node.volatile[at] ^= 1 << rng.below(8);
        Some(Disk::of(image))
    }
}

/// A file of a disk, as a store.
#[derive(Clone)]
pub struct DiskFile {
    disk: Disk,
    inode: u64,
    name: String,
}

impl DiskFile {
    /// How much of a write there is room for.
    fn take_room(&self, offset: u64, len: usize) -> io::Result<usize> {
        let inner = &mut *self.disk.lock();
        let Some(room) = &mut inner.room else { return Ok(len) };
        let now = inner.image.files.get(&self.inode).map_or(0, |node| node.volatile.len() as u64);
        let end = (offset + len as u64).min(now.max(offset) + *room);
        if len > 0 && end <= offset {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *room -= end.saturating_sub(now.max(offset));
        Ok((end - offset) as usize)
    }

    fn node<T>(image: &mut Image, inode: u64, work: impl FnOnce(&mut Node) -> T) -> io::Result<T> {
        image.files.get_mut(&inode).map(work).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Store for DiskFile {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn version(&self) -> io::Result<Version> {
        let mut inner = self.disk.lock();
        let modification = u128::from(inner.operations);
        let len = Self::node(&mut inner.image, self.inode, |node| node.volatile.len() as u64)?;
        Ok(Version { len, identity: u128::from(self.inode), modification })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.disk.shortened(buf.len())?;
        let buf = &mut buf[..len];
        let mut inner = self.disk.lock();
        if inner.left == Some(0) {
            return Err(io::Error::other("the power has failed"));
        }
        let per_1000 = if inner.shorts.is_some() { inner.errors_per_1000 / 4 } else { 0 };
        if inner.rng.as_mut().is_some_and(|rng| rng.per_1000(per_1000)) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Self::node(&mut inner.image, self.inode, |node| {
            let from = (offset as usize).min(node.volatile.len());
            let n = buf.len().min(node.volatile.len() - from);
            buf[..n].copy_from_slice(&node.volatile[from..from + n]);
            n
        })
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        let inode = self.inode;
        let n = self.disk.shortened(buf.len())?;
        let buf = &buf[..self.take_room(offset, n)?];
        let write =
            |image: &mut Image| Self::node(image, inode, |node| node.write(offset, buf)).map(|()| buf.len());
        self.disk.operate(write, |image, rng| {
            // A part of it may have been done.
            let part = rng.index(buf.len() + 1);
            let _ = Self::node(image, inode, |node| node.write(offset, &buf[..part]));
        })
    }

    /// Changes nothing: what is not synced may be lost all the same. Where it fails, it is as a sync that fails.
    fn write_out(&self, _range: Range<u64>) -> io::Result<()> {
        let inode = self.inode;
        let lost = |image: &mut Image, rng: &mut Rng| {
            let _ = Self::node(image, inode, |node| node.fail_sync(rng));
        };
        self.disk.attempt(|_| Ok(()), lost, io::Result::is_err)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let inode = self.inode;
        let set = |image: &mut Image| Self::node(image, inode, |node| node.set_len(len));
        // Where it fails it may have been done all the same.
        self.disk.operate(set, |image, rng| {
            if rng.below(2) == 0 {
                let _ = set(image);
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        let inode = self.inode;
        self.disk
            .operate(
                |image| Self::node(image, inode, Node::sync),
                |image, rng| {
                    let _ = Self::node(image, inode, |node| node.fail_sync(rng));
                },
            )
            // An interrupted sync has failed like any other.
            .map_err(|error| match self.disk.operations() % 3 {
                0 if error.raw_os_error() == Some(EIO) => io::ErrorKind::Interrupted.into(),
                _ => error,
            })
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mapwright::journal::Place;

    use super::*;

    const HALF: Draw = Draw { kept_per_1000: 500, destroys: false, garbage: false };

    fn states(disk: &Disk, draw: Draw, look: impl Fn(&Disk) -> Vec<u8>) -> BTreeSet<Vec<u8>> {
        let mut rng = Rng::new(1);
        (0..300).map(|_| look(&disk.crash(&mut rng, draw))).collect()
    }

    #[test]
    fn every_sector_is_old_or_new_and_all_mixtures_are_drawn() {
        let disk = Disk::with_file("a", vec![1; 1024]);
        let file = disk.file("a").unwrap();
        file.sync().unwrap();
        file.write_at(0, &[2; 1024]).unwrap();
        let corners = |disk: &Disk| {
            let bytes = disk.contents("a").unwrap();
            assert!(bytes[..512].iter().all(|byte| *byte == bytes[0]));
            vec![bytes[0], bytes[512]]
        };
        let all = [[1, 1], [1, 2], [2, 1], [2, 2]].map(Vec::from);
        assert_eq!(states(&disk, HALF, corners), BTreeSet::from(all));
        file.sync().unwrap();
        assert_eq!(states(&disk, HALF, corners), BTreeSet::from([vec![2, 2]]));
        file.write_at(0, &[3; 1024]).unwrap();
        let destroyed =
            states(&disk, Draw { destroys: true, ..HALF }, |disk| disk.contents("a").unwrap()[..4].to_vec());
        assert!(destroyed.len() > 2, "{destroyed:?}");
    }

    #[test]
    fn lengths_become_durable_in_order_and_cut_bytes_do_not_come_back() {
        let disk = Disk::with_file("a", vec![1; 2048]);
        let file = disk.file("a").unwrap();
        file.sync().unwrap();
        file.set_len(512).unwrap();
        file.set_len(1024).unwrap();
        let seen = states(&disk, HALF, |disk| {
            let bytes = disk.contents("a").unwrap();
            vec![(bytes.len() / 512) as u8, bytes.get(600).copied().unwrap_or(9)]
        });
        assert_eq!(seen, BTreeSet::from([vec![4, 1], vec![1, 9], vec![2, 0]]));
    }

    #[test]
    fn garbage_lies_only_where_the_file_has_grown() {
        let disk = Disk::with_file("a", vec![1; 1024]);
        let file = disk.file("a").unwrap();
        file.sync().unwrap();
        file.write_at(0, &[2; 2048]).unwrap();
        let half = |disk: &Disk| {
            let bytes = disk.contents("a").unwrap();
            assert!(bytes[..1024].iter().all(|byte| [1, 2].contains(byte)));
            vec![u8::from(bytes[1024..].iter().any(|byte| ![0, 2].contains(byte)))]
        };
        let garbage = Draw { garbage: true, ..HALF };
        assert_eq!(states(&disk, garbage, half), BTreeSet::from([vec![0], vec![1]]));
        file.sync().unwrap();
        file.set_len(512).unwrap();
        file.write_at(512, &[3; 512]).unwrap();
        let again = |disk: &Disk| vec![disk.contents("a").unwrap().get(512).copied().unwrap_or(0)];
        let again = states(&disk, garbage, again);
        assert!(again.len() > 4, "cut off and grown again: {again:?}");
    }

    #[test]
    fn a_kill_loses_nothing_and_makes_nothing_durable() {
        let disk = Disk::with_file("a", vec![1; 512]);
        disk.file("a").unwrap().sync().unwrap();
        disk.file("a").unwrap().write_at(0, &[2; 512]).unwrap();
        let killed = disk.kill();
        assert_eq!(killed.contents("a").unwrap()[0], 2);
        let first = |disk: &Disk| vec![disk.contents("a").unwrap()[0]];
        assert_eq!(states(&killed, HALF, first), BTreeSet::from([vec![1], vec![2]]));
    }

    #[test]
    fn names_become_durable_with_the_directory() {
        let disk = Disk::with_file("a", vec![1]);
        let place = DiskPlace::new(&disk, "a");
        place.create().unwrap().write_at(0, b"x").unwrap();
        place.publish().unwrap();
        let look = |disk: &Disk| vec![u8::from(disk.file("a.mapwright-journal").is_ok())];
        assert_eq!(states(&disk, HALF, look), BTreeSet::from([vec![0], vec![1]]));
        place.sync().unwrap();
        assert_eq!(states(&disk, HALF, look), BTreeSet::from([vec![1]]));
        place.remove().unwrap();
        assert_eq!(states(&disk, HALF, look), BTreeSet::from([vec![0], vec![1]]));
        assert!(disk.file("a.mapwright-journal").is_err());
    }

    #[test]
    fn what_a_failed_sync_lost_is_durable_only_if_it_is_written_again() {
        let mut lost = 0;
        for seed in 0..100 {
            let disk = Disk::with_file("a", vec![1; 512]);
            let file = disk.file("a").unwrap();
            file.sync().unwrap();
            file.write_at(0, &[2; 512]).unwrap();
            disk.set_errors(1000, Rng::new(seed));
            file.sync().unwrap_err();
            disk.set_errors(0, Rng::new(seed));
            if seed % 2 == 0 {
                // Syncing again proves nothing.
                file.sync().unwrap();
            }
            let keep = Draw { kept_per_1000: 1000, ..HALF };
            lost += u32::from(disk.crash(&mut Rng::new(seed), keep).contents("a").unwrap()[0] == 1);
            file.write_at(0, &[3; 512]).unwrap();
            file.sync().unwrap();
            let none = Draw { kept_per_1000: 0, ..HALF };
            assert_eq!(disk.crash(&mut Rng::new(seed), none).contents("a").unwrap()[0], 3);
        }
        assert!((20..80).contains(&lost), "{lost}");
    }

    #[test]
    fn the_power_fails_when_it_is_told_to() {
        let disk = Disk::with_file("a", vec![1; 512]);
        let file = disk.file("a").unwrap();
        disk.fail_after(Some(1));
        file.write_at(0, &[2]).unwrap();
        assert!(disk.is_dead() && file.write_at(0, &[3]).is_err() && file.read_at(0, &mut [0]).is_err());
    }
}
