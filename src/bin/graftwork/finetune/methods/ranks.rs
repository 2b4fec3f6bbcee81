//! Ranks that are left of each module, in files.

use std::path::Path;

use graftwork::adapters::sora::Ranks;
use graftwork::format::adapter::NativeAdapter;
use graftwork::{Device, Error, Result, Tensor};

/// One tensor a module, its name ending in `end`.
pub fn to_tensors(ranks: &Ranks, end: &str) -> Result<Vec<(String, Tensor)>> {
    let rank = |(module, &rank): (&String, &usize)| {
        Ok((format!("{module}{end}"), Tensor::from_slice(&Device::cpu(), &[1], &[rank as i64])?))
    };
    ranks.iter().map(rank).collect()
}

/// Takes them out of a file again.
pub fn take(dir: &Path, file: &mut NativeAdapter, end: &str) -> Result<Ranks> {
    let names: Vec<String> = file.tensors.keys().filter(|name| name.ends_with(end)).cloned().collect();
    let mut ranks = Ranks::new();
    for name in names {
        let Some(tensor) = file.tensors.remove(&name) else { continue };
        let rank = tensor.to_vec::<i64>()?.first().and_then(|&r| usize::try_from(r).ok());
        let bad = || Error::File { path: dir.into(), reason: format!("`{name}` holds no rank") };
        ranks.insert(name.trim_end_matches(end).to_string(), rank.ok_or_else(bad)?);
    }
    Ok(ranks)
}

/// For the table: `r≤8, 20 of 32 ranks`.
pub fn note(ranks: &Ranks, most: usize) -> String {
    if ranks.is_empty() {
        return format!("r={most}");
    }
    format!("r≤{most}, {} of {} ranks", ranks.values().sum::<usize>(), most * ranks.len())
}

/// Share of the ranks that is left.
pub fn density(ranks: &Ranks, most: usize) -> f64 {
    let all = most * ranks.len();
    if all == 0 { 1.0 } else { ranks.values().sum::<usize>() as f64 / all as f64 }
}
