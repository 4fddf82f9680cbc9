//! Copies that come back from SIGBUS.
//!
//! The copy is one routine in assembly. The SIGBUS handler ([`crate::signals`]) knows where it begins and ends: a fault of
//! the kernel's inside it, at an address that the copy was told to expect trouble at, continues at its end, which returns
//! how many bytes are left. Nothing is unwound, no lock is taken and no other thread notices.
//!
//! To Rust the routine is a foreign function. Bytes that others write at the same time are read and written one at a time
//! or a few at a time, as the machine does it: a copy may be a mixture of old and new.
//!
//! On architectures without a routine (all but x86-64 and AArch64) such copies are refused before they are mapped for.

use std::ops::Range;

/// Whether there is a routine for this architecture.
pub(crate) const COMES_BACK: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    // (rdi: to, rsi: from, rdx: bytes, rcx: unused, r8..r9: addresses that may fault) -> rax: bytes left.
    ".pushsection .text.mapwright_sys_copy,\"ax\",@progbits",
    ".globl mapwright_sys_copy",
    ".hidden mapwright_sys_copy",
    ".globl mapwright_sys_copy_end",
    ".hidden mapwright_sys_copy_end",
    ".type mapwright_sys_copy,@function",
    ".p2align 4",
    "mapwright_sys_copy:",
    "mov rcx, rdx",
    // A fault leaves the registers at the byte that is not copied yet (Intel SDM vol. 2, REP).
    "rep movsb",
    "mapwright_sys_copy_end:",
    "mov rax, rcx",
    "ret",
    ".size mapwright_sys_copy, . - mapwright_sys_copy",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    // (x0: to, x1: from, x2: bytes, x3: unused, x4..x5: addresses that may fault) -> x0: bytes left.
    ".pushsection .text.mapwright_sys_copy,\"ax\",@progbits",
    ".globl mapwright_sys_copy",
    ".hidden mapwright_sys_copy",
    ".globl mapwright_sys_copy_end",
    ".hidden mapwright_sys_copy_end",
    ".type mapwright_sys_copy,@function",
    ".p2align 4",
    "mapwright_sys_copy:",
    "cmp x2, #16",
    "b.lo 3f",
    "2:",
    "ldp x6, x7, [x1]",
    "stp x6, x7, [x0]",
    "add x1, x1, #16",
    "add x0, x0, #16",
    "sub x2, x2, #16",
    "cmp x2, #16",
    "b.hs 2b",
    "3:",
    "cbz x2, mapwright_sys_copy_end",
    "ldrb w6, [x1], #1",
    "strb w6, [x0], #1",
    "sub x2, x2, #1",
    "b 3b",
    "mapwright_sys_copy_end:",
    "mov x0, x2",
    "ret",
    ".size mapwright_sys_copy, . - mapwright_sys_copy",
    ".popsection",
);

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
unsafe extern "C" {
    fn mapwright_sys_copy(
        to: *mut u8,
        from: *const u8,
        len: usize,
        unused: usize,
        faults_from: usize,
        faults_to: usize,
    ) -> usize;
    fn mapwright_sys_copy_end();
}

/// Copies `len` bytes. A page in `may_fault` that can't be had is an error, the index of a byte at or before the first
/// that was not copied.
///
/// # Safety
/// `from` and `to` are valid for `len` bytes, but for SIGBUS in `may_fault`; they don't overlap; no reference to the bytes
/// that others may change exists. The handler of [`crate::signals`] is installed.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) unsafe fn copy(
    to: *mut u8,
    from: *const u8,
    len: usize,
    may_fault: Range<usize>,
) -> Result<(), usize> {
    // SAFETY: the routine copies `len` bytes from `from` to `to`, which the caller says is right.
    let left = unsafe { mapwright_sys_copy(to, from, len, 0, may_fault.start, may_fault.end) };
    if left == 0 { Ok(()) } else { Err(len - left) }
}

/// As above, without a routine.
///
/// # Safety
/// As above.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) unsafe fn copy(
    to: *mut u8,
    from: *const u8,
    len: usize,
    _may_fault: Range<usize>,
) -> Result<(), usize> {
    for at in 0..len {
        // SAFETY: in bounds, by the caller.
        let source = unsafe { from.add(at) };
        // SAFETY: readable, by the caller.
        let byte = unsafe { source.read_volatile() };
        // SAFETY: in bounds, by the caller.
        let target = unsafe { to.add(at) };
        // SAFETY: writable, by the caller.
        unsafe { target.write_volatile(byte) };
    }
    Ok(())
}

/// If a thread was stopped inside the routine, at an address where the copy may fault, lets it go on at the routine's end.
pub(crate) fn recover(context: *mut libc::c_void, address: usize) -> bool {
    let Some(registers) = Registers::of(context) else { return false };
    let (start, end) = routine();
    if !(start..end).contains(&registers.counter()) || !registers.may_fault().contains(&address) {
        return false;
    }
    registers.go_on_at(end);
    true
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn routine() -> (usize, usize) {
    (mapwright_sys_copy as *const () as usize, mapwright_sys_copy_end as *const () as usize)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn routine() -> (usize, usize) {
    (0, 0)
}

/// The registers of a thread in a signal handler.
struct Registers<'a>(&'a mut libc::ucontext_t);

impl Registers<'_> {
    fn of(context: *mut libc::c_void) -> Option<Self> {
        // SAFETY: the kernel passes the handler a valid context for the time of the call, to nobody else.
        unsafe { context.cast::<libc::ucontext_t>().as_mut() }.map(Registers)
    }
}

#[cfg(target_arch = "x86_64")]
impl Registers<'_> {
    fn get(&self, register: libc::c_int) -> usize {
        self.0.uc_mcontext.gregs[register as usize] as usize
    }

    fn counter(&self) -> usize {
        self.get(libc::REG_RIP)
    }

    fn may_fault(&self) -> Range<usize> {
        self.get(libc::REG_R8)..self.get(libc::REG_R9)
    }

    fn go_on_at(self, address: usize) {
        self.0.uc_mcontext.gregs[libc::REG_RIP as usize] = address as libc::greg_t;
    }
}

#[cfg(target_arch = "aarch64")]
impl Registers<'_> {
    fn counter(&self) -> usize {
        self.0.uc_mcontext.pc as usize
    }

    fn may_fault(&self) -> Range<usize> {
        self.0.uc_mcontext.regs[4] as usize..self.0.uc_mcontext.regs[5] as usize
    }

    fn go_on_at(self, address: usize) {
        self.0.uc_mcontext.pc = address as u64;
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl Registers<'_> {
    fn counter(&self) -> usize {
        let _ = &self.0;
        usize::MAX
    }

    fn may_fault(&self) -> Range<usize> {
        0..0
    }

    fn go_on_at(self, _address: usize) {}
}
