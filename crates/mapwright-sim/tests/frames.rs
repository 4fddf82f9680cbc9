//! The simulated page tables do what KERNEL.md saw the real ones do.

use std::ops::Range;
use std::sync::{Arc, Weak};

use mapwright::engine::kernel::{
    Buffer, Fault, FaultMode, FaultOutcome, FaultSink, FrameKind, FrameSpec, Frames, Kernel, Regions, View,
};
use mapwright_sim::{Bus, Failure, Options, SimHandle, Simulation};

const PAGE: u64 = 4096;

struct Sink {
    frames: std::sync::OnceLock<Arc<dyn Frames>>,
    outcome: FaultOutcome,
}

impl FaultSink for Sink {
    fn serve_in_thread(&self, fault: Fault) -> FaultOutcome {
        let frames = self.frames.get().unwrap();
        let at = (fault.address - frames.address(View::Plain).unwrap()) as u64 / PAGE * PAGE;
        frames.store(at, &[9; PAGE as usize]).unwrap();
        frames.map(View::Plain, at..at + PAGE).unwrap();
        self.outcome
    }
}

fn frames(sim: &SimHandle, writable: bool, mode: FaultMode, sink: Weak<dyn FaultSink>) -> Arc<dyn Frames> {
    sim.kernel()
        .frames(FrameSpec { capacity: 16 * PAGE, writable, kind: FrameKind::Shared, lent: false, mode, sink })
        .unwrap()
}

fn thread_mode(sim: &SimHandle, writable: bool) -> Arc<dyn Frames> {
    frames(sim, writable, FaultMode::Thread, Weak::<Sink>::new())
}

fn pages(range: Range<u64>) -> Range<u64> {
    range.start * PAGE..range.end * PAGE
}

fn written(frames: &dyn Frames) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    frames.written(View::Plain, pages(0..4), &mut out).unwrap();
    out
}

/// A file whose pages 0..4 are mapped clean.
fn four_clean_pages(sim: &SimHandle) -> (Arc<dyn Frames>, usize) {
    let frames = thread_mode(sim, true);
    frames.store(0, &[1; 4 * PAGE as usize]).unwrap();
    frames.map(View::Plain, pages(0..4)).unwrap();
    let base = frames.address(View::Plain).unwrap();
    (frames, base)
}

fn for_seeds(body: impl Fn(&SimHandle) + Clone + Send + 'static) {
    Simulation::run_seeds(20, &Options::default(), body);
}

fn failure_of(body: impl Fn(&SimHandle) + Send + 'static) -> Failure {
    Simulation::try_run(1, &Options::default(), body).expect_err("this must panic")
}

#[test]
fn writes_are_seen_taken_and_seen_again() {
    for_seeds(|sim| {
        let (frames, base) = four_clean_pages(sim);
        assert_eq!(written(&*frames), []);
        sim.write_slice(base + 4000, &[2; 200]).unwrap();
        assert_eq!(written(&*frames), [pages(0..2)]);
        let mut taken = vec![7..8, 9..10];
        frames.take_written(View::Plain, pages(1..4), &mut taken).unwrap();
        assert_eq!(taken, [7..8, 9..10, pages(1..2)]);
        assert_eq!(written(&*frames), [pages(0..1)]);
        frames.copy_in(2 * PAGE + 1, &[3]);
        assert_eq!(written(&*frames), [pages(0..1), pages(2..3)]);
        let mut bytes = [0; 200];
        frames.copy_out(4000, &mut bytes);
        assert_eq!(bytes, [2; 200]);
    });
}

#[test]
fn zap_then_look_tells_clean_from_written() {
    for_seeds(|sim| {
        let (frames, base) = four_clean_pages(sim);
        sim.write_slice(base + PAGE as usize, &[2]).unwrap();
        frames.unmap(&[pages(0..4)]).unwrap();
        assert_eq!(written(&*frames), [pages(1..2)]);
        frames.release(&[pages(0..2)]).unwrap();
        assert_eq!(written(&*frames), [pages(1..2)], "what was seen outlives the contents");
        assert_eq!(sim.resident_bytes(), 2 * PAGE);
        // Mapped again it is clean.
        frames.store(PAGE, &[1; PAGE as usize]).unwrap();
        frames.map(View::Plain, pages(1..2)).unwrap();
        assert_eq!(written(&*frames), []);
    });
}

#[test]
fn release_of_mapped_pages_leaves_the_same_traces() {
    for_seeds(|sim| {
        let (frames, base) = four_clean_pages(sim);
        sim.write_slice(base, &[2]).unwrap();
        frames.release(&[pages(0..2), pages(3..4)]).unwrap();
        assert_eq!(written(&*frames), [pages(0..1)]);
        drop(frames);
        assert_eq!(sim.resident_bytes(), 0);
    });
}

#[test]
fn pages_that_were_never_mapped_look_written() {
    for_seeds(|sim| {
        let frames = thread_mode(sim, true);
        assert_eq!(written(&*frames), [pages(0..4)]);
        let mut taken = Vec::new();
        frames.take_written(View::Plain, pages(0..4), &mut taken).unwrap();
        assert_eq!((taken, written(&*frames)), (vec![pages(0..4)], vec![]));
    });
}

#[test]
fn views_share_frames_and_have_their_own_marks() {
    for_seeds(|sim| {
        let (frames, base) = four_clean_pages(sim);
        let checked = frames.address(View::Checked).unwrap();
        frames.map(View::Checked, pages(0..2)).unwrap();
        sim.write_slice(checked, b"seen").unwrap();
        assert_eq!(sim.read_slice(base, 4).unwrap(), b"seen");
        assert_eq!(written(&*frames), []);
        let mut taken = Vec::new();
        frames.take_written(View::Checked, pages(0..2), &mut taken).unwrap();
        assert_eq!(taken, [pages(0..1)]);
    });
}

#[test]
fn mapping_a_hole_is_efault_and_reading_one_is_counted() {
    let report = Simulation::run(1, &Options::default(), |sim| {
        let (frames, _) = four_clean_pages(sim);
        let error = frames.map(View::Plain, pages(3..5)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(14));
        let mut bytes = vec![5; PAGE as usize];
        frames.load(5 * PAGE, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
    });
    assert!(report.hole_reads > 0);
    let failure = failure_of(|sim| {
        let (frames, _) = four_clean_pages(sim);
        frames.load(5 * PAGE, &mut [0; 8]).unwrap();
        sim.assert_no_hole_reads();
    });
    assert!(failure.why.contains("no frame"), "{failure}");
}

#[test]
fn poison_is_bus_until_mapped_and_zeros_are_for_the_checked_view() {
    for_seeds(|sim| {
        let frames = thread_mode(sim, true);
        let base = frames.address(View::Plain).unwrap();
        let checked = frames.address(View::Checked).unwrap();
        frames.poison(pages(0..1)).unwrap();
        frames.zero(pages(0..1)).unwrap();
        assert_eq!(sim.read_slice(base, 4), Err(Bus { address: base }));
        assert_eq!(sim.write_slice(base + 8, &[1]), Err(Bus { address: base + 8 }));
        assert_eq!(sim.read_slice(checked, 4).unwrap(), [0; 4]);
        sim.write_slice(checked, &[1]).unwrap();
        assert_eq!(sim.read_slice(checked, 2).unwrap(), [1, 0], "private to the zeros");
        frames.store(0, &[3; PAGE as usize]).unwrap();
        frames.map(View::Plain, pages(0..1)).unwrap();
        assert_eq!(sim.read_slice(base, 4).unwrap(), [3; 4]);
        assert_eq!(sim.read_slice(checked, 2).unwrap(), [1, 0], "until restore");
        frames.restore(pages(0..1)).unwrap();
        frames.map(View::Checked, pages(0..1)).unwrap();
        assert_eq!(sim.read_slice(checked, 4).unwrap(), [3; 4]);
        assert_eq!(frames.poison(pages(0..1)).unwrap_err().raw_os_error(), Some(17));
    });
}

#[test]
fn a_thread_that_waits_for_a_page_is_woken_by_poison() {
    for_seeds(|sim| {
        let frames = thread_mode(sim, false);
        let base = frames.address(View::Plain).unwrap();
        let reader = sim.spawn("reader", {
            let sim = sim.clone();
            move || sim.read_slice(base + 10, 4)
        });
        let mut faults = Vec::new();
        sim.kernel().wait_faults(&mut faults).unwrap();
        assert_eq!(faults[0], Fault { address: base + 10 });
        frames.poison(pages(0..1)).unwrap();
        assert!(reader.join().is_err());
    });
}

#[test]
fn faults_in_the_thread_are_served_or_end_in_bus() {
    for outcome in [FaultOutcome::Served, FaultOutcome::Failed, FaultOutcome::NotOurs] {
        for_seeds(move |sim| {
            let sink = Arc::new(Sink { frames: std::sync::OnceLock::new(), outcome });
            let weak: Weak<dyn FaultSink> = Arc::downgrade(&(Arc::clone(&sink) as Arc<dyn FaultSink>));
            let frames = frames(sim, false, FaultMode::InThread, weak);
            let base = frames.address(View::Plain).unwrap();
            assert!(sink.frames.set(frames).is_ok());
            let read = sim.read_slice(base + 4090, 2);
            assert_eq!(read.is_ok(), outcome == FaultOutcome::Served);
        });
    }
}

#[test]
fn breaches_of_the_contract_panic() {
    let expect = |text: &str, body: fn(&SimHandle)| {
        let failure = failure_of(body);
        assert!(failure.why.contains(text), "expected {text:?}: {failure}");
    };
    expect("store to page 1, which is Clean", |sim| {
        four_clean_pages(sim).0.store(PAGE, &[1; PAGE as usize]).unwrap();
    });
    expect("does not hold", |sim| four_clean_pages(sim).0.copy_out(4 * PAGE - 1, &mut [0; 2]));
    expect("does not hold", |sim| thread_mode(sim, true).copy_in(0, &[0; 2]));
    expect("asked of a read-only file", |sim| drop(written(&*thread_mode(sim, false))));
    expect("a bad range", |sim| thread_mode(sim, true).wake(1..PAGE));
    expect("a bad range", |sim| thread_mode(sim, true).release(&[pages(15..17)]).unwrap());
    expect("whose address nobody asked for", |sim| {
        four_clean_pages(sim).0.map(View::Checked, pages(0..1)).unwrap();
    });
    expect("SIGSEGV", |sim| {
        let (frames, base) = four_clean_pages(sim);
        drop(frames);
        let _ = sim.read_slice(base, 1);
    });
    expect("a write to the read-only file", |sim| {
        let base = thread_mode(sim, false);
        let _ = sim.write_slice(base.address(View::Plain).unwrap(), &[1]);
    });
}

/// A read-only file whose frames move.
fn moved(sim: &SimHandle) -> Arc<dyn Frames> {
    let spec = FrameSpec {
        capacity: 16 * PAGE,
        writable: false,
        kind: FrameKind::Auto,
        lent: false,
        mode: FaultMode::Thread,
        sink: Weak::<Sink>::new(),
    };
    sim.kernel().frames(spec).unwrap()
}

fn regions(frames: &dyn Frames) -> &dyn Regions {
    frames.regions().expect("frames that move have regions")
}

/// Such a file whose pages 0..4 are a region.
fn a_region(sim: &SimHandle, shown: bool) -> Arc<dyn Frames> {
    let frames = moved(sim);
    let mut buffer = [7; 4 * PAGE as usize];
    regions(&*frames).fill(0, &mut buffer, shown).unwrap();
    assert_ne!(buffer, [7; 4 * PAGE as usize], "a buffer that was moved holds something else");
    frames
}

#[test]
fn the_checked_view_has_copies_of_pages_that_move() {
    for_seeds(|sim| {
        let frames = moved(sim);
        assert!(frames.has_copies());
        let checked = frames.address(View::Checked).unwrap();
        frames.fill(0, &[5; PAGE as usize]).unwrap();
        frames.map(View::Checked, pages(0..1)).unwrap();
        assert_eq!(sim.resident_bytes(), 2 * PAGE, "the copy is memory too");
        assert_eq!(sim.read_slice(checked + 9, 3).unwrap(), [5; 3]);
        frames.unmap(&[pages(0..1)]).unwrap();
        assert_eq!(sim.resident_bytes(), PAGE);
        frames.map(View::Plain, pages(0..1)).unwrap();
        frames.map(View::Checked, pages(0..1)).unwrap();
        frames.release(&[pages(0..1)]).unwrap();
        assert_eq!(sim.resident_bytes(), 0);
    });
}

#[test]
fn regions_move_as_one_until_they_are_split() {
    for_seeds(|sim| {
        let frames = a_region(sim, false);
        let base = frames.address(View::Plain).unwrap();
        regions(&*frames).map(0).unwrap();
        assert_eq!(sim.read_slice(base + 5000, 9).unwrap(), [7; 9]);
        regions(&*frames).unmap(0).unwrap();
        let mut buffer = Buffer::zeroed(4 * PAGE as usize);
        regions(&*frames).take(0, false, &mut buffer).unwrap();
        assert_eq!(sim.resident_bytes(), 0);
        regions(&*frames).fill(4 * PAGE, &mut buffer, true).unwrap();
        regions(&*frames).split(6 * PAGE, true).unwrap();
        frames.release(&[pages(6..7)]).unwrap();
        frames.unmap(&[pages(4..6)]).unwrap();
        assert_eq!(sim.resident_bytes(), 3 * PAGE);
    });
}

#[test]
fn breaches_of_the_contract_of_regions_panic() {
    let expect = |text: &str, body: fn(&SimHandle)| {
        let failure = failure_of(body);
        assert!(failure.why.contains(text), "expected {text:?}: {failure}");
    };
    expect("release of page 1, whose region is whole", |sim| {
        a_region(sim, true).release(&[pages(1..3)]).unwrap();
    });
    expect("unmap of page 3, whose region is whole", |sim| {
        a_region(sim, true).unmap(&[pages(3..5)]).unwrap()
    });
    expect("map of page 0, whose region is whole", |sim| {
        a_region(sim, false).map(View::Plain, pages(0..1)).unwrap();
    });
    expect("page 0 of a region", |sim| regions(&*a_region(sim, true)).map(0).unwrap());
    expect("page 0 of a region", |sim| regions(&*a_region(sim, false)).unmap(0).unwrap());
    expect("not None", |sim| {
        regions(&*a_region(sim, false)).fill(0, &mut [1; 4 * PAGE as usize], true).unwrap()
    });
    expect("not Some(Still)", |sim| regions(&*moved(sim)).split(0, true).unwrap());
    expect("a copy of page 0, which is Stored", |sim| {
        let frames = a_region(sim, false);
        frames.address(View::Checked).unwrap();
        frames.map(View::Checked, pages(0..1)).unwrap();
    });
    expect("page 1 is Stored", |sim| {
        let frames = moved(sim);
        frames.store(PAGE, &[1; PAGE as usize]).unwrap();
        frames.fill(PAGE, &[1; PAGE as usize]).unwrap();
    });
}
