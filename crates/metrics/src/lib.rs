//! Quality metrics that agree with the reference implementations to the last digit, with significance.
//!
//! | metric | names | as computed by | range |
//! | --- | --- | --- | --- |
//! | [`Bleu`] | `bleu`, `bleu-intl`, `bleu-zh`, `bleu-char`, `bleu-none` | sacrebleu 2.6.0 | 0..100 |
//! | [`Chrf`] | `chrf`, `chrf++` | sacrebleu 2.6.0 | 0..100 |
//! | [`Ter`] | `ter` | sacrebleu 2.6.0 | 0.., less is better |
//! | [`Rouge`] | `rouge1` .. `rouge9`, `rougeL`, `rougeLsum` | rouge_score 0.1.2 | 0..1 |
//!
//! Every metric turns a segment into a small vector of counts. The corpus score is a function of the sum of these
//! vectors, and so are sentence scores, bootstrap intervals and paired tests: a new metric has them all once it counts.
//! Adding one takes its own file and a variant of [`Metric`].
//!
//! ```
//! use skipbench_metrics::{Hypotheses, Metric, References, evaluate};
//!
//! let metric: Metric = "bleu".parse()?;
//! let hypotheses = Hypotheses::new(["The dog bit the man."]);
//! let references = References::single(["The dog had bit the man."])?;
//! let evaluation = evaluate(&metric, &hypotheses, &references)?;
//! assert_eq!(format!("{:.2}", evaluation.score()), "51.15");
//! assert_eq!(
//!     evaluation.signature(None).as_deref(),
//!     Some("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0")
//! );
//! # Ok::<(), skipbench_metrics::MetricError>(())
//! ```
//!
//! Case and white space are Python's. Where a character was assigned after the version of Unicode that some Python has,
//! lower-casing may differ there.

mod bleu;
mod chrf;
mod evaluation;
mod lcs;
mod mcnemar;
mod metric;
mod ngrams;
mod porter;
mod resample;
mod rouge;
mod ter;
mod text;
mod tokenizer;

pub use bleu::{Bleu, Smoothing};
pub use chrf::Chrf;
pub use evaluation::{Evaluation, Hypotheses, References, evaluate, paired};
pub use mcnemar::{McNemar, mcnemar};
pub use metric::{Metric, MetricError, Unit};
pub use resample::{Interval, Paired, Resampling, holm};
pub use rouge::{Rouge, RougeKind};
pub use ter::Ter;
pub use tokenizer::Tokenizer;

use metric::yes_no;

/// What a metric has to say of itself: what it counts and how counts become a score.
pub(crate) trait Counts: Sync {
    /// Name in a score line.
    fn label(&self) -> String;

    /// Range of the score.
    fn unit(&self) -> Unit;

    /// Whether a larger score is the better one.
    fn higher_is_better(&self) -> bool {
        true
    }

    /// Counts per segment.
    fn width(&self) -> usize;

    /// Counts a segment, which has at least one reference, into `out`: `[width]`.
    fn count(
        &self,
        scratch: &mut Scratch,
        hypothesis: &str,
        references: &[String],
        out: &mut [f64],
    );

    /// The score of `segments` segments whose counts add up to `sum`: `[width]`.
    fn score(&self, sum: &[f64], segments: usize) -> f64;

    /// The settings that a signature names; `None` for a metric without signatures.
    fn signature(&self) -> Option<Vec<(&'static str, String)>> {
        None
    }

    /// The numbers that the score is made of, by name.
    fn parts(&self, sum: &[f64], segments: usize) -> Vec<(&'static str, f64)> {
        let _ = (sum, segments);
        Vec::new()
    }

    /// What a score line says behind the score.
    fn details(&self, sum: &[f64], segments: usize) -> Option<String> {
        let _ = (sum, segments);
        None
    }
}

/// Buffers that are kept from one segment to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    ngrams: ngrams::Ngrams,
    lcs: lcs::Lcs,
}
