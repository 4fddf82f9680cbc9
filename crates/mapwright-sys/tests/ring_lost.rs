//! A program closes descriptors that aren't its own, the ring's among them, in the middle of a batch. The buffers must stay
//! untouched until the kernel is done with them, and every read must be answered. Alone in its process, because it looks
//! for the ring's descriptor among all there are.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use mapwright_sys::buffer::Buffer;
use mapwright_sys::ring::Ring;

#[test]
fn every_read_is_answered_when_the_ring_is_lost() {
    let mut ring = match Ring::new(16) {
        Ok(ring) => ring,
        Err(error) => return eprintln!("skipped: no io_uring here ({error})"),
    };
    let path = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(path.path(), vec![7; 300 * 4096]).unwrap();
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path.path()).unwrap();
    let null = File::open("/dev/null").unwrap();

    let mut memory = Buffer::zeroed(300 * 4096);
    let mut answers = vec![0; 300];
    let (mut read, mut not_attempted) = (0, 0);
    let reads = memory.chunks_exact_mut(4096).enumerate().map(|(index, buf)| ((index * 4096) as u64, buf));
    ring.read_batch(file.as_fd(), reads, &mut |index, buf, result| {
        answers[index] += 1;
        match result {
            Ok(len) => {
                assert_eq!(buf[..len], [7; 4096]);
                read += 1;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
                not_attempted += 1;
            }
        }
        if read == 40 && not_attempted == 0 {
            let lost = ring_descriptor();
            // SAFETY: replaces a descriptor of this process by another; that the ring notices is the point of the test.
            assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), lost) }, lost);
        }
    });
    assert!(answers.iter().all(|&answers| answers == 1));
    assert!(read >= 40 && not_attempted > 0 && read + not_attempted == 300, "{read} + {not_attempted}");
    assert!(!ring.is_usable());
    assert_eq!(memory.iter().filter(|&&byte| byte == 7).count(), read * 4096);
}

/// The one descriptor that names an io_uring; once it is replaced there is none, and it is not asked again.
fn ring_descriptor() -> i32 {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|link| link.ends_with("anon_inode:[io_uring]"))
        })
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .expect("the ring has a descriptor")
}
