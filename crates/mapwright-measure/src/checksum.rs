//! The checksum that every method must agree on: the wrapping sum of the bytes as little-endian u64 words, the last word
//! padded with zeros. It does not depend on the order in which pages are read.

/// Sum of one page or of a run of pages that starts at a multiple of 8.
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    // Four sums side by side, so that the addition does not wait for itself.
    let (quads, singles) = words.as_chunks::<4>();
    let mut lanes = [0u64; 4];
    for quad in quads {
        for (lane, word) in lanes.iter_mut().zip(quad) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    let mut total = lanes.iter().fold(0u64, |a, b| a.wrapping_add(*b));
    for word in singles {
        total = total.wrapping_add(u64::from_le_bytes(*word));
    }
    let mut last = [0u8; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total.wrapping_add(u64::from_le_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_loop_at_every_length() {
        let bytes: Vec<u8> = (0..200u32).map(|i| (i * 37 % 251) as u8).collect();
        for len in 0..bytes.len() {
            let mut expected = 0u64;
            for (i, byte) in bytes[..len].iter().enumerate() {
                expected = expected.wrapping_add(u64::from(*byte) << (8 * (i % 8)));
            }
            assert_eq!(sum(&bytes[..len]), expected, "length {len}");
        }
    }

    #[test]
    fn pages_in_any_order_give_the_same_sum() {
        let bytes: Vec<u8> = (0..8192u32).map(|i| (i % 256) as u8).collect();
        assert_eq!(sum(&bytes), sum(&bytes[4096..]).wrapping_add(sum(&bytes[..4096])));
    }
}
