//! Files of vectors: what programs put out, by their names. Inputs follow from the name, so they are not kept.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

pub struct Golden {
    /// Where the vectors are from: a device, or the ISA.
    pub source: String,
    pub driver: Option<String>,
    pub date: String,
    pub vectors: BTreeMap<String, Vec<u8>>,
}

impl Golden {
    pub fn to_json(&self) -> String {
        let hex = |b: &[u8]| b.iter().map(|x| format!("{x:02x}")).collect::<String>();
        let vectors: BTreeMap<&str, String> = self.vectors.iter().map(|(k, v)| (k.as_str(), hex(v))).collect();
        let value = json!({ "source": self.source, "driver": self.driver, "date": self.date, "vectors": vectors });
        format!("{value:#}\n")
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "for the tests that replay a file"))]
    pub fn from_json(text: &str) -> Result<Golden, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let word = |key: &str| value[key].as_str().map(str::to_string);
        let mut vectors = BTreeMap::new();
        for (id, hex) in value["vectors"].as_object().ok_or("no vectors")? {
            let hex = hex.as_str().ok_or("a vector that is no text")?;
            let bytes =
                (0..hex.len() / 2).map(|i| hex.get(2 * i..2 * i + 2).and_then(|h| u8::from_str_radix(h, 16).ok()));
            vectors.insert(
                id.clone(),
                bytes.collect::<Option<Vec<u8>>>().ok_or_else(|| format!("{id}: not hexadecimal"))?,
            );
        }
        let date = word("date").unwrap_or_default();
        Ok(Golden { source: word("source").ok_or("no source")?, driver: word("driver"), date, vectors })
    }
}

/// Today, as 2026-01-31.
pub fn today() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() / 86400) as i64;
    // Civil date from days since 1970: years begin in March, in eras of 400 years.
    let z = days + 719_468;
    let (era, day) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    let (m, d) = (if month < 10 { month + 3 } else { month - 9 }, in_year - (153 * month + 2) / 5 + 1);
    format!("{:04}-{m:02}-{d:02}", era * 400 + year + i64::from(m <= 2))
}
