//! Quality metrics that agree with the reference implementations to the last digit, with significance.
//!
//! | metric | names | as computed by | range |
//! | --- | --- | --- | --- |
//! | [`Bleu`] | `bleu`, `bleu-intl`, `bleu-zh`, `bleu-char`, `bleu-none` | sacrebleu 2.6.0 | 0..100 |
//! | [`Chrf`] | `chrf`, `chrf++` | sacrebleu 2.6.0 | 0..100 |
//! | [`Ter`] | `ter` | sacrebleu 2.6.0 | 0.., less is better |
//! | [`Rouge`] | `rouge1` .. `rouge9`, `rougeL`, `rougeLsum` | rouge_score 0.1.2 | 0..1 |
//! | [`ExactMatch`], [`Contains`] | `exact-match`, `contains` | lm-eval 0.4.13 | 0..1 |
//! | [`Accuracy`] | `acc`, `acc-norm` | lm-eval 0.4.13 | 0..1 |
//! | [`Perplexity`] | `perplexity`, `word-perplexity`, `byte-perplexity`, `bits-per-byte` | lm-eval 0.4.13 | 1.., less is better |
//! | [`Divergence`] | `kl`, `top1` | llama.cpp's `--kl-divergence` | 0.., less is better; 0..1 |
//! | [`Repetition`] | `repetition` | seq-rep-4 of arXiv 1908.04319 | 0..1, less is better |
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
//!     evaluation.signature(None),
//!     "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
//! );
//! # Ok::<(), skipbench_metrics::MetricError>(())
//! ```
//!
//! Case and white space are Python's. Where a character was assigned after the version of Unicode that some Python has,
//! lower-casing may differ there.

mod accuracy;
mod bleu;
mod chrf;
mod divergence;
mod evaluation;
mod exact_match;
mod lcs;
mod mcnemar;
mod metric;
mod ngrams;
mod perplexity;
mod porter;
mod repetition;
mod resample;
mod rouge;
mod segment;
mod ter;
mod text;
mod tokenizer;

pub use accuracy::Accuracy;
pub use bleu::{Bleu, Smoothing};
pub use chrf::Chrf;
pub use divergence::Divergence;
pub use evaluation::{Change, Evaluation, RANDOMISATION, evaluate, paired, tested};
pub use exact_match::{Contains, ExactMatch, LAST_NUMBER, Take};
pub use mcnemar::{McNemar, mcnemar};
pub use metric::{Metric, MetricError, Unit};
pub use perplexity::Perplexity;
pub use repetition::{Repetition, repeated_4_grams};
pub use resample::{Interval, Paired, Resampling, holm};
pub use rouge::{Rouge, RougeKind};
pub use segment::{
    Choice, Distance, Evidence, Hypotheses, Hypothesis, Reads, Reference, References,
    TextLikelihood,
};
pub use ter::Ter;
pub use tokenizer::Tokenizer;

use metric::yes_no;
use segment::Segment;

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

    /// Whether each segment is right or wrong, nothing between.
    fn is_right_or_wrong(&self) -> bool {
        false
    }

    /// Counts per segment.
    fn width(&self) -> usize;

    /// What it reads of a segment. A segment that has it not is no segment of this metric, but for [`Reads::Choices`], where
    /// it is a wrong answer, and [`Reads::Distance`], where nothing was there to differ from.
    fn reads(&self) -> Reads {
        Reads::Answer
    }

    /// Counts a segment into `out`: `[width]`.
    fn count(&self, scratch: &mut Scratch, segment: Segment<'_>, out: &mut [f64]);

    /// The score of `segments` segments whose counts add up to `sum`: `[width]`.
    fn score(&self, sum: &[f64], segments: usize) -> f64;

    /// The settings that a signature names.
    fn signature(&self) -> Vec<(&'static str, String)>;

    /// The program whose scores these are, with its version, as a signature ends.
    fn version(&self) -> String {
        format!("skipbench-{}", env!("CARGO_PKG_VERSION"))
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

/// The sacrebleu whose scores ours are.
const SACREBLEU_VERSION: &str = "2.6.0";

/// Buffers that are kept from one segment to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    ngrams: ngrams::Ngrams,
    lcs: lcs::Lcs,
}
