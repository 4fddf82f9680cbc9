//! Functions of the C library that no Rust function can take the place of: of any number of arguments, that return twice, or for which it matters who has
//! called. Each lays out what it was handed, and goes on as a function of another file.
//!
//! What a thread may be cancelled in tells how it is unwound.

use std::arch::naked_asm;
use std::ffi::{c_int, c_void};

use crate::{descriptors, sharing};

/// A function in the C library's name.
macro_rules! naked {
    ($($(#[doc = $text:literal])* $name:ident: $architecture:literal, [$($line:expr),* $(,)?], $($operand:ident = $kind:ident $value:path),*;)*) => {$(
        $(#[doc = $text])*
        #[cfg(target_arch = $architecture)]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() {
            naked_asm!($($line,)* $($operand = $kind $value),*)
        }
    )*};
}

/// The arguments after the first become an array, below those that are on the stack already.
macro_rules! of_a_list {
    ($($(#[doc = $text:literal])* $name:ident goes on as $target:path;)*) => {$(
        naked! {
            $(#[doc = $text])*
            $name: "x86_64", [
                "pop rax", // where it returns to, which would lie between the two
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                "push rax",
                "call {target}",
                "pop rdx",
                "add rsp, 40",
                "push rdx",
                "ret",
            ], target = sym $target;
            $(#[doc = $text])*
            $name: "aarch64", [
                "stp x6, x7, [sp, #-16]!",
                "stp x4, x5, [sp, #-16]!",
                "stp x2, x3, [sp, #-16]!",
                "stp x30, x1, [sp, #-16]!",
                "add x1, sp, #8",
                "bl {target}",
                "ldr x30, [sp], #64",
                "ret",
            ], target = sym $target;
        }
    )*};
}

of_a_list! {
    /// execl(3)
    execl goes on as sharing::run;
    /// execlp(3)
    execlp goes on as sharing::run_found;
    /// execle(3)
    execle goes on as sharing::run_in;
}

/// All arguments are laid out as a `va_list` is, which becomes the last argument; so many come before those that it lists.
macro_rules! of_a_va_list {
    ($($(#[doc = $text:literal])* $name:ident goes on as $target:path, after $before:literal, as $fourth:literal or $fourth_of_arm:literal;)*) => {$(
        naked! {
            $(#[doc = $text])*
            $name: "x86_64", [
                ".cfi_startproc",
                "sub rsp, 216",
                ".cfi_adjust_cfa_offset 216",
                "mov [rsp + 32], rdi",
                "mov [rsp + 40], rsi",
                "mov [rsp + 48], rdx",
                "mov [rsp + 56], rcx",
                "mov [rsp + 64], r8",
                "mov [rsp + 72], r9",
                "test al, al",
                "je 2f",
                "movaps [rsp + 80], xmm0",
                "movaps [rsp + 96], xmm1",
                "movaps [rsp + 112], xmm2",
                "movaps [rsp + 128], xmm3",
                "movaps [rsp + 144], xmm4",
                "movaps [rsp + 160], xmm5",
                "movaps [rsp + 176], xmm6",
                "movaps [rsp + 192], xmm7",
                "2:",
                concat!("mov dword ptr [rsp], 8 * ", $before),
                "mov dword ptr [rsp + 4], 48",
                "lea rax, [rsp + 224]",
                "mov [rsp + 8], rax",
                "lea rax, [rsp + 32]",
                "mov [rsp + 16], rax",
                concat!("mov ", $fourth, ", rsp"),
                "call {target}",
                "add rsp, 216",
                ".cfi_adjust_cfa_offset -216",
                "ret",
                ".cfi_endproc",
            ], target = sym $target;
            $(#[doc = $text])*
            $name: "aarch64", [
                ".cfi_startproc",
                "sub sp, sp, #256",
                ".cfi_def_cfa_offset 256",
                "stp x29, x30, [sp]",
                ".cfi_offset 29, -256",
                ".cfi_offset 30, -248",
                "stp x0, x1, [sp, #64]",
                "stp x2, x3, [sp, #80]",
                "stp x4, x5, [sp, #96]",
                "stp x6, x7, [sp, #112]",
                "stp q0, q1, [sp, #128]",
                "stp q2, q3, [sp, #160]",
                "stp q4, q5, [sp, #192]",
                "stp q6, q7, [sp, #224]",
                "add x9, sp, #256",
                "str x9, [sp, #16]", // __stack
                "str x9, [sp, #32]", // __vr_top
                "add x9, sp, #128",
                "str x9, [sp, #24]", // __gr_top
                concat!("mov w9, #(8 * ", $before, " - 64)"),
                "str w9, [sp, #40]", // __gr_offs
                "mov w9, #-128",
                "str w9, [sp, #44]", // __vr_offs
                concat!("add ", $fourth_of_arm, ", sp, #16"),
                "bl {target}",
                "ldp x29, x30, [sp]",
                ".cfi_restore 29",
                ".cfi_restore 30",
                "add sp, sp, #256",
                ".cfi_def_cfa_offset 0",
                "ret",
                ".cfi_endproc",
            ], target = sym $target;
        }
    )*};
}

of_a_va_list! {
    /// dprintf(3)
    dprintf goes on as descriptors::print, after 2, as "rdx" or "x2";
    /// What dprintf(3) is in programs that are built with `_FORTIFY_SOURCE`
    __dprintf_chk goes on as descriptors::print_checked, after 3, as "rcx" or "x3";
}

/// The C library's own vfork(2) is this call and no more. Both return here, where the child has written over what lies on the stack: so where
/// they return to is kept in a register.
macro_rules! forks_twice {
    ($($(#[doc = $text:literal])* $name:ident;)*) => {$(
        naked! {
            $(#[doc = $text])*
            $name: "x86_64", [
                "sub rsp, 8",
                "call {before}",
                "add rsp, 8",
                "test eax, eax",
                "jz 3f",
                "pop rdi",
                "mov eax, 58",
                "syscall",
                "push rdi",
                "test rax, rax",
                "jz 2f",
                "mov rdi, rax",
                "jmp {after}",
                "2:",
                "ret",
                "3:",
                "mov eax, -1",
                "ret",
            ], before = sym sharing::before_vfork, after = sym sharing::after_vfork;
            $(#[doc = $text])*
            $name: "aarch64", [
                "stp x29, x30, [sp, #-16]!",
                "bl {before}",
                "ldp x29, x30, [sp], #16",
                "cbz w0, 3f",
                "mov x0, #0x4111", // CLONE_VM, CLONE_VFORK and SIGCHLD
                "mov x1, xzr",
                "mov x2, xzr",
                "mov x3, xzr",
                "mov x4, xzr",
                "mov x8, #220",
                "svc #0",
                "cbz x0, 2f",
                "b {after}",
                "2:",
                "ret",
                "3:",
                "mov w0, #-1",
                "ret",
            ], before = sym sharing::before_vfork, after = sym sharing::after_vfork;
        }
    )*};
}

forks_twice! {
    /// vfork(2)
    vfork;
    /// vfork(2)
    __vfork;
}

/// Whoever calls is told as a sixth argument.
macro_rules! with_caller {
    ($($(#[doc = $text:literal])* $name:ident goes on as $target:ident;)*) => {$(
        naked! {
            $(#[doc = $text])*
            $name: "x86_64", ["mov r9, [rsp]", "jmp {target}"], target = sym $target;
            $(#[doc = $text])*
            $name: "aarch64", ["mov x5, x30", "b {target}"], target = sym $target;
        }

        extern "C" fn $target(a: usize, b: usize, c: usize, d: usize, e: usize, caller: usize) -> c_int {
            const NAME: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => c"",
            };
            let own = $name as *const c_void;
            let on = || super::library_call(NAME, own.addr(), [a, b, c, d, e], caller);
            descriptors::unwatched(concat!(stringify!($name), "(3)"), -libc::EIO, on)
        }
    )*};
}

with_caller! {
    /// Of liburing: what reads and writes for the program is not seen.
    io_uring_queue_init goes on as ring_queue_init;
    /// As above.
    io_uring_queue_init_params goes on as ring_queue_init_params;
    /// As above.
    io_uring_queue_init_mem goes on as ring_queue_init_mem;
    /// As above.
    io_uring_setup goes on as ring_setup;
    /// Of libaio.
    io_setup goes on as aio_setup;
    /// Of libaio.
    io_queue_init goes on as aio_queue_init;
}
