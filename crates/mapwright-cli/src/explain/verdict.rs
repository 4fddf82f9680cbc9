//! What a touch of a page would do: the rules of the kernel's fault handler, as far as they can be seen from outside.
//!
//! mm/memory.c (`handle_pte_fault`, `do_fault`, `do_wp_page`), mm/filemap.c (`filemap_fault`) and the fault entry of the
//! architecture. The order of the questions is theirs: is there a mapping, does it allow the access, is there an entry, and
//! if not, where would the page come from.

use mapwright_sys::page_state::PageState;
use serde::Serialize;

use crate::process::smaps::{Area, Kind};

/// How memory is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing: the page is there.
    NoFault,
    /// A fault without I/O.
    MinorFault,
    /// A fault that waits for a disk.
    MajorFault,
    /// A fault that makes a private copy of the page.
    CopyOnWrite,
    /// A fault that another thread or process serves.
    Userfaultfd,
    /// SIGBUS.
    Sigbus,
    /// SIGSEGV.
    Sigsegv,
    /// Some fault: what this process may see does not say which.
    Fault,
}

/// What happens, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// What.
    pub effect: Effect,
    /// In words.
    pub why: String,
}

/// What is known of the file behind a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilePage {
    /// Whether the page begins behind the end of the file.
    pub is_past_end: bool,
    /// Whether the page cache holds it, where that can be told.
    pub is_cached: Option<bool>,
    /// Whether it is known to have been there and to be in swap now (shared memory).
    pub is_swapped: bool,
}

fn outcome(effect: Effect, why: impl Into<String>) -> Outcome {
    Outcome { effect, why: why.into() }
}

/// Where no mapping is: `above` is the next one, `gap` what lies between the one below and the address.
pub fn unmapped(address: u64, above: Option<&Area>, gap: Option<u64>, stack_limit: Option<u64>) -> Outcome {
    /// `stack_guard_gap` of the kernel: 256 pages.
    const GUARD_GAP: u64 = 256 * 4096;
    let stack = above.filter(|area| area.has_flag("gd"));
    if let Some(stack) = stack {
        let is_far = stack_limit.is_some_and(|limit| stack.end - address > limit);
        if !is_far && gap.is_none_or(|gap| gap >= GUARD_GAP) {
            return outcome(
                Effect::MinorFault,
                "the stack above grows down to here and gets a page of zeros",
            );
        }
        let why = if is_far {
            "past the limit of the stack above (ulimit -s)"
        } else {
            "too near the mapping below for the stack above to grow"
        };
        return outcome(Effect::Sigsegv, why);
    }
    outcome(Effect::Sigsegv, "nothing is mapped there (SEGV_MAPERR)")
}

/// What an access to a mapped page does.
pub fn touch(access: Access, area: &Area, page: &PageState, file: Option<FilePage>) -> Outcome {
    if let Some(refused) = refused(access, area, page) {
        return refused;
    }
    let is_write = access == Access::Write;
    if page.is_present {
        return if is_write {
            write_present(area, page)
        } else {
            outcome(Effect::NoFault, "the page is there")
        };
    }
    if page.is_swapped {
        let copy = if is_write && !area.is_shared() && !page.is_exclusive {
            "; shared pages are copied then"
        } else {
            ""
        };
        return outcome(
            Effect::MajorFault,
            format!("the page is read from swap (no I/O if the swap cache has it){copy}"),
        );
    }
    match area.kind() {
        Kind::Device | Kind::Kernel => outcome(Effect::Fault, "the driver or the kernel serves it"),
        Kind::Hugetlb => outcome(
            Effect::MinorFault,
            "a huge page of zeros, or of the file; SIGBUS if the pool has none left",
        ),
        Kind::Userfaultfd => outcome(
            Effect::Userfaultfd,
            "whoever holds the userfaultfd fills the page, such as a pager of mapwright",
        ),
        kind => match file {
            Some(file) => absent_file(is_write, area, kind, page, file),
            None if area.inode != 0 => outcome(
                Effect::Fault,
                "from the file; how, depends on the page cache, which could not be asked",
            ),
            None => absent_anonymous(is_write, area),
        },
    }
}

/// Accesses that the mapping or a guard does not allow.
fn refused(access: Access, area: &Area, page: &PageState) -> Option<Outcome> {
    if page.is_guard {
        return Some(outcome(Effect::Sigsegv, "a guard is installed there (MADV_GUARD_INSTALL)"));
    }
    let allows = |what: char| area.permissions.contains(what);
    // x86 knows no memory that can be written or executed but not read; the vsyscall page is emulated.
    let is_readable = allows('r')
        || cfg!(target_arch = "x86_64")
            && (allows('w') || allows('x'))
            && !area.name.starts_with(b"[vsyscall");
    let (is_allowed, what) = match access {
        Access::Read => (is_readable, "readable"),
        Access::Write => (allows('w'), "writable"),
        Access::Execute => (allows('x'), "executable"),
    };
    (!is_allowed).then(|| {
        let why = format!("the mapping is not {what}: {} (SEGV_ACCERR)", area.permissions);
        outcome(Effect::Sigsegv, why)
    })
}

fn write_present(area: &Area, page: &PageState) -> Outcome {
    if page.is_uffd_protected {
        let why = "the page is write-protected for a userfaultfd, whose holder is told, or which only notes it (WP_ASYNC)";
        return outcome(Effect::Userfaultfd, why);
    }
    if area.is_shared() {
        return match area.kind() {
            Kind::File => {
                outcome(Effect::NoFault, "the page is there; a minor fault if it is clean, to mark it dirty")
            }
            _ => outcome(Effect::NoFault, "the page is there"),
        };
    }
    if page.is_zero_page == Some(true) {
        return outcome(
            Effect::CopyOnWrite,
            "it is the page of zeros that all share: it is replaced by one of its own",
        );
    }
    match (page.is_file, page.is_exclusive) {
        (true, _) => outcome(
            Effect::CopyOnWrite,
            "it is the file's page: the mapping gets a private copy, the file keeps its own",
        ),
        (false, true) => outcome(Effect::NoFault, "the page is there, and nobody else has it"),
        (false, false) => {
            outcome(Effect::CopyOnWrite, "others have the page too, since a fork or by KSM: it is copied")
        }
    }
}

fn absent_file(is_write: bool, area: &Area, kind: Kind, page: &PageState, file: FilePage) -> Outcome {
    if file.is_past_end {
        return outcome(Effect::Sigbus, "the page lies behind the end of the file (BUS_ADRERR)");
    }
    let is_memory = matches!(kind, Kind::Memfd | Kind::SharedMemory | Kind::PagerFrames);
    let is_copied = is_write && !area.is_shared();
    let copied = if is_copied { ", and copied for this mapping" } else { "" };
    if file.is_cached == Some(true) {
        if area.has_flag("ui") {
            return outcome(
                Effect::Userfaultfd,
                "the page is in memory, and the holder of the userfaultfd maps it (minor mode)",
            );
        }
        if is_write && page.is_uffd_protected {
            return outcome(Effect::Userfaultfd, "the page is in memory, write-protected for a userfaultfd");
        }
        let effect = if is_copied { Effect::CopyOnWrite } else { Effect::MinorFault };
        return outcome(effect, format!("the page is taken from the page cache{copied}"));
    }
    if area.has_flag("um") {
        return outcome(Effect::Userfaultfd, "whoever holds the userfaultfd fills the page");
    }
    match (is_memory, file.is_swapped, file.is_cached) {
        (_, _, None) => {
            outcome(Effect::Fault, "from the file; how, depends on the page cache, which could not be asked")
        }
        (true, true, _) => outcome(Effect::MajorFault, format!("the page is read from swap{copied}")),
        (true, false, _) => outcome(Effect::MinorFault, format!("a page of zeros is made{copied}")),
        (false, ..) => outcome(
            Effect::MajorFault,
            format!("the page is read from the file{copied}; no I/O if it is a hole"),
        ),
    }
}

fn absent_anonymous(is_write: bool, area: &Area) -> Outcome {
    if area.has_flag("um") {
        return outcome(Effect::Userfaultfd, "whoever holds the userfaultfd fills the page");
    }
    let why = if is_write { "a page of zeros is made" } else { "the page of zeros that all share is mapped" };
    outcome(Effect::MinorFault, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(permissions: &str, name: &str, inode: u64, flags: &str) -> Area {
        Area {
            start: 0x10_0000,
            end: 0x20_0000,
            permissions: permissions.to_owned(),
            name: name.into(),
            inode,
            flags: flags.to_owned(),
            ..Area::default()
        }
    }

    const ABSENT: PageState = PageState {
        is_present: false,
        is_swapped: false,
        is_file: false,
        is_exclusive: false,
        is_soft_dirty: false,
        is_uffd_protected: false,
        is_guard: false,
        is_huge: None,
        is_zero_page: None,
        frame: None,
        swap: None,
    };
    const PRESENT: PageState = PageState { is_present: true, ..ABSENT };

    /// Effects of a read, a write and an execution.
    fn effects(area: &Area, page: PageState, file: Option<FilePage>) -> [Effect; 3] {
        [Access::Read, Access::Write, Access::Execute].map(|access| touch(access, area, &page, file).effect)
    }

    #[test]
    fn every_case_has_its_effect() {
        use Effect::*;
        let anonymous = area("rw-p", "", 0, "rd wr");
        let file = area("rw-s", "/a", 7, "rd wr sh");
        let private = area("rw-p", "/a", 7, "rd wr");
        let code = area("r-xp", "/a", 7, "rd ex");
        let memfd = area("rw-s", "/memfd:x (deleted)", 7, "rd wr sh");
        let cached = |is_cached| Some(FilePage { is_cached: Some(is_cached), ..FilePage::default() });
        let past = Some(FilePage { is_past_end: true, is_cached: Some(false), is_swapped: false });
        let in_swap = Some(FilePage { is_swapped: true, is_cached: Some(false), is_past_end: false });
        let own = PageState { is_exclusive: true, ..PRESENT };
        let of_file = PageState { is_file: true, ..PRESENT };
        let zero = PageState { is_zero_page: Some(true), ..PRESENT };
        let swapped = PageState { is_swapped: true, ..ABSENT };
        let guard = PageState { is_guard: true, ..ABSENT };
        let protected = PageState { is_uffd_protected: true, ..PRESENT };
        for (area, page, file_page, expected) in [
            (&anonymous, ABSENT, None, [MinorFault, MinorFault, Sigsegv]),
            (&anonymous, own, None, [NoFault, NoFault, Sigsegv]),
            (&anonymous, PRESENT, None, [NoFault, CopyOnWrite, Sigsegv]),
            (&anonymous, zero, None, [NoFault, CopyOnWrite, Sigsegv]),
            (&anonymous, swapped, None, [MajorFault, MajorFault, Sigsegv]),
            (&anonymous, guard, None, [Sigsegv, Sigsegv, Sigsegv]),
            (&file, ABSENT, cached(true), [MinorFault, MinorFault, Sigsegv]),
            (&file, ABSENT, cached(false), [MajorFault, MajorFault, Sigsegv]),
            (&file, ABSENT, past, [Sigbus, Sigbus, Sigsegv]),
            (&file, of_file, cached(true), [NoFault, NoFault, Sigsegv]),
            (&file, ABSENT, None, [Fault, Fault, Sigsegv]),
            (&private, ABSENT, cached(true), [MinorFault, CopyOnWrite, Sigsegv]),
            (&private, ABSENT, cached(false), [MajorFault, MajorFault, Sigsegv]),
            (&private, of_file, cached(true), [NoFault, CopyOnWrite, Sigsegv]),
            (&private, own, cached(true), [NoFault, NoFault, Sigsegv]),
            (&code, ABSENT, cached(true), [MinorFault, Sigsegv, MinorFault]),
            (&memfd, ABSENT, cached(false), [MinorFault, MinorFault, Sigsegv]),
            (&memfd, ABSENT, in_swap, [MajorFault, MajorFault, Sigsegv]),
            (&memfd, protected, cached(true), [NoFault, Userfaultfd, Sigsegv]),
            (&area("rw-p", "", 0, "um"), ABSENT, None, [Userfaultfd, Userfaultfd, Sigsegv]),
            (
                &area("rw-s", "/memfd:mapwright (deleted)", 7, "ui"),
                ABSENT,
                cached(true),
                [Userfaultfd, Userfaultfd, Sigsegv],
            ),
            (&area("---p", "", 0, ""), ABSENT, None, [Sigsegv, Sigsegv, Sigsegv]),
        ] {
            assert_eq!(effects(area, page, file_page), expected, "{area:?} {page:?} {file_page:?}");
        }
    }

    #[test]
    fn a_stack_grows_as_far_as_it_may() {
        let stack = area("rw-p", "[stack]", 0, "rd wr gd");
        let at = |address, gap, limit| unmapped(address, Some(&stack), gap, limit).effect;
        assert_eq!(at(0xf_f000, None, Some(8 << 20)), Effect::MinorFault);
        assert_eq!(at(0xf_f000, None, Some(1 << 20)), Effect::Sigsegv);
        assert_eq!(at(0xf_f000, Some(4096), Some(8 << 20)), Effect::Sigsegv);
        assert_eq!(unmapped(5, None, None, None).effect, Effect::Sigsegv);
        assert_eq!(unmapped(5, Some(&area("rw-p", "", 0, "rd")), None, None).effect, Effect::Sigsegv);
    }
}
