//! Student's t distribution, for what is said of measurements.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// The value below which a share `p`, of more than 0 and less than 1, lies with so many degrees of freedom.
pub fn quantile(p: f64, degrees: f64) -> f64 {
    if !(p > 0.0 && p < 1.0) {
        return f64::INFINITY;
    }
    match StudentsT::new(0.0, 1.0, degrees) {
        _ if degrees > AS_GOOD_AS_NORMAL => Normal::standard().inverse_cdf(p),
        Ok(student) => student.inverse_cdf(p),
        Err(_) => f64::INFINITY,
    }
}

/// The share above `statistic`.
pub fn upper_tail(statistic: f64, degrees: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, degrees) {
        _ if !statistic.is_finite() => f64::from(statistic != f64::INFINITY),
        _ if degrees > AS_GOOD_AS_NORMAL => Normal::standard().sf(statistic),
        Ok(student) => student.sf(statistic),
        Err(_) => f64::from(statistic <= 0.0),
    }
}

/// With more degrees of freedom the normal distribution agrees in four digits, and the library's search for a quantile of
/// Student's loses its own or does not come to an end.
const AS_GOOD_AS_NORMAL: f64 = 1e4;

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
        for many in [1e8, 1e300, f64::INFINITY] {
            assert!((quantile(0.975, many) - 1.959_964).abs() < 1e-5, "{many}");
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
