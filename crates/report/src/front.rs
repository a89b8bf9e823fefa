//! Which rows a reader may forget: others are better in everything.

use crate::row::Row;

/// Whether another row, the full network too, is at least as fast and as good, and better in one of the two. Oracles know
/// what no strategy can, so that they beat none and are beaten by none; a band of random sets is no strategy.
pub(crate) fn is_beaten(row: &Row<'_>, rows: &[Row<'_>], metric: &str) -> bool {
    let place = |row: &Row<'_>| {
        let score = row.score(metric)?;
        let sign = if score.kind.higher_is_better() {
            1.0
        } else {
            -1.0
        };
        Some((row.achieved()?, sign * score.score))
    };
    let is_apart = |row: &Row<'_>| row.record.strategy.is_oracle || row.sets.is_some();
    let Some((speed, quality)) = place(row) else {
        return false;
    };
    if row.is_full() || is_apart(row) {
        return false;
    }
    let others = rows.iter().filter(|other| !is_apart(other));
    others
        .filter_map(place)
        .any(|(other_speed, other_quality)| {
            other_speed >= speed
                && other_quality >= quality
                && (other_speed > speed || other_quality > quality)
        })
}
