//! How answers fail that no score explains: they do not end, or they repeat themselves.

use skipbench_engine::End;
use skipbench_metrics::repeated_4_grams;
use skipbench_record::Answer;
use std::collections::HashSet;

/// Share of the answers that have the `most` tokens they may have and did not end there; failed ones count as ended.
pub(crate) fn truncated(answers: &[&Answer], most: usize) -> Option<f64> {
    // Records of before the end was kept: what ends shorter answers ends one of full length too.
    let last = |answer: &Answer| answer.tokens.last().copied();
    let shorter = answers.iter().filter(|answer| answer.tokens.len() < most);
    let ends: HashSet<u32> = shorter.filter_map(|answer| last(answer)).collect();
    let is_cut = |answer: &Answer| match answer.end {
        Some(end) => end == End::Length,
        None => answer.tokens.len() >= most && last(answer).is_none_or(|id| !ends.contains(&id)),
    };
    let cut = answers
        .iter()
        .filter(|answer| answer.error.is_none() && is_cut(answer));
    share(cut.count() as f64, answers.len())
}

/// Mean over the answers of [`repeated_4_grams`].
pub(crate) fn repetition(answers: &[&Answer]) -> Option<f64> {
    let repeated = answers
        .iter()
        .map(|answer| repeated_4_grams(&answer.tokens));
    share(repeated.sum(), answers.len())
}

fn share(part: f64, all: usize) -> Option<f64> {
    (all > 0).then(|| part / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skipbench_metrics::Evidence;

    fn answer(tokens: &[u32], end: Option<End>) -> Answer {
        Answer {
            cell: "c".to_owned(),
            id: "p".to_owned(),
            prompt_tokens: 1,
            tokens: tokens.to_vec(),
            text: String::new(),
            layers: Vec::new(),
            end,
            evidence: Evidence::default(),
            error: None,
        }
    }

    #[test]
    fn an_answer_that_ends_with_its_last_token_is_not_cut() {
        let all = [
            answer(&[1, 2, 3, 4], Some(End::Length)),
            answer(&[1, 2, 3, 9], Some(End::Eos)),
            answer(&[1, 2, 3, 5], Some(End::Stop)),
            answer(&[9], Some(End::Eos)),
        ];
        let all: Vec<&Answer> = all.iter().collect();
        assert_eq!(truncated(&all, 4), Some(0.25));
        assert_eq!(truncated(&[], 4), None);
    }

    #[test]
    fn records_that_do_not_say_why_an_answer_ended_tell_it_by_others() {
        let old = [
            answer(&[1, 9], None),
            answer(&[1, 2, 3, 9], None),
            answer(&[1, 2, 3, 4], None),
            answer(&[], None),
        ];
        let old: Vec<&Answer> = old.iter().collect();
        assert_eq!(truncated(&old, 4), Some(0.25));
        let mut failed = answer(&[], None);
        failed.error = Some("broken".to_owned());
        assert_eq!(truncated(&[&failed], 0), Some(0.0));
    }

    #[test]
    fn repeated_4_grams_are_counted_in_each_answer() {
        let loops = answer(&[7, 7, 7, 7, 7, 7, 7], None);
        assert_eq!(repetition(&[&loops]), Some(0.75), "one of four is new");
        let (fresh, short) = (
            answer(&[1, 2, 3, 4, 5, 1, 2, 3], None),
            answer(&[7, 7, 7], None),
        );
        assert_eq!(repetition(&[&fresh]), Some(0.0));
        assert_eq!(repetition(&[&loops, &fresh, &short]), Some(0.25));
        let again = answer(&[1, 2, 3, 4, 1, 2, 3, 4], None);
        assert_eq!(repetition(&[&again]), Some(0.2));
        assert_eq!(repetition(&[]), None);
    }
}
