//! Names on a simulated disk: the place of a journal, with the same steps as `journal/place.rs` takes on a real one.
//!
//! A change of names that fails may have taken effect. Where the file system cannot rename without replacing
//! ([`Disk::set_links`]), a journal gets its name by a link and loses the other one by an unlink, with whatever happens in between.

use std::io;
use std::sync::Arc;

use mapwright::journal::disk::Place;
use mapwright::journal::error::{JournalError, Result};
use mapwright::journal::format::{Identity, Salt};
use mapwright::stores::Store;

use super::{Disk, Image, Named, Node};

/// The place of a journal on a simulated disk.
pub struct DiskPlace {
    disk: Disk,
    file: String,
}

impl DiskPlace {
    /// The place of the journal of the file of that name.
    pub fn new(disk: &Disk, file: &str) -> Self {
        Self { disk: disk.clone(), file: file.to_owned() }
    }

    fn unfinished(&self) -> String {
        self.name() + ".new"
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> JournalError {
        JournalError::io(operation, self.name(), 0, error)
    }

    /// Changes names; where it fails it may have done so all the same.
    fn change(&self, operation: &'static str, change: impl Fn(&mut Image) -> io::Result<()>) -> Result<()> {
        let on_error = |image: &mut Image, rng: &mut crate::rng::Rng| {
            if rng.below(2) == 0 {
                let _ = change(image);
            }
        };
        self.disk.operate(&change, on_error).map_err(|error| self.failed(operation, error))
    }

    fn unlink(&self, name: &str) -> Result<()> {
        if !self.disk.lock().image.names.contains_key(name) {
            return Ok(());
        }
        self.change("remove", |image| {
            if image.names.remove(name).is_some() {
                image.named.push(Named::Remove { name: name.to_owned() });
            }
            Ok(())
        })
    }
}

impl Place for DiskPlace {
    fn name(&self) -> String {
        format!("{}.mapwright-journal", self.file)
    }

    fn identity(&self) -> Result<Identity> {
        let inode = self.disk.lock().image.names.get(&self.file).copied().unwrap_or(0);
        Ok(Identity { inode, born_ns: 1 })
    }

    fn salt(&self) -> Result<Salt> {
        let salts = &mut self.disk.lock().image.salts;
        *salts += 1;
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&crate::rng::Rng::new(*salts).next_u64().to_le_bytes());
        salt[8..].copy_from_slice(&salts.to_le_bytes());
        Ok(Salt(salt))
    }

    fn open(&self) -> Result<Option<Arc<dyn Store>>> {
        if self.disk.is_dead() {
            return Err(self.failed("open", io::Error::other("the power has failed")));
        }
        let Ok(journal) = self.disk.file(&self.name()) else { return Ok(None) };
        let inner = self.disk.lock();
        let names = &inner.image.names;
        let others = names.iter().filter(|(name, inode)| **inode == journal.inode && **name != self.name());
        if others.into_iter().any(|(name, _)| *name != self.unfinished()) {
            let why = "it has several names".to_owned();
            return Err(JournalError::Refused { path: self.name(), why, remedy: "none" });
        }
        drop(inner);
        Ok(Some(Arc::new(journal)))
    }

    fn create(&self) -> Result<Arc<dyn Store>> {
        let name = self.unfinished();
        self.unlink(&name)?;
        self.change("create", |image| {
            image.last_inode += 1;
            let inode = image.last_inode;
            image.files.insert(inode, Node::default());
            image.names.insert(name.clone(), inode);
            image.named.push(Named::Create { name: name.clone(), inode });
            Ok(())
        })?;
        let file = self.disk.file(&name).map_err(|error| self.failed("create", error))?;
        Ok(Arc::new(file))
    }

    fn publish(&self) -> Result<()> {
        if self.disk.lock().image.names.contains_key(&self.name()) {
            return Err(self.failed("rename", io::ErrorKind::AlreadyExists.into()));
        }
        if !self.disk.lock().image.links {
            return self.replace();
        }
        self.change("link", |image| {
            let inode = *image.names.get(&self.unfinished()).ok_or(io::ErrorKind::NotFound)?;
            image.names.insert(self.name(), inode);
            image.named.push(Named::Create { name: self.name(), inode });
            Ok(())
        })?;
        self.unlink(&self.unfinished())
    }

    fn replace(&self) -> Result<()> {
        let (from, to) = (self.unfinished(), self.name());
        self.change("rename", |image| {
            let inode = image.names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
            image.names.insert(to.clone(), inode);
            image.named.push(Named::Rename { from: from.clone(), to: to.clone(), inode });
            Ok(())
        })
    }

    fn remove(&self) -> Result<()> {
        self.unlink(&self.name())?;
        self.unlink(&self.unfinished())
    }

    fn confirm(&self) -> Result<()> {
        // Nobody renames anything here.
        self.disk.file(&self.file).map(drop).map_err(|error| self.failed("find the file of", error))
    }

    fn sync(&self) -> Result<()> {
        let sync = |image: &mut Image| {
            image.named.clear();
            image.durable_names.clone_from(&image.names);
            Ok(())
        };
        // Where it fails the first of the changes may be durable, or all of them.
        let on_error = |image: &mut Image, rng: &mut crate::rng::Rng| {
            let until = rng.index(image.named.len() + 1);
            let first: Vec<Named> = image.named.drain(..until).collect();
            first.iter().for_each(|named| named.apply(&mut image.durable_names));
        };
        self.disk.operate(sync, on_error).map_err(|error| self.failed("sync the directory of", error))
    }
}
