//! The fuzzer's harness as an ordinary test: over the corpus of `fuzz/`, over fresh samples, and over mutations of both.
//!
//! `MAPWRIGHT_FUZZ_ROUNDS` says how many mutations; `MAPWRIGHT_FUZZ_SEEDS` names a folder to which the samples are written, for the
//! fuzzer to begin with.

use std::path::{Path, PathBuf};

use mapwright_sim::Rng;
use mapwright_sim::fuzz::{Outcome, SEAL, WRITE, mutate, sample, try_journal};

const SAMPLES: u64 = 24;

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/journal_reader");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut all: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    all.sort();
    all
}

fn rounds() -> u64 {
    std::env::var("MAPWRIGHT_FUZZ_ROUNDS").map_or(40_000, |text| text.parse().unwrap())
}

#[test]
fn the_corpus_is_read_or_refused() {
    let corpus = corpus();
    assert!(corpus.len() >= 20, "{} inputs", corpus.len());
    let mut seen = [0; 3];
    for (path, input) in &corpus {
        println!("{}", path.display());
        seen[try_journal(input) as usize] += 1;
    }
    println!("refused, read, replayed: {seen:?}");
    assert!(seen[Outcome::Replayed as usize] > 0 && seen[Outcome::Refused as usize] > 0, "{seen:?}");
}

#[test]
fn mutations_are_read_or_refused() {
    let rounds = rounds();
    let mut inputs: Vec<Vec<u8>> = (0..SAMPLES).map(sample).collect();
    if let Some(folder) = std::env::var_os("MAPWRIGHT_FUZZ_SEEDS") {
        for (seed, input) in inputs.iter().enumerate() {
            std::fs::write(Path::new(&folder).join(format!("sample-{seed:02}")), input).unwrap();
        }
    }
    for input in &inputs {
        assert_eq!(try_journal(input), Outcome::Replayed, "what was written is read");
    }
    inputs.extend(corpus().into_iter().map(|(_, input)| input));
    let mut rng = Rng::new(1);
    let mut seen = [0; 3];
    for round in 0..rounds {
        let mut input = inputs[rng.index(inputs.len())].clone();
        mutate(&mut input, &inputs[rng.index(inputs.len())], &mut rng);
        if let Some(flags) = input.first_mut() {
            *flags |= SEAL * u8::from(round % 4 > 0);
        }
        seen[try_journal(&input) as usize] += 1;
    }
    println!("refused, read, replayed: {seen:?}");
    assert!(seen.iter().all(|seen| *seen > 0), "{seen:?} of {rounds}");
}

/// Programs that write journals, at random: mostly right ones, so that what is compared is what they do to the file.
#[test]
fn written_journals_do_what_the_oracle_says() {
    let rounds = rounds() / 4;
    let mut rng = Rng::new(2);
    let mut seen = [0; 3];
    for _ in 0..rounds {
        let mut program: Vec<u8> = (0..rng.below(250)).map(|_| rng.next_u64() as u8).collect();
        program.insert(0, WRITE);
        seen[try_journal(&program) as usize] += 1;
    }
    println!("refused, read, replayed: {seen:?}");
    assert!(seen[Outcome::Replayed as usize] > rounds / 2, "{seen:?} of {rounds}");
}
