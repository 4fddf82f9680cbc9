//! Where a journal may lie, and who may have put it there: names, mounts, owners and access lists.

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::journal::{Sample, commit, leave_commits, parts};
use common::{child_as_nobody, require_root, role, run_ok, scratch};
use mapwright::journal::place::Directory;
use mapwright::journal::{AtomicFile, JournalError, Limits, Place};
use mapwright::stores::{FileOptions, FileStore};
use rustix::fs::{XattrFlags, fremovexattr, fsetxattr};

#[test]
fn a_file_that_got_a_second_name_is_recovered_by_the_first_and_opened_by_none() {
    let sample = Sample::new();
    let second = sample.folder.path().join("second name");
    let atomic = sample.open().unwrap();
    commit(&atomic, 0, 7);
    fs::hard_link(&sample.path, &second).unwrap();
    commit(&atomic, 1, 8);
    drop(atomic);
    // By the other name there is no journal, and it is not said that none is needed.
    let (place, file) = parts(&second);
    let refused = mapwright::journal::recover(&*place, &*file, mapwright::journal::Accept::Own).unwrap_err();
    assert!(refused.to_string().contains("2 names"), "{refused}");
    drop(file);
    let refused = sample.open().unwrap_err();
    assert!(matches!(refused, JournalError::Refused { .. }), "{refused}");
    let bytes = fs::read(&sample.path).unwrap();
    assert_eq!((bytes[0], bytes[4096]), (7, 8), "what was committed was brought to the file all the same");
    assert!(!sample.journal().exists());
    fs::remove_file(second).unwrap();
    sample.open().unwrap().close().unwrap();
}

#[test]
fn a_journal_that_was_linked_and_not_unlinked_is_good() {
    let sample = Sample::new();
    leave_commits(&sample, 2);
    let unfinished = sample.folder.path().join("data.bin.mapwright-journal.new");
    fs::hard_link(sample.journal(), &unfinished).unwrap();
    assert_eq!(sample.inspect().unwrap(), Some(2));
    assert!(unfinished.exists(), "looking changes nothing");
    assert_eq!(sample.recover().unwrap(), Some(2));
    assert!(!unfinished.exists() && !sample.journal().exists());
}

#[test]
fn an_unfinished_journal_is_removed_by_recovery() {
    let sample = Sample::new();
    let (place, _) = sample.parts();
    place.create().unwrap();
    assert_eq!(sample.all().len(), 2);
    assert_eq!(sample.recover().unwrap(), None);
    assert_eq!(sample.all().len(), 1);
}

/// A bind mount of a single file: the folder that shows it is of another file system.
#[test]
fn a_file_that_is_mounted_by_itself_is_refused() {
    let Some(path) = role() else {
        if require_root() {
            let sample = Sample::at(&std::env::temp_dir());
            fs::write(sample.folder.path().join("elsewhere"), b"").unwrap();
            let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"]);
            command.arg(&sample.path).arg(sample.folder.path().join("elsewhere"));
            command.arg(std::env::current_exe().unwrap());
            command.args(["a_file_that_is_mounted_by_itself_is_refused", "--exact", "--nocapture"]);
            run_ok({
                command.env("MAPWRIGHT_TEST_ROLE", sample.folder.path().join("elsewhere"));
                command
            });
        }
        return;
    };
    let file = FileStore::open(&path, &FileOptions { write: true, direct: false }).unwrap();
    let refused = Directory::of(std::os::fd::AsFd::as_fd(&file), Path::new(&path)).unwrap_err();
    assert!(refused.to_string().contains("mounted by itself"), "{refused}");
    let original = Path::new(&path).with_file_name("data.bin");
    let (place, file) = parts(&original);
    AtomicFile::open(place, file, Limits::default()).unwrap().0.close().unwrap();
}

/// Whoever may write the file, but does not own it, would leave a journal that the owner's program does not trust.
#[test]
fn who_cannot_give_the_journal_to_the_owner_is_refused() {
    const NAME: &str = "who_cannot_give_the_journal_to_the_owner_is_refused";
    let Some(path) = role() else {
        if require_root() {
            let dir = common::public_scratch();
            let folder = dir.path().join("open to all");
            fs::create_dir(&folder).unwrap();
            let path = folder.join("data");
            fs::write(&path, [1; 4096]).unwrap();
            fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
            run_ok(child_as_nobody(NAME, &path.display().to_string(), dir.path()));
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left");
            // As the owner: root may act for everybody.
            let (place, file) = parts(&path);
            AtomicFile::open(place, file, Limits::default()).unwrap().0.close().unwrap();
        }
        return;
    };
    let (place, file) = parts(Path::new(&path));
    let refused = AtomicFile::open(place, file, Limits::default()).unwrap_err();
    assert!(refused.to_string().contains("user 0 owns the file"), "{refused}");
}

/// POSIX access control lists, as the kernel takes them (include/uapi/linux/posix_acl_xattr.h): owner, user 12345, group, mask and
/// others.
fn access_list(user: u16, mask: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, NOBODY), (2, user, 12345), (4, 4, NOBODY), (0x10, mask, NOBODY), (0x20, 0, NOBODY)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const ACCESS: &str = "system.posix_acl_access";

/// Gives a file or folder a list; `false`, loudly, where the file system has none.
fn give_list(path: &Path, name: &str, list: &[u8]) -> bool {
    match fsetxattr(File::open(path).unwrap(), name, list, XattrFlags::empty()) {
        Ok(()) => true,
        Err(error) => {
            common::skip(&format!("no access lists here: {error}"));
            false
        }
    }
}

#[test]
fn a_new_journal_has_no_access_list_and_nobody_else_where_the_file_has_one() {
    let folder = scratch();
    if !give_list(folder.path(), "system.posix_acl_default", &access_list(6, 6)) {
        return;
    }
    let sample = Sample::at(folder.path());
    // The file has inherited a list, and whose its group's bits are the mode does not say.
    fs::set_permissions(&sample.path, Permissions::from_mode(0o664)).unwrap();
    let mode = || {
        let atomic = sample.open().unwrap();
        let made = fs::metadata(sample.journal()).unwrap().mode() & 0o7777;
        let list = rustix::fs::fgetxattr_query(File::open(sample.journal()).unwrap(), ACCESS);
        assert_eq!(list, Err(rustix::io::Errno::NODATA), "the list of the folder");
        atomic.close().unwrap();
        made
    };
    assert_eq!(mode(), 0o600);
    fremovexattr(File::open(&sample.path).unwrap(), ACCESS).unwrap();
    fs::set_permissions(&sample.path, Permissions::from_mode(0o664)).unwrap();
    assert_eq!(mode(), 0o664);
}

#[test]
fn a_journal_that_somebody_on_a_list_may_write_is_refused() {
    let sample = Sample::at(scratch().path().parent().unwrap());
    leave_commits(&sample, 1);
    fs::set_permissions(&sample.path, Permissions::from_mode(0o664)).unwrap();
    fs::set_permissions(sample.journal(), Permissions::from_mode(0o664)).unwrap();
    assert_eq!(sample.inspect().unwrap(), Some(1), "the group may write both");
    if !give_list(&sample.journal(), ACCESS, &access_list(6, 6)) {
        return;
    }
    sample.is_refused();
    // Who may only read it can do no harm.
    give_list(&sample.journal(), ACCESS, &access_list(4, 4));
    assert_eq!(sample.inspect().unwrap(), Some(1));
    fremovexattr(File::open(sample.journal()).unwrap(), ACCESS).unwrap();
    fs::set_permissions(sample.journal(), Permissions::from_mode(0o664)).unwrap();
    give_list(&sample.path, ACCESS, &access_list(6, 6));
    sample.is_refused();
    fs::set_permissions(sample.journal(), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(sample.recover().unwrap(), Some(1));
}

#[test]
fn a_file_is_recovered_by_a_new_name_if_its_journal_has_the_new_one_too() {
    let sample = Sample::new();
    leave_commits(&sample, 2);
    let (path, journal) =
        (sample.folder.path().join("new"), sample.folder.path().join("new.mapwright-journal"));
    fs::rename(&sample.path, &path).unwrap();
    let recover = || {
        let (place, file) = parts(&path);
        mapwright::journal::recover(&*place, &*file, mapwright::journal::Accept::Own).unwrap().is_some()
    };
    assert!(!recover(), "the journal was left behind");
    fs::rename(sample.journal(), &journal).unwrap();
    assert!(recover());
    assert_eq!(fs::read(&path).unwrap()[..2], [10, 10]);
}
