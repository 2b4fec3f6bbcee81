//! The header and its validation.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::short;
use crate::shape::Dims;

/// Bytes of the header.
pub const MAX_HEADER: usize = 100_000_000;
/// Tensors of one file, and entries of its metadata.
pub const MAX_TENSORS: usize = 100_000;
/// Dimensions of one tensor.
pub const MAX_DIMS: usize = 32;

pub(super) const METADATA: &str = "__metadata__";

/// (name in the file, bits per element, our type)
pub(super) const DTYPES: [(&str, usize, Option<DType>); 22] = [
    ("F32", 32, Some(DType::F32)),
    ("F16", 16, Some(DType::F16)),
    ("BF16", 16, Some(DType::BF16)),
    ("F64", 64, Some(DType::F64)),
    ("U8", 8, Some(DType::U8)),
    ("I32", 32, Some(DType::I32)),
    ("I64", 64, Some(DType::I64)),
    ("BOOL", 8, Some(DType::U8)),
    ("I8", 8, None),
    ("I16", 16, None),
    ("U16", 16, None),
    ("U32", 32, None),
    ("U64", 64, None),
    ("C64", 64, None),
    ("F4", 4, None),
    ("F6_E2M3", 6, None),
    ("F6_E3M2", 6, None),
    ("F8_E4M3", 8, None),
    ("F8_E5M2", 8, None),
    ("F8_E8M0", 8, None),
    ("F8_E4M3FNUZ", 8, None),
    ("F8_E5M2FNUZ", 8, None),
];

/// What the header says of one tensor, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// As the file names it.
    pub dtype_name: String,
    /// `None` for a type that this crate has no tensors of; such tensors are listed, but not read.
    pub dtype: Option<DType>,
    pub dims: Dims,
    /// Byte range, counted from the end of the header.
    pub begin: usize,
    pub end: usize,
}

/// A validated header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
    /// Where the data begins in the file.
    pub(super) data: usize,
}

impl Header {
    /// Validates a whole file. `path` serves the messages alone.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        Header::check(file).map_err(|reason| Error::file(path, reason))
    }

    fn check(file: &[u8]) -> std::result::Result<Self, String> {
        let Some((len, rest)) = file.split_first_chunk::<8>() else {
            return Err(format!("is truncated: {} bytes, a header length takes 8", file.len()));
        };
        let claimed = u64::from_le_bytes(*len);
        let len = usize::try_from(claimed).ok().filter(|&n| n <= MAX_HEADER);
        let len = len.ok_or_else(|| {
            format!(
                "claims a header of {claimed} bytes, at most {MAX_HEADER} are accepted; is this a safetensors file?"
            )
        })?;
        if len > rest.len() {
            return Err(format!("is truncated: the header takes {len} bytes, {} follow its length", rest.len()));
        }
        let (text, data) = rest.split_at(len);
        let text = std::str::from_utf8(text).map_err(|e| format!("has a header that is not UTF-8: {e}"))?;
        if !text.starts_with('{') {
            return Err("has a header that does not begin with `{`".into());
        }
        let raw: RawHeader = serde_json::from_str(text).map_err(|e| format!("has an invalid header: {e}"))?;
        let mut tensors = BTreeMap::new();
        for (name, entry) in raw.tensors {
            let info = entry.check().map_err(|reason| format!("tensor `{}` {reason}", short(&name)))?;
            tensors.insert(name, info);
        }
        tile(&tensors, data.len())?;
        Ok(Header { tensors, metadata: raw.metadata, data: 8 + len })
    }

    /// Sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

/// The ranges must cover the data from first to last byte, none twice.
fn tile(tensors: &BTreeMap<String, TensorInfo>, data: usize) -> std::result::Result<(), String> {
    let mut ranges: Vec<_> = tensors.iter().map(|(name, t)| (t.begin, t.end, name)).collect();
    ranges.sort_unstable();
    let mut covered = 0;
    for (begin, end, name) in ranges {
        if begin != covered {
            let what = if begin < covered { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(format!("tensor `{}` at bytes {begin}..{end} {what}, which ends at {covered}", short(name)));
        }
        covered = end;
    }
    match covered {
        _ if covered > data => Err(format!("is truncated: its tensors take {covered} bytes, {data} follow the header")),
        _ if covered < data => Err(format!("has {} bytes after its last tensor", data - covered)),
        _ => Ok(()),
    }
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    offsets: [usize; 2],
}

impl RawTensor {
    fn check(self) -> std::result::Result<TensorInfo, String> {
        let RawTensor { dtype, shape, offsets: [begin, end] } = self;
        if begin > end {
            return Err(format!("ends at byte {end}, before its begin {begin}"));
        }
        let known = DTYPES.iter().find(|(name, ..)| *name == dtype);
        let bits = known.map_or(1, |(_, bits, _)| *bits);
        // Zeros are left out, so that not even a part of an empty shape overflows later.
        let product = shape.iter().filter(|&&d| d != 0).try_fold(bits, |n, &d| n.checked_mul(d));
        let product = product.filter(|&n| n / 8 <= isize::MAX as usize);
        let bits = product.ok_or_else(|| format!("of shape {shape:?} is too large: its size overflows"))?;
        let bits = if shape.contains(&0) { 0 } else { bits };
        if known.is_some() && (bits % 8 != 0 || bits / 8 != end - begin) {
            let bytes = bits.div_ceil(8);
            return Err(format!(
                "of shape {shape:?} in {dtype} takes {bytes} bytes, its range {begin}..{end} has {}",
                end - begin
            ));
        }
        let ours = known.and_then(|(_, _, ours)| *ours);
        Ok(TensorInfo { dtype: ours, dims: Dims::from_vec(shape), begin, end, dtype_name: dtype })
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut out = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("the name `{}` comes twice", short(&name))));
                    }
                    if name == METADATA {
                        out.metadata = map.next_value::<Option<Texts>>()?.map_or_else(BTreeMap::new, |texts| texts.0);
                        continue;
                    }
                    if out.tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors, the most accepted")));
                    }
                    out.tensors.push((name, map.next_value()?));
                }
                Ok(out)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for RawTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawTensor;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawTensor, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(field) = map.next_key::<String>()? {
                    let again = match field.as_str() {
                        "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                        "shape" => shape.replace(map.next_value::<Shape>()?.0).is_some(),
                        "data_offsets" => offsets.replace(map.next_value::<[usize; 2]>()?).is_some(),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if again {
                        return Err(A::Error::custom(format!("the field `{field}` comes twice")));
                    }
                }
                Ok(RawTensor {
                    dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
                    shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
                    offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
                })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Dimensions, refused before they are many.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Shape, A::Error> {
                let mut out = Vec::new();
                while let Some(dim) = items.next_element()? {
                    if out.len() == MAX_DIMS {
                        return Err(A::Error::custom(format!("more than {MAX_DIMS} dimensions, the most accepted")));
                    }
                    out.push(dim);
                }
                Ok(Shape(out))
            }
        }
        deserializer.deserialize_seq(Items)
    }
}

struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Texts, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    if out.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} entries of metadata")));
                    }
                    if let Some(name) = out.insert(name.clone(), value).map(|_| name) {
                        return Err(A::Error::custom(format!("the metadata `{}` comes twice", short(&name))));
                    }
                }
                Ok(Texts(out))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Files made by hand.
#[cfg(test)]
pub(super) mod testing {
    pub fn file(header: &str, data: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(header.as_bytes());
        out.resize(out.len() + data, 7);
        out
    }

    pub fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    pub fn entries(parts: &[String]) -> String {
        format!("{{{}}}", parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{entries, entry, file};
    use super::*;

    fn refused(bytes: &[u8], reason: &str) {
        let error = Header::parse(Path::new("x.safetensors"), bytes).unwrap_err().to_string();
        assert!(error.contains(reason) && error.starts_with("x.safetensors: "), "expected {reason:?}, got {error}");
    }

    #[test]
    fn hostile_headers_are_refused_with_their_reason() {
        let e = entry;
        let one = entries(&[e("a", "F32", "[2]", 0, 8)]);
        Header::parse(Path::new("x"), &file(&one, 8)).unwrap();
        refused(&[], "truncated");
        refused(&file(&one, 7), "truncated: its tensors take 8 bytes, 7 follow");
        refused(&file(&one, 9), "1 bytes after its last tensor");
        refused(&file(&one, 8)[..20], "truncated: the header");
        refused(&u64::MAX.to_le_bytes(), "at most 100000000");
        refused(&100_000_001u64.to_le_bytes(), "at most 100000000");
        refused(&file("{}\u{0}", 0), "invalid header");
        refused(&file("[]", 0), "does not begin with");
        refused(&file(" {}", 0), "does not begin with");
        let mut bad = file("{\"a\"}", 0);
        bad[10] = 0xFF;
        refused(&bad, "not UTF-8");
        let twice = entries(&[e("a", "U8", "[1]", 0, 1), e("a", "U8", "[1]", 1, 2)]);
        refused(&file(&twice, 2), "`a` comes twice");
        let overlap = entries(&[e("a", "U8", "[2]", 0, 2), e("b", "U8", "[2]", 1, 3)]);
        refused(&file(&overlap, 3), "overlaps");
        let same = entries(&[e("a", "U8", "[2]", 0, 2), e("b", "U8", "[2]", 0, 2)]);
        refused(&file(&same, 2), "overlaps");
        let gap = entries(&[e("a", "U8", "[1]", 0, 1), e("b", "U8", "[1]", 2, 3)]);
        refused(&file(&gap, 3), "gap");
        refused(&file(&entries(&[e("a", "U8", "[1]", 1, 2)]), 2), "gap");
        refused(&file(&entries(&[e("a", "F32", "[3]", 0, 8)]), 8), "takes 12 bytes");
        refused(&file(&entries(&[e("a", "F4", "[3]", 0, 2)]), 2), "takes 2 bytes");
        refused(&file(&entries(&[e("a", "U8", "[1]", 2, 1)]), 1), "before its begin");
        let huge = entries(&[e("a", "F32", "[4294967296,4294967296]", 0, 8)]);
        refused(&file(&huge, 8), "overflows");
        let empty_but_huge = entries(&[e("a", "F32", "[0,4294967296,4294967296]", 0, 0)]);
        refused(&file(&empty_but_huge, 0), "overflows");
        refused(&file(&entries(&[e("a", "U8", "[-1]", 0, 1)]), 1), "invalid header");
        refused(&file(&entries(&[e("a", "U8", "[1.0]", 0, 1)]), 1), "invalid header");
        refused(&file(&entries(&[e("a", "U8", "[99999999999999999999]", 0, 1)]), 1), "invalid header");
        refused(&file(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1), "data_offsets");
        refused(&file(r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1), "twice");
        refused(&file(r#"{"__metadata__":{"k":1}}"#, 0), "invalid header");
        refused(&file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0), "twice");
        let dims = format!("[{}]", vec!["1"; 33].join(","));
        refused(&file(&entries(&[e("a", "U8", &dims, 0, 1)]), 1), "32 dimensions");
        refused(&file(&"[".repeat(1000), 0), "does not begin");
        refused(&file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0), "invalid header");
    }

    #[test]
    fn a_million_tensors_are_refused_early() {
        let parts: Vec<_> = (0..1_000_000).map(|i| entry(&i.to_string(), "U8", "[0]", 0, 0)).collect();
        refused(&file(&entries(&parts), 0), "more than 100000 tensors");
    }
}
