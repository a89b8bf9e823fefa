//! The rule that no n-gram occurs twice.

/// The ids that would repeat an n-gram of `sequence` if they came next. `n` is at least 1.
pub(crate) fn banned(sequence: &[u32], n: usize) -> Vec<u32> {
    if n == 0 || sequence.len() + 1 < n {
        return Vec::new();
    }
    let ending = &sequence[sequence.len() + 1 - n..];
    sequence
        .windows(n)
        .filter(|window| window[..n - 1] == *ending)
        .map(|window| window[n - 1])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::banned;

    #[test]
    fn what_followed_the_same_words_is_banned() {
        assert_eq!(banned(&[1, 2, 3, 9, 1, 2, 4, 1, 2], 3), [3, 4]);
        assert_eq!(banned(&[1, 2], 3), [0; 0]);
        assert_eq!(banned(&[1], 3), [0; 0]);
        assert_eq!(banned(&[5, 6, 5], 1), [5, 6, 5]);
        assert_eq!(banned(&[5, 6, 5], 2), [6]);
        assert_eq!(banned(&[], 1), [0; 0]);
    }
}
