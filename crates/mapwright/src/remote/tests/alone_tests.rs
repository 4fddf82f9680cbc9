//! Files that a client has alone: [`Access::Alone`].

use super::*;

/// A client that has the scene's file open by `file`, and where it sees it.
struct Writer {
    raw: Raw,
    number: u32,
    frames: LentFrames,
    file: OwnedFd,
}

impl Writer {
    fn new(scene: &Scene) -> Self {
        let (raw, uffd) = Raw::greeted(scene);
        let file = scene.open(OFlags::RDWR);
        let (number, frames) = match raw.ask(&open_as(Access::Alone), Some(file.as_fd())) {
            Some((Reply::Opened { file, .. }, mut frames)) => (file, frames.pop().unwrap()),
            other => panic!("{other:?}"),
        };
        let frames = LentFrames::new(frames, MIB, true, uffd).unwrap();
        let address = frames.address(false).unwrap() as u64;
        let show = Request::Show { file: number, checked: false, address };
        assert!(matches!(raw.ask(&show, None), Some((Reply::Done, _))));
        Self { raw, number, frames, file }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let ranges = std::iter::once(at..at + bytes.len() as u64).collect();
        let pin = Request::Pin { file: self.number, in_order: false, writes: true, ranges };
        let Some((Reply::Pinned { pin }, _)) = self.raw.ask(&pin, None) else { panic!("not pinned") };
        self.frames.copy_in(at, bytes);
        self.raw.send(&Request::Unpin { pin }.encode(7), None);
    }

    fn is_shown(&self) -> bool {
        (0..MIB).step_by(4096).any(|at| is_present(self.frames.address(false).unwrap() + at as usize))
    }

    /// Whether its lease has ended by the time that it hears the next thing unasked.
    fn hears_the_end(&self) -> bool {
        loop {
            let Some(Received { bytes, .. }) = wire::receive(&self.raw.0, true).unwrap() else {
                panic!("the end")
            };
            if let Heard::Event(event) = heard(&bytes).unwrap() {
                return matches!(event, Event::Ended { file } if file == self.number);
            }
        }
    }
}

fn read(scene: &Scene, at: u64) -> [u8; 4] {
    let mut bytes = [0; 4];
    rustix::io::pread(scene.file(), &mut bytes, at).unwrap();
    bytes
}

/// Whoever opens the file sees all that was written, and nothing is shown any more when he does.
#[test]
fn who_opens_a_file_sees_what_was_written_by_him_who_had_it_alone() {
    let Some(scene) = Scene::new() else { return };
    let writer = Writer::new(&scene);
    for at in [0, 5 * 4096 + 7, MIB - 4] {
        writer.write(at, b"new!");
    }
    assert!(writer.is_shown());
    let reader = scene.file(); // waits for the end of the lease
    assert!(!writer.is_shown(), "what would be written there would be lost");
    for at in [0, 5 * 4096 + 7, MIB - 4] {
        assert_eq!(read(&scene, at), *b"new!", "{at}");
    }
    assert!(writer.hears_the_end());
    writer.raw.refused(&Request::Flush { file: writer.number, range: 0..MIB }, None);
    // As long as there are two.
    let again = |file: &OwnedFd| writer.raw.ask(&open_as(Access::Alone), Some(file.as_fd()));
    assert!(matches!(again(&writer.file), Some((Reply::Refused(Error::Io { operation: "lease", .. }), _))));
    drop(reader);
    assert!(matches!(again(&writer.file), Some((Reply::Opened { .. }, _))));
}

#[test]
fn what_was_written_outlives_its_writer_and_a_flush_makes_it_durable() {
    let Some(scene) = Scene::new() else { return };
    let writer = Writer::new(&scene);
    writer.write(4096, b"kept");
    let flush = Request::Flush { file: writer.number, range: 0..MIB };
    assert!(matches!(writer.raw.ask(&flush, None), Some((Reply::Done, _))));
    let mut bytes = [0; 4]; // by the same open file description: no lease keeps that waiting
    assert_eq!((rustix::io::pread(&writer.file, &mut bytes, 4096), bytes), (Ok(4), *b"kept"));
    writer.write(8192, b"left");
    drop(writer);
    assert_eq!((read(&scene, 4096), read(&scene, 8192)), (*b"kept", *b"left"));
    scene.settles();
}

/// Two openings under one lease see the same bytes; the client ends the lease itself.
#[test]
fn a_client_ends_its_lease_and_all_that_is_open_under_it() {
    let Some(scene) = Scene::new() else { return };
    let writer = Writer::new(&scene);
    let Some((Reply::Opened { file: second, .. }, frames)) =
        writer.raw.ask(&open_as(Access::Alone), Some(writer.file.as_fd()))
    else {
        panic!("not opened twice")
    };
    writer.write(0, b"both");
    let mut bytes = [0; 4];
    assert_eq!((rustix::io::pread(&frames[0], &mut bytes, 0), bytes), (Ok(4), *b"both"));
    assert!(matches!(writer.raw.ask(&Request::End { file: second }, None), Some((Reply::Done, _))));
    assert!(!writer.is_shown());
    for file in [writer.number, second] {
        writer.raw.refused(&Request::Resident { file }, None);
    }
    assert_eq!((rustix::io::pread(&writer.file, &mut bytes, 0), bytes), (Ok(4), *b"both"));
}

#[test]
fn only_a_descriptor_for_reading_and_writing_anywhere_has_a_file_alone() {
    let Some(scene) = Scene::new() else { return };
    let (raw, _uffd) = Raw::greeted(&scene);
    for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR | OFlags::APPEND] {
        let refused = raw.refused(&open_as(Access::Alone), Some(scene.open(flags).as_fd()));
        assert!(refused.contains("O_RDWR") || refused.contains("reading and writing"), "{refused}");
    }
    let (_reader, file) = (scene.file(), scene.open(OFlags::RDWR));
    let refused = raw.refused(&open_as(Access::Alone), Some(file.as_fd()));
    assert!(refused.contains("lease"), "{refused}");
}
