//! The most similar of a row.

/// Keeps the k most similar of `found`, columns and similarities, in the order of the columns. Of equals the smaller column stays.
pub fn keep_top(found: &mut Vec<(u32, f32)>, k: usize) {
    if found.len() <= k {
        return;
    }
    // Similarities are finite, so that this is a total order; no two entries are equal.
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    found.select_nth_unstable_by(k, order);
    found.truncate(k);
    found.sort_unstable_by_key(|&(j, _)| j);
}
