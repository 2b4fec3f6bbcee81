//! safetensors: `u64` header length, a JSON header of names, dtypes, shapes and byte ranges, then the bytes.
//!
//! Reading maps the file and validates all of it before anything is allocated in proportion to what it claims: the limits
//! below, unique names, checked products, byte ranges that tile the data without overlap or gap, exact file length. The
//! reference reader of the format accepts the same files, except that it keeps the last of two equal names.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::atomic::{Sink, write_file};
use super::json::Json;
use super::{file_len, short};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::{Dims, Layout};
use crate::tensor::Tensor;

/// Bytes of the header.
pub const MAX_HEADER: usize = 100_000_000;
/// Tensors of one file, and entries of its metadata.
pub const MAX_TENSORS: usize = 100_000;
/// Dimensions of one tensor.
pub const MAX_DIMS: usize = 32;

const METADATA: &str = "__metadata__";

/// (name in the file, bits per element, our type)
const DTYPES: [(&str, usize, Option<DType>); 22] = [
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
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
    /// Where the data begins in the file.
    data: usize,
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

/// A mapped file. Tensors on the CPU are views of the map, so a trunk costs no memory of its own; the file must not be changed
/// in place while any of them lives (nothing in this crate does so).
#[derive(Clone, Debug)]
pub struct SafeTensors {
    path: PathBuf,
    map: Arc<memmap2::Mmap>,
    header: Header,
}

impl SafeTensors {
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if file_len(path)? < 8 {
            return Err(Error::file(path, "is truncated: a safetensors file has at least 8 bytes"));
        }
        let map = Device::map_file(path)?;
        let header = Header::parse(path, &map)?;
        Ok(SafeTensors { path: path.to_path_buf(), map, header })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.names()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    pub fn len(&self) -> usize {
        self.header.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.header.tensors.is_empty()
    }

    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.header.metadata()
    }

    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.get(name).ok_or_else(|| {
            let some: Vec<_> = self.names().take(5).map(short).collect();
            let reason = format!("has no tensor `{}`; it holds {}: {} …", short(name), self.len(), some.join(", "));
            Error::file(&self.path, reason)
        })
    }

    /// On the CPU a view of the map (a copy where the file holds the tensor misaligned); on a GPU an upload.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let info = self.info(name)?;
        let Some(dtype) = info.dtype else {
            let what = format!("{}: tensor `{}` is {}", self.path.display(), short(name), short(&info.dtype_name));
            let hint = "convert it to F32, F16, BF16, F64, U8, I32 or I64".into();
            return Err(Error::Unsupported { op: "safetensors", what, hint });
        };
        let (begin, len) = (self.header.data + info.begin, info.end - info.begin);
        if device.is_cpu() && begin % dtype.size() == 0 {
            let buffer = device.mapped(&self.map, begin, len)?;
            return Tensor::view_of(&buffer, dtype, Layout::contiguous(&info.dims));
        }
        let out = Tensor::empty(device, &info.dims, dtype)?;
        out.set_bytes(&self.map[begin..begin + len])?;
        Ok(out)
    }
}

/// Writes a file that replaces `path` whole or not at all. The same tensors give the same bytes: widest elements first, so
/// that each tensor is aligned, then by name.
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    write_file(path, |sink| write_into(sink, path, tensors, metadata))
}

/// The same into a file of a transaction. `path` serves the messages alone.
pub(super) fn write_into(
    sink: &mut Sink<'_>,
    path: &Path,
    mut tensors: Vec<(&str, &Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    tensors.sort_by(|a, b| b.1.dtype().size().cmp(&a.1.dtype().size()).then(a.0.cmp(b.0)));
    sink.write(&encode_header(path, &tensors, metadata)?)?;
    tensors.iter().try_for_each(|(_, tensor)| sink.write(&tensor.to_bytes()?))
}

fn encode_header(path: &Path, tensors: &[(&str, &Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        let texts = metadata.iter().map(|(name, text)| (name.clone(), Json::text(text))).collect();
        entries.push((METADATA.to_owned(), Json::Object(texts)));
    }
    let whole = |n: usize| Json::Number((n as u64).into());
    let (mut begin, mut seen) = (0usize, HashSet::new());
    for (name, tensor) in tensors {
        if *name == METADATA || !seen.insert(*name) {
            return Err(Error::file(path, format!("cannot hold a tensor named `{}`, which is taken", short(name))));
        }
        if tensor.dims().len() > MAX_DIMS {
            return Err(Error::shape("safetensors", "tensor", format!("at most {MAX_DIMS} dimensions"), tensor.dims()));
        }
        let end = begin.checked_add(tensor.byte_len());
        let end = end.ok_or_else(|| Error::SizeOverflow { op: "safetensors", dims: tensor.dims().to_vec() })?;
        let dtype = DTYPES.iter().find(|(.., ours)| *ours == Some(tensor.dtype())).map_or("", |(name, ..)| name);
        let fields = vec![
            ("dtype".to_owned(), Json::text(dtype)),
            ("shape".to_owned(), Json::List(tensor.dims().iter().map(|&d| whole(d)).collect())),
            ("data_offsets".to_owned(), Json::List(vec![whole(begin), whole(end)])),
        ];
        entries.push(((*name).to_owned(), Json::Object(fields)));
        begin = end;
    }
    let text = serde_json::to_string(&Json::Object(entries)).map_err(|e| Error::file(path, e))?;
    let len = text.len().next_multiple_of(8);
    if len > MAX_HEADER || tensors.len() > MAX_TENSORS || metadata.len() > MAX_TENSORS {
        let reason = format!(
            "would take {} tensors and a header of {len} bytes; the limits are {MAX_TENSORS} and {MAX_HEADER}",
            tensors.len()
        );
        return Err(Error::file(path, reason));
    }
    let mut out = (len as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out.resize(8 + len, b' ');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(header.as_bytes());
        out.resize(out.len() + data, 7);
        out
    }

    fn refused(bytes: &[u8], reason: &str) {
        let error = Header::parse(Path::new("x.safetensors"), bytes).unwrap_err().to_string();
        assert!(error.contains(reason) && error.starts_with("x.safetensors: "), "expected {reason:?}, got {error}");
    }

    fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn entries(parts: &[String]) -> String {
        format!("{{{}}}", parts.join(","))
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

    #[test]
    fn unknown_types_are_listed_and_refused_when_asked_for() {
        let scratch = Scratch::new("types");
        let path = scratch.path().join("f");
        let header =
            entries(&[entry("a", "I16", "[2]", 0, 4), entry("b", "Q7", "[3]", 4, 9), entry("c", "BOOL", "[1]", 9, 10)]);
        std::fs::write(&path, file(&header, 10)).unwrap();
        let open = SafeTensors::open(&path).unwrap();
        assert_eq!(open.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(open.info("b").unwrap().dtype_name, "Q7");
        let error = open.tensor("a", &Device::cpu()).unwrap_err().to_string();
        assert!(error.contains("`a` is I16"), "{error}");
        assert_eq!(open.tensor("c", &Device::cpu()).unwrap().to_vec::<u8>().unwrap(), [7]);
        let error = open.tensor("d", &Device::cpu()).unwrap_err().to_string();
        assert!(error.contains("no tensor `d`") && error.contains("a, b, c"), "{error}");
    }

    #[test]
    fn misaligned_and_empty_tensors_are_read() {
        let scratch = Scratch::new("misaligned");
        let path = scratch.path().join("f");
        let header = entries(&[
            entry("byte", "U8", "[1]", 0, 1),
            entry("odd", "F32", "[2]", 1, 9),
            entry("none", "F32", "[0,3]", 9, 9),
            entry("scalar", "I64", "[]", 9, 17),
        ]);
        std::fs::write(&path, file(&header, 17)).unwrap();
        let open = SafeTensors::open(&path).unwrap();
        let cpu = Device::cpu();
        let seven = f32::from_le_bytes([7; 4]);
        assert_eq!(open.tensor("odd", &cpu).unwrap().to_vec::<f32>().unwrap(), [seven, seven]);
        assert!(open.tensor("none", &cpu).unwrap().to_vec::<f32>().unwrap().is_empty());
        assert_eq!(open.tensor("scalar", &cpu).unwrap().dims(), [0usize; 0]);
    }

    #[test]
    fn what_is_written_comes_back_as_views_of_the_map() {
        let scratch = Scratch::new("roundtrip");
        let path = scratch.path().join("f.safetensors");
        let cpu = Device::cpu();
        let a = Tensor::from_slice(&cpu, &[2, 3], &[1.0f32, -0.0, f32::NAN, 3.0, 4.0, 5.0]).unwrap();
        let b = Tensor::from_f32(&cpu, &[3], &[0.5, 1.5, 2.5], DType::BF16).unwrap();
        let c = Tensor::from_slice(&cpu, &[2], &[1.0f64 / 3.0, -1.0]).unwrap();
        let d = Tensor::from_slice(&cpu, &[1], &[9u8]).unwrap();
        let transposed = a.transpose(0, 1).unwrap();
        let metadata = BTreeMap::from([("format".to_owned(), "pt \"quoted\" ü".to_owned())]);
        let tensors = [("d", &d), ("b", &b), ("a", &a), ("c", &c), ("t", &transposed)];
        write(&path, tensors, &metadata).unwrap();
        let first = std::fs::read(&path).unwrap();
        write(&path, tensors.into_iter().rev(), &metadata).unwrap();
        assert_eq!(first, std::fs::read(&path).unwrap(), "the order of the arguments does not matter");
        let open = SafeTensors::open(&path).unwrap();
        assert_eq!(open.metadata(), &metadata);
        let before = cpu.allocated_bytes();
        for (name, tensor) in tensors {
            let read = open.tensor(name, &cpu).unwrap();
            assert_eq!((read.dims(), read.dtype()), (tensor.dims(), tensor.dtype()));
            assert_eq!(read.to_bytes().unwrap(), tensor.to_bytes().unwrap());
        }
        assert_eq!(cpu.allocated_bytes(), before, "views allocate nothing");
        assert!(open.tensor("a", &cpu).unwrap().zero().is_err(), "a mapped tensor is read-only");
        assert!(write(&path, [("a", &a), ("a", &b)], &metadata).is_err());
        assert!(write(&path, [("__metadata__", &a)], &metadata).is_err());
        assert_eq!(first, std::fs::read(&path).unwrap(), "a refused write leaves the old file");
    }

    #[test]
    fn directories_and_missing_files_are_named() {
        let scratch = Scratch::new("missing");
        let error = SafeTensors::open(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("is a directory"), "{error}");
        assert!(matches!(SafeTensors::open(scratch.path().join("none")), Err(Error::Io { .. })));
        std::fs::write(scratch.path().join("empty"), []).unwrap();
        assert!(SafeTensors::open(scratch.path().join("empty")).unwrap_err().to_string().contains("truncated"));
    }
}
