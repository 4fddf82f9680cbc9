//! The server: listens on a socket and gives every client a session.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use mapwright_sys::signals::print_raw;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
    sockopt,
};

use super::book::{Book, Record};
use super::kept::KeptFile;
use super::kernel_lease::{KernelLease, KernelLeases};
use super::lease::{Lease, Quota, lock};
use super::own_file::check_room;
use super::protocol::{Access, Reply};
use super::session::Session;
use super::wire;
use crate::api::Pager;
use crate::engine::file::{File, FileSpec};
use crate::engine::opened::Opened;
use crate::engine::pool::Kind;
use crate::engine::{Engine, Handle, write_back};
use crate::error::{Error, Result};
use crate::stores::lock_for_writing;

/// Clients at once.
const MAX_CLIENTS: usize = 4096;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Between two tries to accept when descriptors or threads are short.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long operations wait for the store and for room. A client's own deadline is its own business: files are shared.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks whether a client that has died was let go.
const MOMENT: Duration = Duration::from_millis(5);
/// How long the end of a server waits for its sessions.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves a pager's cache to other processes, on a Unix socket, until it is dropped. Clients connect with [`Pager::connect`].
///
/// The socket is made with mode 0600, and only processes of the same user, and root, are let in. A client reaches the files
/// alone that it has opened itself and whose descriptors it hands over, with their rights. See docs/server-protocol.md for what one
/// client can do to another: they run as the same user, and are kept from each other's data as far as that allows.
///
/// # Threads and fork
/// `Send` and `Sync`. It has a thread of its own and one for each client. A child made by fork(2) must not use it; as long as it
/// lives and does not exec, clients do not notice the end of the parent.
///
/// ```
/// use mapwright::{MapOptions, Pager, Server};
///
/// # let dir = std::env::temp_dir().join(format!("mapwright-server-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir).unwrap();
/// # let (socket, path) = (dir.join("socket"), dir.join("data"));
/// # std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
/// let pager = Pager::builder().budget(64 << 20).build()?;
/// let server = Server::bind(&pager, &socket)?;
///
/// let client = Pager::connect(&socket)?; // in another process
/// let map = MapOptions::new().pager(&client).open(&path)?;
/// println!("{} by {}", map[4096], map.strategy());
/// # drop(map); drop(client); drop(server); std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), mapwright::Error>(())
/// ```
pub struct Server {
    shared: Arc<Shared>,
    path: PathBuf,
    /// Device and inode of the socket: what is taken away again.
    made: (u64, u64),
}

/// What all sessions share.
pub(super) struct Shared {
    pub(super) handle: Arc<Handle>,
    /// Readable once the server ends.
    pub(super) stop: OwnedFd,
    /// Bytes that clients hold pinned.
    pub(super) pinned: Quota,
    /// Held while a file is opened for writing: the next one finds what was made.
    opening: Mutex<()>,
    /// Files that clients have left and that are open still, to be written back.
    leaving: Mutex<Vec<u128>>,
    /// One of them is closed.
    left: Condvar,
    /// Those of the kernel, on files of which nothing may be shown that somebody else writes.
    pub(super) kernel_leases: KernelLeases,
    pub(super) book: Book,
    sessions: Mutex<usize>,
    /// One has ended.
    ended: Condvar,
    /// Those that there are, and perhaps some that are gone.
    members: Mutex<Vec<Weak<Session>>>,
}

impl Server {
    /// Listens on a new socket at `path`. A socket that is there already is replaced if nobody listens on it.
    ///
    /// # Errors
    /// [`Error::Locked`] if another server listens there; [`Error::Invalid`] if `path` is too long for a socket, names something
    /// else, or `pager` is itself connected to a server; [`Error::Io`] for what making the socket meets.
    pub fn bind(pager: &Pager, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = || path.display().to_string();
        let failed = |e: io::Error| Error::io("listen", name(), 0, 0, e);
        let handle = Arc::clone(pager.own("a server for the pager of another server")?);
        let address = address(path)?;
        let make = || -> io::Result<OwnedFd> {
            let listener = socket()?;
            // The mode of the socket itself is what bind(2) gives the file, less the umask: nobody else connects in between.
            rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
            Ok(listener)
        };
        let listener = make().map_err(failed)?;
        if let Err(error) = bind(&listener, &address) {
            if error != rustix::io::Errno::ADDRINUSE {
                return Err(failed(error.into()));
            }
            remove_stale(path, &address)?;
            bind(&listener, &address).map_err(|e| failed(e.into()))?;
        }
        let made = std::fs::symlink_metadata(path).map_err(failed)?;
        let server = Self::start(handle, listener, path, (made.dev(), made.ino()));
        server.map_err(|e| {
            let _ = std::fs::remove_file(path);
            failed(e)
        })
    }

    fn start(handle: Arc<Handle>, listener: OwnedFd, path: &Path, made: (u64, u64)) -> io::Result<Self> {
        listen(&listener, BACKLOG)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let pinned = Quota::new(handle.budget.limit() / 2);
        let (opening, leaving, left, kernel_leases, book) = Default::default();
        let (sessions, ended, members) = Default::default();
        let shared = Shared {
            handle,
            stop,
            pinned,
            opening,
            leaving,
            left,
            kernel_leases,
            book,
            sessions,
            ended,
            members,
        };
        let shared = Arc::new(shared);
        let own = Arc::clone(&shared);
        std::thread::Builder::new().name("mapwright-serve".into()).spawn(move || accept(&own, &listener))?;
        Ok(Self { shared, path: path.to_owned(), made })
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all maps of programs that know of no pager the kernel's, and serves no others until `work` has ended: for whoever stops
    /// the process, during which those would wait who write the files.
    pub(super) fn without_leases<T>(&self, work: impl FnOnce() -> T) -> T {
        self.shared.kernel_leases.pause();
        let done = work();
        self.shared.kernel_leases.resume();
        done
    }

    /// Has a book kept of what is done for each file and each process from now on.
    pub(super) fn keep_a_book(&self) {
        self.shared.book.begin();
    }

    /// What the book says, if one is kept.
    pub(super) fn read_book(&self) -> Vec<Record> {
        self.shared.book.read()
    }

    /// How many clients are connected now.
    pub fn clients(&self) -> usize {
        *lock(&self.shared.sessions)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.made);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
        // What programs have mapped goes back to the kernel, with what they wrote, before nobody serves it.
        self.shared.kernel_leases.pause();
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        let sessions = lock(&self.shared.sessions);
        drop(self.shared.ended.wait_timeout_while(sessions, FAREWELL, |sessions| *sessions > 0));
        drop(self.shared.kernel_leases.kept.close());
        // What clients wrote is in their files before the program goes on, and perhaps ends.
        let leaving = lock(&self.shared.leaving);
        drop(self.shared.left.wait_timeout_while(leaving, DEADLINE, |leaving| !leaving.is_empty()));
    }
}

impl Shared {
    /// Opens a file for a client. One that is to be written, or was, may still be open for a client that has left, or is dead and about
    /// to be let go: then it waits for that.
    pub(super) fn open(&self, spec: &FileSpec, identity: u128) -> Result<Opened> {
        let until = Instant::now() + DEADLINE;
        loop {
            // First: who goes in between leaves the file free.
            let is_left_soon = self.is_left_soon(identity);
            match self.try_open(spec) {
                Err(Error::Locked { .. }) if is_left_soon && Instant::now() < until => {
                    // A session that is about to end says nothing before it has.
                    drop(self.left.wait_timeout(lock(&self.leaving), MOMENT));
                }
                opened => return opened,
            }
        }
    }

    /// A lease of the kernel's on a file, or the one that there is.
    ///
    /// # Errors
    /// As for [`KernelLeases::take`](super::kernel_lease::KernelLeases::take).
    pub(super) fn lease(
        self: &Arc<Self>,
        wanted: (u128, Access),
        file: BorrowedFd<'_>,
    ) -> io::Result<Arc<KernelLease>> {
        let (identity, access) = wanted;
        loop {
            let look = || if access == Access::Alone { check_room(file) } else { Ok(()) };
            match self.kernel_leases.take(self, wanted, file, look) {
                // It may be this server itself that has the file open.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && self.kernel_leases.has_just_ended(identity) =>
                {
                    drop(self.left.wait_timeout(lock(&self.leaving), MOMENT));
                }
                taken => return taken,
            }
        }
    }

    /// Whether a client that may have a file has left it, or is at its end.
    fn is_left_soon(&self, identity: u128) -> bool {
        let members: Vec<Arc<Session>> = lock(&self.members).iter().filter_map(Weak::upgrade).collect();
        // In this order: at its end a session's files go from the one to the other.
        members.iter().any(|session| session.is_ending() && session.may_have(identity))
            || lock(&self.leaving).contains(&identity)
    }

    /// Closes files that were kept, on a thread that can be spared.
    pub(super) fn let_go(&self, files: Vec<KeptFile>) {
        if !files.is_empty() {
            self.handle.pool.submit(
                &self.handle,
                Kind::Ordinary,
                Box::new(move |_: &Arc<Engine>| drop(files)),
            );
        }
    }

    fn try_open(&self, spec: &FileSpec) -> Result<Opened> {
        if !spec.writable {
            return Ok(Opened::new(Engine::open_file(&self.handle, spec.clone())?));
        }
        let _one = lock(&self.opening);
        let locked = lock_for_writing(&*spec.store);
        let file = Opened::new(Engine::open_file(&self.handle, spec.clone())?);
        // Who shares a file that is open already needs no lock of its own.
        if Arc::ptr_eq(&file.store, &spec.store) {
            locked?;
        }
        Ok(file)
    }

    /// Closes a file for a client that is done with it, once what it wrote is in the file; one under a lease of the kernel's after some
    /// time.
    pub(super) fn leave(self: &Arc<Self>, lease: Arc<Lease>) {
        if let Some(kernel) = lease.kernel.as_ref().filter(|_| !lease.access.writes()) {
            let file = Opened::new(Arc::clone(&*lease.file));
            self.let_go(self.kernel_leases.kept.keep(file, Arc::clone(kernel)));
        }
        let identity = lease.file.identity();
        lock(&self.leaving).push(identity);
        let _ = lease.leaving.set(Leaving { shared: Arc::clone(self), identity });
        // The service of a fault may hold it longer. Whoever drops the last map of a file waits for work on it that is under way.
        let close = move |_: &Arc<Engine>| {
            // Under a lease that has ended it is written already, or is about to be, and what is noted as written since was not shown.
            if lease.access.writes() && !lease.has_ended() {
                write_what_is_left(&lease.file);
            }
        };
        self.handle.pool.submit(&self.handle, Kind::Ordinary, Box::new(close));
    }
}

/// A file that is open still for a client that has left it.
pub(super) struct Leaving {
    shared: Arc<Shared>,
    identity: u128,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut leaving = lock(&self.shared.leaving);
        if let Some(index) = leaving.iter().position(|left| *left == self.identity) {
            leaving.swap_remove(index);
        }
        drop(leaving);
        self.shared.left.notify_all();
    }
}

/// Flushes a file whose client is gone: nobody else would hear of a failure.
fn write_what_is_left(file: &Arc<File>) {
    // An earlier failure may be for others to acknowledge, who share the file.
    if let Err(error) = write_back::write_however_long(file) {
        print_raw(&format!("mapwright: what a client wrote before it left was lost: {error}\n"));
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("path", &self.path)
            .field("clients", &self.clients())
            .finish_non_exhaustive()
    }
}

/// A socket that keeps message boundaries.
pub(super) fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The address of a path.
///
/// # Errors
/// [`Error::Invalid`] if it is too long.
pub(super) fn address(path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|_| {
        Error::invalid(
            format!("{}: no path for a socket", path.display()),
            "use a path of at most 107 bytes, for example in /run/user",
        )
    })
}

/// Whether a process of this user id may talk to one of ours.
pub(super) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Takes away a socket on which nobody listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let name = || path.display().to_string();
    let failed = |e| Error::io("listen", name(), 0, 0, e);
    if !std::fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(Error::invalid(format!("{}: a file that is no socket", name()), "name another path"));
    }
    match connect(&socket().map_err(failed)?, address) {
        Err(rustix::io::Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        _ => Err(Error::Locked { path: name(), holder: "another server" }),
    }
}

/// Accepts clients until the server ends.
fn accept(shared: &Arc<Shared>, listener: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&shared.stop, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        if !fds[1].revents().is_empty() {
            return;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(client) => admit(shared, client),
            Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM) => {
                // It waits in the backlog.
                let _ = poll(&mut [PollFd::new(&shared.stop, PollFlags::IN)], Some(&PAUSE));
            }
            Err(_) => {} // it has gone again
        }
    }
}

/// Gives a new client a session, or says why not.
fn admit(shared: &Arc<Shared>, client: OwnedFd) {
    let refuse = |client: &OwnedFd, what: &str| {
        let error = Error::invalid(what.to_owned(), "");
        let _ = wire::send(std::os::fd::AsFd::as_fd(client), &Reply::Refused(error).encode(0), None, false);
    };
    if !sockopt::socket_peercred(&client).is_ok_and(|peer| is_trusted(peer.uid.as_raw())) {
        return refuse(&client, "clients run as the server's user");
    }
    let Some(counted) = Counted::new(shared) else {
        return refuse(&client, "the server has as many clients as it takes");
    };
    let own = Arc::clone(shared);
    let Ok(session) = Session::new(own, client) else { return };
    {
        let mut members = lock(&shared.members);
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(&session));
    }
    let run = move || {
        session.run();
        drop(session);
        drop(counted);
    };
    let builder = std::thread::Builder::new().name("mapwright-client".into()).stack_size(256 << 10);
    let _ = builder.spawn(run); // where no thread can be had the connection closes
}

/// A session that counts.
struct Counted(Arc<Shared>);

impl Counted {
    /// Counts one, if there is room for it.
    fn new(shared: &Arc<Shared>) -> Option<Self> {
        let mut sessions = lock(&shared.sessions);
        if *sessions >= MAX_CLIENTS {
            return None;
        }
        *sessions += 1;
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *lock(&self.0.sessions) -= 1;
        self.0.ended.notify_all();
    }
}
