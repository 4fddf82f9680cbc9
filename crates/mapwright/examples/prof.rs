//! Scratch.
use mapwright::*;
fn main() {
    let mode = match std::env::args().nth(1).as_deref() {
        Some("thread") => FaultMode::Thread,
        _ => FaultMode::InThread,
    };
    let what = std::env::args().nth(2).unwrap_or("random".into());
    let pager = Pager::builder().budget(64 << 20).build().unwrap();
    let map = MapOptions::new().pager(&pager).fault_mode(mode).open("/tmp/sample.bin").unwrap();
    let pages = map.len() as u64 / 4096;
    let mut x = 88172645463325252u64;
    let mut rnd = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let t = std::time::Instant::now();
    let mut sum = 0u64;
    let n = 60000u64;
    match &what[..] {
        "random" => {
            for _ in 0..n {
                sum += map[(rnd() % pages * 4096) as usize] as u64;
            }
        }
        "many" => {
            for _ in 0..n / 64 {
                let r: Vec<_> = (0..64)
                    .map(|_| {
                        let p = rnd() % pages * 4096;
                        p..p + 4096
                    })
                    .collect();
                for p in map.get_many(&r).unwrap() {
                    sum += p[0] as u64;
                }
            }
        }
        "seq" => {
            for c in map.chunks(8) {
                sum += c[0] as u64
            }
        }
        _ => {}
    }
    let t = t.elapsed();
    println!(
        "{what} {mode:?} {t:?} {:?}/op {:.2} GB/s {sum} {:?} p50 {:?}",
        t / n as u32,
        map.len() as f64 / t.as_secs_f64() / 1e9,
        pager.stats().faults,
        pager.stats().fault_latency_quantile(0.5)
    );
}
