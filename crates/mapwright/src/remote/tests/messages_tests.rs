//! Messages to bytes and back, and bytes that are no message.

use std::sync::Arc;
use std::time::Duration;

use crate::Advice;
use crate::error::{Change, Error};
use crate::remote::protocol::{
    About, Access, Event, Heard, MAGIC, MAX_RANGES, Malformed, Reply, Request, VERSION, no_stats,
};

pub(super) fn requests() -> Vec<Request> {
    let name = "a file, \u{e9}".to_owned();
    vec![
        Request::Hello { magic: MAGIC, version: VERSION },
        Request::Open {
            block_size: 4096,
            direct: None,
            advice: Advice::Random,
            access: Access::Read,
            reserve: 0,
            name,
        },
        Request::Open {
            block_size: 8192,
            direct: Some(true),
            advice: Advice::Normal,
            access: Access::Share,
            reserve: 1 << 40,
            name: String::new(),
        },
        Request::Open {
            block_size: 1 << 20,
            direct: Some(false),
            advice: Advice::Sequential,
            access: Access::Leased,
            reserve: 0,
            name: "leased".to_owned(),
        },
        Request::Open {
            block_size: 1 << 14,
            direct: None,
            advice: Advice::Random,
            access: Access::Alone,
            reserve: 0,
            name: "alone".to_owned(),
        },
        Request::Show { file: 7, checked: true, address: 1 << 40 },
        Request::Pin { file: 7, in_order: false, writes: true, ranges: vec![0..1, 5..5, 9..1 << 60] },
        Request::Unpin { pin: u64::MAX },
        Request::Prefetch { file: 1, range: 3..4 },
        Request::WillNeed { file: 1, range: 3..4 },
        Request::Advise { file: 1, advice: Advice::Sequential },
        Request::Evict { file: 1, range: 0..u64::MAX },
        Request::Resident { file: 1 },
        Request::Stats,
        Request::Close { file: u32::MAX },
        Request::Flush { file: 1, range: 0..1 << 50 },
        Request::Resize { file: 2, len: u64::MAX },
        Request::Acknowledge { file: 3 },
        Request::End { file: 4 },
    ]
}

fn errors() -> Vec<Error> {
    let path = || "here".to_owned();
    let changed = |change| Error::Changed { path: path(), offset: 9, change };
    vec![
        Error::io("read", path(), 1, 2, std::io::Error::from_raw_os_error(5)),
        Error::io("check", path(), 1, 2, std::io::ErrorKind::UnexpectedEof.into()),
        Error::io("lease", path(), 0, 0, std::io::Error::from_raw_os_error(11)),
        changed(Change::Truncated { was: 4, now: 3 }),
        changed(Change::Modified),
        changed(Change::Replaced),
        Error::TimedOut { path: path(), offset: 1, len: 2, waited: Duration::from_millis(3) },
        Error::OutOfRange { path: path(), offset: 1, end: 2, file_len: 1 },
        Error::ReadOnly { path: path() },
        Error::Latched { path: path(), source: Arc::new(changed(Change::Modified)) },
    ]
}

pub(super) fn heard(bytes: &[u8]) -> Result<Heard, Malformed> {
    Heard::decode(bytes, |about| match about {
        About::Request(5) | About::File(3) => "here".to_owned(),
        about => format!("{about:?}"),
    })
}

#[test]
fn messages_are_what_they_were() {
    for request in requests() {
        assert_eq!(Request::decode(&request.encode(77)), Ok((77, request)));
    }
    for error in errors() {
        let text = match heard(&Reply::Refused(error.clone()).encode(5)) {
            Ok(Heard::Reply(5, Reply::Refused(error))) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(text, error.to_string());
        let (checked, refused, range) = (true, false, 4096..8192);
        let event = Event::Failed { file: 3, checked, refused, range, error: error.clone() };
        match heard(&event.encode()) {
            Ok(Heard::Event(Event::Failed {
                file: 3,
                checked: true,
                refused: false,
                range,
                error: told,
            })) => {
                assert_eq!((range, told.to_string()), (4096..8192, error.to_string()));
            }
            other => panic!("{other:?}"),
        }
    }
    let unwritten = Event::Unwritten { file: 3, error: Error::ReadOnly { path: "here".to_owned() } };
    assert!(matches!(heard(&unwritten.encode()), Ok(Heard::Event(Event::Unwritten { file: 3, .. }))));
    let mut stats = no_stats();
    (stats.faults, stats.budget_bytes, stats.fault_latency[39]) = (1, 2, 3);
    let told = heard(&Reply::Stats(Box::new(stats.clone())).encode(1));
    assert!(matches!(told, Ok(Heard::Reply(1, Reply::Stats(told))) if *told == stats));
    assert!(matches!(heard(&Event::Ended { file: 8 }.encode()), Ok(Heard::Event(Event::Ended { file: 8 }))));
    let opened = heard(&Reply::Opened { file: 1, len: 2, capacity: 3 }.encode(9));
    assert!(matches!(opened, Ok(Heard::Reply(9, Reply::Opened { file: 1, len: 2, capacity: 3 }))));
}

#[test]
fn what_is_no_message_is_refused() {
    for request in requests() {
        let bytes = request.encode(1);
        for end in 0..bytes.len() {
            assert!(Request::decode(&bytes[..end]).is_err(), "{request:?} cut to {end} bytes");
        }
        assert!(Request::decode(&[&bytes[..], &[0]].concat()).is_err(), "{request:?} with a byte more");
    }
    let refused = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        Request::decode(&bytes).is_err()
    };
    let show = Request::Show { file: 1, checked: false, address: 0 }.encode(1);
    assert!(!refused(&show, 4, 9) && refused(&show, 0, 99) && refused(&show, 2, 1) && refused(&show, 12, 2));
    let many =
        Request::Pin { file: 1, in_order: true, writes: false, ranges: vec![0..1; MAX_RANGES] }.encode(1);
    assert!(!refused(&many, 14, 0) && refused(&many, 14, 1), "a count that is not that of the ranges");
    let mut backwards = Request::Prefetch { file: 1, range: 0..5 }.encode(1);
    backwards[12] = 6;
    assert_eq!(Request::decode(&backwards), Err(Malformed("a range ends before it starts")));
}

/// SplitMix64.
pub(super) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Messages with some bytes changed, either way: whatever is taken is written as the same bytes again.
#[test]
fn decoding_never_panics_and_takes_one_form_only() {
    let mut state = 1;
    let samples: Vec<Vec<u8>> = requests().iter().map(|request| request.encode(3)).collect();
    let answers: Vec<Vec<u8>> = errors().into_iter().map(|error| Reply::Refused(error).encode(5)).collect();
    let mut taken = 0;
    for _ in 0..100_000 {
        let mut bytes = samples[random(&mut state) as usize % samples.len()].clone();
        for _ in 0..random(&mut state) % 4 {
            let at = random(&mut state) as usize % bytes.len();
            bytes[at] = random(&mut state) as u8;
        }
        bytes.truncate(bytes.len().saturating_sub((random(&mut state) % 8).saturating_sub(5) as usize));
        if let Ok((number, request)) = Request::decode(&bytes) {
            taken += 1;
            assert_eq!(request.encode(number), bytes);
        }
        let mut bytes = answers[random(&mut state) as usize % answers.len()].clone();
        let at = random(&mut state) as usize % bytes.len();
        bytes[at] = random(&mut state) as u8;
        let _ = heard(&bytes);
    }
    assert!(taken > 10_000, "{taken}");
}
