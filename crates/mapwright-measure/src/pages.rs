//! Which pages a round touches: the same list for every method, from a seed.

/// Bytes in a page, the unit of every operation.
pub const PAGE: u64 = 4096;

/// The skew of the zipf pattern, as in YCSB.
pub const ZIPF_SKEW: f64 = 0.99;

/// SplitMix64 (Steele, Lea and Flood, 2014): a full-period generator in five lines, so that lists can be made again anywhere.
pub struct Random(u64);

impl Random {
    /// A generator that always gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// `count` pages of `pages`, uniformly distributed.
pub fn uniform(pages: u64, count: u64, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(pages)).collect()
}

/// `count` pages of `pages`, zipf-distributed with [`ZIPF_SKEW`], the popular pages scattered over the file.
pub fn zipf(pages: u64, count: u64, seed: u64) -> Vec<u64> {
    let ranks = Zipf::new(pages, ZIPF_SKEW);
    let scatter = Scatter::new(pages);
    let mut random = Random::new(seed);
    (0..count).map(|_| scatter.page(ranks.rank(&mut random) - 1)).collect()
}

/// Where the words lie that a round of updates increments: every one whole and inside the file.
pub fn update_offsets(file_len: u64, count: u64, seed: u64) -> Vec<u64> {
    let words_of = |page: u64| (file_len - page * PAGE).min(PAGE) / 8;
    let pages = if words_of((file_len - 1) / PAGE) == 0 { file_len / PAGE } else { file_len.div_ceil(PAGE) };
    if pages == 0 {
        return Vec::new();
    }
    let mut random = Random::new(seed ^ 0x7570_6461_7465);
    uniform(pages, count, seed)
        .into_iter()
        .map(|page| page * PAGE + random.below(words_of(page)) * 8)
        .collect()
}

/// Zipf-distributed ranks by rejection inversion (Hörmann and Derflinger, 1996): no table of the file's size.
struct Zipf {
    ranks: f64,
    skew: f64,
    h_first: f64,
    h_last: f64,
    shortcut: f64,
}

impl Zipf {
    fn new(ranks: u64, skew: f64) -> Self {
        let mut zipf = Self { ranks: ranks as f64, skew, h_first: 0.0, h_last: 0.0, shortcut: 0.0 };
        zipf.h_first = zipf.h(1.5) - 1.0;
        zipf.h_last = zipf.h(zipf.ranks + 0.5);
        zipf.shortcut = 2.0 - zipf.h_inverse(zipf.h(2.5) - 2f64.powf(-skew));
        zipf
    }

    /// An integral of `x^-skew`.
    fn h(&self, x: f64) -> f64 {
        (x.powf(1.0 - self.skew) - 1.0) / (1.0 - self.skew)
    }

    fn h_inverse(&self, y: f64) -> f64 {
        (1.0 + y * (1.0 - self.skew)).powf(1.0 / (1.0 - self.skew))
    }

    /// A rank in `1..=ranks`.
    fn rank(&self, random: &mut Random) -> u64 {
        loop {
            let u = self.h_last + random.unit() * (self.h_first - self.h_last);
            let x = self.h_inverse(u);
            let rank = x.round().clamp(1.0, self.ranks);
            if rank - x <= self.shortcut || u >= self.h(rank + 0.5) - rank.powf(-self.skew) {
                return rank as u64;
            }
        }
    }
}

/// A permutation of `0..pages`: neighbours in popularity are not neighbours in the file.
struct Scatter {
    pages: u64,
    factor: u64,
}

impl Scatter {
    fn new(pages: u64) -> Self {
        // The golden ratio's share of the file, made coprime to its length, so that the multiplication is a permutation.
        let mut factor = ((pages as f64 * 0.618_033_988_749_895) as u64).max(1);
        while gcd(factor, pages) != 1 {
            factor += 1;
        }
        Self { pages, factor }
    }

    fn page(&self, rank: u64) -> u64 {
        // The 0x5bd1 moves the most popular page away from the head of the file.
        ((u128::from(rank) + 0x5bd1) * u128::from(self.factor) % u128::from(self.pages)) as u64
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_same_seed_gives_the_same_pages() {
        assert_eq!(zipf(1000, 500, 7), zipf(1000, 500, 7));
        assert_ne!(zipf(1000, 500, 7), zipf(1000, 500, 8));
        assert_eq!(uniform(1000, 500, 7), uniform(1000, 500, 7));
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // The numbers that https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64 gives for this seed.
        let mut random = Random::new(1_234_567);
        assert_eq!(random.bits(), 6_457_827_717_110_365_317);
        assert_eq!(random.bits(), 3_203_168_211_198_807_973);
        assert_eq!(random.bits(), 9_817_491_932_198_370_423);
    }

    #[test]
    fn uniform_covers_the_file_evenly() {
        let mut counts = [0u32; 10];
        for page in uniform(1000, 100_000, 3) {
            counts[(page / 100) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }

    #[test]
    fn zipf_ranks_follow_the_law() {
        let (pages, draws) = (10_000u64, 400_000u64);
        let ranks = Zipf::new(pages, ZIPF_SKEW);
        let mut random = Random::new(11);
        let mut counts: HashMap<u64, u64> = HashMap::new();
        for _ in 0..draws {
            *counts.entry(ranks.rank(&mut random)).or_default() += 1;
        }
        let zeta: f64 = (1..=pages).map(|rank| (rank as f64).powf(-ZIPF_SKEW)).sum();
        for rank in [1, 2, 3, 10, 50] {
            let expected = draws as f64 * (rank as f64).powf(-ZIPF_SKEW) / zeta;
            let seen = counts[&rank] as f64;
            assert!((seen - expected).abs() < 5.0 * expected.sqrt(), "rank {rank}: {seen} of {expected}");
        }
        assert!(counts.keys().all(|rank| (1..=pages).contains(rank)));
    }

    #[test]
    fn scatter_is_a_permutation() {
        for pages in [1, 2, 3, 16, 1000, 4097] {
            let scatter = Scatter::new(pages);
            let mut seen: Vec<u64> = (0..pages).map(|rank| scatter.page(rank)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..pages).collect::<Vec<_>>());
        }
    }

    #[test]
    fn tiny_files_work() {
        assert!(zipf(1, 100, 1).iter().all(|page| *page == 0));
        assert!(zipf(2, 100, 1).iter().all(|page| *page < 2));
    }

    #[test]
    fn updates_stay_inside_the_file() {
        for file_len in [8, 9, 4096, 4097, 4103, 4104, 3 * 4096 + 20] {
            let offsets = update_offsets(file_len, 300, 5);
            assert_eq!(offsets.len(), 300);
            assert!(offsets.iter().all(|offset| offset % 8 == 0 && offset + 8 <= file_len), "{file_len}");
        }
        assert!(update_offsets(7, 10, 5).is_empty());
    }
}
