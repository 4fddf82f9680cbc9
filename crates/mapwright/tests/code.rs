//! Memory for code: generated code runs, and nothing is ever writable and executable.
#![allow(missing_docs)]
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{PAGE, child, role, run};
use mapwright::Error;
use mapwright::mmap::{CodeWriter, MmapMut};

type Function = extern "C" fn(u32) -> u32;

/// A function that returns a constant of 16 bits, whatever it is called with.
fn constant(value: u16) -> Vec<u8> {
    if cfg!(target_arch = "x86_64") {
        let [low, high] = value.to_le_bytes();
        vec![0xb8, low, high, 0, 0, 0xc3] // mov eax, value; ret
    } else {
        let mov = 0x5280_0000 | u32::from(value) << 5; // mov w0, #value
        [mov, 0xd65f_03c0].iter().flat_map(|word| word.to_le_bytes()).collect() // ret
    }
}

/// A function that adds a constant of 7 bits to its argument.
fn adds(value: u8) -> Vec<u8> {
    if cfg!(target_arch = "x86_64") {
        vec![0x8d, 0x47, value, 0xc3] // lea eax, [rdi + value]; ret
    } else {
        let add = 0x1100_0000 | u32::from(value) << 10; // add w0, w0, #value
        [add, 0xd65f_03c0].iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// # Safety
/// There is a function of this type, mapped for as long as the result is used.
unsafe fn function(entry: *const ()) -> Function {
    // SAFETY: by the caller.
    unsafe { std::mem::transmute::<*const (), Function>(entry) }
}

fn assert_nothing_is_writable_and_executable() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let both = maps.lines().find(|line| line.contains(" rwx"));
    assert_eq!(both, None);
}

#[test]
fn generated_code_runs_and_is_changed_and_runs_again() {
    let mut memory = MmapMut::map_anon(3 * PAGE).unwrap();
    let last = 3 * PAGE - 8;
    for round in 0..100_u8 {
        memory[..6].copy_from_slice(&[0; 6]);
        memory[..constant(300).len()].copy_from_slice(&constant(u16::from(round) + 300));
        memory[last..last + adds(0).len()].copy_from_slice(&adds(round));
        let code = memory.make_exec().unwrap();
        assert_nothing_is_writable_and_executable();
        // SAFETY: both are functions for this machine, and mapped until the calls are over.
        let [first, second] = [0, last].map(|at| unsafe { function(code.entry(at).unwrap()) });
        assert_eq!((first(1), second(1000)), (u32::from(round) + 300, 1000 + u32::from(round)));
        memory = code.make_mut().unwrap();
    }
}

#[test]
fn other_threads_run_what_is_published_while_more_is_written() {
    const COUNT: usize = 2000;
    let (mut writer, code) = CodeWriter::new(COUNT * 16).unwrap();
    let published = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut ran = 0_usize;
                while ran < COUNT {
                    while ran < published.load(Ordering::Acquire) {
                        // SAFETY: written, published, not changed afterwards, and mapped by `code`.
                        let run = unsafe { function(code.entry(ran * 16).unwrap()) };
                        assert_eq!(run(0), ran as u32);
                        ran += 1;
                    }
                    std::hint::spin_loop();
                    std::thread::yield_now();
                }
            });
        }
        for index in 0..COUNT {
            let bytes = constant(index as u16);
            writer.write_at(index * 16, &bytes).unwrap();
            writer.publish(index * 16..index * 16 + bytes.len()).unwrap();
            published.store(index + 1, Ordering::Release);
        }
    });
    assert_nothing_is_writable_and_executable();
    // The same place again, for this thread.
    for value in 0..1000 {
        writer.write_at(0, &constant(value)).unwrap();
        writer.publish(..16).unwrap();
        // SAFETY: written and published, and nobody else runs it.
        assert_eq!(unsafe { function(writer.code().entry(0).unwrap()) }(0), u32::from(value));
    }
    drop(writer); // the running side stays
    let mut bytes = [0; 4];
    code.read_at(16, &mut bytes).unwrap();
    assert_eq!(bytes, constant(1)[..4]);
}

#[test]
fn arguments_are_checked() {
    let code = MmapMut::map_anon(100).unwrap().make_exec().unwrap();
    assert!(code.entry(99).is_ok() && matches!(code.entry(100), Err(Error::OutOfRange { .. })));
    assert!(matches!(CodeWriter::new(0), Err(Error::Invalid { .. })));
    let (mut writer, code) = CodeWriter::new(100).unwrap();
    assert!(matches!(writer.write_at(99, &[0; 2]), Err(Error::OutOfRange { .. })));
    assert!(matches!(writer.publish(50..101), Err(Error::OutOfRange { .. })));
    assert!(matches!(code.entry(100), Err(Error::OutOfRange { .. })));
    assert_eq!((writer.len(), code.len()), (100, 100));
    writer.publish(..0).unwrap();
}

/// The types allow none of this; whoever goes around them meets the machine.
#[test]
fn the_wrong_access_ends_the_process() {
    let this = "the_wrong_access_ends_the_process";
    let Some(role) = role() else {
        for role in ["run what is written", "write what runs", "write the running view"] {
            let output = run(child(this, role));
            assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{role}: {output:?}");
        }
        return;
    };
    let mut memory = MmapMut::map_anon(PAGE).unwrap();
    memory[..constant(1).len()].copy_from_slice(&constant(1));
    match role.as_str() {
        "run what is written" => {
            // SAFETY: none: the process ends at the call.
            let run = unsafe { function(memory.as_ptr().cast()) };
            run(0);
        }
        "write what runs" => {
            let code = memory.make_exec().unwrap();
            // SAFETY: none: the process ends here.
            unsafe { code.as_ptr().cast_mut().write_volatile(0) };
        }
        _ => {
            let (mut writer, code) = CodeWriter::new(PAGE).unwrap();
            writer.write_at(0, &constant(1)).unwrap();
            // SAFETY: none: the process ends here.
            unsafe { code.as_ptr().cast_mut().write_volatile(0) };
        }
    }
}
