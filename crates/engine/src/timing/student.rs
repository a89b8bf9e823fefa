//! Student's t distribution.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The value below which a share `p`, of more than 0 and less than 1, lies with so many degrees of freedom.
pub(super) fn quantile(p: f64, degrees: f64) -> f64 {
    match student(degrees) {
        Some(student) if p > 0.0 && p < 1.0 => student.inverse_cdf(p),
        _ => f64::INFINITY,
    }
}

/// The share above `statistic`.
pub(super) fn upper_tail(statistic: f64, degrees: f64) -> f64 {
    match student(degrees) {
        Some(student) if statistic.is_finite() => student.sf(statistic),
        _ if statistic > 0.0 => 0.0,
        _ => 1.0,
    }
}

fn student(degrees: f64) -> Option<StudentsT> {
    StudentsT::new(0.0, 1.0, degrees).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_printed_tables() {
        for (degrees, printed) in [(1.0, 12.706), (2.0, 4.303), (7.0, 2.365), (30.0, 2.042)] {
            assert!(
                (quantile(0.975, degrees) - printed).abs() < 5e-4,
                "{degrees}"
            );
            assert!(
                (upper_tail(printed, degrees) - 0.025).abs() < 5e-5,
                "{degrees}"
            );
        }
        assert!(
            (quantile(0.95, 2.5) - 2.558).abs() < 2e-3,
            "degrees need not be whole"
        );
    }

    #[test]
    fn no_spread_at_all_leaves_no_doubt() {
        assert_eq!(upper_tail(f64::INFINITY, 3.0), 0.0);
        assert_eq!(upper_tail(f64::NEG_INFINITY, 3.0), 1.0);
        assert_eq!(upper_tail(f64::NAN, 3.0), 1.0);
    }
}
