//! Clients that have files under leases and do not read what the server says.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::{MIB, Raw, Scene, open_as};
use crate::remote::protocol::{Access, Reply, Request};

/// Who writes a file waits for none of them, and no other client does: one reads nothing of some answers, one nothing of more than are kept for it,
/// one shows a view and says nothing any more.
#[test]
fn clients_that_do_not_read_keep_nobody_waiting() {
    let Some(scene) = Scene::new() else { return };
    let open = open_as(Access::Leased);
    let (reader, _uffd) = Raw::greeted(&scene);
    match reader.ask(&open, Some(scene.file().as_fd())) {
        Some((Reply::Opened { len: MIB, .. }, _)) => {}
        refused => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this test: {refused:?}");
            return eprintln!("######## SKIPPED: no lease is to be had here: {refused:?} ########");
        }
    }
    let view = Request::Show { file: 1, checked: false, address: 1 << 40 };
    assert!(matches!(reader.ask(&view, None), Some((Reply::Done, _))));
    let stalled: Vec<_> = [30, 1500]
        .map(|count| {
            let (raw, uffd) = Raw::greeted(&scene);
            let file = scene.file();
            for number in 1..=count {
                raw.send(&open.encode(number), Some(file.as_fd()));
                raw.send(&Request::Resident { file: number }.encode(number), None);
            }
            (raw, uffd)
        })
        .into();
    assert!(scene.serves(), "beside them");
    let since = Instant::now();
    let writer = scene.open(OFlags::WRONLY);
    let waited = since.elapsed();
    // The kernel would wait 45 seconds.
    assert!(waited < Duration::from_secs(20), "{waited:?}");
    assert!(matches!(reader.ask(&open, Some(scene.file().as_fd())), Some((Reply::Refused(_), _))));
    rustix::io::write(&writer, b"written").unwrap();
    drop((writer, stalled, reader));
    scene.settles();
}
