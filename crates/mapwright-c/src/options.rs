//! How maps are opened.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mapwright::{Advice, Durability, FaultMode, FrameKind, MapOptions, Strategy};

use crate::error::{Failure, Result, status};
use crate::handles::{self, Object};
use crate::pager::{Pager, give};

/// Let the library choose. Small files opened for reading are read whole; the pager is next, and the kernel's mmap(2) where the
/// machine does not allow a pager.
pub const MAPWRIGHT_STRATEGY_AUTO: c_int = 0;
/// Read the whole file when it is opened.
pub const MAPWRIGHT_STRATEGY_BUFFER: c_int = 1;
/// The kernel's own mmap(2).
pub const MAPWRIGHT_STRATEGY_KERNEL: c_int = 2;
/// The pager.
pub const MAPWRIGHT_STRATEGY_PAGER: c_int = 3;

/// Nothing is known of the access pattern: read-ahead finds it.
pub const MAPWRIGHT_ADVICE_NORMAL: c_int = 0;
/// From lower to higher offsets: full read-ahead.
pub const MAPWRIGHT_ADVICE_SEQUENTIAL: c_int = 1;
/// In no order: nothing is read ahead but what turns out to be asked for together.
pub const MAPWRIGHT_ADVICE_RANDOM: c_int = 2;

/// Faults are served by a thread of the pager.
pub const MAPWRIGHT_FAULTS_THREAD: c_int = 0;
/// Faults are served by the thread that touches, in a SIGBUS handler: faster. System calls that are handed an absent page get EFAULT.
pub const MAPWRIGHT_FAULTS_IN_THREAD: c_int = 1;

/// Let the library choose.
pub const MAPWRIGHT_FRAMES_AUTO: c_int = 0;
/// Memory of the pager is shared memory.
pub const MAPWRIGHT_FRAMES_SHARED: c_int = 1;
/// Memory of the pager is private, and its pages are moved: for files opened for reading, with a budget of 16 MiB and more.
pub const MAPWRIGHT_FRAMES_MOVED: c_int = 2;

/// mapwright_map_flush makes changes durable, as msync(2) does. A crash may leave some of what was changed since the last flush, or while it ran.
pub const MAPWRIGHT_DURABILITY_FLUSH: c_int = 0;
/// mapwright_map_commit makes all changes since the last one durable together: after any crash, of the program, the kernel or the machine, the file
/// has exactly what some commit left, and none older than the last that returned. For regular files with one name, and the pager.
pub const MAPWRIGHT_DURABILITY_ATOMIC: c_int = 1;
/// Scratch: mapwright_map_flush writes to the file and does not wait for the device. A crash may leave anything.
pub const MAPWRIGHT_DURABILITY_NONE: c_int = 2;

/// Settings for opening maps. Every default is right for most uses.
pub struct Options(Mutex<Settings>);

/// What `Options` holds.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) map: MapOptions,
    pub(crate) strategy: Strategy,
    pub(crate) durability: Durability,
    pub(crate) has_range: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            map: MapOptions::new(),
            strategy: Strategy::Auto,
            durability: Durability::Flush,
            has_range: false,
        }
    }
}

impl Object for Options {
    const KIND: u64 = 2;
    const NAME: &'static str = "the options";
}

impl Options {
    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The settings of a handle; the defaults for NULL.
pub(crate) fn settings(options: *mut Options) -> Result<Settings> {
    if options.is_null() {
        return Ok(Settings::default());
    }
    Ok(handles::get(options)?.lock().clone())
}

fn change(options: *mut Options, change: impl FnOnce(&mut Settings) -> Result<()>) -> Result<()> {
    let options = handles::get(options)?;
    let mut settings = options.lock();
    change(&mut settings)
}

fn set(options: *mut Options, set: impl FnOnce(MapOptions) -> MapOptions) -> Result<()> {
    change(options, |settings| {
        settings.map = set(settings.map.clone());
        Ok(())
    })
}

pub(crate) fn advice(number: c_int) -> Result<Advice> {
    match number {
        MAPWRIGHT_ADVICE_NORMAL => Ok(Advice::Normal),
        MAPWRIGHT_ADVICE_SEQUENTIAL => Ok(Advice::Sequential),
        MAPWRIGHT_ADVICE_RANDOM => Ok(Advice::Random),
        other => Err(Failure::invalid(format!("the advice {other}: use a MAPWRIGHT_ADVICE_ constant"))),
    }
}

/// Makes settings: all defaults. out: gets the handle, or NULL; close it by mapwright_options_close, at any time after the last map
/// was opened with it.
///
/// Returns 0; -EFAULT if out is NULL. Any thread may call it, and one handle may be used by several. New settings may come with
/// new versions, as functions of their own.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_new(out: Option<&mut MaybeUninit<*mut Options>>) -> c_int {
    status(|| give(out, || Ok(Options(Mutex::new(Settings::default())))))
}

/// Closes settings. Maps that were opened with them keep what they have.
///
/// Returns 0; -EBADF for a handle that was closed before; -EFAULT for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_close(options: *mut Options) -> c_int {
    status(|| handles::close(options).map(drop))
}

/// The pager to use, and with it the budget. The settings keep it alive: its handle may be closed. The default is the pager of the process.
///
/// Returns 0; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_pager(options: *mut Options, pager: *mut Pager) -> c_int {
    status(|| {
        let pager = handles::get(pager)?;
        set(options, |map| map.pager(&pager.0))
    })
}

/// How the file is brought into memory: a MAPWRIGHT_STRATEGY_ constant.
///
/// Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_strategy(options: *mut Options, strategy: c_int) -> c_int {
    status(|| {
        let strategy = match strategy {
            MAPWRIGHT_STRATEGY_AUTO => Strategy::Auto,
            MAPWRIGHT_STRATEGY_BUFFER => Strategy::Buffer,
            MAPWRIGHT_STRATEGY_KERNEL => Strategy::Kernel,
            MAPWRIGHT_STRATEGY_PAGER => Strategy::Pager,
            other => {
                let what = format!("the strategy {other}: use a MAPWRIGHT_STRATEGY_ constant");
                return Err(Failure::invalid(what));
            }
        };
        change(options, |settings| {
            settings.map = settings.map.clone().strategy(strategy);
            settings.strategy = strategy;
            Ok(())
        })
    })
}

/// Bytes that are read and evicted together: a power of two from 4096, the default, to 2 MiB. Opening fails with -EINVAL for
/// anything else.
///
/// Returns 0; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_block_size(options: *mut Options, bytes: usize) -> c_int {
    status(|| set(options, |map| map.block_size(bytes)))
}

/// What is known of the access pattern, and so how much is read ahead: a MAPWRIGHT_ADVICE_ constant. Nothing need be known.
///
/// Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_advice(options: *mut Options, advice: c_int) -> c_int {
    status(|| {
        let advice = self::advice(advice)?;
        set(options, |map| map.advice(advice))
    })
}

/// Who serves the faults of touched pages: a MAPWRIGHT_FAULTS_ constant.
///
/// Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_faults(options: *mut Options, mode: c_int) -> c_int {
    status(|| {
        let mode = match mode {
            MAPWRIGHT_FAULTS_THREAD => FaultMode::Thread,
            MAPWRIGHT_FAULTS_IN_THREAD => FaultMode::InThread,
            other => {
                return Err(Failure::invalid(format!("the mode {other}: use a MAPWRIGHT_FAULTS_ constant")));
            }
        };
        set(options, |map| map.fault_mode(mode))
    })
}

/// What the pager's memory of the file is like: a MAPWRIGHT_FRAMES_ constant.
///
/// Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_frames(options: *mut Options, kind: c_int) -> c_int {
    status(|| {
        let kind = match kind {
            MAPWRIGHT_FRAMES_AUTO => FrameKind::Auto,
            MAPWRIGHT_FRAMES_SHARED => FrameKind::Shared,
            MAPWRIGHT_FRAMES_MOVED => FrameKind::Moved,
            other => {
                return Err(Failure::invalid(format!(
                    "the frames {other}: use a MAPWRIGHT_FRAMES_ constant"
                )));
            }
        };
        set(options, |map| map.frames(kind))
    })
}

/// When changes reach the file, and what a crash leaves: a MAPWRIGHT_DURABILITY_ constant. For maps that are opened for writing.
///
/// With MAPWRIGHT_DURABILITY_ATOMIC changes go to a journal beside the file, named as the file with .mapwright-journal added, and from there to the
/// file, in the background and when the map is closed: see mapwright_map_commit. Opening fails with -EINVAL for a strategy that is not the pager,
/// -EOPNOTSUPP where the machine has none, and MAPWRIGHT_ERR_JOURNAL for a file that can't have a journal, or a journal that can't be used.
///
/// Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_durability(options: *mut Options, durability: c_int) -> c_int {
    status(|| {
        let durability = match durability {
            MAPWRIGHT_DURABILITY_FLUSH => Durability::Flush,
            MAPWRIGHT_DURABILITY_ATOMIC => Durability::Atomic,
            MAPWRIGHT_DURABILITY_NONE => Durability::None,
            other => {
                return Err(Failure::invalid(format!(
                    "the durability {other}: use a MAPWRIGHT_DURABILITY_ constant"
                )));
            }
        };
        change(options, |settings| {
            settings.map = settings.map.clone().durability(durability);
            settings.durability = durability;
            Ok(())
        })
    })
}

/// Which bytes of the file to map: length bytes from offset on, any numbers; length 0 for all from there to the end. The default is all.
///
/// Returns 0; -EINVAL if the end is past all numbers; -EBADF, -EFAULT. Opening fails with -ERANGE where the file has no such bytes.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_range(options: *mut Options, offset: u64, length: u64) -> c_int {
    status(|| {
        let end = offset.checked_add(length);
        let end = end.ok_or_else(|| Failure::invalid(format!("{length} bytes from {offset} on")))?;
        change(options, |settings| {
            let map = settings.map.clone();
            settings.map = if length == 0 { map.range(offset..) } else { map.range(offset..end) };
            settings.has_range = offset != 0 || length != 0;
            Ok(())
        })
    })
}

/// How long an operation waits for the file and for room in the budget, in milliseconds: 30000 by default. Opening fails with -EINVAL for 0.
///
/// Returns 0; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_deadline(options: *mut Options, milliseconds: u64) -> c_int {
    status(|| set(options, |map| map.deadline(Duration::from_millis(milliseconds))))
}

/// Address space to reserve for a map that may grow, in bytes. The default is twice the file's length and 16 GiB.
///
/// Returns 0; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_reserve(options: *mut Options, bytes: u64) -> c_int {
    status(|| set(options, |map| map.reserve(bytes)))
}

/// Whether to read around the kernel's page cache (O_DIRECT): 1 or 0. The default: for files larger than the budget.
///
/// Returns 0; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_options_set_direct(options: *mut Options, direct: c_int) -> c_int {
    status(|| set(options, |map| map.direct(direct != 0)))
}
